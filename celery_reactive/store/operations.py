"""Bulk work that people ask for, as it goes on: one document each in the globals collection.

Called by `management`. Whoever runs an operation holds it by a token and moves it on page by page; one whose document
has stood still for a while may be taken over, by whoever sees that. Its document is no lock on records: of two that run
one operation at the same time, each changes records by guarded statements, and the one without the token stops at the
end of its page.

A document: `{_id: {k: "operation", o: id}, action, asked (extended JSON text), by, limit, state, total, looked,
changed, place, runner, createdAt, updatedAt, endedAt, error}`, times by the server's clock. `place` is how far it has
come.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pymongo import ReturnDocument
from pymongo.collection import Collection

from celery_reactive.core.outcome import shorten
from celery_reactive.store.errors import translated

Globals = Collection[dict[str, Any]]

STALLED_AFTER = timedelta(seconds=20)
"""A page takes seconds at most: an operation that has stood still for so long has lost who ran it."""
KEPT_FOR = timedelta(days=7)
"""Ended operations are listed for so long."""
_ERROR_BYTES = 2 * 1024


class OperationState(StrEnum):
    """Where an operation is, as stored."""

    RUNNING = "running"
    """It goes on, or waits for somebody to go on with it."""
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"
    """It met an error that going on does not mend; what it has changed by then stays changed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """An operation as it was read."""

    id: str
    action: str
    asked: str
    """What it is about, as extended JSON."""
    by: str | None
    limit: int | None
    """Most records changed; None: all."""
    state: OperationState
    total: int | None
    """How many are to be looked at, as counted at the start; None: that took too long."""
    looked: int
    changed: int
    place: Mapping[str, Any] | None
    """None: at the start."""
    error: str | None
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    is_stalled: bool
    """Whether it should go on, and nobody runs it: it has stood still for `STALLED_AFTER`, or has not been begun."""


def _id(operation: str) -> dict[str, str]:
    return {"k": "operation", "o": operation}


@translated
def create(
    globals_: Globals,
    operation: str,
    *,
    action: str,
    asked: str,
    by: str | None,
    limit: int | None,
    total: int | None,
    runner: str | None,
) -> Stored:
    """Write down what is asked for.

    Args:
        globals_: The globals collection.
        operation: A new id.
        action: What is done to the records.
        asked: Which records, as extended JSON.
        by: Who asked, for people.
        limit: Most records changed; None: all.
        total: How many records are meant, as counted now; None: unknown.
        runner: Token of who runs it; None: whoever finds it first.

    Raises:
        StoreUnavailableError: It may have been written, and would be run then.
    """
    fields = {"action": action, "asked": asked, "by": by, "limit": limit, "total": total, "runner": runner}
    stored: Any = globals_.find_one_and_update(
        {"_id": _id(operation)},
        [
            {
                "$set": {
                    **{name: {"$literal": value} for name, value in fields.items()},
                    "state": OperationState.RUNNING.value,
                    "looked": 0,
                    "changed": 0,
                    "place": None,
                    "createdAt": "$$NOW",
                    "updatedAt": "$$NOW",
                },
            },
        ],
        upsert=True,
        return_document=ReturnDocument.AFTER,
    )
    return _stored({**stored, "stalled": runner is None})


@translated
def take(globals_: Globals, operation: str, runner: str) -> Stored | None:
    """Become the one who runs an operation that nobody runs.

    Args:
        globals_: The globals collection.
        operation: Its id.
        runner: A token of the caller's own, which may hold it already.

    Returns:
        The operation as it stands; None: it has ended, was never there, or somebody else runs it.
    """
    free = {"$or": [{"$eq": ["$runner", {"$literal": runner}]}, _is_free()]}
    taken = globals_.find_one_and_update(
        {"_id": _id(operation), "state": OperationState.RUNNING.value, "$expr": free},
        [{"$set": {"runner": {"$literal": runner}, "updatedAt": "$$NOW"}}],
        return_document=ReturnDocument.AFTER,
    )
    return None if taken is None else _stored({**taken, "stalled": False})


