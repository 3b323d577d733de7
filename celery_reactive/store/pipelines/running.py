"""A run's claim, its heartbeats, and its end: what it came to, and what came in during it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, assert_never

from bson import Binary

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
)
from celery_reactive.core.states import RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.store.pipelines import loops
from celery_reactive.store.pipelines.expressions import (
    ATTEMPTS_SO_FAR,
    IS_DIRTY,
    IS_OFF,
    IS_PENDING,
    NOW,
    REMOVE,
    Expression,
    Stage,
    after,
    failure_fields,
    flag,
    flag_if,
    history,
    if_,
    literal,
    skip_fields,
)

_PAST_DEFERRAL = timedelta(seconds=1)
_ENDED_BY_A_CLAIM = ("touched", "forced", "fresh", "alone", "held", "skipped", "unrun", "guarded")
"""Flags that speak of what comes before a run."""
_MOST_BYTES = 15 * 1024 * 1024
_IF_THERE_IS_ROOM: Expression = if_(
    {"$lte": [{"$add": [{"$bsonSize": "$$ROOT"}, {"$bsonSize": "$lastObservedValues"}]}, _MOST_BYTES]},
    "$lastObservedValues",
    REMOVE,
)
"""The watched values once more, unless the record would become too large to be written."""


def start_attempt(*, token: str, worker: str, lease: timedelta, company: bool, track: bool = False) -> list[Stage]:
    """Return the pipeline of a claim (B-23).

    Args:
        token: Unique to this delivery of the message.
        worker: Name of the claiming process, for people.
        lease: Visibility timeout.
        company: Whether other records are claimed by the same statement.
        track: Whether to keep what the run is for, whatever comes in during it (B-63).
    """
    lease_end = after(lease)
    claim = {
        "token": literal(token),
        "worker": literal(worker),
        "beats": 0,
        "before": ATTEMPTS_SO_FAR,
        "forced": flag("forced"),
        "company": company,
        "deleted": "$_r.deleted",
        **({"values": _IF_THERE_IS_ROOM} if track else {}),
    }
    return [
        {
            "$set": {
                "status": RecordState.PROCESSING.value,
                "startedAt": NOW,
                "attempts": {"$add": [ATTEMPTS_SO_FAR, 1]},
                "nextRunAt": lease_end,
                "_r.claim": claim,
                "_r.fence": {"$add": ["$_r.fence", 1]},
                "_r.wakeAt": lease_end,
                "_r.sent": False,
                "_r.dispatches": 0,
                "_r.changedAt": None,
                **loops.counted(),
            },
        },
        {"$unset": [f"_r.{name}" for name in _ENDED_BY_A_CLAIM]},
    ]


def renew(lease: timedelta) -> list[Stage]:
    """Return the pipeline of a heartbeat: the counter that rescue watches, and the lease's end for people."""
    return [{"$set": {"_r.claim.beats": {"$add": ["$_r.claim.beats", 1]}, "nextRunAt": after(lease)}}]


def settle(
    outcome: Outcome,
    task: ReactiveTask,
    *,
    observed_at: object,
    took: Expression | None = None,
    transaction: Binary | None = None,
) -> list[Stage]:
    """Return the pipeline that ends a run with *outcome*, whatever came in during it (B-24 to B-26, B-33, B-34).

    What waits decides first: a manual retry sends the record round again at once; a document that
    is gone or has left completes it instead of any pending; a newer state sends it round again
    at its due time. Only then does the outcome itself count.

    Args:
        outcome: What the run came to.
        task: Definition.
        observed_at: Cluster time known before the run's reads: the time of what the worker saw.
        took: Milliseconds that a completed run took, where the statement ends several; None: the outcome's own.
        transaction: Id of the session in whose transaction the run ends, if in any.
    """
    history_limit, reset_retries = task.execution_history_limit, task.retry_policy.reset_retries_on_data_change
    again = {"$lte": [outcome.until, NOW]} if isinstance(outcome, Deferred) else None
    return [
        {"$set": {"_r.end": _decisions(outcome)}},
        {"$set": _observation(outcome, observed_at, told_of_deletions=task.on_delete)},
        {"$set": _books(outcome, history_limit, reset_retries=reset_retries, took=took)},
        {"$set": _target(outcome, task.debounce)},
        {"$set": _skip_when_off(history_limit)},
        {
            "$set": {
                "_r.claim": None,
                "_r.done": "$_r.claim.token",
                "_r.sent": False,
                "_r.dispatches": 0,
                **loops.noted(again=again, by=transaction),
                **_handled(outcome, task),
            },
        },
        {"$unset": ["_r.end", "_r.touched"]},
    ]


