"""Locks by name, for the user's own code: one document each in the globals collection, while it is held.

Called by `management`. A document: `{_id: {k: "lock", l: key}, owner, fence, since, until}`, times by the server's
clock. Who holds a lock deletes it at the end; one whose time is over is anybody's. The fence of a lock only grows: it
starts from the cluster's time, which its own deletion has moved on.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from typing import Any

from pymongo import ReturnDocument
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from celery_reactive.store.errors import translated

Globals = Collection[dict[str, Any]]

_FORGOTTEN_AFTER = timedelta(days=1)
_TIMES_A_SECOND = 2**24


@dataclasses.dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock, as it was read."""

    owner: str
    until: datetime


def _id(key: str) -> dict[str, str]:
    return {"k": "lock", "l": key}


@translated
def acquire(globals_: Globals, key: str, owner: str, expire: timedelta) -> int | None:
    """Take the lock *key* if nobody holds it, or its time is over.

    Args:
        globals_: The globals collection.
        key: Name of the lock.
        owner: A token of this acquisition; the same again finds what it has taken already.
        expire: How long it is held without a renewal.

    Returns:
        Its fence, greater than that of every earlier holder; None: somebody else holds it.

    Raises:
        StoreUnavailableError: It may have been taken, and is free again after *expire*.
    """
    mine = {"$eq": ["$owner", {"$literal": owner}]}
    # A document that is made by this statement has no end yet, which sorts before every time.
    free = {"$lte": ["$until", "$$NOW"]}
    by_time = {
        "$add": [
            {"$multiply": [{"$toLong": {"$tsSecond": "$$CLUSTER_TIME"}}, _TIMES_A_SECOND]},
            {"$toLong": {"$tsIncrement": "$$CLUSTER_TIME"}},
        ],
    }
    taken = {
        "owner": {"$literal": owner},
        "fence": {"$cond": [mine, "$fence", {"$max": [{"$add": ["$fence", 1]}, by_time]}]},
        "since": {"$cond": [mine, "$since", "$$NOW"]},
        "until": _after(expire),
    }
    may_take = {"$or": [mine, free]}
    try:
        stored: Any = globals_.find_one_and_update(
            {"_id": _id(key)},
            [{"$set": {name: {"$cond": [may_take, value, f"${name}"]} for name, value in taken.items()}}],
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
    except DuplicateKeyError:
        return None
    return int(stored["fence"]) if stored["owner"] == owner else None


@translated
def renew(globals_: Globals, key: str, owner: str, expire: timedelta) -> bool:
    """Hold the lock for *expire* from now on; false: it is somebody else's, or nobody's.

    Raises:
        StoreUnavailableError: It may have been renewed.
    """
    result = globals_.update_one({"_id": _id(key), "owner": owner}, [{"$set": {"until": _after(expire)}}])
    return result.matched_count == 1


@translated
def release(globals_: Globals, key: str, owner: str) -> bool:
    """Give the lock up; false: it was not held any more.

    Raises:
        StoreUnavailableError: It may have been given up; it is free when its time is over.
    """
    return globals_.delete_one({"_id": _id(key), "owner": owner}).deleted_count == 1


@translated
def holder(globals_: Globals, key: str) -> Holder | None:
    """Return who holds the lock, None if nobody does."""
    found = globals_.find_one({"_id": _id(key), "$expr": {"$gt": ["$until", "$$NOW"]}})
    return None if found is None else Holder(found["owner"], found["until"])


@translated
def forget_expired(globals_: Globals) -> int:
    """Delete locks whose holders vanished more than a day ago; return how many."""
    old = {"$lt": ["$until", {"$subtract": ["$$NOW", _milliseconds(_FORGOTTEN_AFTER)]}]}
    return globals_.delete_many({"_id.k": "lock", "$expr": old}).deleted_count


def _after(span: timedelta) -> dict[str, Any]:
    return {"$add": ["$$NOW", _milliseconds(span)]}


def _milliseconds(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)