@translated
def advance(
    globals_: Globals, operation: str, runner: str, *, looked: int, changed: int, place: Mapping[str, Any]
) -> bool:
    """Note a page that is done; false: stop, it was cancelled or somebody else runs it.

    Raises:
        StoreUnavailableError: Unknown whether it was noted; done again, the page changes what it has not changed yet.
    """
    result = globals_.update_one(
        _mine(operation, runner),
        [
            {
                "$set": {
                    "looked": {"$add": ["$looked", looked]},
                    "changed": {"$add": ["$changed", changed]},
                    "place": {"$literal": dict(place)},
                    "updatedAt": "$$NOW",
                },
            },
        ],
    )
    return result.matched_count == 1


@translated
def end(globals_: Globals, operation: str, runner: str, state: OperationState, *, error: str | None = None) -> bool:
    """Note that an operation has come to its end; false: it was cancelled, or somebody else runs it."""
    shown = None if error is None else shorten(error, _ERROR_BYTES)
    change = {"state": state.value, "error": {"$literal": shown}, "updatedAt": "$$NOW", "endedAt": "$$NOW"}
    return globals_.update_one(_mine(operation, runner), [{"$set": change}]).matched_count == 1


@translated
def cancel(globals_: Globals, operation: str) -> bool:
    """Let an operation stop after its page; false: it has ended already, or was never there."""
    running = {"_id": _id(operation), "state": OperationState.RUNNING.value}
    change = {"state": OperationState.CANCELLED.value, "updatedAt": "$$NOW", "endedAt": "$$NOW"}
    return globals_.update_one(running, [{"$set": change}]).matched_count == 1


@translated
def read(globals_: Globals, operation: str) -> Stored | None:
    """Return an operation, None if there is none of this id."""
    return next(iter(_find(globals_, {"_id": _id(operation)}, limit=1)), None)


@translated
def find(globals_: Globals, *, state: OperationState | None = None, limit: int) -> list[Stored]:
    """Return operations, the newest first."""
    wanted = {"_id.k": "operation", **({} if state is None else {"state": state.value})}
    return _find(globals_, wanted, limit=limit)


@translated
def forget_old(globals_: Globals) -> int:
    """Delete operations that ended more than `KEPT_FOR` ago; return how many."""
    past = {"$lt": ["$endedAt", {"$subtract": ["$$NOW", _milliseconds(KEPT_FOR)]}]}
    ended = {"_id.k": "operation", "state": {"$ne": OperationState.RUNNING.value}}
    return globals_.delete_many({**ended, "$expr": past}).deleted_count


def _find(globals_: Globals, wanted: dict[str, Any], *, limit: int) -> list[Stored]:
    stages: list[dict[str, Any]] = [
        {"$match": wanted},
        {"$sort": {"createdAt": -1, "_id": 1}},
        {"$limit": limit},
        {"$set": {"stalled": {"$and": [{"$eq": ["$state", OperationState.RUNNING.value]}, _is_free()]}}},
    ]
    return [_stored(found) for found in globals_.aggregate(stages)]


def _mine(operation: str, runner: str) -> dict[str, Any]:
    return {"_id": _id(operation), "state": OperationState.RUNNING.value, "runner": runner}


def _is_free() -> dict[str, Any]:
    stands_still = {"$lt": ["$updatedAt", {"$subtract": ["$$NOW", _milliseconds(STALLED_AFTER)]}]}
    return {"$or": [{"$eq": ["$runner", None]}, stands_still]}


def _milliseconds(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)


def _stored(found: Mapping[str, Any]) -> Stored:
    return Stored(
        id=found["_id"]["o"],
        action=found["action"],
        asked=found["asked"],
        by=found["by"],
        limit=found["limit"],
        state=OperationState(found["state"]),
        total=None if found["total"] is None else int(found["total"]),
        looked=int(found["looked"]),
        changed=int(found["changed"]),
        place=found["place"],
        error=found.get("error"),
        created_at=found["createdAt"],
        updated_at=found["updatedAt"],
        ended_at=found.get("endedAt"),
        is_stalled=bool(found["stalled"]),
    )
