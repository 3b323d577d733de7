"""Traces across the database: from the writer's span, through the document, to the handler's.

Runs go through Celery's own tracer in this process, with and without CeleryInstrumentor; spans end in memory.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Reject
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from celery_reactive import ConfigurationError, Reactive, TaskContext, reactive_task
from celery_reactive.core.message import message_for
from celery_reactive.core.record import RecordKey
from celery_reactive.opentelemetry import trace_fields, traced
from celery_reactive.runtime import Runtime
from celery_reactive.store import records, server

Document = dict[str, Any]
Handler = Callable[[TaskContext], object]


class Shop:
    """An app whose handlers are traced, the hands of its planner, and a worker in this process."""

    def __init__(self, mongodb_url: str) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("shop")
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.app.conf.reactive_mongodb_url = mongodb_url
        self.caller = functools.partial(traced, tracer_provider=self.provider)

    def handle(self, handler: Handler, *, caller: Callable[..., Any] | None = None, **options: Any) -> None:
        """Let *handler* run for every order; a failed attempt is not repeated soon."""
        self.app.conf.reactive_task_caller = caller or self.caller
        defaults = {"task": "sync", "collection": "orders", "watch_projection": {"v": 1}, "debounce": 0}
        self.task = self.app.task(name="shop.sync", shared=False)(handler)
        reactive_task(**{**defaults, **options})(self.task)
        self.app.finalize()
        self.definition = Reactive.of(self.app).registry.get("sync")
        self.orders = self.runtime.connection.database()["orders"]

    @property
    def runtime(self) -> Runtime:
        """The app's parts."""
        return Reactive.of(self.app).runtime

    def plan(self, *doc_ids: Any) -> None:
        """Plan documents as they are now."""
        connection = self.runtime.connection
        with connection.causal_session() as session:
            observation = records.Observation(
                self.definition, at=server.cluster_time(connection.database(), session), generation=0, session=session
            )
            records.apply_observations(
                connection.source(self.definition), connection.records(self.definition), observation, doc_ids
            )

    def work(self) -> None:
        """Run what is due as one message, as a worker does."""
        connection = self.runtime.connection
        due = records.find_due(connection.records(self.definition), "sync", limit=10)
        assert due
        message = message_for(namespace=connection.namespace(self.definition), due=due, max_attempts=None)
        task = self.app.tasks["shop.sync"]
        task.__trace__ = build_tracer(task.name, task, self.app.loader, "here", app=self.app)
        request = {"id": message["task_id"], "hostname": "here", **message["headers"]}
        task.__trace__(message["task_id"], message["args"], {}, request)

    def run(self, *doc_ids: Any) -> None:
        """Plan documents and run them as one message."""
        self.plan(*doc_ids)
        self.work()

    def record(self, doc_id: Any) -> Document:
        """Return a record."""
        found = self.runtime.connection.records(self.definition).find_one({"_id": {"t": "sync", "d": doc_id}})
        assert found is not None
        return found

    def spans(self, name: str) -> list[ReadableSpan]:
        """Return the spans of that name that have ended, in that order."""
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def span(self, name: str = "process sync") -> ReadableSpan:
        """Return the one span of that name."""
        (span,) = self.spans(name)
        return span

    def write(self, document: Document, writer: str = "writer") -> None:
        """Insert a document in a span of its own, with its trace."""
        with self.tracer.start_as_current_span(writer):
            self.orders.insert_one({**document, **trace_fields()})


@pytest.fixture
def shop(mongodb_url: str) -> Iterator[Shop]:
    """A shop on a database of its own."""
    shop = Shop(mongodb_url)
    yield shop
    shop.runtime.connection.close()
    shop.app.close()


@pytest.fixture
def instrumented(shop: Shop) -> Iterator[None]:
    """CeleryInstrumentor, with its spans beside the others."""
    instrumentor = CeleryInstrumentor()
    instrumentor.instrument(tracer_provider=shop.provider)
    yield
    instrumentor.uninstrument()


def completes(ctx: TaskContext) -> None:
    """Do nothing."""


def links_of(span: ReadableSpan) -> list[int]:
    """Return the span ids that a span links to."""
    return [link.context.span_id for link in span.links]


