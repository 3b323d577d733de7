"""What people do to a running system: collections dropped, renamed and made again, databases dropped, code deployed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from tests.acceptance.project import Process, Project

LEASE_SECONDS = 30
"""Of the project, see `sample_tasks.py`; a lost message would wait for twice as long."""


@pytest.fixture
def running(project: Project) -> Project:
    """A project with a worker and a leader, three documents handled."""
    project.worker("--concurrency", "2")
    project.planner("planner")
    insert(project, "a", "b", "c")
    project.wait_until(lambda: completed(project) == {"a", "b", "c"})
    return project


def insert(project: Project, *doc_ids: Any, do: str = "nothing") -> None:
    """Insert documents that the task `job` handles."""
    project.database.jobs.insert_many([{"_id": doc_id, "do": do, "n": 1} for doc_id in doc_ids])


def completed(project: Project) -> set[Any]:
    """Return the documents whose `job` is done, and that are there."""
    found = project.database.jobs_tasks.find({"task": "job", "status": "completed", "_r.gone": {"$ne": True}})
    return {record["sourceDocId"] for record in found}


def runs(project: Project, doc_id: Any) -> int:
    """Return how often a document was handled."""
    return project.database.runs.count_documents({"doc": doc_id})


def test_a_collection_that_is_dropped_and_made_again(running: Project) -> None:
    """B-18, B-49: its records are marked gone, and a document of the same id is a new one."""
    running.database.jobs.drop()
    running.wait_until(lambda: completed(running) == set())
    insert(running, "a", "d")
    running.wait_until(lambda: completed(running) == {"a", "d"})
    assert runs(running, "a") == 2


def test_a_collection_that_is_renamed_away_and_another_into_its_place(running: Project) -> None:
    """B-49: no document of either sends an event; both are found."""
    other = running.database.drafts
    other.insert_many([{"_id": doc_id, "do": "nothing", "n": 2} for doc_id in ("b", "x")])
    other.rename("jobs", dropTarget=True)
    running.wait_until(lambda: completed(running) == {"b", "x"} and runs(running, "b") == 2)
    running.database.jobs.rename("archive")
    running.wait_until(lambda: completed(running) == set())
    insert(running, "y")
    running.wait_until(lambda: completed(running) == {"y"})


def test_records_that_are_dropped_are_made_again(running: Project) -> None:
    """B-50: with their indexes, pending, by the next reconciliation."""
    running.database.jobs_tasks.drop()
    insert(running, "d")
    running.wait_until(lambda: completed(running) == {"d"})
    ended = running.reconcile("--wait")
    assert ended.wait(60) == 0, running.logs()
    running.wait_until(lambda: completed(running) == {"a", "b", "c", "d"})
    assert runs(running, "a") == 2
    assert "reactive_wake" in running.database.jobs_tasks.index_information()


def test_a_database_that_is_dropped_with_everything_in_it(running: Project) -> None:
    """B-49: lock, position and definitions went with it; nobody has to do anything."""
    running.database.client.drop_database(running.database.name)
    insert(running, "a", "z")
    running.wait_until(lambda: completed(running) == {"a", "z"}, timeout=60)
    running.wait_until(lambda: running.leader() == "planner")
    assert "reactive_wake" in running.database.jobs_tasks.index_information()


def test_a_database_that_is_dropped_in_a_later_term(running: Project) -> None:
    """B-46, B-49: what the old leader still writes after the drop stops no leader after it."""
    for name in ("second", "third"):
        deploy(running.processes[-1])
        running.planner(name)
        running.wait_until(lambda name=name: running.leader() == name)
    running.database.client.drop_database(running.database.name)
    insert(running, "a", "z")
    running.wait_until(lambda: completed(running) == {"a", "z"} and running.leader() == "third", timeout=60)


def test_a_task_that_is_removed_and_deployed_again_catches_up(project: Project) -> None:
    """B-45: the position that was stored meanwhile does not cover it."""
    worker = project.worker("--concurrency", "1")
    planner = project.planner("planner")
    insert(project, "a", "b")
    project.wait_until(lambda: completed(project) == {"a", "b"})
    deploy(planner, worker)

    whole = (project.folder / "proj.py").read_text()
    (project.folder / "proj.py").write_text(without_job(whole))
    planner = project.planner("planner")
    project.wait_until(lambda: project.leader() == "planner")
    project.database.jobs.update_one({"_id": "a"}, {"$set": {"n": 2}})
    project.database.jobs.delete_one({"_id": "b"})
    insert(project, "c")
    project.wait_until(lambda: project.record("coroutine", "c") != {})
    deploy(planner)
    assert project.record("job", "c") == {}

    (project.folder / "proj.py").write_text(whole)
    project.worker("--concurrency", "1")
    project.planner("planner")
    project.wait_until(lambda: completed(project) == {"a", "c"} and runs(project, "a") == 2)
    assert project.record("job", "b")["_r"]["gone"]


def deploy(*processes: Process) -> None:
    """Stop processes in good order, as a deployment does."""
    for process in processes:
        process.send(signal.SIGTERM)
    for process in processes:
        assert process.wait() == 0


def without_job(source: str) -> str:
    """Return the project's source with its first task declared no more."""
    start = source.index('@reactive_task(task="job"')
    end = source.index("@app.task(bind=True)", start)
    return source[:start] + source[end:]


