"""Update pipelines of the records: pure builders, one per transition.

Called by `store/records.py` only. A pipeline reads the record as it is on the server and decides
there; values that come from documents, users or messages appear only as field paths or inside
`$literal`, never as expressions. `$$NOW` is the only clock.

The bookkeeping sub-document `_r` of a record:

=============  ================================================================================
`at`           cluster time of the newest observation
`gen`          generation of the definition under which it was made
`changedAt`    server time of the first change that no run has started on yet (B-16)
`claim`        `{token, worker, beats, before, forced, company}` while running; `before`: attempts before the run,
               `forced`: a manual retry started it
`fence`        grows with each claim (B-27)
`sent`         a message is on its way (`wakeAt` is its deadline)
`sentAt`       when the newest message was sent
`dispatches`   messages sent since the record last became pending
`wakeAt`       when the planner must look at the record next; null when it need not
`cycle`        counts chains of attempts, for Celery's task ids
`deferrals`    since the last change or success
`done`         token of the last run that was settled, so that a repeated statement knows its own
`reset`        `{version, at}` of the handler's version for which the record was last made to run again (B-44)
`error`        type and traceback that belong to `lastError`
=============  ================================================================================

and flags that are absent unless true: `alone` (must travel in a message of its own), `forced` (a
manual retry waits), `touched` (an event with the same values came during the run), `gone`, `left`
(the document's absence was observed), `skipped` (its last run was skipped unhandled), `fresh` (the
next run starts from attempt 1), `held` (a deferral that changes do not cut short), `unrun` (made
without a run by a scan under `backfill=False`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, assert_never

from bson import Int64, Timestamp

from celery_reactive.core.outcome import (
    Completed,
    Deferred,
    Errored,
    Exhausted,
    Failure,
    GivenBack,
    Outcome,
    Overtaken,
    Skipped,
    shorten,
)
from celery_reactive.core.states import FINAL, RUNNING, RecordState

Expression = Any
Stage = dict[str, Any]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""`wakeAt > EPOCH` leaves out null and makes the partial index eligible."""
_HISTORY_ERROR_BYTES = 1024
_MOST_DOUBLINGS = 10
_PAST_DEFERRAL = timedelta(seconds=1)
_NOW = "$$NOW"
_TRUE: Expression = True
_FALSE: Expression = False
_REMOVE = "$$REMOVE"


def literal(value: object) -> Expression:
    """Return *value* as data, whatever it contains."""
    return {"$literal": value}


def state_is(states: frozenset[RecordState]) -> dict[str, Any]:
    """Return the guard that demands one of *states*."""
    return {"status": {"$in": sorted(states)}} if len(states) > 1 else {"status": next(iter(states)).value}


def is_past(field: str) -> dict[str, Any]:
    """Return the guard that demands a date in *field* that has come by the server's clock."""
    return {field: {"$gt": EPOCH}, "$expr": {"$lte": [f"${field}", _NOW]}}


def milliseconds(duration: timedelta) -> int:
    """Return *duration* in whole milliseconds, the resolution of BSON dates."""
    return round(duration / timedelta(milliseconds=1))


def _flag(name: str) -> Expression:
    return {"$eq": [f"$_r.{name}", True]}


def _flag_if(condition: Expression) -> Expression:
    return {"$cond": [condition, True, _REMOVE]}


def _after(duration: timedelta, start: Expression = _NOW) -> Expression:
    return {"$add": [start, milliseconds(duration)]}


def _state_in(states: frozenset[RecordState]) -> Expression:
    return {"$in": ["$status", sorted(states)]}


_IS_RUNNING = _state_in(RUNNING)
_IS_PENDING: Expression = {"$eq": ["$status", RecordState.PENDING.value]}
_IS_DIRTY: Expression = {"$eq": ["$status", RecordState.PROCESSING_DIRTY.value]}
_IS_OFF: Expression = {"$and": [{"$or": [_flag("gone"), _flag("left")]}, {"$not": _flag("forced")}]}
_ATTEMPTS_SO_FAR: Expression = {"$cond": [_flag("fresh"), 0, "$attempts"]}