def id_of(span: ReadableSpan) -> int:
    """Return a span's id."""
    return span.get_span_context().span_id


def trace_of(span: ReadableSpan) -> int:
    """Return the id of a span's trace."""
    return span.get_span_context().trace_id


# --- whose trace -----------------------------------------------------------------------------------


def test_a_run_goes_on_with_the_trace_of_its_writer(shop: Shop) -> None:
    """B-37: same trace, child of the writer's span; what the handler does is below it."""

    def handler(ctx: TaskContext) -> None:
        with shop.tracer.start_as_current_span("inside"):
            ctx.get_document()

    shop.handle(handler)
    shop.write({"_id": 1, "v": 1})
    shop.run(1)
    writer, run, inside = shop.span("writer"), shop.span(), shop.span("inside")
    assert trace_of(writer) == trace_of(run) == trace_of(inside)
    assert run.parent is not None
    assert inside.parent is not None
    assert (run.parent.span_id, inside.parent.span_id) == (id_of(writer), id_of(run))
    assert run.parent.is_remote
    assert run.links == ()
    assert run.kind is SpanKind.CONSUMER
    assert run.status.status_code is StatusCode.UNSET
    assert shop.record(1)["status"] == "completed"


@pytest.mark.usefixtures("instrumented")
def test_a_run_links_to_the_span_of_celerys_instrumentation(shop: Shop) -> None:
    """B-37: the writer is the parent, and what Celery did with the message is one step away."""
    shop.handle(completes)
    shop.write({"_id": 1, "v": 1})
    shop.run(1)
    celery, run = shop.span("run/shop.sync"), shop.span()
    assert trace_of(run) == trace_of(shop.span("writer")) != trace_of(celery)
    assert links_of(run) == [id_of(celery)]
    assert celery.attributes is not None
    assert run.attributes is not None
    assert celery.attributes["messaging.message.id"] == run.attributes["messaging.message.id"]


def test_a_run_without_a_writers_trace_has_its_own(shop: Shop) -> None:
    """B-37: the document carries none."""
    shop.handle(completes)
    shop.orders.insert_one({"_id": 1, "v": 1, **trace_fields()})
    assert shop.orders.find_one() == {"_id": 1, "v": 1}
    shop.run(1)
    assert (shop.span().parent, shop.span().links) == (None, ())


@pytest.mark.usefixtures("instrumented")
def test_a_run_without_a_writers_trace_links_to_celerys_span(shop: Shop) -> None:
    """B-37: a trace of its own, that of no message."""
    shop.handle(completes)
    shop.orders.insert_one({"_id": 1, "v": 1})
    shop.run(1)
    celery, run = shop.span("run/shop.sync"), shop.span()
    assert run.parent is None
    assert trace_of(run) != trace_of(celery)
    assert links_of(run) == [id_of(celery)]


SOUND = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MALFORMED: dict[str, Any] = {
    "no sub-document": SOUND,
    "null": None,
    "an array": [{"traceparent": SOUND}],
    "no traceparent": {"tracestate": "a=1"},
    "a number": {"traceparent": 7},
    "an array of one": {"traceparent": [SOUND]},
    "too short": {"traceparent": SOUND[:-1]},
    "too long": {"traceparent": SOUND + "0" * 1000},
    "not hexadecimal": {"traceparent": SOUND.replace("a", "g")},
    "zero": {"traceparent": f"00-{'0' * 32}-{'0' * 16}-01"},
    "of a version that is none": {"traceparent": "ff" + SOUND[2:]},
    "code": {"traceparent": "$where: 1"},
}


@pytest.mark.parametrize("stored", MALFORMED.values(), ids=list(MALFORMED))
def test_a_malformed_trace_is_ignored(shop: Shop, stored: Any) -> None:
    """B-37: what a document says is data; its run goes on without it."""
    shop.handle(completes)
    shop.orders.insert_one({"_id": 1, "v": 1, "_trace": stored})
    shop.run(1)
    assert shop.span().parent is None
    assert shop.record(1)["status"] == "completed"


