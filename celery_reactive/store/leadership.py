"""The leader's lock: who plans, in which term.

One document per planner group: `{_id: {k: "leader", g: group}, holder, term, beats, since, renewedAt, terms}`, of which
`terms` are the latest ones, for people: `[{term, holder, since, releasedAt}]`. A candidate takes it when it is free, or
when its `beats` have stood still for the TTL on the candidate's own monotonic clock: no two clocks are ever compared,
so a clock that jumps elects nobody. Each acquisition is a new term; what a leader writes to the globals names its term
and is refused once a newer one exists.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

from pymongo import ReturnDocument
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from celery_reactive.store.errors import translated

Globals = Collection[dict[str, Any]]

MOST_TERMS = 20
"""Of which is kept who led, and when."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lock:
    """The lock as read: `holder` None means free, `beats` move while the holder lives."""

    holder: str | None
    term: int
    beats: int


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
    """A term of leadership, for people."""

    term: int
    holder: str
    since: datetime
    ended_at: datetime | None
    """When it was handed over, else when the next one began; None: it goes on."""
    was_handed_over: bool
    """Ended in good order; false: it goes on, or its leader has vanished."""


def _id(group: str) -> dict[str, str]:
    return {"k": "leader", "g": group}


@translated
def read(globals_: Globals, group: str) -> Lock:
    """Read the lock of *group*; one that was never taken is free, term 0."""
    stored = globals_.find_one({"_id": _id(group)}, projection=["holder", "term", "beats"]) or {}
    return Lock(stored.get("holder"), int(stored.get("term", 0)), int(stored.get("beats", 0)))


@translated
def acquire(globals_: Globals, group: str, instance: str, seen: Lock) -> int | None:
    """Take the lock if it is still as *seen*.

    The caller has judged that *seen* is free or stale.

    Returns:
        The new term, None if somebody else was faster.
    """
    following = {"$add": [{"$max": ["$term", _newest_term(globals_)]}, 1]}
    begun = {"term": following, "holder": {"$literal": instance}, "since": "$$NOW"}
    if seen.term == 0:
        _create(globals_, group)
    won = globals_.find_one_and_update(
        {"_id": _id(group), "term": seen.term, "beats": seen.beats},
        [
            {
                "$set": {
                    **begun,
                    "beats": 0,
                    "renewedAt": "$$NOW",
                    "terms": {"$slice": [{"$concatArrays": [{"$ifNull": ["$terms", []]}, [begun]]}, -MOST_TERMS]},
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
    ended = {"$cond": [{"$eq": ["$$one.term", term]}, {"$mergeObjects": ["$$one", {"releasedAt": "$$NOW"}]}, "$$one"]}
    terms = {"$map": {"input": {"$ifNull": ["$terms", []]}, "as": "one", "in": ended}}
    return globals_.update_one(mine, [{"$set": {"holder": None, "terms": terms}}]).matched_count == 1


@translated
def latest_terms(globals_: Globals, group: str) -> list[Term]:
    """Return the latest terms of *group*, the newest first, `MOST_TERMS` at most."""
    stored = globals_.find_one({"_id": _id(group)}, projection=["terms"]) or {}
    found, following = list[Term](), None
    for one in reversed(stored.get("terms", [])):
        released = one.get("releasedAt")
        found.append(Term(int(one["term"]), one["holder"], one["since"], released or following, released is not None))
        following = one["since"]
    return found


@translated
def describe(globals_: Globals, group: str) -> dict[str, Any]:
    """Return the lock's document with the server's `now`, for `status`; empty if nobody ever led."""
    return next(globals_.aggregate([{"$match": {"_id": _id(group)}}, {"$set": {"now": "$$NOW"}}]), {})
