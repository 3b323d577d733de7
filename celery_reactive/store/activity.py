"""Statements that tell what has happened lately: last runs and last errors of the newest records.

Called by `management`, for people. Each follows an index from its newest end and looks at a limited number of records,
so that it costs the same whatever the collection holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pymongo.collection import Collection

from celery_reactive.core.projection import Projection
from celery_reactive.core.states import FINAL, RecordState
from celery_reactive.store.errors import translated

Documents = Collection[dict[str, Any]]

TIME_LIMIT_MS = 3000


@dataclasses.dataclass(frozen=True, slots=True)
class LastRun:
    """The last run of a record that has come to its end."""

    state: RecordState
    ended_at: datetime
    wait: timedelta | None
    """From due to start; None: it was ended without a run."""
    duration: timedelta | None
    """None: it failed, or there was no run."""


@dataclasses.dataclass(frozen=True, slots=True)
class SameError:
    """Records of one task whose error has the same beginning."""

    task: str
    text: str
    type: str | None
    count: int
    first_at: datetime | None
    """When the first of the present sequences of failures began."""
    last_at: datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class ErrorSample:
    """What the newest records of one state hold."""

    errors: list[SameError]
    looked_at: int
    """Records, with and without an error."""


@translated
def last_runs(records: Documents, tasks: Sequence[str], *, since: datetime, limit: int) -> list[LastRun]:
    """Return the last runs that have ended *since* a time, the newest *limit* of them, newest first.

    Raises:
        StoreBusyError: Not found within the time limit.
        StoreUnavailableError: MongoDB does not answer.
    """
    wanted = {"task": {"$in": list(tasks)}, "status": {"$in": sorted(FINAL)}, "lastFinalizedAt": {"$gte": since}}
    facts = {
        "_id": 0,
        "status": 1,
        "lastFinalizedAt": 1,
        "wait": {"$subtract": ["$startedAt", "$dueAt"]},
        "took": {"$cond": [{"$eq": ["$status", RecordState.COMPLETED.value]}, "$lastSuccess.durationMs", None]},
    }
    pipeline: list[dict[str, Any]] = [
        {"$match": wanted},
        {"$sort": {"lastFinalizedAt": -1}},
        {"$limit": limit},
        {"$project": facts},
    ]
    found = records.aggregate(pipeline, maxTimeMS=TIME_LIMIT_MS, batchSize=limit)
    return [
        LastRun(RecordState(run["status"]), run["lastFinalizedAt"], _span(run.get("wait")), _span(run.get("took")))
        for run in found
    ]


@translated
def errors_of(
    records: Documents, tasks: Sequence[str], state: RecordState, *, characters: int, limit: int
) -> ErrorSample:
    """Return the errors that the newest *limit* records in *state* hold, equal beginnings together.

    Args:
        records: Records collection.
        tasks: Names of tasks.
        state: Of the records: pending or failed.
        characters: How much of a message counts.
        limit: Records looked at: pending ones that are due last, failed ones that have failed last.

    Raises:
        StoreBusyError: Not found within the time limit.
        StoreUnavailableError: MongoDB does not answer.
    """
    newest: list[dict[str, Any]] = [
        {"$match": {"task": {"$in": list(tasks)}, "status": state.value}},
        {"$sort": {"dueAt" if state is RecordState.PENDING else "lastFinalizedAt": -1}},
        {"$limit": limit},
    ]
    text = {"$substrCP": [{"$ifNull": ["$lastError", ""]}, 0, characters]}
    same = {
        "_id": {"task": "$task", "text": text, "has": {"$ne": ["$lastError", None]}},
        "type": {"$first": "$_r.error.type"},
        "count": {"$sum": 1},
        "first": {"$min": "$firstErrorAt"},
        "last": {"$max": "$lastFinalizedAt"},
    }
    found = list(records.aggregate([*newest, {"$group": same}], maxTimeMS=TIME_LIMIT_MS))
    errors = [
        SameError(one["_id"]["task"], one["_id"]["text"], one["type"], int(one["count"]), one["first"], one["last"])
        for one in found
        if one["_id"]["has"]
    ]
    return ErrorSample(errors, sum(int(one["count"]) for one in found))


@translated
def watched_values(source: Documents, projection: Projection, doc_id: Any) -> dict[str, Any] | None:
    """Return the watched values of a document as it is now; None: there is no such document.

    Raises:
        StoreUnavailableError: MongoDB does not answer.
        StatementFailedError: The projection raises an error on the document, or the id cannot be sent.
    """
    same = {"$match": {"$expr": {"$eq": ["$_id", {"$literal": doc_id}]}}}
    found = source.aggregate([same, *projection.stages(keep={})], hint="_id_", maxTimeMS=TIME_LIMIT_MS)
    document = next(found, None)
    return None if document is None else document.get("w", {})


@translated
def estimated(records: Documents) -> int:
    """Return about how many records a collection holds, as the server keeps it, without counting."""
    return records.estimated_document_count(maxTimeMS=TIME_LIMIT_MS)


def _span(milliseconds: float | None) -> timedelta | None:
    return None if milliseconds is None else max(timedelta(milliseconds=milliseconds), timedelta(0))
