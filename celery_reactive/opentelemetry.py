"""OpenTelemetry across the database: a document carries its writer's trace, and its run goes on with it.

For users, on request: writers put `trace_fields()` into what they write, workers name `traced` as
`reactive_task_caller` (B-37). Nothing in the package imports this module. It must never keep a handler from being
called, nor change what its run comes to: what a document says is data, and a trace that cannot be read is done
without.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from celery.exceptions import Ignore, Retry

from celery_reactive.core.outcome import Failure
from celery_reactive.core.record import id_to_text
from celery_reactive.core.suggest import shown
from celery_reactive.errors import ConfigurationError, ReactiveError, TaskConditionFailedError
from celery_reactive.store.errors import time_limit, translating
from celery_reactive.worker.context import TaskContext
from celery_reactive.worker.run import Run

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanKind, StatusCode, TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "celery_reactive.opentelemetry needs the package opentelemetry-api, which is not installed; "
        "install it: pip install 'celery-reactive[otel]'",
        name=error.name,
    ) from error

__all__ = ["trace_fields", "traced"]

logger = logging.getLogger(__name__)

_FIELD = "_trace"
_PARTS = ("traceparent", "tracestate")
_PATIENCE = timedelta(seconds=2)
"""A handler waits no longer than this for the trace of its document's writer."""
_W3C = TraceContextTextMapPropagator()
"""Whatever propagator the process is configured with: what is stored is read by other versions of the program."""


def trace_fields(field: str = _FIELD) -> dict[str, dict[str, str]]:
    """Return what to write into a document so that its run goes on with the current trace.

    Merge it into what is inserted, or into an update's `$set`.

    Args:
        field: Name of the field, at the top of the document; `traced` must be told of another than the default.

    Returns:
        The field with W3C `traceparent`, and `tracestate` where there is one; empty where no trace is active, so that
        an update leaves that of an earlier write in place.

    Raises:
        ConfigurationError: *field* is no name of a field at the top of a document.
    """
    if not field or field == "_id" or field.startswith("$") or "." in field or "\0" in field:
        problem = f"expected the name of a field at the top of a document, got {shown(field)}"
        raise ConfigurationError("field", [problem])
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return {field: carrier} if carrier else {}


def traced(
    call: Callable[[], object],
    ctx: TaskContext | Sequence[TaskContext],
    *,
    field: str = _FIELD,
    tracer_provider: TracerProvider | None = None,
) -> None:
    """Make *call* in a span of its own: for `reactive_task_caller`, as it is or called by one of yours (B-37).

    The span is a child of the trace that the document carries, otherwise the root of a new one; either way it links
    to the span that was current, such as CeleryInstrumentor's. A batch is one span, the root of a new trace, that links
    to the traces of its documents (B-60).

    Args:
        call: Calls the handler.
        ctx: The run's context, or those of a batch.
        field: Where writers put what `trace_fields` returns.
        tracer_provider: Makes the span; None: the process's.
    """
    contexts = [ctx] if isinstance(ctx, TaskContext) else list(ctx)
    first, is_batch = contexts[0], not isinstance(ctx, TaskContext)
    current = trace.get_current_span().get_span_context()
    writers = [_writer_of(one, field) for one in contexts]
    linked = [current, *(trace.get_current_span(one).get_span_context() for one in writers if is_batch)]
    tracer = trace.get_tracer("celery_reactive", tracer_provider=tracer_provider)
    with tracer.start_as_current_span(
        f"process {first.task}",
        context=trace.set_span_in_context(trace.INVALID_SPAN) if is_batch else writers[0],
        kind=SpanKind.CONSUMER,
        attributes=_attributes_of_batch(contexts) if is_batch else _attributes(first),
        links=[Link(one) for one in linked if one.is_valid],
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            call()
        except BaseException as error:
            _tell_of_failure(span, error) if is_batch else _tell(span, _run_of(first), error)
            raise
        if not is_batch:
            _tell(span, _run_of(first), None)


def _writer_of(ctx: TaskContext, field: str) -> Context:
    """Return the context of the document's writer; without one, the current context without its span."""
    return _W3C.extract(_stored(ctx, field), trace.set_span_in_context(trace.INVALID_SPAN))


def _stored(ctx: TaskContext, field: str) -> dict[str, str]:
    """Read what `trace_fields` has left in the document; what is not text counts as missing."""
    run = _run_of(ctx)
    session = ctx._session  # noqa: SLF001 -- of the run, so that the read comes after the claim
    source = run.runtime.connection.source(run.task)
    projection = {"_id": 0} | {f"{field}.{part}": 1 for part in _PARTS}
    try:
        with time_limit(_PATIENCE), translating():
            document = source.find_one({"_id": ctx.doc_id}, projection, session=session)
    except ReactiveError as error:
        logger.warning("trace of the document not read: %s", error, extra={"event": "trace_unread"})
        return {}
    carrier = (document or {}).get(field)
    if not isinstance(carrier, Mapping):
        return {}
    return {part: carrier[part] for part in _PARTS if isinstance(carrier.get(part), str)}


def _attributes(ctx: TaskContext) -> dict[str, str | int]:
    run = _run_of(ctx)
    key, namespace = run.claim.key, run.runtime.connection.namespace(run.task)
    return {
        "messaging.system": "celery_reactive",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": ctx.task,
        "messaging.message.id": key.celery_id(namespace, run.claim.cycle),
        "reactive.task": ctx.task,
        "reactive.collection": ctx.collection,
        "reactive.document_id": id_to_text(ctx.doc_id),
        "reactive.attempt": ctx.attempt,
    }


def _attributes_of_batch(contexts: Sequence[TaskContext]) -> dict[str, str | int]:
    first = contexts[0]
    return {
        "messaging.system": "celery_reactive",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": first.task,
        "messaging.batch.message_count": len(contexts),
        "reactive.task": first.task,
        "reactive.collection": first.collection,
    }


def _tell(span: Span, run: Run, error: BaseException | None) -> None:
    """Say on *span* what a handler that did not simply complete its record came to; only a failure is an error."""
    if run.completed:
        return
    if run.overtaken is not None:
        span.set_attribute("reactive.outcome", "overtaken")
        return
    match error:
        case None:
            if run.deferral is not None:
                span.set_attribute("reactive.outcome", "deferred")
        case TaskConditionFailedError() | Ignore():
            span.set_attributes({"reactive.outcome": "skipped", "reactive.reason": Failure.of(error).message})
        case _:
            _tell_of_failure(span, error)


def _tell_of_failure(span: Span, error: BaseException) -> None:
    """As `Span.record_exception`, also for an exception whose `str` raises."""
    cause: Any = error.exc if isinstance(error, Retry) else error
    if not isinstance(cause, BaseException):
        cause = error
    failure = Failure.of(cause, "".join(traceback.format_exception(cause)))
    span.set_attributes({"reactive.outcome": "failed", "error.type": failure.type})
    span.add_event(
        "exception",
        {
            "exception.type": failure.type,
            "exception.message": failure.message,
            "exception.stacktrace": failure.traceback,
        },
    )
    span.set_status(StatusCode.ERROR, failure.message)


def _run_of(ctx: TaskContext) -> Run:
    return ctx._run  # noqa: SLF001 -- handlers have no need of it
