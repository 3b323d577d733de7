"""Celery's schedule with two planners: the one takes it over from the other."""

from __future__ import annotations

import signal
import textwrap

from tests.acceptance.project import Project

SCHEDULE = """
    @app.task(name="tick")
    def tick():
        from pymongo import MongoClient

        with MongoClient(os.environ["MONGODB_URL"]) as client:
            client.get_default_database().ticks.insert_one({})


    app.conf.beat_schedule = {"often": {"task": "tick", "schedule": 1.0}}
"""


def test_a_killed_planners_schedule_goes_on(project: Project) -> None:
    """B-67: a second planner with --beat makes beat highly available; no file is left, no run is sent twice."""
    module = project.folder / "proj.py"
    module.write_text(module.read_text() + textwrap.dedent(SCHEDULE))
    one = project.planner("one", "--beat")
    project.wait_until(lambda: project.leader() == "one")
    project.planner("two", "--beat")
    project.worker("-c", "1")
    ticks = project.database.ticks
    project.wait_until(lambda: ticks.count_documents({}) >= 2)
    one.send(signal.SIGKILL)
    project.wait_until(lambda: project.leader() == "two")
    before = ticks.count_documents({})
    project.wait_until(lambda: ticks.count_documents({}) >= before + 3)
    stored = project.database["_celery_reactive"].find_one({"_id": {"k": "beat", "n": "often"}})
    assert stored is not None
    assert ticks.count_documents({}) <= stored["runs"] + 1
    assert not list(project.folder.glob("celerybeat*"))