def _history(status: str, limit: int, **facts: Expression) -> Expression:
    """Return the history with one more entry, cut to the newest *limit*."""
    if limit == 0:
        return []
    entry = {"at": _NOW, "status": status, **facts}
    return {"$slice": [{"$concatArrays": ["$executionHistory", [entry]]}, -limit]}


# --- planning ------------------------------------------------------------------------------------


def new_record(
    task: str,
    *,
    at: Timestamp,
    generation: int,
    debounce: timedelta,
    runs: bool = True,
) -> Stage:
    """Return the stage that turns `{d: document id, w: watched values}` into a whole new record (B-12).

    Args:
        task: Name of the task.
        at: Cluster time of the observation.
        generation: Of the definition.
        debounce: Wait before the first run.
        runs: False makes the record `completed` and unrun (`backfill=False`, B-2).

    The fence starts from the cluster time, so that it grows across the removal of a record: each
    claim is an operation that moves the cluster's clock by at least as much (B-27).
    """
    due = _after(debounce) if runs else None
    return {
        "$replaceWith": {
            "_id": {"t": literal(task), "d": "$d"},
            "task": literal(task),
            "sourceDocId": "$d",
            "status": (RecordState.PENDING if runs else RecordState.COMPLETED).value,
            "attempts": 0,
            "nextRunAt": due,
            "dueAt": _after(debounce),
            "lastObservedValues": "$w",
            "createdAt": _NOW,
            "updatedAt": _NOW,
            "startedAt": None,
            "completedAt": None if runs else _NOW,
            "lastFinalizedAt": None,
            "firstErrorAt": None,
            "lastError": None,
            "lastSuccess": None,
            "executionHistory": [],
            "_r": {
                "at": at,
                "gen": generation,
                "changedAt": _NOW if runs else None,
                "claim": None,
                "fence": Int64((at.time << 24) + at.inc),
                "sent": False,
                "dispatches": 0,
                "wakeAt": due,
                "cycle": 0,
                "deferrals": 0,
                **({} if runs else {"unrun": True, "fresh": True}),
            },
        },
    }