def _handled(outcome: Outcome, task: ReactiveTask) -> dict[str, Expression]:
    """What the run leaves to be compared with the next (B-63), and the deletion that needs no run any more (B-61)."""
    fields: dict[str, Expression] = {}
    if isinstance(outcome, Completed):
        fields["_r.handled"] = "$_r.claim.values" if task.track_changes else REMOVE
    if isinstance(outcome, Completed | Skipped):
        # One that came during the run is another.
        own = {"$eq": ["$_r.deleted", "$_r.claim.deleted"]}
        fields["_r.deleted"] = if_(own, REMOVE, "$_r.deleted")
    return fields


def _decisions(outcome: Outcome) -> dict[str, Expression]:
    """What the record as found says about its next step, kept while the stages change it."""
    match outcome:
        case Completed(document_checked=checked):
            touched = False if checked else flag("touched")
        case Skipped(left=True, generation=int(generation)):
            # The record speaks of a newer definition than the worker knew: its filter says nothing here.
            touched = {"$or": [flag("touched"), {"$gt": ["$_r.gen", generation]}]}
        case Skipped():
            touched = flag("touched")
        case Deferred() | Overtaken() | GivenBack() | Errored() | Exhausted():
            touched = False
        case _:
            assert_never(outcome)
    return {"dirty": IS_DIRTY, "forced": flag("forced"), "touched": touched}


def _observation(outcome: Outcome, observed_at: object, *, told_of_deletions: bool) -> dict[str, Expression]:
    """What the run itself saw of the document, unless the planner has seen something newer.

    A deletion that is to have a run of its own stays for the planner to find.
    """
    newer_known: Expression = {"$gt": ["$_r.at", observed_at]}
    match outcome:
        case Skipped(gone=gone, left=left) if gone or left:
            # What came in during the run may have been seen after the run looked, also by a scan, whose time is older.
            newer_known = {"$or": [newer_known, "$_r.end.dirty", "$_r.end.touched"]}
            return {
                "_r.gone": if_(newer_known, "$_r.gone", True if gone and not told_of_deletions else "$_r.gone"),
                "_r.left": if_(newer_known, "$_r.left", True if left else "$_r.left"),
            }
        case Overtaken(values=values, generation=generation):
            newer_known = {"$or": [newer_known, {"$gt": ["$_r.gen", generation]}]}
            # The values stay undecoded; `v` names them inside the literal.
            seen = {"$getField": {"field": "v", "input": literal(values)}}
            return {
                "lastObservedValues": if_(newer_known, "$lastObservedValues", seen),
                "updatedAt": NOW,
                "_r.at": if_(newer_known, "$_r.at", observed_at),
                "_r.gen": if_(newer_known, "$_r.gen", generation),
                "_r.gone": if_(newer_known, "$_r.gone", REMOVE),
                "_r.deleted": if_(newer_known, "$_r.deleted", REMOVE),
                "_r.left": if_(newer_known, "$_r.left", REMOVE),
                "_r.changedAt": {"$ifNull": ["$_r.changedAt", NOW]},
            }
        case _:
            return {}


def took_each(doc_ids: Sequence[Any], durations: Sequence[timedelta]) -> Expression:
    """Return an expression for the milliseconds that a record's own run took, found by its document's id."""
    place = {"$indexOfArray": [literal(list(doc_ids)), "$_id.d"]}
    return {"$arrayElemAt": [literal([_milliseconds(one) for one in durations]), place]}


def _milliseconds(duration: timedelta) -> float:
    return round(duration / timedelta(milliseconds=1), 3)