@pytest.mark.parametrize("state", [7, ["a=1"], "", "=,=", "a=1," * 200])
def test_a_malformed_state_leaves_the_parent(shop: Shop, state: Any) -> None:
    """W3C: a trace state that cannot be read does not make the trace unreadable."""
    shop.handle(completes)
    shop.orders.insert_one({"_id": 1, "v": 1, "_trace": {"traceparent": SOUND, "tracestate": state}})
    shop.run(1)
    parent = shop.span().parent
    assert parent is not None
    assert f"{parent.span_id:016x}" in SOUND


def test_a_trace_that_cannot_be_read_is_done_without(shop: Shop) -> None:
    """B-37: tracing keeps no handler from its run."""
    ran = []

    def handler(ctx: TaskContext) -> None:
        ran.append(ctx.doc_id)

    shop.handle(handler, caller=functools.partial(shop.caller, field="$odd"))
    shop.orders.insert_one({"_id": 1, "v": 1})
    shop.run(1)
    assert ran == [1]
    assert shop.record(1)["status"] == "completed"


def test_a_documents_deletion_takes_its_trace_along(shop: Shop) -> None:
    """B-32: the handler is called nevertheless."""
    shop.handle(completes)
    shop.write({"_id": 1, "v": 1})
    shop.plan(1)
    shop.orders.delete_one({"_id": 1})
    shop.work()
    assert shop.span().parent is None


def test_the_last_traced_write_is_gone_on_with(shop: Shop) -> None:
    """Of several writes before a run the document remembers the last."""
    shop.handle(completes)
    shop.write({"_id": 1, "v": 1})
    with shop.tracer.start_as_current_span("second"):
        shop.orders.update_one({"_id": 1}, {"$set": {"v": 2, **trace_fields()}})
    shop.orders.update_one({"_id": 1}, {"$set": {"v": 3, **trace_fields()}})
    shop.run(1)
    assert trace_of(shop.span()) == trace_of(shop.span("second"))


def test_reading_the_trace_is_no_check_of_the_document(shop: Shop) -> None:
    """B-32, B-33: only `get_document` checks; the values have moved on, and nobody has looked."""
    shop.handle(completes)
    shop.write({"_id": 1, "v": 1})
    shop.plan(1)
    shop.orders.update_one({"_id": 1}, {"$set": {"v": 2}})
    shop.work()
    assert shop.record(1)["executionHistory"][-1]["status"] == "completed"


def test_records_of_one_message_have_a_span_and_a_trace_each(shop: Shop) -> None:
    """B-37: the caller is called for each record."""
    shop.handle(completes)
    for number in range(3):
        shop.write({"_id": number, "v": 1}, writer=f"writer of {number}")
    shop.run(0, 1, 2)
    runs = shop.spans("process sync")
    traces = {run.attributes["reactive.document_id"]: trace_of(run) for run in runs if run.attributes}
    assert traces == {str(number): trace_of(shop.span(f"writer of {number}")) for number in range(3)}


@pytest.mark.usefixtures("instrumented")
def test_records_of_one_message_link_to_a_span_of_celerys_each(shop: Shop) -> None:
    """B-37: Celery's signals are sent for each record."""
    shop.handle(completes)
    shop.orders.insert_many([{"_id": number, "v": 1} for number in range(3)])
    shop.run(0, 1, 2)
    assert [links_of(run) for run in shop.spans("process sync")] == [
        [id_of(celery)] for celery in shop.spans("run/shop.sync")
    ]
    assert len(shop.spans("process sync")) == 3


def test_a_coroutine_runs_in_its_span(shop: Shop) -> None:
    """B-1: what it awaits is below it, and the next run's is not."""

    async def inner(doc_id: Any) -> None:
        with shop.tracer.start_as_current_span("inside", attributes={"of": doc_id}):
            pass

    async def handler(ctx: TaskContext) -> None:
        await inner(ctx.doc_id)

    shop.handle(handler)
    for number in range(2):
        shop.write({"_id": number, "v": 1})
    shop.run(0, 1)
    parents = [span.parent.span_id for span in shop.spans("inside") if span.parent]
    assert parents == [id_of(run) for run in shop.spans("process sync")]
    assert len(set(parents)) == 2