@pytest.fixture
def tenants(project: Project, database: Database[Any]) -> Iterator[list[Database[Any]]]:
    """A project whose task watches a collection in each of two databases more."""
    names = [f"{database.name}_{tenant}" for tenant in ("one", "two")]
    tasks = "".join(
        f"""
@reactive_task(task="{name}", database="{name}", collection="orders", debounce=0, group="{group}")
@app.task(name="{name}")
def handler(ctx):
    ctx.client.get_default_database().runs.insert_one({{"doc": ctx.doc_id, "database": "{name}"}})
"""
        for name, group in zip(names, ("default", "other"), strict=True)
    )
    path: Path = project.folder / "proj.py"
    path.write_text(path.read_text() + tasks)
    yield [database.client[name] for name in names]
    for name in names:
        database.client.drop_database(name)


def test_several_databases_and_groups(project: Project, tenants: list[Database[Any]]) -> None:
    """B-65: one stream a database, one leader a group; workers serve all."""
    project.worker("--concurrency", "1")
    project.planner("planner")
    first, second = tenants
    for tenant in tenants:
        tenant.orders.insert_one({"_id": 1})
    insert(project, "a")
    ran = project.database.runs
    project.wait_until(lambda: ran.find_one({"database": first.name}) and runs(project, "a"))
    assert ran.find_one({"database": second.name}) is None
    project.planner("other", "--group", "other")
    project.wait_until(lambda: ran.find_one({"database": second.name}))
    first.client.drop_database(first.name)
    first.orders.insert_one({"_id": 2})
    project.wait_until(lambda: ran.find_one({"database": first.name, "doc": 2}))
    first.orders_tasks.delete_many({})
    assert project.reconcile(first.name, "--wait").wait(60) == 0, project.logs()
    project.wait_until(lambda: ran.count_documents({"database": first.name, "doc": 2}) == 2)


def test_a_deployment_under_load_waits_for_no_lease(project: Project) -> None:
    """B-68: planners and worker are replaced one by one while documents are written; each is handled once."""
    starts = (lambda: project.worker("--concurrency", "2"), lambda: project.planner("a"), lambda: project.planner("b"))
    processes = [start() for start in starts]
    written = 0
    for start in starts:
        insert(project, *range(written, written + 8), do="slow")
        written += 8
        project.wait_until(lambda: project.database.jobs_tasks.find_one({"task": "job", "status": "processing"}))
        old = processes.pop(0)
        processes.append(start())
        deploy(old)
    project.wait_until(lambda: completed(project) == set(range(written)), timeout=LEASE_SECONDS)
    assert {runs(project, doc_id) for doc_id in range(written)} == {1}
