"""Statements behind the gauges: what there is now, from indexes, never from a scan (B-55).

Called by `metrics`. Completed records are many and are counted by the leader once a minute, which leaves the numbers in
the globals: `{_id: {k: "completed", g: group}, term, tasks: [{t, n}], countedAt}`. All others are counted when somebody
asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from bson import MaxKey
from pymongo import ReadPreference
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError, OperationFailure
from pymongo.read_concern import ReadConcern

from celery_reactive.core.record import CODEC
from celery_reactive.core.states import RecordState
from celery_reactive.errors import TermEndedError
from celery_reactive.store.errors import translated

Documents = Collection[dict[str, Any]]

UNFINISHED = tuple(state for state in RecordState if state is not RecordState.COMPLETED)
_UNREADABLE = frozenset({13, 26, 73})
"""Unauthorized, NamespaceNotFound, InvalidNamespace: whoever may not read the oplog is told so in one of these ways."""


@translated
def store_completed(globals_: Documents, group: str, numbers: Mapping[str, int], *, term: int) -> None:
    """Store how many records of each task of a group are completed.

    Raises:
        TermEndedError: A newer leader counts. Nothing was written.
    """
    mine = {"_id": _completed(group), "$or": [{"term": {"$lte": term}}, {"term": None}]}
    counted = [{"t": task, "n": number} for task, number in sorted(numbers.items())]
    change = {"$set": {"term": term, "tasks": counted}, "$currentDate": {"countedAt": True}}
    try:
        globals_.update_one(mine, change, upsert=True)
    except DuplicateKeyError:
        raise TermEndedError(term) from None


@translated
def read_completed(globals_: Documents, groups: list[str]) -> dict[str, int]:
    """Return how many records of each task are completed, as last counted; a task that never was is missing."""
    found = globals_.find({"_id": {"$in": [_completed(group) for group in groups]}})
    return {one["t"]: int(one["n"]) for document in found for one in document["tasks"]}


@translated
def count_unplanned(globals_: Documents) -> dict[str, int]:
    """Return how many documents cannot be planned, by task; tasks without any are missing."""
    kind = {"_id": {"$gte": {"k": "unplanned"}, "$lt": {"k": "unplanned", "t": MaxKey()}}}
    found = globals_.aggregate([{"$match": kind}, {"$group": {"_id": "$_id.t", "n": {"$sum": 1}}}])
    return {one["_id"]: int(one["n"]) for one in found}


@translated
def oplog_window(globals_: Documents) -> timedelta | None:
    """Return how far back the primary's oplog reaches; None where it cannot be read."""
    oplog = globals_.database.client.get_database(
        "local", codec_options=CODEC, read_preference=ReadPreference.PRIMARY, read_concern=ReadConcern("local")
    )["oplog.rs"]
    try:
        ends = [oplog.find_one({}, {"ts": 1}, sort=[("$natural", direction)]) for direction in (1, -1)]
    except OperationFailure as error:
        if error.code in _UNREADABLE:
            return None
        raise
    first, last = ends
    if first is None or last is None:
        return None
    return timedelta(seconds=last["ts"].time - first["ts"].time)


def _completed(group: str) -> dict[str, str]:
    return {"k": "completed", "g": group}
