"""What the pages of the dashboard take with a million records, each asked for the first time.

No processes but the server's: the application is asked directly, by a dashboard made anew for each request, so that
nothing is remembered from the one before.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import stage
from celery import Celery
from figures import Figure, Section, number, tell
from pymongo import MongoClient

from celery_reactive import Reactive, TaskContext, embedded, reactive_task
from celery_reactive.runtime import Runtime
from celery_reactive.store import indexes, records, server

TASK = "sync"
PAGES = {
    "overview": "/",
    "charts": "/api/v1/activity",
    "records": "/records",
    "failed records": "/records?status=failed",
    "one document's records": "/records?doc_id=4711",
    "records of an error's kind": "/records?task=sync&status=failed&template=order%20⟨n⟩%20refused%20⟨n⟩",
    "one record": "/record?task=sync&doc_id=4711",
    "errors": "/errors",
    "planner": "/planner",
    "operations": "/operations",
}
_REPEATS = 3
_PART = 10_000
_REST_SECONDS = 1.5
_LAST_DAY = {"$subtract": ["$$NOW", {"$toLong": {"$multiply": [{"$rand": {}}, 86_400_000]}}]}
_ERROR = {"$concat": ["order ", {"$toString": "$sourceDocId"}, " refused ", {"$toString": {"$mod": ["$_id.d", 40]}}]}
_ENDED = {"nextRunAt": None, "_r.wakeAt": None, "startedAt": "$dueAt", "lastFinalizedAt": _LAST_DAY}
_COMPLETED = {**_ENDED, "status": "completed", "lastSuccess": {"at": "$$NOW", "durationMs": 12}}
_FAILED = {**_ENDED, "status": "failed", "lastError": _ERROR, "firstErrorAt": "$$NOW", "_r.error": {"type": "ErpError"}}


def measure(quick: bool) -> Section:  # noqa: FBT001 -- as every benchmark
    """Time each page."""
    size = 2000 if quick else 1_000_000
    with embedded.mongodb() as mongodb, MongoClient[dict[str, Any]](mongodb.url) as client:
        reactive = _app(mongodb.url_of("bench_dashboard"))
        _fill(reactive.runtime, size)
        figures = list(_figures(reactive, size, rest_seconds=0 if quick else _REST_SECONDS))
        reactive.runtime.connection.close()
        client.drop_database("bench_dashboard")
    note = f"Medians of {_REPEATS}, nothing remembered; of the records 90 % completed, 5 % failed, 5 % pending."
    return Section("dashboard", "Pages of the dashboard", figures, note)


def _app(url: str) -> Reactive:
    app = Celery("bench", broker="memory://", set_as_current=False)
    app.conf.reactive_mongodb_url = url

    @reactive_task(collection="orders", task=TASK, watch_projection={"v": 1}, debounce=0)
    @app.task(name=TASK, shared=False)
    def handler(ctx: TaskContext) -> None:
        """Never called here."""

    app.finalize()
    return Reactive.of(app)


def _fill(runtime: Runtime, size: int) -> None:
    """Make the first records as the package does, and copies of them for as many documents as are asked for."""
    task = runtime.registry.get(TASK)
    source, target = runtime.connection.source(task), runtime.connection.records(task)
    indexes.prepare(target)
    first = range(min(size, _PART))
    stage.insert(source, first)
    with runtime.connection.causal_session() as session:
        at = server.cluster_time(source.database, session)
        records.make_records(source, target, records.Observation(task, at=at, generation=1, session=session), first)
    target.update_many({"sourceDocId": {"$not": {"$mod": [20, 0]}}}, [{"$set": _COMPLETED}])
    target.update_many({"sourceDocId": {"$mod": [20, 1]}}, [{"$set": _FAILED}])
    is_final = {"$ne": ["$status", "pending"]}
    for start in range(_PART, size, _PART):
        number = {"$add": ["$sourceDocId", start]}
        ended = {"$cond": [is_final, _LAST_DAY, "$lastFinalizedAt"]}
        copied = {"_id": {"t": TASK, "d": number}, "sourceDocId": number, "lastFinalizedAt": ended}
        originals = {"_id": {"$lt": {"t": TASK, "d": _PART}}}
        target.aggregate([{"$match": originals}, {"$set": copied}, {"$merge": {"into": target.name}}])


def _figures(reactive: Reactive, size: int, rest_seconds: float) -> Iterator[Figure]:
    for what, path in PAGES.items():
        took = statistics.median(asyncio.run(_asked(reactive, path, rest_seconds)) for _ in range(_REPEATS))
        yield Figure(f"{what}, at {number(size)}", took / timedelta(milliseconds=1), "ms", goal="200 ms")


async def _asked(reactive: Reactive, path: str, rest_seconds: float) -> timedelta:
    """Return how long a new dashboard takes to answer."""
    transport = httpx.ASGITransport(reactive.dashboard(), client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
        await client.get("/api/v1/failures")
        began = time.perf_counter()
        answer = await client.get(path)
        answer.raise_for_status()
        took = timedelta(seconds=time.perf_counter() - began)
        # What is counted for the next time must not count for the next dashboard.
        await asyncio.sleep(rest_seconds)
        return took


if __name__ == "__main__":
    tell(measure)
