"""Documents that could not be planned: poison ones, and records locked by somebody's transaction (B-20).

One document each in the globals collection: `{_id: {k: "unplanned", t, d}, at, gone, reason, error,
since, tries}`. Written at majority before the stream position advances, removed when the document has
been planned after all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from bson import Timestamp
from pymongo.collection import Collection

from celery_reactive.core.outcome import shorten
from celery_reactive.core.record import RecordKey
from celery_reactive.store.errors import translated

Globals = Collection[dict[str, Any]]

_ERROR_BYTES = 2 * 1024


class Reason(StrEnum):
    """Why a document is unplanned."""

    FAILED = "failed"
    """Planning it raises an error; tried again when it changes."""
    LOCKED = "locked"
    """A transaction holds its record; tried again until it is free."""


@dataclasses.dataclass(frozen=True, slots=True)
class Unplanned:
    """One document that could not be planned for one task."""

    key: RecordKey
    at: Timestamp
    gone: bool
    """Its deletion is among what could not be planned; it may have been inserted again since."""
    reason: Reason
    error: str
    since: datetime
    tries: int


def _id(key: RecordKey) -> dict[str, Any]:
    return {"k": "unplanned", "t": key.task, "d": key.doc_id}


@translated
def note(globals_: Globals, key: RecordKey, *, at: Timestamp, gone: bool, reason: Reason, error: str) -> None:
    """Note that *key* could not be planned.

    Args:
        globals_: The globals collection.
        key: Task and document.
        at: Cluster time of what could not be planned.
        gone: It was the document's deletion; remembered whatever is noted after it.
        reason: Why.
        error: The server's message; shortened to 2 KiB.
    """
    globals_.update_one(
        {"_id": _id(key)},
        [
            {
                "$set": {
                    "at": {"$max": ["$at", at]},
                    "gone": {"$or": [{"$eq": ["$gone", True]}, gone]},
                    "reason": reason.value,
                    "error": {"$literal": shorten(error, _ERROR_BYTES)},
                    "since": {"$ifNull": ["$since", "$$NOW"]},
                    "tries": {"$add": [{"$ifNull": ["$tries", 0]}, 1]},
                },
            },
        ],
        upsert=True,
    )


@translated
def clear(globals_: Globals, key: RecordKey, *, up_to: Timestamp) -> bool:
    """Forget that *key* could not be planned, unless something later than *up_to* could not.

    Returns:
        Whether nothing is noted of it any more.
    """
    globals_.delete_one({"_id": _id(key), "at": {"$lte": up_to}})
    return globals_.find_one({"_id": _id(key)}, projection=["_id"]) is None


@translated
def find(
    globals_: Globals,
    *,
    task: str | None = None,
    reason: Reason | None = None,
    limit: int = 0,
) -> list[Unplanned]:
    """Return unplanned documents in the order of their ids; *limit* 0: all."""
    wanted: dict[str, Any] = {"_id.k": "unplanned"}
    if task is not None:
        wanted["_id.t"] = task
    if reason is not None:
        wanted["reason"] = reason.value
    return [found_from(stored) for stored in globals_.find(wanted, sort=[("_id", 1)], limit=limit)]


def found_from(stored: Mapping[str, Any]) -> Unplanned:
    """Return the entry that a stored document is."""
    return Unplanned(
        key=RecordKey(stored["_id"]["t"], stored["_id"]["d"]),
        at=stored["at"],
        gone=bool(stored.get("gone")),
        reason=Reason(stored["reason"]),
        error=stored["error"],
        since=stored["since"],
        tries=int(stored["tries"]),
    )