def apply_observation(
    *,
    debounce: timedelta,
    max_wait: timedelta | None,
    reset_retries: bool,
    reentry_runs: bool,
    comparable: Iterable[int],
    live: bool,
    stamps: bool,
) -> list[Stage]:
    """Return the `whenMatched` pipeline that lays the observation `$$new` over an existing record (B-13 to B-17).

    An older observation never overwrites a newer one, and applying one twice does what applying it
    once does, also when a claim and a completion came in between.

    Args:
        debounce: Wait after a change.
        max_wait: Longest wait counted from the first unhandled change.
        reset_retries: Whether a change starts the attempts anew (B-15).
        reentry_runs: Whether re-entering the filter runs the task; false for the projection `{"_id": 1}` (B-17).
        comparable: Generations with the present projection; the snapshot of any other counts as different (B-43).
        live: An event told of the document; false: a scan came by, which runs nothing that it once left unrun.
        stamps: Whether an observation of nothing new moves the record's time. A scan's must not: a deletion and
            re-insertion that it read over are still to be told, and would be refused as older (B-18, B-48).
    """
    accepted = {"$and": [{"$gte": ["$$new._r.at", "$_r.at"]}, {"$gte": ["$$new._r.gen", "$_r.gen"]}]}
    newer = {"$and": [accepted, {"$gt": ["$$new._r.at", "$_r.at"]}]}
    known = {"$in": ["$_r.gen", sorted(comparable)]}
    different = {"$or": [{"$ne": ["$lastObservedValues", "$$new.lastObservedValues"]}, {"$not": known}]}
    reentered = {"$or": [_flag("gone"), {"$and": [_flag("left"), _TRUE if reentry_runs else _flag("skipped")]}]}
    first_event = {"$and": [live, newer, _flag("unrun")]}
    first_change = {"$ifNull": ["$_r.changedAt", _NOW]}
    due = _after(debounce)
    if max_wait is not None:
        due = {"$max": [{"$min": [due, _after(max_wait, first_change)]}, _NOW]}
    starts_anew = True if reset_retries else _flag("fresh")
    run, waits = "$_r.plan.run", {"$and": ["$_r.plan.run", {"$not": "$_r.plan.running"}]}
    held = {"$and": [_IS_PENDING, _flag("held")]}
    next_run = {"$cond": [held, {"$max": ["$nextRunAt", "$_r.plan.due"]}, "$_r.plan.due"]}
    return [
        {
            "$set": {
                "_r.plan": {
                    "accepted": accepted,
                    "newer": newer,
                    "run": {"$and": [accepted, {"$or": [different, reentered, first_event]}]},
                    "running": _IS_RUNNING,
                    "due": due,
                },
            },
        },
        {
            "$set": {
                "lastObservedValues": _if("$_r.plan.accepted", "$$new.lastObservedValues", "$lastObservedValues"),
                "status": _if(
                    run,
                    _if("$_r.plan.running", RecordState.PROCESSING_DIRTY.value, RecordState.PENDING.value),
                    "$status",
                ),
                "updatedAt": _if(run, _NOW, "$updatedAt"),
                "dueAt": _if(run, "$_r.plan.due", "$dueAt"),
                "nextRunAt": _if(waits, next_run, "$nextRunAt"),
                "attempts": _if({"$and": [run, starts_anew]}, 0, "$attempts"),
                "firstErrorAt": _if({"$and": [run, starts_anew]}, None, "$firstErrorAt"),
                "lastError": _if({"$and": [run, starts_anew]}, None, "$lastError"),
                "_r": {
                    "at": _if("$_r.plan.accepted" if stamps else run, "$$new._r.at", "$_r.at"),
                    "gen": _if("$_r.plan.accepted", "$$new._r.gen", "$_r.gen"),
                    "changedAt": _if(run, first_change, "$_r.changedAt"),
                    "wakeAt": _if(waits, next_run, "$_r.wakeAt"),
                    "sent": _if(waits, _FALSE, "$_r.sent"),
                    "dispatches": _if(waits, 0, "$_r.dispatches"),
                    "cycle": _if({"$and": [run, _state_in(FINAL)]}, {"$add": ["$_r.cycle", 1]}, "$_r.cycle"),
                    "deferrals": _if(run, 0, "$_r.deferrals"),
                    "gone": _if("$_r.plan.accepted", _REMOVE, "$_r.gone"),
                    "left": _if("$_r.plan.accepted", _REMOVE, "$_r.left"),
                    "skipped": _if(run, _REMOVE, "$_r.skipped"),
                    "unrun": _if(run, _REMOVE, "$_r.unrun"),
                    "error": _if({"$and": [run, starts_anew]}, _REMOVE, "$_r.error"),
                    "touched": _flag_if(
                        {
                            "$or": [
                                _flag("touched"),
                                {"$and": ["$_r.plan.running", "$_r.plan.newer", {"$not": run}]},
                            ],
                        },
                    ),
                },
            },
        },
        {"$unset": "_r.plan"},
    ]


def unless_known(records: str, *, comparable: Iterable[int]) -> list[Stage]:
    """Return the stages that leave out new records whose existing ones say the same: a scan has nothing to write there.

    Running records and those that were gone or had left pass: what a scan saw matters to them. The merge that
    follows decides for itself, so that what changes in between is judged as it is then.

    Args:
        records: Name of the records collection, in the same database.
        comparable: Generations with the present projection.
    """
    same = {
        "$and": [
            {"$eq": ["$$known.lastObservedValues", "$lastObservedValues"]},
            {"$eq": ["$$known._r.gen", "$_r.gen"]},
            {"$in": ["$$known._r.gen", sorted(comparable)]},
            {"$not": {"$in": ["$$known.status", sorted(RUNNING)]}},
            {"$ne": ["$$known._r.gone", True]},
            {"$ne": ["$$known._r.left", True]},
        ],
    }
    says_the_same = {"$let": {"vars": {"known": {"$first": "$known"}}, "in": same}}
    return [
        {"$lookup": {"from": records, "localField": "_id", "foreignField": "_id", "as": "known"}},
        {"$match": {"$expr": {"$not": says_the_same}}},
        {"$unset": "known"},
    ]