def test_a_writer_that_is_not_sampled_has_runs_that_are_not(shop: Shop) -> None:
    """W3C: the flag travels with the document, the state too."""
    seen: list[SpanContext] = []

    def handler(ctx: TaskContext) -> None:
        ctx.get_document()
        seen.append(trace.get_current_span().get_span_context())

    shop.handle(handler)
    writer = SpanContext(7, 8, is_remote=False, trace_flags=TraceFlags(0), trace_state=TraceState([("a", "1")]))
    with trace.use_span(NonRecordingSpan(writer)):
        shop.orders.insert_one({"_id": 1, "v": 1, **trace_fields()})
    shop.run(1)
    assert shop.spans("process sync") == []
    assert [(one.trace_id, one.trace_state.get("a")) for one in seen] == [(7, "1")]
    assert shop.orders.find_one() == {
        "_id": 1,
        "v": 1,
        "_trace": {"traceparent": f"00-{7:032x}-{8:016x}-00", "tracestate": "a=1"},
    }


# --- what a span says ------------------------------------------------------------------------------


def test_a_span_says_which_run_it_is(shop: Shop) -> None:
    """By OpenTelemetry's conventions for messages, and the record's own words."""
    shop.handle(completes)
    doc_id = {"shop": "a", "n": 1}
    shop.write({"_id": doc_id, "v": 1})
    shop.run(doc_id)
    celery_id = RecordKey("sync", doc_id).celery_id(shop.runtime.connection.namespace(shop.definition), 0)
    assert shop.span().attributes == {
        "messaging.system": "celery_reactive",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "sync",
        "messaging.message.id": celery_id,
        "reactive.task": "sync",
        "reactive.collection": "orders",
        "reactive.document_id": '{"shop": "a", "n": 1}',
        "reactive.attempt": 1,
    }


class UnprintableError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


FAILURES: dict[str, tuple[BaseException, str, str]] = {
    "an exception": (ValueError("$broken"), "ValueError", "$broken"),
    "without text": (UnprintableError(), f"{UnprintableError.__module__}.UnprintableError", "its str() raised"),
    "a rejected message": (Reject("no", requeue=False), "celery.exceptions.Reject", "no"),
}


@pytest.mark.parametrize(("error", "kind", "words"), FAILURES.values(), ids=list(FAILURES))
def test_a_failed_attempt_is_an_error(shop: Shop, error: BaseException, kind: str, words: str) -> None:
    """B-25: recorded, the status set, and the record has failed as without tracing."""

    def handler(ctx: TaskContext) -> None:
        ctx.get_document()
        raise error

    shop.handle(handler)
    shop.write({"_id": 1, "v": 1})
    shop.run(1)
    span = shop.span()
    assert trace_of(span) == trace_of(shop.span("writer"))
    assert span.status.status_code is StatusCode.ERROR
    assert words in (span.status.description or "")
    (event,) = span.events
    assert event.name == "exception"
    assert event.attributes is not None
    assert event.attributes["exception.type"] == kind
    assert words in str(event.attributes["exception.message"])
    assert "in handler" in str(event.attributes["exception.stacktrace"])
    assert (span.attributes or {})["error.type"] == kind
    record = shop.record(1)
    assert (record["attempts"], record["_r"]["error"]["type"]) == (1, kind)


def test_a_retry_asked_of_celery_tells_its_cause(shop: Shop) -> None:
    """B-40: it is a failed attempt."""

    def handler(ctx: TaskContext) -> None:
        shop.task.retry(exc=KeyError(ctx.doc_id), countdown=60)

    shop.handle(handler)
    shop.write({"_id": 1, "v": 1})
    shop.run(1)
    assert shop.span().status.status_code is StatusCode.ERROR
    assert (shop.span().attributes or {})["error.type"] == "KeyError"


def ignores(ctx: TaskContext) -> None:
    """Skip."""
    raise Ignore(f"not today: {ctx.doc_id}")


def defers(ctx: TaskContext) -> None:
    """Come back later."""
    ctx.defer_current("1h")


def moves_on(ctx: TaskContext) -> None:
    """Find that somebody has written meanwhile."""
    ctx.client.get_default_database().orders.update_one({"_id": ctx.doc_id}, {"$set": {"v": 2}})
    ctx.get_document()


def vanishes(ctx: TaskContext) -> None:
    """Find that the document is gone."""
    ctx.client.get_default_database().orders.delete_one({"_id": ctx.doc_id})
    ctx.get_document()


