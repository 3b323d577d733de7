"""Limiters: one document in the globals collection for each task that has a limit (B-58).

Workers take starts and slots before they claim and give them back; the planner looks how many there are, and frees
the slots of workers that have vanished. All by single guarded statements and the server's clock; what is not known to
have been given back counts as used. How a limiter counts, and why it is exact: `pipelines/limiters.py`.

A document: `{_id: {k: "limiter", t: task}, starts: [{since, at, n}], open: [{token, n, by}], slots: [{token, n, at,
docs}], last, awaited, asked, told}`. `starts` are those that have happened, `open` those granted to claims under way,
`slots` the runs under way: of the records of `docs`, `n` may run. `awaited`: the planner waits for a slot, `asked`:
since when.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pymongo import ReturnDocument
from pymongo.collection import Collection

from celery_reactive.core.limits import Limits
from celery_reactive.core.record import RecordKey
from celery_reactive.store.errors import translated
from celery_reactive.store.pipelines import limiters as pipelines

Globals = Collection[dict[str, Any]]

CLAIM_WITHIN = timedelta(seconds=10)
"""So long after a slot was granted its record may be claimed; after twice that, a slot without a claim is free."""
_SLOT_SECONDS = 0.25
"""Nobody knows when a run ends; whoever waits for it and is not told looks again after this."""


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """What a limiter has left."""

    records: float
    """How many may start now; infinite where nothing limits them."""
    seconds: float
    """Until there is more; 0 where nothing limits them."""


UNLIMITED_ROOM = Room(math.inf, 0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Grant:
    """What a worker was granted."""

    starts: int
    """How many records may be claimed and run; 0: none."""
    at: datetime
    """The server's time."""
    wait: timedelta
    """Until more may be expected."""

    @property
    def claim_until(self) -> datetime:
        """A claim after this, by the server's clock, is refused: its slot may be somebody else's."""
        return self.at + CLAIM_WITHIN


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    """The slots of one delivery's token."""

    task: str
    token: str
    count: int
    keys: tuple[RecordKey, ...]
    """Records that may have been claimed with the token."""
    is_settled: bool
    """Whether no claim of the token can follow any more."""


@translated
def take(globals_: Globals, token: str, keys: Sequence[RecordKey], limits: Limits, *, wanted: int) -> Grant:
    """Take up to *wanted* starts, and slots for them, in one statement.

    Args:
        globals_: The globals collection, with majority concerns.
        token: Of the claims that will use them.
        keys: Records of one task that may be claimed.
        limits: In force.
        wanted: Most starts.

    Raises:
        StoreUnavailableError: Unknown whether they were granted. Claim nothing; what was granted is free again in time.
    """
    limiter: Any = globals_.find_one_and_update(
        {"_id": _id(keys[0].task)},
        pipelines.take(token, [key.doc_id for key in keys], wanted, limits),
        upsert=True,
        return_document=ReturnDocument.AFTER,
    )
    last = limiter["last"]
    room = _room_of(limiter, limits, last["at"])
    return Grant(int(last["n"]), last["at"], timedelta(seconds=room.seconds))


@translated
def keep(globals_: Globals, task: str, token: str, count: int) -> None:
    """Give back what a token was granted, but for *count* of its starts and slots; of fewer nothing is given back."""
    globals_.update_one({"_id": _id(task)}, pipelines.keep(token, count))


@translated
def settle(
    globals_: Globals, task: str, token: str, limits: Limits, *, started: int | None = None, frees: bool = True
) -> bool:
    """Note that all starts of a token have happened; those of its starts that did not are given back.

    Args:
        globals_: The globals collection.
        task: The task's name.
        token: Of the claims.
        limits: Under which they were granted.
        started: How many starts there were; None: as many as were granted.
        frees: Whether the runs are over too, and free their slots.

    Returns:
        Whether slots were freed that the planner waits for; it must be woken.
    """
    limiter = globals_.find_one_and_update(
        {"_id": _id(task)},
        pipelines.settle(token, limits, started=started, frees=frees),
        projection={"told": 1},
        return_document=ReturnDocument.AFTER,
    )
    return frees and limiter is not None and bool(limiter.get("told"))


