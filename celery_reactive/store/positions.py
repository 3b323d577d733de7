"""Stream positions: how far the changes of a database have been planned.

One document per group and database: `{_id: {k: "position", g, db}, term, token, at, set, covers, idle}`.
`token` resumes the stream, `at` is the cluster time planned up to, `set` the replica set's id (a
restore into another set, or to an older time, makes the position unusable), `covers` the tasks and
generations whose changes up to `at` have been planned; any other task is reconciled (B-45).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from bson import ObjectId, Timestamp
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from celery_reactive.errors import TermEndedError
from celery_reactive.store.errors import translated

Globals = Collection[dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """How far a database has been planned."""

    token: dict[str, Any]
    at: Timestamp
    replica_set: ObjectId | None
    covers: frozenset[tuple[str, int]]


def _id(group: str, database: str) -> dict[str, str]:
    return {"k": "position", "g": group, "db": database}


@translated
def read(globals_: Globals, group: str, database: str) -> Position | None:
    """Return the stored position of *database*, None if it was never planned."""
    stored = globals_.find_one({"_id": _id(group, database)})
    if stored is None or not stored.get("token"):
        return None
    return Position(
        token=stored["token"],
        at=stored["at"],
        replica_set=stored.get("set"),
        covers=frozenset((covered["t"], int(covered["gen"])) for covered in stored.get("covers", [])),
    )


@translated
def store(globals_: Globals, group: str, database: str, position: Position, *, term: int, idle: bool = False) -> None:
    """Store *position*, after everything up to it is durable (B-47); *idle*: nothing had come after it.

    Raises:
        TermEndedError: A newer leader plans. Nothing was written.
    """
    document = {
        "term": term,
        "token": {"$literal": position.token},
        "at": position.at,
        "set": position.replica_set,
        "covers": {"$literal": [{"t": task, "gen": generation} for task, generation in sorted(position.covers)]},
        "idle": idle,
        "storedAt": "$$NOW",
    }
    try:
        globals_.update_one(
            {"_id": _id(group, database), "$or": [{"term": {"$lte": term}}, {"term": {"$exists": False}}]},
            [{"$set": document}],
            upsert=True,
        )
    except DuplicateKeyError:
        raise TermEndedError(term) from None