def snapshots_to_adopt(records: str, task: str, earlier: Sequence[tuple[frozenset[int], str]]) -> list[Stage]:
    """Return the stages that find records of earlier generations whose documents have not changed since (B-43).

    They take `{d: document id, w: watched values, …: values under earlier projections}`, and give `{_id, w, gen, at}`:
    the record, its new snapshot, and what it must still say when that is written.

    Args:
        records: Name of the records collection, in the same database.
        task: Name of the task.
        earlier: Generations, each with the field that holds the values under their projection.
    """
    unchanged = [
        {"$and": [{"$in": ["$known._r.gen", sorted(generations)]}, {"$eq": ["$known.lastObservedValues", f"${field}"]}]}
        for generations, field in earlier
    ]
    return [
        {"$set": {"_id": {"t": literal(task), "d": "$d"}}},
        {"$lookup": {"from": records, "localField": "_id", "foreignField": "_id", "as": "known"}},
        {"$unwind": "$known"},
        {"$match": {"$expr": {"$or": unchanged}}},
        {"$replaceWith": {"_id": "$_id", "w": "$w", "gen": "$known._r.gen", "at": "$known._r.at"}},
    ]


def adopt_snapshot(generation: int) -> list[Stage]:
    """Return the `whenMatched` pipeline that gives an unchanged record its snapshot under the present projection."""
    as_read = {"$and": [{"$eq": ["$_r.gen", "$$new.gen"]}, {"$eq": ["$_r.at", "$$new.at"]}]}
    return [
        {
            "$set": {
                "lastObservedValues": _if(as_read, "$$new.w", "$lastObservedValues"),
                "_r.gen": _if(as_read, generation, "$_r.gen"),
            },
        },
    ]


def _if(condition: Expression, then: Expression, otherwise: Expression) -> Expression:
    return {"$cond": [condition, then, otherwise]}


def leave(*, at: object, gone: bool, history_limit: int) -> list[Stage]:
    """Return the pipeline that marks a record whose document is gone or has left the filter (B-8).

    A pending record that nobody retried by hand becomes `completed` without a run; a running one
    keeps its claim and is settled by its worker.

    Args:
        at: Cluster time of the observation.
        gone: The document was deleted; false: it has left the filter.
        history_limit: Newest entries kept.
    """
    skips = {"$and": [_IS_PENDING, {"$not": _flag("forced")}]}
    reason = "the document was deleted" if gone else "the document no longer matches the filter"
    return [
        {"$set": {"_r.skips": skips}},
        {
            "$set": {
                "_r.at": at,
                f"_r.{'gone' if gone else 'left'}": True,
                **_skip_fields("$_r.skips", reason, history_limit),
            },
        },
        {"$unset": "_r.skips"},
    ]


def _skip_fields(condition: Expression, reason: str, history_limit: int) -> dict[str, Expression]:
    """Fields of a record that becomes `completed` without a run where *condition* holds."""
    skipped = _history("skipped", history_limit, reason=literal(reason))
    return {
        "status": _if(condition, RecordState.COMPLETED.value, "$status"),
        "nextRunAt": _if(condition, None, "$nextRunAt"),
        "completedAt": _if(condition, _NOW, "$completedAt"),
        "executionHistory": _if(condition, skipped, "$executionHistory"),
        "_r.wakeAt": _if(condition, None, "$_r.wakeAt"),
        "_r.sent": _if(condition, _FALSE, "$_r.sent"),
        "_r.changedAt": _if(condition, None, "$_r.changedAt"),
        "_r.skipped": _if(condition, _TRUE, "$_r.skipped"),
        "_r.fresh": _if(condition, _TRUE, "$_r.fresh"),
    }


