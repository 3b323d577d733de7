"""What the statements take that are sent again and again, at a thousand records and up to a million.

The slope says how a time grows: 0, not at all; 1, as fast as the collection. No processes but the server's: the store's
functions are called as planner, worker and management call them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import stage
from figures import Figure, Plot, Section, number, tell
from pymongo import MongoClient

from celery_reactive import embedded
from celery_reactive.core.declaration import declare
from celery_reactive.core.outcome import Completed
from celery_reactive.core.record import RecordKey
from celery_reactive.core.states import RecordState
from celery_reactive.settings import Settings
from celery_reactive.store import indexes, queries, records, server
from celery_reactive.store.connection import Connection
from celery_reactive.store.queries import Order, Wanted

TASK = declare("growth", {"collection": "orders", "debounce": 0, "watch_projection": {"v": 1}})
DUE = 600
_REPEATS = 9
_CHUNK = 32
_LEASE = timedelta(minutes=1)
_TOMORROW = {"$add": ["$$NOW", 86_400_000]}
_DEFERRED = {"nextRunAt": _TOMORROW, "_r.wakeAt": _TOMORROW}
_COMPLETED = {"status": "completed", "nextRunAt": None, "lastFinalizedAt": "$$NOW", "_r.wakeAt": None}


class _House:
    """A collection of records that grows."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.records = connection.records(TASK)
        self.source = connection.source(TASK)
        self.size = 0
        indexes.prepare(self.records)

    def grow(self, size: int) -> None:
        """Make it so large: the first `DUE` records are due, of the others half are deferred and half completed."""
        for first in range(self.size, size, 10_000):
            part = range(first, min(first + 10_000, size))
            stage.insert(self.source, part)
            with self._observing() as observation:
                records.make_records(self.source, self.records, observation, part)
            others = {"_id": {"$gte": RecordKey(TASK.name, max(part.start, DUE)).id}}
            self.records.update_many(others | {"sourceDocId": {"$mod": [2, 0]}}, [{"$set": _DEFERRED}])
            self.records.update_many(others | {"sourceDocId": {"$mod": [2, 1]}}, [{"$set": _COMPLETED}])
        self.size = size

    @contextmanager
    def _observing(self) -> Iterator[records.Observation]:
        with self.connection.causal_session() as session:
            at = server.cluster_time(self.source.database, session)
            yield records.Observation(TASK, at=at, generation=1, session=session)

    def change(self) -> None:
        """Plan a hundred changed documents."""
        ids = list(range(0, 100 * 7, 7))
        self.source.update_many({"_id": {"$in": ids}}, {"$inc": {"v": 1}})
        with self._observing() as observation:
            records.apply_observations(self.source, self.records, observation, ids)

    def run_chunk(self) -> None:
        """Claim and settle what a message names."""
        keys = [one.key for one in records.find_due(self.records, TASK.name, limit=_CHUNK)]
        with self.connection.causal_session() as session:
            token = str(time.time_ns())
            claims = records.claim(self.records, keys, token=token, worker="", lease=_LEASE, session=session)
        records.settle_together(self.records, TASK, claims, Completed(timedelta(0)))
        self.records.update_many(
            {"_id": {"$in": [key.id for key in keys]}},
            [{"$set": {"status": "pending", "nextRunAt": "$dueAt", "_r.wakeAt": "$dueAt"}}],
            hint="_id_",
        )


def _everything(house: _House) -> dict[str, Callable[[], object]]:
    due = Wanted((TASK.name,), frozenset({RecordState.PENDING}))
    final = Wanted((TASK.name,), frozenset({RecordState.COMPLETED}))
    latest = Order("lastFinalizedAt", descending=True)
    soonest = Order("nextRunAt", descending=False)
    return {
        "find 500 due": lambda: records.find_due(house.records, TASK.name, limit=500),
        "when is the next due": lambda: records.seconds_until_next_wake(house.records, TASK.name),
        "all running": lambda: records.running(house.records, TASK.name),
        f"run a chunk of {_CHUNK}": house.run_chunk,
        "plan 100 changed documents": house.change,
        "oldest due": lambda: queries.oldest_due(house.records, TASK.name),
        "a page of what is due": lambda: queries.find_places(
            house.records, due, soonest, stretch=soonest.whole(), limit=50
        ),
        "a page of the latest runs": lambda: queries.find_places(
            house.records, final, latest, stretch=latest.whole(), limit=50
        ),
        "counts by state": lambda: queries.count_by_state(house.records, TASK.name),
    }


def measure(quick: bool) -> Section:  # noqa: FBT001 -- as every benchmark
    """Time each statement at each size."""
    sizes = (1000, 2000) if quick else (1000, 10_000, 100_000, 1_000_000)
    lines: dict[str, list[tuple[float, float]]] = {}
    with embedded.mongodb() as mongodb, MongoClient[dict[str, Any]](mongodb.url) as client:
        connection = Connection(Settings(mongodb_url=mongodb.url_of("growth")))
        house = _House(connection)
        for size in sizes:
            house.grow(size)
            for what, do in _everything(house).items():
                lines.setdefault(what, []).append((size, _median_ms(do)))
        connection.close()
        client.drop_database("growth")
    plot = Plot("growth", "Time of a statement by number of records", "records", "ms", lines, logarithmic=True)
    note = (
        f"Medians of {_REPEATS}; {DUE} records are due. A slope of 0: it does not grow; of 1: as the collection does."
    )
    return Section("growth", "Growth with the number of records", list(_figures(lines)), note, [plot])


def _median_ms(do: Callable[[], object]) -> float:
    times = []
    do()
    for _ in range(_REPEATS):
        began = time.perf_counter()
        do()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def _figures(lines: dict[str, list[tuple[float, float]]]) -> Iterator[Figure]:
    for what, points in lines.items():
        goal = "" if what == "counts by state" else "slope ≈ 0"
        size, took = points[-1]
        yield Figure(f"{what}, at {number(size)}", took, f"ms, slope {_slope(points):.2f}", goal=goal)


def _slope(points: list[tuple[float, float]]) -> float:
    """Return the exponent by which a time grows with the size: of the line through the logarithms."""
    sizes, times = zip(*((math.log(size), math.log(took)) for size, took in points), strict=True)
    return statistics.linear_regression(sizes, times).slope


if __name__ == "__main__":
    tell(measure)