def _books(
    outcome: Outcome, history_limit: int, *, reset_retries: bool, took: Expression | None
) -> dict[str, Expression]:
    """What a reader learns of the run, wherever the record goes."""
    match outcome:
        case Completed(duration=duration):
            took = _milliseconds(duration) if took is None else took
            return {
                "lastFinalizedAt": NOW,
                "lastSuccess": {"at": NOW, "durationMs": took},
                "executionHistory": history("completed", history_limit, durationMs=took),
                "firstErrorAt": None,
                "lastError": None,
                "_r.error": REMOVE,
                "_r.fresh": True,
                "_r.deferrals": 0,
            }
        case Skipped(reason=reason, duration=duration):
            took = _milliseconds(duration)
            return {
                "lastFinalizedAt": NOW,
                "executionHistory": history("skipped", history_limit, durationMs=took, reason=literal(reason)),
                "firstErrorAt": None,
                "lastError": None,
                "_r.error": REMOVE,
                "_r.fresh": True,
                "_r.skipped": True,
            }
        case Errored(error=error, duration=duration, alone=alone):
            return {**_error_books(error, duration, history_limit), **({"_r.alone": True} if alone else {})}
        case Exhausted(error=error, duration=duration):
            return _error_books(error, duration, history_limit)
        case Deferred(hold=hold):
            return {
                "attempts": {"$min": ["$attempts", "$_r.claim.before"]},
                "_r.deferrals": {"$add": ["$_r.deferrals", 1]},
                **({"_r.held": True} if hold else {}),
            }
        case Overtaken() if reset_retries:
            return {"attempts": 0, "firstErrorAt": None, "lastError": None, "_r.error": REMOVE, "_r.deferrals": 0}
        case Overtaken():
            return {"attempts": {"$min": ["$attempts", "$_r.claim.before"]}, "_r.deferrals": 0}
        case GivenBack(alone=alone):
            return {
                "attempts": {"$min": ["$attempts", "$_r.claim.before"]},
                "_r.forced": flag_if({"$or": [flag("forced"), flag("claim.forced")]}),
                **({"_r.alone": True} if alone else {}),
            }
        case _:
            assert_never(outcome)


def _error_books(error: Failure, duration: timedelta, history_limit: int) -> dict[str, Expression]:
    took = _milliseconds(duration)
    first_error = if_("$_r.end.dirty", "$firstErrorAt", {"$ifNull": ["$firstErrorAt", NOW]})
    return {
        **failure_fields(error, first_error, history_limit, took=took),
        "lastFinalizedAt": NOW,
    }


def _target(outcome: Outcome, debounce: timedelta) -> dict[str, Expression]:
    """State and times after the run."""
    match outcome:
        case Completed() | Skipped():
            own_state, own_time = RecordState.COMPLETED, None
        case Exhausted():
            own_state, own_time = RecordState.FAILED, None
        case Errored(retry_in=wait) | GivenBack(wait=wait):
            own_state, own_time = RecordState.PENDING, after(wait)
        case Deferred(until=when):
            own_state, own_time = RecordState.PENDING, if_({"$gt": [when, NOW]}, when, after(_PAST_DEFERRAL))
        case Overtaken():
            own_state, own_time = RecordState.PENDING, after(max(debounce, timedelta(seconds=1)))
        case _:
            assert_never(outcome)
    keeps_time = isinstance(outcome, Overtaken) or (isinstance(outcome, Deferred) and outcome.hold)
    changed_time = {"$max": [own_time if keeps_time else NOW, "$dueAt"]}
    # A manual retry has made the record dirty as well.
    again = {"$or": ["$_r.end.dirty", "$_r.end.touched"]}
    time = if_("$_r.end.forced", NOW, if_(again, changed_time, own_time))
    ends = (
        {} if own_state is RecordState.PENDING else {"completedAt": if_(again, "$completedAt", _completed(own_state))}
    )
    due = {"dueAt": time} if isinstance(outcome, Overtaken) else {}
    return {
        "status": if_(again, RecordState.PENDING.value, own_state.value),
        "nextRunAt": time,
        "_r.wakeAt": time,
        "_r.cycle": _next_cycle(outcome, again),
        **ends,
        **due,
    }


def _completed(state: RecordState) -> Expression:
    return NOW if state is RecordState.COMPLETED else "$completedAt"


def _next_cycle(outcome: Outcome, again: Expression) -> Expression:
    """A new Celery id follows a final outcome that goes round again; a failed attempt keeps its row."""
    match outcome:
        case Completed() | Skipped() | Exhausted():
            return {"$add": ["$_r.cycle", if_(again, 1, 0)]}
        case Errored() | Deferred() | Overtaken() | GivenBack():
            return {"$add": ["$_r.cycle", if_("$_r.end.forced", 1, 0)]}
        case _:
            assert_never(outcome)


def _skip_when_off(history_limit: int) -> dict[str, Expression]:
    """A pending record whose document is gone or has left completes without a run (B-8)."""
    return skip_fields({"$and": [IS_PENDING, IS_OFF]}, "the document is gone or has left the filter", history_limit)
