"""The two indexes of a records collection, and the check that the collection is ours (B-4)."""

from __future__ import annotations

from typing import Any

from pymongo import ASCENDING, IndexModel
from pymongo.collection import Collection

from celery_reactive.errors import ForeignRecordsError
from celery_reactive.store import pipelines
from celery_reactive.store.errors import translated

WAKE = IndexModel(
    [("task", ASCENDING), ("status", ASCENDING), ("_r.sent", ASCENDING), ("_r.wakeAt", ASCENDING)],
    name="reactive_wake",
    partialFilterExpression={"_r.wakeAt": {"$gt": pipelines.EPOCH}},
)
"""What the planner must look at next: due (not sent), overdue (sent, past) and in flight (sent, future) are ranges."""
DUE = IndexModel([("task", ASCENDING), ("status", ASCENDING), ("dueAt", ASCENDING)], name="reactive_due")
"""Counts, oldest due, listings."""


@translated
def prepare(records: Collection[dict[str, Any]]) -> None:
    """Make the indexes of *records*, which must hold only records.

    Raises:
        ForeignRecordsError: It holds documents that are not ours; it was left untouched.
    """
    ours = {"_id.t": {"$type": "string"}, "task": {"$type": "string"}, "_r": {"$type": "object"}}
    foreign = records.find_one({"$nor": [ours]}, projection=["_id"]) if _looks_foreign(records) else None
    if foreign is not None:
        raise ForeignRecordsError(f"{records.database.name}.{records.name}")
    records.create_indexes([WAKE, DUE])


def _looks_foreign(records: Collection[dict[str, Any]]) -> bool:
    """Whether the whole collection must be searched: only one that does not carry our index yet."""
    return "reactive_wake" not in records.index_information()