# --- dispatching ---------------------------------------------------------------------------------


def mark_sent(*, first_deadline: timedelta, longest_deadline: timedelta) -> list[Stage]:
    """Return the pipeline that notes that a message is about to be published, and when to send another.

    The deadline doubles with each message in a row, so that a queue nobody serves is not flooded.
    """
    doubled = {
        "$multiply": [milliseconds(first_deadline), {"$pow": [2, {"$min": ["$_r.dispatches", _MOST_DOUBLINGS]}]}]
    }
    wait = {"$toLong": {"$min": [doubled, milliseconds(longest_deadline)]}}
    return [
        {
            "$set": {
                "_r.sent": True,
                "_r.sentAt": _NOW,
                "_r.dispatches": {"$add": ["$_r.dispatches", 1]},
                "_r.wakeAt": {"$add": [_NOW, wait]},
            },
        },
    ]


def mark_unsent() -> list[Stage]:
    """Return the pipeline for a record whose message is known not to have been published."""
    return [
        {
            "$set": {
                "_r.sent": False,
                "_r.wakeAt": "$nextRunAt",
                "_r.dispatches": {"$max": [0, {"$subtract": ["$_r.dispatches", 1]}]},
            },
        },
    ]


def is_in_flight(*, sent_before: datetime | None = None, patience: timedelta = timedelta(0)) -> dict[str, Any]:
    """Return the guard that demands a message on its way, whose deadline is still to come.

    Args:
        sent_before: Only one sent by then, by the server's clock.
        patience: So much before that, for the second message in a row; three times as much for the third, and so on.
    """
    conditions: list[Expression] = [{"$gt": ["$_r.wakeAt", _NOW]}]
    if sent_before is not None:
        doublings = {"$min": [{"$subtract": ["$_r.dispatches", 1]}, _MOST_DOUBLINGS]}
        wait = {"$multiply": [milliseconds(patience), {"$subtract": [{"$pow": [2, doublings]}, 1]}]}
        conditions.append({"$lte": [{"$add": ["$_r.sentAt", {"$toLong": wait}]}, sent_before]})
    return {"_r.sent": True, "_r.wakeAt": {"$gt": EPOCH}, "$expr": {"$and": conditions}}


def expire_sent() -> list[Stage]:
    """Return the pipeline for a record whose message has probably been lost: it is due, and has been sent so often."""
    return [{"$set": {"_r.sent": False, "_r.wakeAt": "$nextRunAt"}}]


# --- running -------------------------------------------------------------------------------------


def start_attempt(*, token: str, worker: str, lease: timedelta, company: bool) -> list[Stage]:
    """Return the pipeline of a claim (B-23).

    Args:
        token: Unique to this delivery of the message.
        worker: Name of the claiming process, for people.
        lease: Visibility timeout.
        company: Whether other records are claimed by the same statement.
    """
    lease_end = _after(lease)
    claim = {
        "token": literal(token),
        "worker": literal(worker),
        "beats": 0,
        "before": _ATTEMPTS_SO_FAR,
        "forced": _flag("forced"),
        "company": company,
    }
    return [
        {
            "$set": {
                "status": RecordState.PROCESSING.value,
                "startedAt": _NOW,
                "attempts": {"$add": [_ATTEMPTS_SO_FAR, 1]},
                "nextRunAt": lease_end,
                "_r.claim": claim,
                "_r.fence": {"$add": ["$_r.fence", 1]},
                "_r.wakeAt": lease_end,
                "_r.sent": False,
                "_r.dispatches": 0,
                "_r.changedAt": None,
            },
        },
        {"$unset": ["_r.touched", "_r.forced", "_r.fresh", "_r.alone", "_r.held", "_r.skipped", "_r.unrun"]},
    ]


