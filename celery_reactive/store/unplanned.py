"""Documents that could not be planned: poison ones, and records locked by somebody's transaction (B-20).

One document each in the globals collection: `{_id: {k: "unplanned", t, d}, at, reason, error, since,
tries}`. Written at majority before the stream position advances, removed when the document has been
planned after all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
    reason: Reason
    error: str
    since: datetime
    tries: int


def _id(key: RecordKey) -> dict[str, Any]:
    return {"k": "unplanned", "t": key.task, "d": key.doc_id}


@translated
def note(globals_: Globals, key: RecordKey, *, at: Timestamp, reason: Reason, error: str) -> None:
    """Note that *key* could not be planned."""
    globals_.update_one(
        {"_id": _id(key)},
        [
            {
                "$set": {
                    "at": {"$max": ["$at", at]},
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
def clear(globals_: Globals, task: str, doc_ids: Sequence[Any]) -> int:
    """Forget that these documents could not be planned; return how many were noted."""
    ids = [_id(RecordKey(task, doc_id)) for doc_id in doc_ids]
    return globals_.delete_many({"_id": {"$in": ids}}).deleted_count


@translated
def find(
    globals_: Globals,
    *,
    task: str | None = None,
    reason: Reason | None = None,
    limit: int = 1000,
) -> list[Unplanned]:
    """Return unplanned documents in the order of their ids."""
    wanted: dict[str, Any] = {"_id.k": "unplanned"}
    if task is not None:
        wanted["_id.t"] = task
    if reason is not None:
        wanted["reason"] = reason.value
    return [
        Unplanned(
            key=RecordKey(stored["_id"]["t"], stored["_id"]["d"]),
            at=stored["at"],
            reason=Reason(stored["reason"]),
            error=stored["error"],
            since=stored["since"],
            tries=int(stored["tries"]),
        )
        for stored in globals_.find(wanted, sort=[("_id", 1)], limit=limit)
    ]