@translated
def room(globals_: Globals, limits: Mapping[str, Limits]) -> dict[str, Room]:
    """Return how many records of each task may start now, and when more may; one statement, which changes nothing.

    Args:
        globals_: The globals collection.
        limits: In force, by the task's name.
    """
    limited = [task for task, one in limits.items() if one.is_any]
    if not limited:
        return dict.fromkeys(limits, UNLIMITED_ROOM)
    found = globals_.aggregate(
        [{"$match": {"_id": {"$in": [_id(task) for task in limited]}}}, {"$set": {"now": "$$NOW"}}]
    )
    known = {limiter["_id"]["t"]: limiter for limiter in found}
    return {
        task: _room_of(known[task], one, known[task]["now"]) if task in known else _room_of({}, one, None)
        for task, one in limits.items()
    }


@translated
def await_room(globals_: Globals, task: str, limits: Limits) -> Room:
    """Return what `room` does for one task, and have the planner woken when a slot is freed after that."""
    limiter = globals_.find_one_and_update(
        {"_id": _id(task)}, pipelines.await_room(), return_document=ReturnDocument.AFTER
    )
    return _room_of({}, limits, None) if limiter is None else _room_of(limiter, limits, limiter["asked"])


@translated
def held(globals_: Globals, tasks: Iterable[str]) -> list[Slots]:
    """Return the slots that are taken."""
    found = globals_.aggregate(
        [
            {"$match": {"_id": {"$in": [_id(task) for task in tasks]}, "slots.0": {"$exists": True}}},
            {"$project": {"slots": 1, "now": "$$NOW"}},
        ],
    )
    return [
        Slots(
            limiter["_id"]["t"],
            slot["token"],
            int(slot["n"]),
            tuple(RecordKey(limiter["_id"]["t"], doc_id) for doc_id in slot["docs"]),
            is_settled=limiter["now"] - slot["at"] > 2 * CLAIM_WITHIN,
        )
        for limiter in found
        for slot in limiter["slots"]
    ]


def _id(task: str) -> dict[str, str]:
    return {"k": "limiter", "t": task}


def _slots_taken(limiter: Mapping[str, Any]) -> int:
    return sum(int(slot["n"]) for slot in limiter.get("slots") or ())


def _room_of(limiter: Mapping[str, Any], limits: Limits, now: datetime | None) -> Room:
    free, wait = math.inf, 0.0
    if limits.rate is not None:
        moments = [] if now is None else _moments(limiter, now - limits.rate.period)
        free = limits.rate.starts - sum(count for _, count in moments)
        if now is not None and moments:
            wait = (_first_free(moments, limits.rate.starts) + limits.rate.period - now).total_seconds() + 0.001
    if limits.concurrency is not None:
        slots = limits.concurrency - _slots_taken(limiter)
        if slots <= free:
            free, wait = slots, _SLOT_SECONDS
    return Room(max(0, free), max(wait, 0.0))


def _moments(limiter: Mapping[str, Any], since: datetime) -> list[tuple[datetime, int]]:
    """Return the starts in the window from *since* on, by the times under which they are counted."""
    starts = [(one["at"], int(one["n"])) for one in limiter.get("starts") or ()]
    expected = [(one["by"], int(one["n"])) for one in limiter.get("open") or ()]
    return sorted(moment for moment in starts + expected if moment[0] >= since)


def _first_free(moments: Sequence[tuple[datetime, int]], most: int) -> datetime:
    """Return the moment with whose leaving the window fewer than *most* starts, and fewer than now, are left in it."""
    left = sum(count for _, count in moments)
    for at, count in moments:
        left -= count
        if left < most:
            return at
    return moments[-1][0]
