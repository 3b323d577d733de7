"""Workers that stop without waiting, and time limits over messages that name several records."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from pymongo.database import Database

from celery_reactive import Reactive, reactive_task
from celery_reactive.core.task import ReactiveTask
from celery_reactive.planner.dispatch import Publisher
from celery_reactive.runtime import Runtime
from celery_reactive.store import instances, records
from tests.acceptance.project import Project


@pytest.fixture
def app(mongodb_url: str, broker_url: str) -> Iterator[Celery]:
    """The project's app as its planner sees it; the handlers are the worker's."""
    app = Celery("planner", broker=broker_url, set_as_current=False)
    app.conf.reactive_mongodb_url = mongodb_url

    def handler(ctx: Any) -> None: ...

    reactive_task(task="job", collection="jobs", debounce=0, watch_projection={"do": 1, "n": 1})(
        app.task(name="proj.job", shared=False)(handler)
    )
    reactive_task(task="limited", collection="limited", debounce=0)(
        app.task(name="proj.limited", shared=False)(handler)
    )
    app.finalize()
    yield app
    Reactive.of(app).runtime.connection.close()
    app.close()


def send(app: Celery, task: ReactiveTask, doc_ids: list[Any]) -> None:
    """Plan the documents and publish one message for all of them."""
    runtime: Runtime = Reactive.of(app).runtime
    target = runtime.connection.records(task)
    with runtime.connection.causal_session() as session:
        runtime.connection.source(task).find_one({}, session=session)
        observation = records.Observation(task, at=session.operation_time, generation=0, session=session)
        records.apply_observations(runtime.connection.source(task), target, observation, doc_ids)
    due = sorted(records.find_due(target, task.name, limit=len(doc_ids)), key=lambda one: one.key.doc_id)
    assert len(due) == len(doc_ids)
    publisher = Publisher(app, runtime)
    publisher.publish(task, due)
    publisher.close()


FINISHED, GIVEN_BACK = ("completed", 1), ("pending", 0)
STOPS = {
    "warm, by TERM": (signal.SIGTERM, "0", FINISHED),
    "warm, by INT": (signal.SIGINT, "0", FINISHED),
    "cold": (signal.SIGQUIT, "0", GIVEN_BACK),
    "soft, long enough": (signal.SIGQUIT, "5", FINISHED),
    "soft, too short": (signal.SIGQUIT, "0.3", GIVEN_BACK),
}
"""Signal, `worker_soft_shutdown_timeout`, and how the run ends: state and attempts."""


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize(("number", "soft", "end"), STOPS.values(), ids=list(STOPS))
def test_a_worker_that_stops_finishes_its_run_or_gives_it_back(
    project: Project,
    app: Celery,
    database: Database[Any],
    pool: str,
    number: signal.Signals,
    soft: str,
    end: tuple[str, int],
) -> None:
    """B-68: finalized, or pending at once with attempts as before; what was prefetched is not touched."""
    project.environment["SOFT_SECONDS"] = soft
    worker = project.worker("--pool", pool, "-c", "1")
    database.jobs.insert_many([{"_id": number, "do": "slow"} for number in range(3)])
    job = Reactive.of(app).registry.get("job")
    for doc_id in range(3):
        send(app, job, [doc_id])
    project.wait_until(lambda: database.runs.count_documents({}))
    worker.send(number)
    worker.wait()
    record = project.record("job", 0)
    if pool == "threads" and (record["status"], record["attempts"]) == FINISHED:
        # No thread can be stopped: where Celery's own stop waits for it, the run has finished.
        end = FINISHED
    assert (record["status"], record["attempts"]) == end
    assert [entry["status"] for entry in record["executionHistory"]] == ["completed"] * end[1]
    assert {project.record("job", doc_id)["status"] for doc_id in (1, 2)} <= {"pending", "completed"}
    assert database.jobs_tasks.count_documents({"_r.claim": {"$ne": None}}) == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_worker_announces_itself_while_it_lives(project: Project, app: Celery, pool: str) -> None:
    """B-22: queues and slots, so that the planner knows how much is taken at once; gone with a clean stop."""
    worker = project.worker("--pool", pool, "-c", "3", "-n", "first@%h", "--time-limit", "60")
    globals_ = Reactive.of(app).runtime.connection.globals()
    project.wait_until(lambda: instances.live_workers(globals_))
    ((name, facts),) = instances.live_workers(globals_).items()
    assert name.startswith("first@")
    assert facts.slots == (1 if pool == "solo" else 3)
    assert facts.limited is (pool in {"prefork", "gevent"})
    assert (facts.pool, facts.queues) == (pool, ["celery"])
    assert {"job": 1, "limited": 1}.items() <= facts.tasks.items()
    worker.stop()
    assert instances.read(globals_) == []


def test_a_time_limit_is_each_records_own(project: Project, app: Celery, database: Database[Any]) -> None:
    """B-30: a message that names several runs one of them; the others stay pending, unpunished and not on their way."""
    project.worker("-c", "1")
    database.limited.insert_many([{"_id": number} for number in range(3)])
    send(app, Reactive.of(app).registry.get("limited"), [0, 1, 2])
    found = database.limited_tasks
    project.wait_until(lambda: found.count_documents({"executionHistory.status": "failed"}))
    assert {record["sourceDocId"]: record["attempts"] for record in found.find()} == {0: 1, 1: 0, 2: 0}
    assert found.count_documents({"_r.sent": True}) == 0
