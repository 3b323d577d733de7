"""When the entries of Celery's schedule ran last: one document each in the globals collection (B-67).

Called by `planner.beat` and `management.schedule`. A document: `{_id: {k: "beat", n: name}, lastRunAt, runs}`. A run is
taken by naming the last one that is known: of several planners that think an entry is due, one sends it. The times are
those of the schedule, by the clock of the machine that runs it, as everywhere in Celery's beat.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection as Names
from datetime import datetime
from typing import Any

from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from celery_reactive.store.errors import translated

Globals = Collection[dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class LastRun:
    """When an entry ran last, or was first seen."""

    at: datetime
    runs: int
    """How often it has run."""


def _id(name: str) -> dict[str, str]:
    return {"k": "beat", "n": name}


@translated
def read_all(globals_: Globals) -> dict[str, LastRun]:
    """Return the last runs by the names of the entries."""
    found = globals_.find({"_id.k": "beat"})
    return {one["_id"]["n"]: LastRun(one["lastRunAt"], int(one["runs"])) for one in found}


@translated
def note_first(globals_: Globals, name: str, at: datetime) -> None:
    """Note when an entry was first seen: its first interval begins then, whoever leads at its end."""
    try:
        globals_.update_one({"_id": _id(name)}, {"$setOnInsert": {"lastRunAt": at, "runs": 0}}, upsert=True)
    except DuplicateKeyError:
        # Somebody else saw it at the same moment.
        return


@translated
def take(globals_: Globals, name: str, *, seen: datetime | None, at: datetime) -> bool:
    """Take the run of an entry that is due.

    Args:
        globals_: The globals collection.
        name: Of the entry.
        seen: When it ran last, as the caller knows; None: it never did.
        at: When it runs now, in whole milliseconds.

    Returns:
        Whether the run is the caller's; false: somebody else has sent it meanwhile.

    Raises:
        StoreUnavailableError: Unknown; do not send it.
    """
    if seen is None:
        note_first(globals_, name, at)
        seen = at
    result = globals_.update_one(
        {"_id": _id(name), "lastRunAt": seen}, {"$set": {"lastRunAt": at}, "$inc": {"runs": 1}}
    )
    return result.matched_count == 1


@translated
def forget_others(globals_: Globals, names: Names[str]) -> int:
    """Forget entries that are not in the schedule any more; declared again, they begin like new ones."""
    return globals_.delete_many({"_id.k": "beat", "_id.n": {"$nin": list(names)}}).deleted_count
