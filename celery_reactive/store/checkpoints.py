"""How far a reconciliation has come: where the next leader, or the next start, goes on (B-48).

One document per group and collection: `{_id: {k: "reconciliation", g, db, c}, term, tasks, start, phase, after, done,
total, startedAt, storedAt}`. `tasks` names the tasks with their generations and the count of reasons for the
reconciliation: where any of that differs, the checkpoint is void. Read by `status` for progress, too.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

from bson import Timestamp
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from celery_reactive.errors import TermEndedError
from celery_reactive.store.errors import translated

Globals = Collection[dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Scanned:
    """A task as a reconciliation takes it."""

    task: str
    generation: int
    needs: int
    """The count of reasons when it began."""


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a reconciliation has behind it."""

    tasks: tuple[Scanned, ...]
    start: Timestamp
    """A cluster time known before its first read."""
    phase: str
    """Empty while documents are scanned; then the task whose records are."""
    after: Any
    """The last `_id` whose work is durable."""
    done: int
    total: int
    """Estimated at its start."""


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far the reconciliation of one collection has come, at the server's time `now`."""

    database: str
    collection: str
    tasks: tuple[str, ...]
    done: int
    total: int
    started_at: datetime
    stored_at: datetime


def _id(group: str, database: str, collection: str) -> dict[str, str]:
    return {"k": "reconciliation", "g": group, "db": database, "c": collection}


@translated
def read(globals_: Globals, group: str, database: str, collection: str) -> Checkpoint | None:
    """Return the stored checkpoint of a collection, None if no reconciliation of it is under way."""
    stored = globals_.find_one({"_id": _id(group, database, collection)})
    if stored is None:
        return None
    return Checkpoint(
        tasks=tuple(Scanned(one["t"], int(one["gen"]), int(one["needs"])) for one in stored["tasks"]),
        start=stored["start"],
        phase=stored["phase"],
        after=stored["after"],
        done=int(stored["done"]),
        total=int(stored["total"]),
    )


@translated
def store(
    globals_: Globals,
    group: str,
    database: str,
    collection: str,
    checkpoint: Checkpoint,
    *,
    term: int,
) -> None:
    """Store *checkpoint*, after everything up to it is durable.

    Raises:
        TermEndedError: A newer leader plans. Nothing was written.
    """
    tasks = [{"t": one.task, "gen": one.generation, "needs": one.needs} for one in checkpoint.tasks]
    begins = {"$ne": ["$tasks", {"$literal": tasks}]}
    document = {
        "term": term,
        "tasks": {"$literal": tasks},
        "start": checkpoint.start,
        "phase": {"$literal": checkpoint.phase},
        "after": {"$literal": checkpoint.after},
        "done": checkpoint.done,
        "total": checkpoint.total,
        "startedAt": {"$cond": [begins, "$$NOW", "$startedAt"]},
        "storedAt": "$$NOW",
    }
    mine = {"_id": _id(group, database, collection), "$or": [{"term": {"$lte": term}}, {"term": {"$exists": False}}]}
    try:
        globals_.update_one(mine, [{"$set": document}], upsert=True)
    except DuplicateKeyError:
        raise TermEndedError(term) from None


@translated
def clear(globals_: Globals, group: str, database: str, collection: str, *, term: int) -> None:
    """Forget the checkpoint of a reconciliation that is done, unless a newer leader goes on with one."""
    globals_.delete_one({"_id": _id(group, database, collection), "term": {"$lte": term}})


@translated
def progress(globals_: Globals, group: str) -> list[Progress]:
    """Return how far each reconciliation under way has come."""
    found = globals_.find({"_id.k": "reconciliation", "_id.g": group}, sort=[("_id", 1)])
    return [
        Progress(
            database=stored["_id"]["db"],
            collection=stored["_id"]["c"],
            tasks=tuple(one["t"] for one in stored["tasks"]),
            done=int(stored["done"]),
            total=int(stored["total"]),
            started_at=stored["startedAt"],
            stored_at=stored["storedAt"],
        )
        for stored in found
    ]
