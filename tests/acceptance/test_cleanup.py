"""Records that nobody needs go by themselves, and by hand, in a project as a user runs it (B-4, B-41, B-42)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.project import Project

TASKS = Path(__file__).with_name("cleanup_tasks.py")


@pytest.fixture
def shop(project: Project) -> Project:
    """The project with the tasks of this test."""
    (project.folder / "proj.py").write_text(TASKS.read_text())
    return project


def count(project: Project, task: str, **wanted: str) -> int:
    """Return how many records of a task there are."""
    return project.database["jobs_tasks"].count_documents({"task": task, **wanted})


def test_records_go_with_their_documents(shop: Project) -> None:
    """B-42: on a deletion, also by the handler itself; after a reconciliation, where nobody told of one."""
    shop.planner("one")
    shop.worker("--concurrency", "1")
    shop.database.jobs.insert_many([{"_id": "stays"}, {"_id": "goes"}, {"_id": "ends itself", "finish": True}])
    shop.wait_until(lambda: count(shop, "job", status="completed") == 2 and count(shop, "report") == 3)
    shop.wait_until(lambda: not shop.record("job", "ends itself"))
    shop.database.jobs.delete_one({"_id": "goes"})
    shop.wait_until(lambda: count(shop, "job") == 1)
    assert shop.record("job", "stays")["status"] == "completed"
    shop.database.jobs.drop()
    shop.wait_until(lambda: count(shop, "job") == 0)
    assert count(shop, "report") == 3


def test_records_go_from_time_to_time(shop: Project) -> None:
    """B-42: what no event and no reconciliation has shown, over a restart of the planner."""
    shop.environment["CLEANUP_INTERVAL"] = "1s"
    shop.database.jobs.insert_many([{"_id": doc_id} for doc_id in range(50)])
    planner = shop.planner("one")
    shop.worker("--concurrency", "1")
    shop.wait_until(lambda: count(shop, "job", status="completed") == 50)
    planner.stop()
    shop.database.jobs_tasks.insert_many(
        {**record, "_id": {"t": "job", "d": -record["sourceDocId"] - 1}, "sourceDocId": -record["sourceDocId"] - 1}
        for record in list(shop.database.jobs_tasks.find({"task": "job"}))
    )
    shop.planner("two")
    shop.wait_until(lambda: count(shop, "job") == 50)
    assert shop.database.jobs_tasks.count_documents({"task": "job", "sourceDocId": {"$gte": 0}}) == 50


def test_purging_shows_the_count_and_asks(shop: Project) -> None:
    """B-4, B-41: under `never`, and all of a task that is no longer declared; `cleanup` goes by the policy."""
    shop.environment["FORMER"] = "1"
    planner = shop.planner("one")
    shop.worker("--concurrency", "1")
    shop.database.jobs.insert_many([{"_id": doc_id} for doc_id in range(5)])
    shop.wait_until(lambda: shop.database["jobs_tasks"].count_documents({"status": "completed"}) == 15)
    planner.stop()
    del shop.environment["FORMER"]
    shop.database.jobs.delete_many({"_id": {"$in": [0, 1]}})

    assert shop.run("cleanup").stdout == "2 records removed\n"
    assert count(shop, "job") == 3
    assert count(shop, "report") == count(shop, "former") == 5

    refused = shop.run("tasks", "purge", "report")
    assert refused.returncode == 2
    assert "--gone or --left" in refused.stderr
    wrong = shop.run("tasks", "purge", "report", "--gone", "--older-than", "soon")
    assert wrong.returncode == 2
    assert "expected a timedelta" in wrong.stderr
    unsure = shop.run("tasks", "purge", "report", "--gone", said="n\n")
    assert unsure.returncode == 1
    assert "Remove 2 records?" in unsure.stderr
    assert count(shop, "report") == 5
    assert "0 records removed" in shop.run("tasks", "purge", "report", "--gone", "--older-than", "1d").stdout
    assert "2 records removed" in shop.run("tasks", "purge", "report", "--gone", said="y\n").stdout
    assert count(shop, "report") == 3

    assert shop.run("tasks", "purge", "former", "--yes").stdout == "5 records removed\n"
    assert count(shop, "former") == 0
    unknown = shop.run("tasks", "purge", "former", "--yes")
    assert unknown.returncode == 2
    assert "known: job, report" in unknown.stderr
