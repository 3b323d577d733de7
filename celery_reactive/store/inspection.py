"""What is known of one document and its record, read for a person who asks why (B-53).

Called by `management`. Reads only. A document is compared with its record on the server, as the planner does; the
answer is of one moment and decides nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pymongo.collection import Collection

from celery_reactive.core.record import RecordKey
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import StatementFailedError
from celery_reactive.store.errors import translated
from celery_reactive.store.queries import TIME_LIMIT_MS
from celery_reactive.store.unplanned import Unplanned, found_from

Documents = Collection[dict[str, Any]]

_SIMPLE = {"locale": "simple"}


@dataclasses.dataclass(frozen=True, slots=True)
class DocumentSeen:
    """One source document as it is now."""

    exists: bool
    matches: bool | None
    """Whether the filter finds it; None: the filter fails on it."""
    differs: bool | None
    """Whether its watched values are others than its record's; None: no record, no document, or not to be computed."""
    error: str | None = None
    """What the server says where filter or projection fails on it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Books:
    """The bookkeeping of one record, as far as it tells what comes next."""

    now: datetime
    """The server's time of the reading."""
    sent: bool
    """A message for it is on its way."""
    sent_at: datetime | None
    dispatches: int
    """Messages in a row that nobody has taken."""
    wake_at: datetime | None
    """When the planner looks at it next."""
    worker: str | None
    """Who runs it."""
    generation: int
    """Of the definition under which it was observed last."""
    deferrals: int
    has_change: bool
    """A change waits to be handled."""
    is_forced: bool
    """Retried by hand."""
    is_held: bool
    """Deferred with `hold=True`."""
    is_guarded: bool
    """Paused by the loop guard."""
    is_unrun: bool
    """Made without a run, as the task takes no back-fill."""
    was_skipped: bool
    """Its last end was a skip."""


@translated
def see_document(source: Documents, records: Documents, task: ReactiveTask, doc_id: Any) -> DocumentSeen:
    """Return how the document with exactly this `_id` stands to *task*.

    Args:
        source: The watched collection.
        records: Its records collection.
        task: The stored definition.
        doc_id: Taken literally, whatever it is.

    Raises:
        StoreBusyError: Not found out within the time limit.
        StoreUnavailableError: MongoDB does not answer.
        StatementFailedError: The id cannot be sent to the server.
    """
    same: dict[str, Any] = {"$expr": {"$eq": ["$_id", {"$literal": doc_id}]}}
    if source.find_one(same, projection=["_id"], hint="_id_", max_time_ms=TIME_LIMIT_MS) is None:
        return DocumentSeen(exists=False, matches=False, differs=None)
    try:
        matches = _matches(source, task, same)
        return DocumentSeen(exists=True, matches=matches, differs=_differs(source, records, task, same))
    except StatementFailedError as error:
        return DocumentSeen(exists=True, matches=None, differs=None, error=str(error))


@translated
def _matches(source: Documents, task: ReactiveTask, same: dict[str, Any]) -> bool:
    query = {"$and": [same, task.filter.query]}
    return source.find_one(query, projection=["_id"], hint="_id_", max_time_ms=TIME_LIMIT_MS) is not None


@translated
def _differs(source: Documents, records: Documents, task: ReactiveTask, same: dict[str, Any]) -> bool | None:
    pipeline: list[dict[str, Any]] = [
        {"$match": same},
        *task.projection.stages(keep={"d": "$_id"}),
        {"$set": {"_id": {"t": {"$literal": task.name}, "d": "$d"}}},
        {"$lookup": {"from": records.name, "localField": "_id", "foreignField": "_id", "as": "known"}},
        {"$unwind": "$known"},
        {"$project": {"_id": 0, "differs": {"$ne": ["$w", "$known.lastObservedValues"]}}},
    ]
    found = next(source.aggregate(pipeline, collation=_SIMPLE, maxTimeMS=TIME_LIMIT_MS), None)
    return None if found is None else bool(found["differs"])


@translated
def read_record(records: Documents, key: RecordKey) -> tuple[dict[str, Any], Books] | None:
    """Return the stored record of *key* and what its bookkeeping says; None: there is none.

    Raises:
        StoreUnavailableError: MongoDB does not answer.
        StatementFailedError: The id cannot be sent to the server.
    """
    same = {"$expr": {"$eq": ["$_id", {"$literal": key.id}]}}
    pipeline: list[dict[str, Any]] = [{"$match": same}, {"$limit": 1}, {"$set": {"_r.now": "$$NOW"}}]
    found = next(records.aggregate(pipeline, hint="_id_", maxTimeMS=TIME_LIMIT_MS), None)
    return None if found is None else (found, _books(found["_r"]))


def _books(stored: Mapping[str, Any]) -> Books:
    claim = stored.get("claim") or {}
    return Books(
        now=stored["now"],
        sent=bool(stored.get("sent")),
        sent_at=stored.get("sentAt"),
        dispatches=int(stored.get("dispatches") or 0),
        wake_at=stored.get("wakeAt"),
        worker=claim.get("worker"),
        generation=int(stored["gen"]),
        deferrals=int(stored.get("deferrals") or 0),
        has_change=stored.get("changedAt") is not None,
        is_forced=bool(stored.get("forced")),
        is_held=bool(stored.get("held")),
        is_guarded=bool(stored.get("guarded")),
        is_unrun=bool(stored.get("unrun")),
        was_skipped=bool(stored.get("skipped")),
    )


@translated
def unplanned_entry(globals_: Documents, key: RecordKey) -> Unplanned | None:
    """Return why the document of *key* could not be planned, None if nothing is noted of it."""
    same = {"$expr": {"$eq": ["$_id", {"$literal": {"k": "unplanned", "t": key.task, "d": key.doc_id}}]}}
    stored = globals_.find_one(same)
    return None if stored is None else found_from(stored)
