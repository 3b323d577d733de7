"""The indexes of a records collection, and the check that the collection is ours (B-4).

Called by the planner before it starts, by reconciliation, and by management before it makes a record. Each index costs
every transition of every record something: there are those that the statements of `store` need to read what they
return and little more (a test explains every one of them), and no others. Must never change or drop what is not ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymongo import ASCENDING, IndexModel
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from celery_reactive.core.states import FINAL, RecordState
from celery_reactive.errors import ForeignRecordsError
from celery_reactive.store import pipelines
from celery_reactive.store.errors import translated

WAKE = IndexModel(
    [("task", ASCENDING), ("status", ASCENDING), ("_r.sent", ASCENDING), ("_r.wakeAt", ASCENDING)],
    name="reactive_wake",
    partialFilterExpression={"_r.wakeAt": {"$gt": pipelines.EPOCH}},
)
"""What the planner must look at next: due (not sent), overdue (sent, past) and in flight (sent, future) are ranges."""
NEXT_RUN = IndexModel(
    [("task", ASCENDING), ("status", ASCENDING), ("nextRunAt", ASCENDING), ("_id", ASCENDING)],
    name="reactive_next_run",
)
"""Counts and listings; final records, whose `nextRunAt` is null, in the order of their ids."""
OLDEST_DUE = IndexModel(
    [("task", ASCENDING), ("status", ASCENDING), ("dueAt", ASCENDING), ("_id", ASCENDING)],
    name="reactive_oldest_due",
    partialFilterExpression={"status": RecordState.PENDING.value},
)
"""What has waited longest."""
LAST_RUN = IndexModel(
    [("task", ASCENDING), ("status", ASCENDING), ("lastFinalizedAt", ASCENDING), ("_id", ASCENDING)],
    name="reactive_last_run",
    partialFilterExpression={"status": {"$in": sorted(FINAL)}},
)
"""The newest failures and successes; written once a run."""

ALL = (WAKE, NEXT_RUN, OLDEST_DUE, LAST_RUN)

SORTED: Mapping[str, frozenset[RecordState]] = {
    "nextRunAt": frozenset(RecordState),
    "dueAt": frozenset({RecordState.PENDING}),
    "lastFinalizedAt": FINAL,
}
"""Fields by which an index gives the records of these states in order; equal ones by `_id`."""

_FORMER = frozenset({"reactive_due"})
"""Names that earlier releases gave to indexes; a changed index gets a new name."""
_INDEX_NOT_FOUND, _UNAUTHORIZED = 27, 13


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
    records.create_indexes(list(ALL))


def _looks_foreign(records: Collection[dict[str, Any]]) -> bool:
    """Whether the whole collection must be searched: only one that does not carry our index yet."""
    return "reactive_wake" not in records.index_information()


@translated
def drop_former(records: Collection[dict[str, Any]]) -> None:
    """Drop the indexes that an earlier release made of *records*; to be called by the leader, after `prepare`.

    A planner of that release makes them again when it starts, and the next leader of this one drops them again. Where
    dropping is not granted they stay: they cost a little time at each write and harm nobody.
    """
    for name in _FORMER & records.index_information().keys():
        try:
            records.drop_index(name)
        except OperationFailure as error:
            if error.code not in (_INDEX_NOT_FOUND, _UNAUTHORIZED):
                raise
