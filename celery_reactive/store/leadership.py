"""The leader's lock: who plans, in which term.

One document per planner group: `{_id: {k: "leader", g: group}, holder, term, beats, since, renewedAt}`. A
candidate takes it when it is free, or when its `beats` have stood still for the TTL on the
candidate's own monotonic clock: no two clocks are ever compared, so a clock that jumps elects
nobody. Each acquisition is a new term; what a leader writes to the globals names its term and is
refused once a newer one exists.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pymongo import ReturnDocument
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from celery_reactive.store.errors import translated

Globals = Collection[dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Lock:
    """The lock as read: `holder` None means free, `beats` move while the holder lives."""

    holder: str | None
    term: int
    beats: int


def _id(group: str) -> dict[str, str]:
    return {"k": "leader", "g": group}


@translated
def read(globals_: Globals, group: str) -> Lock:
    """Read the lock of *group*; one that was never taken is free, term 0."""
    stored = globals_.find_one({"_id": _id(group)}) or {}
    return Lock(stored.get("holder"), int(stored.get("term", 0)), int(stored.get("beats", 0)))


@translated
def acquire(globals_: Globals, group: str, instance: str, seen: Lock) -> int | None:
    """Take the lock if it is still as *seen*.

    The caller has judged that *seen* is free or stale.

    Returns:
        The new term, None if somebody else was faster.
    """
    newest = _newest_term(globals_)
    if seen.term == 0:
        _create(globals_, group)
    won = globals_.find_one_and_update(
        {"_id": _id(group), "term": seen.term, "beats": seen.beats},
        [
            {
                "$set": {
                    "holder": {"$literal": instance},
                    "term": {"$add": [{"$max": ["$term", newest]}, 1]},
                    "beats": 0,
                    "since": "$$NOW",
                    "renewedAt": "$$NOW",
                },
            },
        ],
        return_document=ReturnDocument.AFTER,
    )
    return None if won is None else int(won["term"])


def _newest_term(globals_: Globals) -> int:
    """Return the newest term that anything but a lock names, 0 if nothing does.

    A lock that was dropped with its database starts anew (B-49), and what its last holder wrote after the drop must
    not refuse the terms that follow.
    """
    named = {"term": {"$exists": True}, "_id.k": {"$ne": "leader"}}
    newest = globals_.find_one(named, projection=["term"], sort=[("term", -1)])
    return 0 if newest is None else int(newest["term"])


def _create(globals_: Globals, group: str) -> None:
    try:
        globals_.insert_one({"_id": _id(group), "holder": None, "term": 0, "beats": 0})
    except DuplicateKeyError:
        return


@translated
def renew(globals_: Globals, group: str, instance: str, term: int) -> bool:
    """Renew the lock; false: it has passed to somebody else, stop at once."""
    mine = {"_id": _id(group), "holder": instance, "term": term}
    return globals_.update_one(mine, {"$inc": {"beats": 1}, "$currentDate": {"renewedAt": True}}).matched_count == 1


@translated
def release(globals_: Globals, group: str, instance: str, term: int) -> bool:
    """Free the lock in good order, so that a stand-by takes it at once; false: it was no longer held."""
    mine = {"_id": _id(group), "holder": instance, "term": term}
    return globals_.update_one(mine, {"$set": {"holder": None}}).matched_count == 1


@translated
def describe(globals_: Globals, group: str) -> dict[str, Any]:
    """Return the lock's document with the server's `now`, for `status`; empty if nobody ever led."""
    return next(globals_.aggregate([{"$match": {"_id": _id(group)}}, {"$set": {"now": "$$NOW"}}]), {})