def renew(lease: timedelta) -> list[Stage]:
    """Return the pipeline of a heartbeat: the counter that rescue watches, and the lease's end for people."""
    return [{"$set": {"_r.claim.beats": {"$add": ["$_r.claim.beats", 1]}, "nextRunAt": _after(lease)}}]


def settle(
    outcome: Outcome,
    *,
    debounce: timedelta,
    history_limit: int,
    reset_retries: bool,
    observed_at: object,
) -> list[Stage]:
    """Return the pipeline that ends a run with *outcome*, whatever came in during it (B-24 to B-26, B-33, B-34).

    What waits decides first: a manual retry sends the record round again at once; a document that
    is gone or has left completes it instead of any pending; a newer state sends it round again
    at its due time. Only then does the outcome itself count.

    Args:
        outcome: What the run came to.
        debounce: Of the task, for the run after an overtaken one.
        history_limit: Newest entries kept.
        reset_retries: Whether a change starts the attempts anew (B-15); an overtaken run has found one.
        observed_at: Cluster time known before the run's reads: the time of what the worker saw.
    """
    return [
        {"$set": {"_r.end": _decisions(outcome)}},
        {"$set": _observation(outcome, observed_at)},
        {"$set": _books(outcome, history_limit, reset_retries=reset_retries)},
        {"$set": _target(outcome, debounce)},
        {"$set": _skip_when_off(history_limit)},
        {"$set": {"_r.claim": None, "_r.done": "$_r.claim.token", "_r.sent": False, "_r.dispatches": 0}},
        {"$unset": ["_r.end", "_r.touched"]},
    ]


def _decisions(outcome: Outcome) -> dict[str, Expression]:
    """What the record as found says about its next step, kept while the stages change it."""
    match outcome:
        case Completed(document_checked=checked):
            touched = False if checked else _flag("touched")
        case Skipped():
            touched = _flag("touched")
        case Deferred() | Overtaken() | GivenBack() | Errored() | Exhausted():
            touched = False
        case _:
            assert_never(outcome)
    return {"dirty": _IS_DIRTY, "forced": _flag("forced"), "touched": touched}


def _observation(outcome: Outcome, observed_at: object) -> dict[str, Expression]:
    """What the run itself saw of the document, unless the planner has seen something newer."""
    newer_known: Expression = {"$gt": ["$_r.at", observed_at]}
    match outcome:
        case Skipped(gone=gone, left=left) if gone or left:
            return {
                "_r.gone": _if(newer_known, "$_r.gone", True if gone else "$_r.gone"),
                "_r.left": _if(newer_known, "$_r.left", True if left else "$_r.left"),
            }
        case Overtaken(values=values, generation=generation):
            newer_known = {"$or": [newer_known, {"$gt": ["$_r.gen", generation]}]}
            # The values stay undecoded; `v` names them inside the literal.
            seen = {"$getField": {"field": "v", "input": literal(values)}}
            return {
                "lastObservedValues": _if(newer_known, "$lastObservedValues", seen),
                "updatedAt": _NOW,
                "_r.at": {"$max": ["$_r.at", observed_at]},
                "_r.gen": _if(newer_known, "$_r.gen", generation),
                "_r.changedAt": {"$ifNull": ["$_r.changedAt", _NOW]},
            }
        case _:
            return {}


