"""How far a reconciliation has come: where the next leader, or the next start, goes on (B-48).

One document per group and collection: `{_id: {k: "reconciliation", g, db, c}, term, tasks, start, phase, after, done,
total, parts, startedAt, storedAt}`. `tasks` names the tasks with their generations and the count of reasons for the
reconciliation: where any of that differs, the checkpoint is void. `parts`, while several are walked at once, is `{of:
phase, left: [{a: after, u: until}, …]}` in their order, the first from `after` on. A release that knows no parts goes
on from `after` through all of them, and what it leaves of them fits no more. Read by `status` for progress, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from bson import Timestamp
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from celery_reactive.core.record import RecordKey
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
class Part:
    """What is left of one part of a collection: the ids after one, up to another."""

    after: Any
    """The last `_id` whose work is durable."""
    until: Any


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
    parts: tuple[Part, ...] = ()
    """What is left where several parts are walked at once, in their order; empty: all after `after`."""


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
        parts=_parts(stored),
    )


def _parts(stored: Mapping[str, Any]) -> tuple[Part, ...]:
    """Return the stored parts, none where they are not those of the stored phase and position."""
    told = stored.get("parts") or {"of": None}
    if told["of"] != stored["phase"]:
        return ()
    parts = tuple(Part(one["a"], one["u"]) for one in told["left"])
    return parts if RecordKey("", parts[0].after).exact == RecordKey("", stored["after"]).exact else ()


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
    left = [{"a": part.after, "u": part.until} for part in checkpoint.parts]
    begins = {"$ne": ["$tasks", {"$literal": tasks}]}
    document = {
        "term": term,
        "tasks": {"$literal": tasks},
        "start": checkpoint.start,
        "phase": {"$literal": checkpoint.phase},
        "after": {"$literal": checkpoint.after},
        "done": checkpoint.done,
        "total": checkpoint.total,
        "parts": {"$literal": {"of": checkpoint.phase, "left": left}} if left else "$$REMOVE",
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
