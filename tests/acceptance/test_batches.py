"""Batch handlers, with a planner and a worker as a user starts them (B-60)."""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pymongo.database import Database

from tests.acceptance.monitor import listening
from tests.acceptance.project import Project

TASKS = Path(__file__).with_name("batch_tasks.py")


class Batches:
    """The project, its planner and a worker."""

    def __init__(self, project: Project, database: Database[Any]) -> None:
        self._project = project
        self._database = database
        project.environment["QUEUE"] = f"batches-{uuid.uuid4().hex}"
        (project.folder / "proj.py").write_text(TASKS.read_text())

    def start(self, pool: str = "prefork") -> None:
        """Start a planner and a worker, and wait for the worker."""
        self._project.planner("one")
        worker = self._project.worker("-c", "2", "-P", pool, "-E", "-l", "INFO")
        self._project.wait_until(lambda: "ready." in worker.text())

    def put(self, task: str, *dos: str) -> None:
        """Insert documents, numbered from 0, at once."""
        self._database.docs.insert_many([{"_id": number, "task": task, "do": do} for number, do in enumerate(dos)])

    def wait(self, condition: Any) -> None:
        """Wait until *condition* holds."""
        self._project.wait_until(condition)

    def calls(self) -> list[list[int]]:
        """Return the documents of each call of a handler, in their order."""
        return [call["docs"] for call in self._database.calls.find(sort=[("_id", 1)])]

    def records(self) -> dict[int, tuple[str, int]]:
        """Return state and attempts of all records."""
        return {
            record["sourceDocId"]: (record["status"], record["attempts"])
            for record in self._database.docs_tasks.find(sort=[("sourceDocId", 1)])
        }

    def rest(self) -> bool:
        """Whether nothing runs or is due, and something has run."""
        busy = {"$or": [{"_r.claim": {"$ne": None}}, {"_r.done": {"$exists": False}}]}
        return self._database.calls.count_documents({}) > 0 and self._database.docs_tasks.count_documents(busy) == 0

    @contextmanager
    def events(self) -> Iterator[list[dict[str, Any]]]:
        """What a monitor hears inside the block."""
        broker = self._project.environment["BROKER_URL"]
        with Celery(broker=broker, set_as_current=False) as app, listening(app) as heard:
            yield heard


@pytest.fixture
def batches(project: Project, database: Database[Any]) -> Batches:
    """The project of this file."""
    return Batches(project, database)


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_batch_fills_or_waits_for_company_and_is_one_row(batches: Batches, pool: str) -> None:
    """B-60, B-56: five at once, what is left after its wait; one message, one row that names the documents."""
    batches.start(pool)
    with batches.events() as heard:
        batches.put("gathered", *["none"] * 7)
        batches.wait(lambda: len(batches.records()) == 7 and batches.rest())
        batches.wait(lambda: sum(event["type"] == "task-succeeded" for event in heard) == 2)
    assert sorted(map(len, batches.calls())) == [2, 5]
    assert sorted(doc_id for call in batches.calls() for doc_id in call) == list(range(7))
    assert set(batches.records().values()) == {("completed", 1)}
    received = {event["uuid"]: event["args"] for event in heard if event["type"] == "task-received"}
    assert sum(shown.startswith("(5 documents: ") for shown in received.values()) == 1
    assert {event["uuid"] for event in heard if event["type"] == "task-succeeded"} == set(received)


def test_each_document_of_a_batch_ends_as_its_context_was_told(batches: Batches) -> None:
    """B-60: independently; returning completes the others."""
    batches.start()
    batches.put("gathered", "complete", "fail", "defer", "none", "none")
    batches.wait(lambda: len(batches.records()) == 5 and batches.rest())
    assert batches.calls() == [[0, 1, 2, 3, 4]]
    assert batches.records() == {
        0: ("completed", 1),
        1: ("pending", 1),
        2: ("pending", 0),
        3: ("completed", 1),
        4: ("completed", 1),
    }


def test_raising_fails_what_was_told_nothing(batches: Batches) -> None:
    """B-60: what was told something stays as told; the row says that it is tried again."""
    batches.start()
    with batches.events() as heard:
        batches.put("gathered", "complete", "none", "defer", "none", "raise")
        batches.wait(lambda: len(batches.records()) == 5 and batches.rest())
        batches.wait(lambda: any(event["type"] == "task-retried" for event in heard))
    assert batches.records() == {
        0: ("completed", 1),
        1: ("pending", 1),
        2: ("pending", 0),
        3: ("pending", 1),
        4: ("pending", 1),
    }


def test_a_batch_that_kills_its_process_is_tried_again_one_by_one(batches: Batches) -> None:
    """B-28: no attempt is spent for company, and each comes alone."""
    batches.start()
    batches.put("at_once", "none", "kill", "none")
    batches.wait(lambda: len(batches.records()) == 3 and set(batches.records().values()) == {("completed", 1)})
    calls = batches.calls()
    # What comes in while the first is sent may be a batch of its own.
    killed = next((call for call in calls if 1 in call and len(call) > 1), [])
    assert all([doc_id] in calls for doc_id in killed)


def test_a_time_limit_covers_a_batch_whole(batches: Batches) -> None:
    """B-30, B-60: a failed attempt for each of its documents."""
    batches.start()
    batches.put("limited", "none", "none", "sleep")
    batches.wait(lambda: batches.calls() and batches.rest())
    assert batches.calls() == [[0, 1, 2]]
    assert set(batches.records().values()) == {("pending", 1)}


def test_revoking_a_batch_fails_all_of_it(batches: Batches, project: Project) -> None:
    """B-40, B-60: by the id of its message."""
    batches.start()
    batches.put("at_once", *["sleep"] * 3)
    batches.wait(lambda: len(batches.calls()) and len(batches.records()) == 3)
    call = project.database.calls.find_one({}, sort=[("_id", 1)])
    assert call is not None
    app = _app(project)
    app.control.revoke(call["id"], terminate=True, signal="SIGKILL")
    batches.wait(lambda: all(batches.records()[doc_id] == ("failed", 1) for doc_id in call["docs"]))
    app.close()


def _app(project: Project) -> Celery:
    before = dict(os.environ)
    os.environ.update(project.environment)
    try:
        spec = importlib.util.spec_from_file_location("batch_project", project.folder / "proj.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        app: Celery = module.app
        return app
    finally:
        os.environ.clear()
        os.environ.update(before)
