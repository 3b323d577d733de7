"""Statements that only read, for people: counts, how far a database is planned, who leads.

Called by `management`. Each is served by an index or reads a few documents, so that asking never burdens the system.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

from bson import Timestamp
from pymongo.collection import Collection

from celery_reactive.core.states import RecordState
from celery_reactive.store.errors import translated

Documents = Collection[dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Leading:
    """The leader's lock as stored, at the server's time `now`."""

    holder: str | None
    term: int
    since: datetime | None
    renewed_at: datetime | None
    now: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Planned:
    """How far a database has been planned, at the server's time `now`."""

    database: str
    at: Timestamp
    stored_at: datetime | None
    now: datetime


@translated
def count_by_state(records: Documents, task: str) -> dict[RecordState, int]:
    """Return how many records of *task* are in each state; each count is a range of `reactive_due`."""
    return {state: records.count_documents({"task": task, "status": state.value}) for state in RecordState}


@translated
def oldest_due(records: Documents, task: str) -> tuple[datetime, datetime] | None:
    """Return the oldest `dueAt` of the pending records of *task* and the server's time; None: nothing is pending."""
    found = next(
        records.aggregate(
            [
                {"$match": {"task": task, "status": RecordState.PENDING.value}},
                {"$sort": {"dueAt": 1}},
                {"$limit": 1},
                {"$project": {"_id": 0, "dueAt": 1, "now": "$$NOW"}},
            ],
        ),
        None,
    )
    return None if found is None else (found["dueAt"], found["now"])


@translated
def leading(globals_: Documents, group: str) -> Leading | None:
    """Return the lock of *group*, None if nobody ever led it."""
    found = _first(globals_, {"_id": {"k": "leader", "g": group}})
    if found is None:
        return None
    return Leading(
        holder=found["holder"],
        term=int(found["term"]),
        since=found.get("since"),
        renewed_at=found.get("renewedAt"),
        now=found["now"],
    )


@translated
def planned(globals_: Documents, group: str, database: str) -> Planned | None:
    """Return how far *group* has planned *database*, None if it never did."""
    found = _first(globals_, {"_id": {"k": "position", "g": group, "db": database}})
    if found is None:
        return None
    return Planned(database, found["at"], found.get("storedAt"), found["now"])


@translated
def count_unplanned(globals_: Documents, *, task: str | None = None) -> int:
    """Return how many documents could not be planned, for *task* or for all."""
    return globals_.count_documents({"_id.k": "unplanned", **({} if task is None else {"_id.t": task})})


def _first(globals_: Documents, match: dict[str, Any]) -> dict[str, Any] | None:
    return next(globals_.aggregate([{"$match": match}, {"$set": {"now": "$$NOW"}}]), None)
