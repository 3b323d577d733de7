"""What the planner lays over records: observations, absences, snapshots of earlier definitions.

The server reads the pipeline of an update anew for each document that it touches, and that of an aggregation once.
So `apply_observation`, which holds the rules, is used in two ways: as the `whenMatched` of a merge, and inside an
aggregation (`as_observed`) whose merge then only has to see that the record is still the one that was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from bson import Int64, Timestamp

from celery_reactive.core.changes import Wrote
from celery_reactive.core.states import FINAL, RUNNING, RecordState
from celery_reactive.store.pipelines import loops
from celery_reactive.store.pipelines.expressions import (
    FALSE,
    HAS_TO_RUN_ALL_THE_SAME,
    IS_PENDING,
    IS_RUNNING,
    NOW,
    REMOVE,
    TRUE,
    Expression,
    Stage,
    after,
    flag,
    flag_if,
    if_,
    literal,
    skip_fields,
    state_in,
)


def new_record(
    task: str,
    *,
    at: Timestamp,
    generation: int,
    debounce: timedelta,
    runs: bool = True,
    wrote: Sequence[Wrote] = (),
) -> Stage:
    """Return the stage that turns `{d: document id, w: watched values}` into a whole new record (B-12).

    Args:
        task: Name of the task.
        at: Cluster time of the observation.
        generation: Of the definition.
        debounce: Wait before the first run.
        runs: False makes the record `completed` and unrun (`backfill=False`, B-2).
        wrote: When the documents were changed last, where that is known.

    The fence starts from the cluster time, so that it grows across the removal of a record: each
    claim is an operation that moves the cluster's clock by at least as much (B-27).
    """
    due = after(debounce) if runs else None
    return {
        "$replaceWith": {
            "_id": {"t": literal(task), "d": "$d"},
            "task": literal(task),
            "sourceDocId": "$d",
            "status": (RecordState.PENDING if runs else RecordState.COMPLETED).value,
            "attempts": 0,
            "nextRunAt": due,
            "dueAt": after(debounce),
            "lastObservedValues": "$w",
            "createdAt": NOW,
            "updatedAt": NOW,
            "startedAt": None,
            "completedAt": None if runs else NOW,
            "lastFinalizedAt": None,
            "firstErrorAt": None,
            "lastError": None,
            "lastSuccess": None,
            "executionHistory": [],
            "_r": {
                "at": at,
                "gen": generation,
                "changedAt": NOW if runs else None,
                "claim": None,
                "fence": Int64((at.time << 24) + at.inc),
                "sent": False,
                "dispatches": 0,
                "wakeAt": due,
                "cycle": 0,
                "deferrals": 0,
                "wrote": loops.last_written(wrote, at),
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
    new: str = "$$new",
) -> list[Stage]:
    """Return the pipeline that lays the observation *new* over an existing record (B-13 to B-17).

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
        new: Where the new record is: the variable of a merge, or a field.
    """
    new_at, new_gen, new_values = f"{new}._r.at", f"{new}._r.gen", f"{new}.lastObservedValues"
    accepted = {"$and": [{"$gte": [new_at, "$_r.at"]}, {"$gte": [new_gen, "$_r.gen"]}]}
    newer = {"$and": [accepted, {"$gt": [new_at, "$_r.at"]}]}
    known = {"$in": ["$_r.gen", sorted(comparable)]}
    different = {"$or": [{"$ne": ["$lastObservedValues", new_values]}, {"$not": known}]}
    reentered = {"$or": [flag("gone"), {"$and": [flag("left"), TRUE if reentry_runs else flag("skipped")]}]}
    first_event = {"$and": [live, newer, flag("unrun")]}
    run = "$_r.plan.run"
    again = _again(run, debounce=debounce, max_wait=max_wait, reset_retries=reset_retries)
    return [
        {
            "$set": {
                "_r.plan": {
                    "accepted": accepted,
                    "newer": newer,
                    "run": {"$and": [accepted, {"$or": [different, reentered, first_event]}]},
                    "running": IS_RUNNING,
                },
            },
        },
        {
            "$set": {
                **again,
                "lastObservedValues": if_("$_r.plan.accepted", new_values, "$lastObservedValues"),
                "_r": {
                    **again["_r"],
                    "at": if_("$_r.plan.accepted" if stamps else run, new_at, "$_r.at"),
                    "gen": if_("$_r.plan.accepted", new_gen, "$_r.gen"),
                    "wrote": if_("$_r.plan.accepted" if stamps else run, f"{new}._r.wrote", "$_r.wrote"),
                    "gone": if_("$_r.plan.accepted", REMOVE, "$_r.gone"),
                    "deleted": if_("$_r.plan.accepted", REMOVE, "$_r.deleted"),
                    "left": if_("$_r.plan.accepted", REMOVE, "$_r.left"),
                    "touched": flag_if(
                        {
                            "$or": [
                                flag("touched"),
                                {"$and": ["$_r.plan.running", "$_r.plan.newer", {"$not": run}]},
                            ],
                        },
                    ),
                },
            },
        },
        {"$unset": "_r.plan"},
    ]


def _again(
    run: Expression, *, debounce: timedelta, max_wait: timedelta | None, reset_retries: bool
) -> dict[str, Expression]:
    """Return the fields of a record that a change makes run once more where *run* holds; `_r.plan.running` is known.

    One that runs goes on, and is dirty; one that waits is due by the rules of the debounce (B-16), unless a deferral
    holds it or the loop guard has paused it.
    """
    first_change = {"$ifNull": ["$_r.changedAt", NOW]}
    due = after(debounce)
    if max_wait is not None:
        due = {"$max": [{"$min": [due, after(max_wait, first_change)]}, NOW]}
    waits = {"$and": [run, {"$not": "$_r.plan.running"}]}
    starts_anew = run if reset_retries else {"$and": [run, flag("fresh")]}
    held = {"$and": [IS_PENDING, flag("held")]}
    next_run = if_(held, {"$max": ["$nextRunAt", due]}, if_(flag("guarded"), None, due))
    return {
        "status": if_(
            run,
            if_("$_r.plan.running", RecordState.PROCESSING_DIRTY.value, RecordState.PENDING.value),
            "$status",
        ),
        "updatedAt": if_(run, NOW, "$updatedAt"),
        "dueAt": if_(run, due, "$dueAt"),
        "nextRunAt": if_(waits, next_run, "$nextRunAt"),
        "attempts": if_(starts_anew, 0, "$attempts"),
        "firstErrorAt": if_(starts_anew, None, "$firstErrorAt"),
        "lastError": if_(starts_anew, None, "$lastError"),
        "_r": {
            "changedAt": if_(run, first_change, "$_r.changedAt"),
            "wakeAt": if_(waits, next_run, "$_r.wakeAt"),
            "sent": if_(waits, FALSE, "$_r.sent"),
            "dispatches": if_(waits, 0, "$_r.dispatches"),
            "cycle": if_({"$and": [run, state_in(FINAL)]}, {"$add": ["$_r.cycle", 1]}, "$_r.cycle"),
            "deferrals": if_(run, 0, "$_r.deferrals"),
            "skipped": if_(run, REMOVE, "$_r.skipped"),
            "unrun": if_(run, REMOVE, "$_r.unrun"),
            "error": if_(starts_anew, REMOVE, "$_r.error"),
        },
    }


def beside_known(records: str, named: dict[str, Any], known: Expression) -> list[Stage]:
    """Return the stages that put what is observed of a document beside its record.

    They take `{d: document id, o: what is observed}` and give `{_id: document id, o, k: what is known}`, each of the
    two absent or null where there is no such document or no record. A union that is grouped costs a third of a
    `$lookup`, which asks for each record apart.

    Args:
        records: Name of the records collection, in the same database.
        named: Query for the records that belong to the documents.
        known: What is wanted of a record, an object.
    """
    theirs = [{"$match": named}, {"$replaceWith": {"d": "$_id.d", "k": known}}]
    return [
        {"$unionWith": {"coll": records, "pipeline": theirs}},
        {"$group": {"_id": "$d", "o": {"$max": "$o"}, "k": {"$max": "$k"}}},
    ]


TO_COMPARE: Expression = {
    "values": "$lastObservedValues",
    "at": "$_r.at",
    "gen": "$_r.gen",
    "status": "$status",
    "gone": "$_r.gone",
    "left": "$_r.left",
}
"""What `unlike` asks of a record."""


def unlike(*, at: Timestamp, generation: int, stamps: bool) -> list[Stage]:
    """Return the stages that keep the documents for which `apply_observation` has something to write.

    They take `{_id, o: {w: watched values}, k: TO_COMPARE}` and give `{_id, new: there is no record}`. A scan (no
    *stamps*) looks at running records in any case: what it saw matters to them.

    Args:
        at: Cluster time of the observation.
        generation: Of the definition.
        stamps: As for `apply_observation`.
    """
    nothing_newer = {"$gte": ["$k.at", at]} if stamps else {"$not": {"$in": ["$k.status", sorted(RUNNING)]}}
    same = {
        "$and": [
            {"$eq": ["$k.values", "$o.w"]},
            {"$eq": ["$k.gen", generation]},
            nothing_newer,
            {"$ne": ["$k.gone", True]},
            {"$ne": ["$k.left", True]},
        ],
    }
    return [
        {"$match": {"o.w": {"$exists": True}, "$expr": {"$not": same}}},
        {"$project": {"new": {"$lte": ["$k", None]}}},
    ]


def as_observed(apply: list[Stage]) -> list[Stage]:
    """Return the stages that turn records and their observations into what the records become.

    They take `{_id, o: new record, k: record}` and give `{_id, was: the record, becomes}`, where the two differ.

    Args:
        apply: `apply_observation` with `new=OBSERVED`.
    """
    return [
        {"$match": {"o._id": {"$exists": True}, "k._id": {"$exists": True}}},
        {"$replaceWith": {"$mergeObjects": ["$k", {"was": "$k", "observed": "$o"}]}},
        *apply,
        {"$replaceWith": {"_id": "$_id", "was": "$was", "becomes": "$$ROOT"}},
        {"$unset": ["becomes.was", "becomes.observed"]},
        {"$match": {"$expr": {"$ne": ["$was", "$becomes"]}}},
    ]


OBSERVED = "$observed"
"""Where `as_observed` keeps the new record."""


def unless_touched() -> list[Stage]:
    """Return the `whenMatched` pipeline that makes a record what it `becomes`, if it is still what it `was`."""
    as_read = {"$eq": ["$$ROOT", "$$new.was"]}
    return [{"$replaceWith": if_(as_read, "$$new.becomes", "$$ROOT")}]


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
                "lastObservedValues": if_(as_read, "$$new.w", "$lastObservedValues"),
                "_r.gen": if_(as_read, generation, "$_r.gen"),
            },
        },
    ]


def delete(
    *,
    at: Timestamp,
    debounce: timedelta,
    max_wait: timedelta | None,
    reset_retries: bool,
    wrote: Sequence[Wrote] = (),
) -> list[Stage]:
    """Return the pipeline that makes a deletion a run of its own (B-61).

    It is a change like any other: a record that runs is dirty, one with failed attempts begins anew. One whose document
    is known to be gone already is not told of it twice.

    Args:
        at: Cluster time of the observation.
        debounce: Wait after a change.
        max_wait: Longest wait counted from the first unhandled change.
        reset_retries: Whether a change starts the attempts anew (B-15).
        wrote: When the documents were deleted, where that is known.
    """
    run = "$_r.plan.run"
    again = _again(run, debounce=debounce, max_wait=max_wait, reset_retries=reset_retries)
    noted = {
        "at": at,
        "gone": True,
        "deleted": if_(run, at, "$_r.deleted"),
        "wrote": if_(run, loops.last_written(wrote, at, doc_id="$_id.d"), "$_r.wrote"),
    }
    return [
        {"$set": {"_r.plan": {"run": {"$not": flag("gone")}, "running": IS_RUNNING}}},
        {"$set": {**again, "_r": {**again["_r"], **noted}}},
        {"$unset": "_r.plan"},
    ]


def leave(*, at: object, gone: bool, history_limit: int) -> list[Stage]:
    """Return the pipeline that marks a record whose document is gone or has left the filter (B-8).

    A pending record that nobody retried by hand becomes `completed` without a run; a running one
    keeps its claim and is settled by its worker.

    Args:
        at: Cluster time of the observation.
        gone: The document was deleted; false: it has left the filter.
        history_limit: Newest entries kept.
    """
    skips = {"$and": [IS_PENDING, {"$not": HAS_TO_RUN_ALL_THE_SAME}]}
    reason = "the document was deleted" if gone else "the document no longer matches the filter"
    return [
        {"$set": {"_r.skips": skips}},
        {
            "$set": {
                "_r.at": at,
                f"_r.{'gone' if gone else 'left'}": True,
                **skip_fields("$_r.skips", reason, history_limit),
            },
        },
        {"$unset": "_r.skips"},
    ]
