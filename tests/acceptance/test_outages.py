"""A planner and a worker that lose their database or their broker while they run: they wait, and go on."""

from __future__ import annotations

import signal
import threading

import pytest

from celery_reactive import embedded
from tests.acceptance.project import Project

SECONDS_AWAY = 4.0


@pytest.fixture
def running(project: Project) -> Project:
    """A project with a worker and a leader, one document handled; the worker holds no message any more."""
    project.worker("--concurrency", "1")
    project.planner("planner")
    project.database.jobs.insert_one({"_id": "before", "do": "nothing"})
    for task in ("job", "coroutine"):
        project.wait_until(lambda task=task: project.record(task, "before").get("status") == "completed")
    return project


def test_a_database_that_is_away_is_waited_for(running: Project, mongo_server: embedded.MongoServer) -> None:
    """B-29, B-46: MongoDB stands still for longer than the leader's lock; what is written afterwards is handled."""
    if not isinstance(mongo_server, embedded.MongoServer):
        pytest.skip("only our own server may be stopped")
    mongo_server.suspend()
    threading.Event().wait(SECONDS_AWAY)
    mongo_server.resume()
    running.database.jobs.insert_one({"_id": "after", "do": "nothing"})
    running.wait_until(lambda: running.record("job", "after").get("status") == "completed", timeout=60)


def test_a_planner_stops_though_its_database_is_away(running: Project, mongo_server: embedded.MongoServer) -> None:
    """B-68: within the ten seconds that supervisors give, on a quiet machine; its lock runs out."""
    if not isinstance(mongo_server, embedded.MongoServer):
        pytest.skip("only our own server may be stopped")
    planner = running.planner("other")
    running.wait_until(lambda: "planner started" in planner.text())
    mongo_server.suspend()
    try:
        leader = next(process for process in running.processes if process.log.name.startswith("planner-"))
        for process in (leader, planner):
            process.send(signal.SIGTERM)
        assert [process.wait(timeout=30) for process in (leader, planner)] == [0, 0]
    finally:
        mongo_server.resume()


def test_a_broker_that_comes_back_empty_is_waited_for(running: Project, valkey_server: embedded.ValkeyServer) -> None:
    """B-22: the broker is killed with all it holds; a document written meanwhile is handled once it is back."""
    if not isinstance(valkey_server, embedded.ValkeyServer):
        pytest.skip("only our own server may be killed")
    valkey_server.kill()
    running.database.jobs.insert_one({"_id": "meanwhile", "do": "nothing"})
    running.wait_until(lambda: running.record("job", "meanwhile").get("status") == "pending")
    threading.Event().wait(SECONDS_AWAY)
    valkey_server.start()
    running.wait_until(lambda: running.record("job", "meanwhile").get("status") == "completed", timeout=60)
    planner = next(text for text in running.logs().split("--- ") if text.startswith("planner"))
    assert "does not answer, waiting" in planner