def _books(outcome: Outcome, history_limit: int, *, reset_retries: bool) -> dict[str, Expression]:
    """What a reader learns of the run, wherever the record goes."""
    match outcome:
        case Completed(duration=duration):
            took = round(duration / timedelta(milliseconds=1), 3)
            return {
                "lastFinalizedAt": _NOW,
                "lastSuccess": {"at": _NOW, "durationMs": took},
                "executionHistory": _history("completed", history_limit, durationMs=took),
                "firstErrorAt": None,
                "lastError": None,
                "_r.error": _REMOVE,
                "_r.fresh": True,
                "_r.deferrals": 0,
            }
        case Skipped(reason=reason, duration=duration):
            took = round(duration / timedelta(milliseconds=1), 3)
            return {
                "lastFinalizedAt": _NOW,
                "executionHistory": _history("skipped", history_limit, durationMs=took, reason=literal(reason)),
                "firstErrorAt": None,
                "lastError": None,
                "_r.error": _REMOVE,
                "_r.fresh": True,
                "_r.skipped": True,
            }
        case Errored(error=error, duration=duration) | Exhausted(error=error, duration=duration):
            return _error_books(error, duration, history_limit)
        case Deferred(hold=hold):
            return {
                "attempts": {"$min": ["$attempts", "$_r.claim.before"]},
                "_r.deferrals": {"$add": ["$_r.deferrals", 1]},
                **({"_r.held": True} if hold else {}),
            }
        case Overtaken() if reset_retries:
            return {"attempts": 0, "firstErrorAt": None, "lastError": None, "_r.error": _REMOVE, "_r.deferrals": 0}
        case Overtaken():
            return {"attempts": {"$min": ["$attempts", "$_r.claim.before"]}, "_r.deferrals": 0}
        case GivenBack(alone=alone):
            return {
                "attempts": {"$min": ["$attempts", "$_r.claim.before"]},
                "_r.forced": _flag_if({"$or": [_flag("forced"), _flag("claim.forced")]}),
                **({"_r.alone": True} if alone else {}),
            }
        case _:
            assert_never(outcome)


def _error_books(error: Failure, duration: timedelta, history_limit: int) -> dict[str, Expression]:
    took = round(duration / timedelta(milliseconds=1), 3)
    first_error = _if("$_r.end.dirty", "$firstErrorAt", {"$ifNull": ["$firstErrorAt", _NOW]})
    return {
        **_failure_fields(error, first_error, history_limit, took=took),
        "lastFinalizedAt": _NOW,
    }


def _failure_fields(
    error: Failure,
    first_error: Expression,
    history_limit: int,
    *,
    took: float,
) -> dict[str, Expression]:
    short = literal(shorten(error.message, _HISTORY_ERROR_BYTES))
    return {
        "lastError": literal(error.message),
        "firstErrorAt": first_error,
        "executionHistory": _history("failed", history_limit, durationMs=took, error=short),
        "_r.error": {"type": literal(error.type), "traceback": literal(error.traceback)},
    }


def _target(outcome: Outcome, debounce: timedelta) -> dict[str, Expression]:
    """State and times after the run."""
    match outcome:
        case Completed() | Skipped():
            own_state, own_time = RecordState.COMPLETED, None
        case Exhausted():
            own_state, own_time = RecordState.FAILED, None
        case Errored(retry_in=wait) | GivenBack(wait=wait):
            own_state, own_time = RecordState.PENDING, _after(wait)
        case Deferred(until=when):
            own_state, own_time = RecordState.PENDING, _if({"$gt": [when, _NOW]}, when, _after(_PAST_DEFERRAL))
        case Overtaken():
            own_state, own_time = RecordState.PENDING, _after(max(debounce, timedelta(seconds=1)))
        case _:
            assert_never(outcome)
    keeps_time = isinstance(outcome, Overtaken) or (isinstance(outcome, Deferred) and outcome.hold)
    changed_time = {"$max": [own_time if keeps_time else _NOW, "$dueAt"]}
    waits = {"$or": ["$_r.end.dirty", "$_r.end.touched"]}
    time = _if("$_r.end.forced", _NOW, _if(waits, changed_time, own_time))
    again = {"$or": ["$_r.end.forced", waits]}
    ends = (
        {} if own_state is RecordState.PENDING else {"completedAt": _if(again, "$completedAt", _completed(own_state))}
    )
    due = {"dueAt": time} if isinstance(outcome, Overtaken) else {}
    return {
        "status": _if(again, RecordState.PENDING.value, own_state.value),
        "nextRunAt": time,
        "_r.wakeAt": time,
        "_r.cycle": _next_cycle(outcome, again),
        **ends,
        **due,
    }