def raises_too_late(ctx: TaskContext) -> None:
    """Raise after the record was completed."""
    ctx.mark_completed()
    raise ValueError("too late")


OTHER_ENDS: dict[Handler, str | None] = {
    completes: None,
    ignores: "skipped",
    vanishes: "skipped",
    moves_on: "overtaken",
    defers: "deferred",
    raises_too_late: None,
}


@pytest.mark.parametrize(("handler", "outcome"), OTHER_ENDS.items(), ids=lambda value: getattr(value, "__name__", None))
def test_what_is_no_failure_is_no_error(shop: Shop, handler: Handler, outcome: str | None) -> None:
    """B-32 to B-36, B-40: a span says so without a status."""
    shop.handle(handler)
    shop.write({"_id": 1, "v": 1})
    shop.run(1)
    span = shop.span()
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())
    assert (span.attributes or {}).get("reactive.outcome") == outcome
    assert "firstErrorAt" not in shop.record(1) or shop.record(1)["firstErrorAt"] is None


# --- how it is set up ------------------------------------------------------------------------------


def test_a_caller_of_ones_own_goes_around_or_inside(shop: Shop) -> None:
    """B-37: there is one setting, and functions call one another."""
    current: list[int] = []

    def note() -> None:
        current.append(trace.get_current_span().get_span_context().span_id)

    def own(call: Callable[[], None], ctx: TaskContext) -> None:
        note()

        def inside() -> None:
            note()
            call()

        shop.caller(inside, ctx)

    shop.handle(completes, caller=own)
    shop.write({"_id": 1, "v": 1})
    shop.run(1)
    assert current == [0, id_of(shop.span())]


def test_the_field_has_another_name_if_one_wants(shop: Shop) -> None:
    """Writers and workers agree on it."""
    shop.handle(completes, caller=functools.partial(shop.caller, field="origin"))
    with shop.tracer.start_as_current_span("writer"):
        shop.orders.insert_one({"_id": 1, "v": 1, **trace_fields("origin")})
    shop.run(1)
    assert trace_of(shop.span()) == trace_of(shop.span("writer"))


@pytest.mark.parametrize("field", ["", "_id", "a.b", "$a", "a\0b"])
def test_a_name_that_no_field_can_have_is_refused(field: str) -> None:
    """Where it is written, before it reaches a document."""
    with pytest.raises(ConfigurationError, match="field: expected the name of a field"):
        trace_fields(field)


def test_the_setting_takes_the_import_path(shop: Shop) -> None:
    """B-37: in a file of settings."""
    shop.app.conf.reactive_task_caller = "celery_reactive.opentelemetry.traced"
    assert shop.runtime.task_caller is traced


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is an extra."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "celery_reactive.opentelemetry")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'celery-reactive\[otel\]'"):
        importlib.import_module("celery_reactive.opentelemetry")


def test_a_watched_trace_is_a_change(shop: Shop) -> None:
    """Documented: where the whole document is watched, the same values under another trace run again."""
    shop.handle(completes, watch_projection=None)
    shop.write({"_id": 1, "v": 1})
    shop.run(1)
    shop.plan(1)
    assert shop.record(1)["status"] == "completed"
    with shop.tracer.start_as_current_span("again"):
        shop.orders.update_one({"_id": 1}, {"$set": {"v": 1, **trace_fields()}})
    shop.plan(1)
    assert shop.record(1)["status"] == "pending"


def test_a_batch_is_one_span_that_links_to_the_traces_of_its_documents(shop: Shop) -> None:
    """B-37, B-60: it is part of none of them; what it raises is told of once."""

    def handler(contexts: list[TaskContext]) -> None:
        raise ValueError(f"{len(contexts)} are too many")

    shop.handle(handler, batch=10)
    shop.write({"_id": 1, "v": 1}, "first writer")
    shop.write({"_id": 2, "v": 1}, "second writer")
    shop.orders.insert_one({"_id": 3, "v": 1})
    shop.run(1, 2, 3)
    span = shop.span()
    writers = {id_of(shop.span("first writer")), id_of(shop.span("second writer"))}
    assert span.parent is None
    assert writers <= set(links_of(span))
    assert span.attributes is not None
    assert span.attributes["messaging.batch.message_count"] == 3
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]
