"""What the server and its collections are like: read for `doctor`, which judges it.

Called by `management.doctor`. Reads only. What the user of the connection string may not ask is unknown, which is
no fault: each function says so by None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from bson import Timestamp
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import OperationFailure

from celery_reactive.core.record import CODEC
from celery_reactive.core.states import RecordState
from celery_reactive.store import indexes, pipelines
from celery_reactive.store.errors import translated

Documents = Collection[dict[str, Any]]

_UNAUTHORIZED = 13
_ALMOST_FULL = 0.9
_MOST_LOOKED_AT = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Oplog:
    """How far back changes can be read."""

    window: timedelta
    is_full: bool
    """Whether old entries make room for new ones: only then the window is as long as it will ever be."""


@dataclasses.dataclass(frozen=True, slots=True)
class Needed:
    """What must be granted on a collection."""

    database: str
    collection: str
    """Empty: on all of the database."""
    actions: frozenset[str]


@translated
def sent_in_vain(records: Documents, task: str) -> int:
    """Return how many pending records of *task* were sent again after their deadline, and claimed by nobody.

    Up to a thousand are counted.
    """
    pending = {"task": task, **pipelines.state_is(frozenset({RecordState.PENDING}))}
    again = {"_r.sent": True, "_r.wakeAt": {"$gt": pipelines.EPOCH}, "_r.dispatches": {"$gt": 1}}
    return records.count_documents({**pending, **again}, limit=_MOST_LOOKED_AT)


@translated
def missing_rights(database: Database[Any], needed: Iterable[Needed]) -> list[Needed] | None:
    """Return what of *needed* is not granted to the user of the connection; None: there is no user."""
    status = database.client.admin.command("connectionStatus", showPrivileges=True)["authInfo"]
    if not status["authenticatedUsers"]:
        return None
    granted = status["authenticatedUserPrivileges"]
    lacking = [dataclasses.replace(one, actions=one.actions - _granted(granted, one)) for one in needed]
    return [one for one in lacking if one.actions]


def _granted(privileges: Iterable[Mapping[str, Any]], needed: Needed) -> frozenset[str]:
    actions: set[str] = set()
    for privilege in privileges:
        if _covers(privilege["resource"], needed):
            actions.update(needed.actions if "anyAction" in privilege["actions"] else privilege["actions"])
    return frozenset(actions)


def _covers(resource: Mapping[str, Any], needed: Needed) -> bool:
    if resource.get("anyResource"):
        return True
    return resource.get("db") in {"", needed.database} and resource.get("collection") in {"", needed.collection}


@translated
def missing_indexes(records: Documents) -> list[str]:
    """Return the names of our indexes that *records* lacks; a collection that does not exist lacks none."""
    there = records.index_information()
    names = [str(model.document["name"]) for model in indexes.ALL]
    return [name for name in names if there and name not in there]


@translated
def foreign_record(records: Documents) -> Any | None:
    """Return the `_id` of a document in *records* that is not ours, of the first thousand; None: none is seen."""
    ours = {"$and": [{"$eq": [{"$type": "$_id.t"}, "string"]}, {"$eq": [{"$type": "$_r"}, "object"]}]}
    found = records.aggregate([{"$limit": _MOST_LOOKED_AT}, {"$match": {"$expr": {"$not": ours}}}, {"$limit": 1}])
    return next((one["_id"] for one in found), None)


@translated
def kind_of(database: Database[Any], name: str) -> str | None:
    """Return what *name* is: `collection`, `view`, `timeseries`; None: there is nothing of this name."""
    found = next(iter(database.list_collections(filter={"name": name})), None)
    return None if found is None else str(found["type"])


@translated
def oplog(database: Database[Any]) -> Oplog | None:
    """Return how far back the oplog of the primary reaches; None: reading it is not granted."""
    entries = database.client.local.get_collection("oplog.rs")
    try:
        first = entries.find_one(sort=[("$natural", 1)], projection=["ts"])
        last = entries.find_one(sort=[("$natural", -1)], projection=["ts"])
        stats = next(entries.aggregate([{"$collStats": {"storageStats": {}}}]))["storageStats"]
    except OperationFailure as error:
        if error.code == _UNAUTHORIZED:
            return None
        raise
    if first is None or last is None:
        return None
    window = timedelta(seconds=_seconds(last["ts"]) - _seconds(first["ts"]))
    return Oplog(window, is_full=stats["size"] >= _ALMOST_FULL * stats["maxSize"])


def _seconds(at: Timestamp) -> int:
    return at.time


@translated
def default_write_concern(database: Database[Any]) -> Any | None:
    """Return the `w` that writes have by default, of the connection string or the whole cluster; None: unknown."""
    own = database.client.write_concern.document.get("w")
    if own is not None:
        return own
    try:
        answer = database.client.admin.command("getDefaultRWConcern")
    except OperationFailure:
        return None
    return answer.get("defaultWriteConcern", {}).get("w")


@translated
def clock(database: Database[Any]) -> datetime:
    """Return the primary's time."""
    told: datetime = database.command("hello", codec_options=CODEC)["localTime"]
    return told


@translated
def defined_in(globals_: Documents) -> dict[str, tuple[str, int]]:
    """Return the group, and the leader's term, in which each task was defined last."""
    found = globals_.find({"_id.k": "task", "term": {"$exists": True}}, projection=["task", "group", "term"])
    return {one["task"]: (one.get("group", ""), int(one["term"])) for one in found}
