"""What people and deployments do to records: retry, reprocess, discard, revoke."""

from __future__ import annotations

from celery_reactive.core.outcome import Failure
from celery_reactive.core.states import FINAL, RecordState
from celery_reactive.store.pipelines import loops
from celery_reactive.store.pipelines.expressions import (
    FALSE,
    IS_PENDING,
    IS_RUNNING,
    NOW,
    REMOVE,
    Stage,
    failure_fields,
    flag,
    history,
    if_,
    state_in,
)


def retry_by_hand() -> list[Stage]:
    """Return the pipeline of a manual retry (B-52): pending now; a running record runs again at once after."""
    return [
        {
            "$set": {
                "status": if_(IS_RUNNING, RecordState.PROCESSING_DIRTY.value, RecordState.PENDING.value),
                "nextRunAt": if_(IS_RUNNING, "$nextRunAt", NOW),
                "_r.forced": True,
                "_r.held": REMOVE,
                "_r.wakeAt": if_(IS_RUNNING, "$_r.wakeAt", NOW),
                "_r.sent": if_(IS_RUNNING, "$_r.sent", FALSE),
                "_r.dispatches": if_(IS_RUNNING, "$_r.dispatches", 0),
                "_r.cycle": {"$add": ["$_r.cycle", if_(IS_RUNNING, 0, 1)]},
                **loops.FREE,
            },
        },
    ]


def reprocess(version: int) -> list[Stage]:
    """Return the pipeline that lets a record run for a new version of its handler (B-44).

    It starts with no attempts and no first error; a running one runs once more after its end.

    Args:
        version: The handler's; kept with the time, so that no record is reset for it twice, and a worker with older
            code can leave it to a newer one.
    """
    waits = {"$and": [{"$not": "$_r.reset.running"}, {"$not": {"$and": [IS_PENDING, flag("held")]}}]}
    return [
        {"$set": {"_r.reset": {"version": version, "at": NOW, "running": IS_RUNNING, "final": state_in(FINAL)}}},
        {
            "$set": {
                "status": if_("$_r.reset.running", RecordState.PROCESSING_DIRTY.value, RecordState.PENDING.value),
                "attempts": 0,
                "firstErrorAt": None,
                "dueAt": NOW,
                "nextRunAt": if_(waits, NOW, "$nextRunAt"),
                "_r.changedAt": {"$ifNull": ["$_r.changedAt", NOW]},
                "_r.wakeAt": if_(waits, NOW, "$_r.wakeAt"),
                "_r.sent": if_(waits, FALSE, "$_r.sent"),
                "_r.dispatches": if_(waits, 0, "$_r.dispatches"),
                "_r.cycle": if_("$_r.reset.final", {"$add": ["$_r.cycle", 1]}, "$_r.cycle"),
                "_r.deferrals": if_("$_r.reset.final", 0, "$_r.deferrals"),
                "_r.skipped": REMOVE,
                "_r.unrun": REMOVE,
                **loops.FREE,
            },
        },
        {"$unset": ["_r.reset.running", "_r.reset.final"]},
    ]


def discard(history_limit: int) -> list[Stage]:
    """Return the pipeline that ends a pending or failed record without a run (B-52)."""
    return [
        {
            "$set": {
                "status": RecordState.COMPLETED.value,
                "nextRunAt": None,
                "completedAt": NOW,
                "executionHistory": history("discarded", history_limit),
                "_r.wakeAt": None,
                "_r.sent": False,
                "_r.changedAt": None,
                "_r.fresh": True,
            },
        },
        {"$unset": ["_r.forced", "_r.held", "_r.alone", "_r.guarded", "_r.deleted"]},
    ]


def revoke(error: Failure, *, history_limit: int) -> list[Stage]:
    """Return the pipeline that fails a pending record by hand."""
    return [
        {
            "$set": {
                "status": RecordState.FAILED.value,
                "nextRunAt": None,
                **failure_fields(error, "$firstErrorAt", history_limit, took=0),
                "_r.wakeAt": None,
                "_r.sent": False,
                "_r.changedAt": None,
            },
        },
        {"$unset": ["_r.forced", "_r.held", "_r.alone", "_r.guarded"]},
    ]
