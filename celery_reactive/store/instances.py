"""The processes that take part: one small document for each live worker and planner, in the globals collection.

Each writes its own, with its heartbeat; the planner reads those of workers to know how much they can take at once, and
`status`, `doctor` and the dashboard show them all. A document is no lock and proves nothing: a process that could not
write it works on, and whoever reads it decides nothing that must be right.

A document: `{_id: {k: "worker" or "planner", n: name}, seenAt, startedAt, facts: {…}}`, times by the server's clock.
The name is Celery's for a worker (`celery@host`), `reactive_instance_id` for a planner.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from bson import MaxKey, MinKey
from pymongo.collection import Collection

from celery_reactive.store.errors import translated

Globals = Collection[dict[str, Any]]

HEARTBEAT = timedelta(seconds=10)
LIVE_FOR = timedelta(seconds=35)
"""Who has not been seen for so long counts as gone: three heartbeats and some patience."""
_FORGET_AFTER = timedelta(hours=1)


class Kind(StrEnum):
    """What a process is."""

    WORKER = "worker"
    PLANNER = "planner"


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    """A process as it described itself."""

    kind: Kind
    name: str
    started_at: datetime
    seen_at: datetime
    is_live: bool
    """Seen within `LIVE_FOR`, by the server's clock."""
    facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker says of itself."""

    queues: Sequence[str]
    """It consumes from."""
    slots: int
    """Messages it runs at once: its pool's processes, threads or greenlets."""
    pool: str
    """Celery's name for the kind of its pool, such as `prefork`."""
    limited: bool
    """A time limit of its command line is in force for every message (B-30)."""
    prefetch: int
    """Messages it takes from the broker before it runs them; 0: as many as there are."""
    acks_late: bool
    tasks: Mapping[str, int]
    """Its reactive tasks, by name, and the versions of their handlers."""
    version: str
    """Of this package."""


@translated
def announce(globals_: Globals, kind: Kind, name: str, facts: Mapping[str, Any]) -> None:
    """Write down that a process lives and what it says of itself.

    Raises:
        StoreUnavailableError: Nobody may have learned of it; it is repeated with the next heartbeat.
    """
    globals_.update_one(
        {"_id": _id(kind, name)},
        [
            {
                "$set": {
                    "facts": {"$literal": dict(facts)},
                    "seenAt": "$$NOW",
                    "startedAt": {"$ifNull": ["$startedAt", "$$NOW"]},
                },
            },
        ],
        upsert=True,
    )


@translated
def announce_worker(globals_: Globals, name: str, facts: WorkerFacts) -> None:
    """Write down that a worker lives; raises what `announce` does."""
    # Names of tasks have dots.
    tasks = [{"task": task, "handlerVersion": version} for task, version in facts.tasks.items()]
    announce(globals_, Kind.WORKER, name, {**dataclasses.asdict(facts), "queues": list(facts.queues), "tasks": tasks})


@translated
def leave(globals_: Globals, kind: Kind, name: str) -> None:
    """Forget a process that ends in good order."""
    globals_.delete_one({"_id": _id(kind, name)})


@translated
def read(globals_: Globals) -> list[Instance]:
    """Return all processes that were seen within the last hour, workers and planners, by name."""
    found = globals_.aggregate(
        [
            {"$match": _any()},
            {"$set": {"age": {"$subtract": ["$$NOW", "$seenAt"]}}},
        ],
    )
    live_for = LIVE_FOR / timedelta(milliseconds=1)
    instances = [
        Instance(
            Kind(one["_id"]["k"]),
            one["_id"]["n"],
            one["startedAt"],
            one["seenAt"],
            one["age"] <= live_for,
            one.get("facts") or {},
        )
        for one in found
    ]
    return sorted(instances, key=lambda one: (one.kind, one.name))


@translated
def live_workers(globals_: Globals) -> dict[str, WorkerFacts]:
    """Return what the live workers said of themselves, by their names."""
    return {one.name: _worker_facts(one.facts) for one in read(globals_) if one.kind is Kind.WORKER and one.is_live}


def _worker_facts(facts: Mapping[str, Any]) -> WorkerFacts:
    """Return what a worker said, as far as it can be understood: it may be of another version."""
    said = {
        name: facts[name] if isinstance(facts.get(name), type(unknown)) else unknown
        for name, unknown in _UNKNOWN.items()
    }
    tasks = {
        one["task"]: one["handlerVersion"]
        for one in (facts["tasks"] if isinstance(facts.get("tasks"), list) else ())
        if isinstance(one, Mapping) and isinstance(one.get("task"), str) and isinstance(one.get("handlerVersion"), int)
    }
    return WorkerFacts(**{**said, "slots": max(1, said["slots"]), "tasks": tasks})


_UNKNOWN: Mapping[str, Any] = {
    "queues": [],
    "slots": 1,
    "pool": "",
    "limited": False,
    "prefetch": 0,
    "acks_late": False,
    "version": "",
}
"""Of a worker that does not say so, or in words of its own."""


@translated
def forget_the_gone(globals_: Globals) -> int:
    """Delete what processes have left that were not seen for an hour; return how many."""
    is_old = {"$lt": ["$seenAt", {"$subtract": ["$$NOW", _FORGET_AFTER // timedelta(milliseconds=1)]}]}
    return globals_.delete_many({**_any(), "$expr": is_old}).deleted_count


def _id(kind: Kind, name: str) -> dict[str, str]:
    return {"k": kind.value, "n": name}


def _any() -> dict[str, Any]:
    """Return the query for all documents of instances, by ranges of `_id`: the globals hold more than these."""
    ranges = [{"$gte": {"k": kind.value, "n": MinKey()}, "$lte": {"k": kind.value, "n": MaxKey()}} for kind in Kind]
    return {"$or": [{"_id": one} for one in ranges]}
