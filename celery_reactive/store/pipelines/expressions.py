"""What the pipelines are made of: values as data, flags, the server's clock, guards on state and time.

Called by the other modules of this package, and by the statements for their guards.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from celery_reactive.core.outcome import Failure, shorten
from celery_reactive.core.states import RUNNING, RecordState

Expression = Any
Stage = dict[str, Any]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""`wakeAt > EPOCH` leaves out null and makes the partial index eligible."""
_HISTORY_ERROR_BYTES = 1024
NOW = "$$NOW"
TRUE: Expression = True
FALSE: Expression = False
REMOVE = "$$REMOVE"


def literal(value: object) -> Expression:
    """Return *value* as data, whatever it contains."""
    return {"$literal": value}


def state_is(states: frozenset[RecordState]) -> dict[str, Any]:
    """Return the guard that demands one of *states*."""
    return {"status": {"$in": sorted(states)}} if len(states) > 1 else {"status": next(iter(states)).value}


def is_past(field: str, *, since: datetime | None = None) -> dict[str, Any]:
    """Return the guard that demands a date in *field* that has come by the server's clock, not before *since*."""
    return {field: {"$gt": EPOCH} if since is None else {"$gte": since}, "$expr": {"$lte": [f"${field}", NOW]}}


def is_before(until: datetime | None) -> dict[str, Any]:
    """Return the guard that demands that *until* has not passed by the server's clock; None: none."""
    return {} if until is None else {"$and": [{"$expr": {"$lte": [NOW, until]}}]}


def milliseconds(duration: timedelta) -> int:
    """Return *duration* in whole milliseconds, the resolution of BSON dates."""
    return round(duration / timedelta(milliseconds=1))


def flag(name: str) -> Expression:
    """Return whether a flag of the bookkeeping is set."""
    return {"$eq": [f"$_r.{name}", True]}


def flag_if(condition: Expression) -> Expression:
    """Return the value of a flag that is there only where *condition* holds."""
    return {"$cond": [condition, True, REMOVE]}


def after(duration: timedelta, start: Expression = NOW) -> Expression:
    """Return the time *duration* after *start*."""
    return {"$add": [start, milliseconds(duration)]}


def state_in(states: frozenset[RecordState]) -> Expression:
    """Return whether the record is in one of *states*."""
    return {"$in": ["$status", sorted(states)]}


IS_RUNNING = state_in(RUNNING)
IS_PENDING: Expression = {"$eq": ["$status", RecordState.PENDING.value]}
IS_DIRTY: Expression = {"$eq": ["$status", RecordState.PROCESSING_DIRTY.value]}
HAS_TO_RUN_ALL_THE_SAME: Expression = {"$or": [flag("forced"), {"$gt": ["$_r.deleted", None]}]}
"""Whether somebody has retried the record by hand, or its document's deletion waits for a run of its own (B-61)."""
IS_OFF: Expression = {"$and": [{"$or": [flag("gone"), flag("left")]}, {"$not": HAS_TO_RUN_ALL_THE_SAME}]}
ATTEMPTS_SO_FAR: Expression = {"$cond": [flag("fresh"), 0, "$attempts"]}


def history(status: str, limit: int, **facts: Expression) -> Expression:
    """Return the history with one more entry, cut to the newest *limit*."""
    if limit == 0:
        return []
    entry = {"at": NOW, "status": status, **facts}
    return {"$slice": [{"$concatArrays": ["$executionHistory", [entry]]}, -limit]}


def if_(condition: Expression, then: Expression, otherwise: Expression) -> Expression:
    """Return *then* where *condition* holds, else *otherwise*."""
    return {"$cond": [condition, then, otherwise]}


def skip_fields(condition: Expression, reason: str, history_limit: int) -> dict[str, Expression]:
    """Fields of a record that becomes `completed` without a run where *condition* holds."""
    skipped = history("skipped", history_limit, reason=literal(reason))
    return {
        "status": if_(condition, RecordState.COMPLETED.value, "$status"),
        "nextRunAt": if_(condition, None, "$nextRunAt"),
        "completedAt": if_(condition, NOW, "$completedAt"),
        "executionHistory": if_(condition, skipped, "$executionHistory"),
        "_r.wakeAt": if_(condition, None, "$_r.wakeAt"),
        "_r.sent": if_(condition, FALSE, "$_r.sent"),
        "_r.changedAt": if_(condition, None, "$_r.changedAt"),
        "_r.skipped": if_(condition, TRUE, "$_r.skipped"),
        "_r.held": if_(condition, REMOVE, "$_r.held"),
        "_r.guarded": if_(condition, REMOVE, "$_r.guarded"),
        "_r.fresh": if_(condition, TRUE, "$_r.fresh"),
    }


def failure_fields(
    error: Failure,
    first_error: Expression,
    history_limit: int,
    *,
    took: float,
) -> dict[str, Expression]:
    """Fields of a record whose attempt has failed."""
    short = literal(shorten(error.message, _HISTORY_ERROR_BYTES))
    return {
        "lastError": literal(error.message),
        "firstErrorAt": first_error,
        "executionHistory": history("failed", history_limit, durationMs=took, error=short),
        "_r.error": {"type": literal(error.type), "traceback": literal(error.traceback)},
    }
