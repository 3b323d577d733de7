"""A worker of a project that is watched by OpenTelemetry, or by Sentry; the tasks are in `tracing_tasks.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from opentelemetry.sdk.trace import TracerProvider
from pymongo.database import Database

from celery_reactive import Reactive, reactive_task
from celery_reactive.core.record import Due, RecordKey
from celery_reactive.opentelemetry import trace_fields
from celery_reactive.planner.dispatch import Publisher
from celery_reactive.runtime import Runtime
from celery_reactive.store import records, server
from tests.acceptance.project import Project

TASKS = Path(__file__).with_name("tracing_tasks.py")
Document = dict[str, Any]


def lines_of(project: Project, name: str) -> list[Document]:
    """Return what the project has written to a file of its folder."""
    file = project.folder / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


# --- OpenTelemetry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_a_trace_goes_from_the_writer_to_the_handler(project: Project, database: Database[Any], pool: str) -> None:
    """B-37: through planner, broker and worker; the last spans are sent when the pool process ends."""
    (project.folder / "proj.py").write_text(TASKS.read_text())
    project.environment |= {"TRACING": "otel", "POOL": pool}
    project.planner("planner")
    worker = project.worker("--pool", pool, "-c", "1")
    with TracerProvider().get_tracer("shop").start_as_current_span("writer") as writer:
        database.jobs.insert_one({"_id": 1, "for": "once", "v": 1, "do": "fail", **trace_fields()})
        database.jobs.insert_one({"_id": 2, "for": "coroutine", "v": 1, "do": "", **trace_fields()})
    database.jobs.insert_one({"_id": 3, "for": "once", "v": 1, "do": ""})
    ended = {"completedAt": {"$ne": None}}, {"status": "failed"}
    project.wait_until(lambda: database.jobs_tasks.count_documents({"$or": [*ended]}) == 3, timeout=60)
    worker.stop()
    spans = lines_of(project, "spans")
    celery = {span["attributes"]["messaging.message.id"]: span for span in spans if span["name"].startswith("run/")}
    runs = {run["attributes"]["reactive.document_id"]: run for run in spans if run["name"].startswith("process ")}
    assert len(celery) == len(runs) == 3
    context = writer.get_span_context()
    assert [runs[doc_id]["context"]["trace_id"] for doc_id in ("1", "2")] == [f"0x{context.trace_id:032x}"] * 2
    assert [runs[doc_id]["parent_id"] for doc_id in ("1", "2", "3")] == [f"0x{context.span_id:016x}"] * 2 + [None]
    assert [runs[doc_id]["status"]["status_code"] for doc_id in ("1", "2", "3")] == ["ERROR", "UNSET", "UNSET"]
    for run in runs.values():
        (link,) = run["links"]
        assert link["context"] == celery[run["attributes"]["messaging.message.id"]]["context"]


# --- Sentry ----------------------------------------------------------------------------------------


@pytest.fixture
def app(mongodb_url: str, broker_url: str) -> Iterator[Celery]:
    """The project's app as its planner sees it; the handlers are the worker's."""
    app = Celery("planner", broker=broker_url, set_as_current=False)
    app.conf.reactive_mongodb_url = mongodb_url

    def handler(ctx: Any) -> None: ...

    for name in ("once", "twice", "asked", "coroutine"):
        reactive_task(task=name, collection="jobs", watch_projection={"v": 1}, debounce=0)(
            app.task(name=f"proj.{name}", shared=False)(handler)
        )
    app.finalize()
    yield app
    Reactive.of(app).runtime.connection.close()
    app.close()


class Sentry:
    """A worker that Sentry watches, the hands of its planner, and what Sentry was told."""

    def __init__(self, project: Project, app: Celery, database: Database[Any]) -> None:
        self.app = app
        self._project = project
        self._database = database
        self._runtime: Runtime = Reactive.of(app).runtime

    def run(self, task: str, *does: str) -> list[str]:
        """Run new documents as one message, each doing what is asked; return the Celery ids of their records."""
        ids = [f"{task}, {do}, {number}" for number, do in enumerate(does)]
        self._database.jobs.insert_many(
            [{"_id": doc_id, "for": task, "v": 1, "do": do} for doc_id, do in zip(ids, does, strict=True)]
        )
        self._plan(task, ids)
        if "vanish" in does:
            self._database.jobs.delete_many({"do": "vanish"})
        due = [Due(RecordKey(task, doc_id), 0, 0, alone=False) for doc_id in ids]
        publisher = Publisher(self.app, self._runtime)
        definition = self._runtime.registry.get(task)
        publisher.publish(definition, due)
        publisher.close()
        # Settled, for good or not.
        ended = {"_id.t": task, "_id.d": {"$in": ids}, "_r.done": {"$exists": True}, "_r.claim": None}
        self._project.wait_until(lambda: self._database.jobs_tasks.count_documents(ended) == len(ids))
        return [one.key.celery_id(self._runtime.connection.namespace(definition), one.cycle) for one in due]

    def _plan(self, task: str, doc_ids: Sequence[str]) -> None:
        connection, definition = self._runtime.connection, self._runtime.registry.get(task)
        with connection.causal_session() as session:
            observation = records.Observation(
                definition, at=server.cluster_time(connection.database(), session), generation=0, session=session
            )
            records.apply_observations(
                connection.source(definition), connection.records(definition), observation, doc_ids
            )

    def told(self) -> list[tuple[str, str, str]]:
        """Return what Sentry was told, once the worker has ended: Celery id, task and error of each event."""
        self._project.processes[-1].stop()
        return [
            (
                event.get("tags", {}).get("celery_task_id"),
                event["extra"]["celery-job"]["task_name"],
                event["exception"]["values"][-1]["value"],
            )
            for event in lines_of(self._project, "events")
        ]

    def transactions(self) -> list[str]:
        """Return the names of the transactions that Sentry was told."""
        return [event["transaction"] for event in lines_of(self._project, "transactions")]


@pytest.fixture(params=["prefork", "solo"])
def sentry(request: pytest.FixtureRequest, project: Project, app: Celery, database: Database[Any]) -> Sentry:
    """A worker that Sentry watches, one for each pool."""
    (project.folder / "proj.py").write_text(TASKS.read_text())
    project.environment["TRACING"] = "sentry"
    project.worker("--pool", request.param, "-c", "1")
    return Sentry(project, app, database)


def test_a_handler_that_fails_for_good_is_told_to_sentry_once(sentry: Sentry) -> None:
    """Celery's integration: with the name of the task and the record's Celery id, as for a plain task."""
    plain = sentry.app.send_task("proj.plain", ignore_result=True).id
    (once,) = sentry.run("once", "fail")
    (coroutine,) = sentry.run("coroutine", "fail")
    assert sentry.told() == [
        (plain, "proj.plain", "plain"),
        (once, "proj.once", "broken: once, fail, 0"),
        (coroutine, "proj.coroutine", "broken: coroutine, fail, 0"),
    ]
    assert sentry.transactions() == ["proj.plain", "proj.once", "proj.coroutine"]


def test_what_is_tried_again_or_skipped_is_not_told(sentry: Sentry) -> None:
    """B-25, B-32 to B-34, B-40: as Celery's own `Retry` and `Ignore`."""
    for does in (["fail"], ["ignore"], ["vanish"], ["defer"], ["move on"], [""]):
        sentry.run("twice", *does)
    sentry.run("asked", "")
    assert sentry.told() == []
    assert sentry.transactions() == ["proj.twice"] * 6 + ["proj.asked"]


def test_each_failed_record_of_a_message_is_told(sentry: Sentry) -> None:
    """Celery's integration: one event for each, with its own Celery id."""
    first, _, third, _ = sentry.run("once", "fail", "", "fail", "ignore")
    assert sentry.told() == [
        (first, "proj.once", "broken: once, fail, 0"),
        (third, "proj.once", "broken: once, fail, 2"),
    ]
    assert sentry.transactions() == ["proj.once"] * 4