def _completed(state: RecordState) -> Expression:
    return _NOW if state is RecordState.COMPLETED else "$completedAt"


def _next_cycle(outcome: Outcome, again: Expression) -> Expression:
    """A new Celery id follows a final outcome that goes round again; a failed attempt keeps its row."""
    match outcome:
        case Completed() | Skipped() | Exhausted():
            return {"$add": ["$_r.cycle", _if(again, 1, 0)]}
        case Errored() | Deferred() | Overtaken() | GivenBack():
            return {"$add": ["$_r.cycle", _if("$_r.end.forced", 1, 0)]}
        case _:
            assert_never(outcome)


def _skip_when_off(history_limit: int) -> dict[str, Expression]:
    """A pending record whose document is gone or has left completes without a run (B-8)."""
    return _skip_fields({"$and": [_IS_PENDING, _IS_OFF]}, "the document is gone or has left the filter", history_limit)


# --- by hand -------------------------------------------------------------------------------------


def retry_by_hand() -> list[Stage]:
    """Return the pipeline of a manual retry (B-52): pending now; a running record runs again at once after."""
    return [
        {
            "$set": {
                "status": _if(_IS_RUNNING, RecordState.PROCESSING_DIRTY.value, RecordState.PENDING.value),
                "nextRunAt": _if(_IS_RUNNING, "$nextRunAt", _NOW),
                "_r.forced": True,
                "_r.held": _REMOVE,
                "_r.wakeAt": _if(_IS_RUNNING, "$_r.wakeAt", _NOW),
                "_r.sent": _if(_IS_RUNNING, "$_r.sent", _FALSE),
                "_r.dispatches": _if(_IS_RUNNING, "$_r.dispatches", 0),
                "_r.cycle": {"$add": ["$_r.cycle", _if(_IS_RUNNING, 0, 1)]},
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
    waits = {"$and": [{"$not": "$_r.reset.running"}, {"$not": {"$and": [_IS_PENDING, _flag("held")]}}]}
    return [
        {"$set": {"_r.reset": {"version": version, "at": _NOW, "running": _IS_RUNNING, "final": _state_in(FINAL)}}},
        {
            "$set": {
                "status": _if("$_r.reset.running", RecordState.PROCESSING_DIRTY.value, RecordState.PENDING.value),
                "attempts": 0,
                "firstErrorAt": None,
                "dueAt": _NOW,
                "nextRunAt": _if(waits, _NOW, "$nextRunAt"),
                "_r.changedAt": {"$ifNull": ["$_r.changedAt", _NOW]},
                "_r.wakeAt": _if(waits, _NOW, "$_r.wakeAt"),
                "_r.sent": _if(waits, _FALSE, "$_r.sent"),
                "_r.dispatches": _if(waits, 0, "$_r.dispatches"),
                "_r.cycle": _if("$_r.reset.final", {"$add": ["$_r.cycle", 1]}, "$_r.cycle"),
                "_r.deferrals": _if("$_r.reset.final", 0, "$_r.deferrals"),
                "_r.skipped": _REMOVE,
                "_r.unrun": _REMOVE,
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
                "completedAt": _NOW,
                "executionHistory": _history("discarded", history_limit),
                "_r.wakeAt": None,
                "_r.sent": False,
                "_r.changedAt": None,
                "_r.fresh": True,
            },
        },
        {"$unset": ["_r.forced", "_r.held", "_r.alone"]},
    ]


def revoke(error: Failure, *, history_limit: int) -> list[Stage]:
    """Return the pipeline that fails a pending record by hand."""
    return [
        {
            "$set": {
                "status": RecordState.FAILED.value,
                "nextRunAt": None,
                **_failure_fields(error, "$firstErrorAt", history_limit, took=0),
                "_r.wakeAt": None,
                "_r.sent": False,
                "_r.changedAt": None,
            },
        },
        {"$unset": ["_r.forced", "_r.held", "_r.alone"]},
    ]
