"""What Flower and other monitors are told of the records of one message (B-56).

Celery sends one series of events for a message. A message that names several records is a run for each of them, so
each gets a series of its own: received and started by the worker's parent process, which has the connection; how it
ended by the process that runs it, which has none and hands its events over with the message's result.

An event is its type and its fields, as `celery.events.EventDispatcher.send` takes them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, assert_never

from celery.app.trace import TraceInfo
from celery.states import FAILURE, RETRY
from celery.utils.serialization import get_pickled_exception
from kombu.utils.encoding import safe_repr, safe_str

from celery_reactive.core.outcome import (
    Completed,
    Deferred,
    Errored,
    Exhausted,
    GivenBack,
    Outcome,
    Overtaken,
    Skipped,
)

MonitorEvent = tuple[str, dict[str, Any]]


def own_request(request: Mapping[str, Any], celery_id: str, document: str, *, retries: int) -> dict[str, Any]:
    """Return the Celery request of one record of a message.

    Args:
        request: The message's.
        celery_id: The record's.
        document: Its document's id as text.
        retries: Attempts before this one.
    """
    return {
        **request,
        "id": celery_id,
        "correlation_id": celery_id,
        "root_id": celery_id,
        "args": (document,),
        "argsrepr": f"({document})",
        "kwargsrepr": "{}",
        "retries": retries,
    }


def received(request: Mapping[str, Any], name: str) -> MonitorEvent:
    """Return what is told of a record when its message has come."""
    return "task-received", {
        "uuid": request["id"],
        "name": name,
        "args": request.get("argsrepr", ""),
        "kwargs": request.get("kwargsrepr", ""),
        "root_id": request.get("root_id"),
        "parent_id": request.get("parent_id"),
        "retries": request.get("retries", 0),
        "eta": request.get("eta"),
        "expires": request.get("expires"),
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What is to be told of one record's run when its message has ended."""

    events: Sequence[MonitorEvent]
    next_attempt: float = math.inf
    """When another may begin, in seconds of the Unix epoch."""


def run_of_record(celery_id: str, result: Any, outcome: Outcome, *, started: float, now: datetime) -> Told:
    """Return what is told of one record's run.

    Args:
        celery_id: The record's.
        result: Celery's, of tracing it (`celery.app.trace.trace_ok_t`).
        outcome: What the run came to.
        started: When, in seconds of the Unix epoch on this machine's clock, as Celery's own events have it.
        now: The server's time.
    """
    ended = time.time()
    kind, fields = _ended(result, outcome)
    events = [
        ("task-started", {"uuid": celery_id, "timestamp": started}),
        (kind, {"uuid": celery_id, "timestamp": ended, **fields}),
    ]
    wait = _wait(outcome, now)
    return Told(events) if wait is None else Told(events, ended + wait.total_seconds())


def still_true(told: Iterable[Told]) -> list[MonitorEvent]:
    """Return the events of a message's runs, but of those after which another attempt may have begun.

    Its own events may have come first, and a monitor that hears of the retry after them shows it for ever.
    """
    now = time.time()
    return [event for one in told if one.next_attempt > now for event in one.events]


def _wait(outcome: Outcome, now: datetime) -> timedelta | None:
    match outcome:
        case Errored(retry_in=wait) | GivenBack(wait=wait):
            return wait
        case Deferred(until=until):
            return max(until - now, timedelta(0))
        case Overtaken():
            return timedelta(seconds=1)
        case Completed() | Skipped() | Exhausted():
            return None
        case _:
            assert_never(outcome)


def _ended(result: Any, outcome: Outcome) -> MonitorEvent:
    match result.info:
        case None:
            return "task-succeeded", {"result": result.retstr, "runtime": result.runtime}
        case TraceInfo(state=state, retval=retry) if state == RETRY:
            return "task-retried", error_fields(retry.exc, result.retval.traceback)
        case TraceInfo(state=state, retval=error) if state == FAILURE:
            # Celery does not retry what it takes for an error of its own, the record does.
            kind = "task-retried" if isinstance(outcome, Errored) else "task-failed"
            return kind, error_fields(error, result.retval.traceback)
        case info:
            return "task-skipped", {"reason": str(info.retval)}


def error_fields(error: BaseException | None, traceback: Any) -> dict[str, str]:
    """Return the fields that tell of an error, as Celery writes them; a deferral has none."""
    shown = None if error is None else get_pickled_exception(error)
    return {
        "exception": safe_repr(shown),  # type: ignore[no-untyped-call]
        "traceback": safe_str(traceback),  # type: ignore[no-untyped-call]
    }
