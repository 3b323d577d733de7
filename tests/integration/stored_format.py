"""What is stored, in every shape it has: made by today's code, and kept as files of the releases that wrote it.

`python -m tests.integration.stored_format` writes the file of this release, after a change of the format that older
releases can live with. A file of a release that has been published is never changed.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from bson import Decimal128, MaxKey, ObjectId, Timestamp, json_util

from celery_reactive import embedded
from celery_reactive.core.declaration import declare
from celery_reactive.core.limits import Limits, Rate
from celery_reactive.core.outcome import Completed, Deferred, GivenBack, Skipped
from celery_reactive.core.record import EXACT_EJSON, RecordKey
from celery_reactive.core.registry import Registry
from celery_reactive.core.totals import Totals
from celery_reactive.metrics import catalogue
from celery_reactive.metrics.counts import Counts
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store import (
    beats,
    checkpoints,
    counters,
    definitions,
    flow,
    instances,
    leadership,
    limiters,
    locks,
    measures,
    operations,
    orphans,
    positions,
    records,
    server,
    unplanned,
    wake,
)
from celery_reactive.store.checkpoints import Checkpoint, Part, Scanned
from celery_reactive.store.connection import Connection
from celery_reactive.store.positions import Position
from celery_reactive.store.unplanned import Reason
from tests.integration.bench import TOOK, Bench, overtaken

FOLDER = Path(__file__).with_name("stored")
RELEASE = "0.1"
TASK = "shop.sync"
LIMITS = Limits(Rate(10, timedelta(days=36500)), 3)
OPTIONS: dict[str, Any] = {
    "collection": "orders",
    "filter": {"on": True},
    "watch_projection": {"v": 1},
    "debounce": 0,
    "evolution": {"handler_version": 2},
}

Stored = dict[str, list[dict[str, Any]]]
"""Documents by collection."""


def bench_of(connection: Connection) -> Bench:
    """Return the workbench of the task whose records are kept."""
    return Bench(connection, declare(TASK, OPTIONS))


def store_everything(connection: Connection) -> None:
    """Bring a database into a state in which every kind of stored document occurs in every shape."""
    bench = bench_of(connection)
    _records(bench)
    _globals(connection, bench)


def _records(bench: Bench) -> None:
    def document(doc_id: Any) -> dict[str, Any]:
        return {"_id": doc_id, "on": True, "v": {"of": doc_id, "price": Decimal128("1.50"), "when": bench.now()}}

    bench.plan(document("pending"))
    bench.plan(document("sent"))
    minute = timedelta(minutes=1)
    records.mark_sent(bench.records, [bench.key("sent")], first_deadline=minute, longest_deadline=minute)
    bench.start(document("processing"))
    bench.start(document("processing dirty"))
    bench.plan({**document("processing dirty"), "v": 2})
    bench.start(document("touched"))
    bench.observe("touched")
    bench.handle(document("completed"))
    bench.error(bench.start(document("retried")))
    bench.exhaust(bench.start(document("failed")))
    bench.settle(bench.start(document("deferred")), Deferred(bench.now() + timedelta(hours=1)))
    bench.settle(bench.start(document("held")), Deferred(bench.now() + timedelta(hours=1), hold=True))
    bench.settle(bench.start(document("alone")), GivenBack(alone=True))
    bench.settle(bench.start(document("skipped")), Skipped("nothing to do", TOOK))
    bench.settle(bench.start(document("overtaken")), overtaken({"v": 3}))
    for name in ("gone", "left"):
        bench.handle(document(name))
        bench.leave(name, gone=name == "gone")
    bench.handle(document("forced"))
    bench.retry("forced")
    bench.plan(document("discarded"))
    bench.discard("discarded")
    bench.put(document("unrun"))
    backfill = Bench(bench.connection, declare(TASK, {**OPTIONS, "backfill": False}))
    backfill.observe("unrun", live=False)
    for number, doc_id in enumerate(
        (7, 7.5, None, ObjectId("5f0000000000000000000001"), uuid.UUID(int=7), {"b": 1, "a": [1]})
    ):
        claim = bench.start({"_id": doc_id, "on": True, "v": number})
        bench.settle(claim, Completed(TOOK, document_checked=True))
    bench.handle(document("reset"))
    records.reprocess(bench.records, TASK, ["reset"], version=2)


def _globals(connection: Connection, bench: Bench) -> None:
    globals_ = connection.globals()
    term = leadership.acquire(globals_, "default", "host-1", leadership.read(globals_, "default")) or 0
    leadership.renew(globals_, "default", "host-1", term)
    for options in (OPTIONS, {**OPTIONS, "watch_projection": {"v": 1, "w": 1}}, OPTIONS):
        task = declare(TASK, options)
        definitions.define(globals_, task, namespace=connection.namespace(task), collated=False, term=term)
    place = server.collection_id(bench.source.database, bench.source.name)
    definitions.mark_reconciled(globals_, TASK, generation=3, needs=0, term=term, collection=place)
    definitions.store_handler_version(globals_, TASK, 2, term=term)
    definitions.throttle(globals_, TASK, bench.now())
    definitions.set_paused(globals_, "shop.index", paused=True)
    definitions.request_reconciliation(globals_, "shop.index")
    definitions.set_limits(globals_, "shop.index", {"rate": LIMITS.rate, "concurrency": 3, "priority": 9})
    for token in ("settled", "open"):
        limiters.take(globals_, token, [bench.key("processing")], LIMITS, wanted=1)
    limiters.settle(globals_, TASK, "settled", LIMITS)
    limiters.await_room(globals_, TASK, LIMITS)
    database = connection.default_database
    covers = frozenset({(TASK, 3), ("shop.index", 1)})
    position = Position({"_data": "8263"}, Timestamp(1_700_000_000, 3), ObjectId("5f0000000000000000000002"), covers)
    positions.store(globals_, "default", database, position, term=term)
    scanned = (Scanned("shop.index", 1, 1), Scanned(TASK, 3, 0))
    checkpoint = Checkpoint(scanned, Timestamp(1_700_000_000, 3), "", {"b": 1}, 500, 900)
    checkpoints.store(globals_, "default", database, "orders", checkpoint, term=term)
    for reason in Reason:
        key = RecordKey(TASK, reason.value)
        unplanned.note(globals_, key, at=Timestamp(7, 1), gone=False, reason=reason, error="$divide by zero")
    parts = (Part({"b": 1}, 4), Part(4, MaxKey()))
    in_parts = Checkpoint(scanned, Timestamp(1_700_000_000, 3), "", {"b": 1}, 500, 900, parts)
    checkpoints.store(globals_, "reports", database, "orders", in_parts, term=term)
    wake.wake(globals_)
    wake.wake_reconciliation(globals_)
    _counted(globals_, term)
    _noted(globals_, term, bench.now())


def _counted(globals_: Any, term: int) -> None:
    counts = Counts()
    counts.add(catalogue.RETRIES, TASK, number=3)
    counts.observe(catalogue.DURATION, TASK, catalogue.SUCCESS, value=0.25)
    for name in ("gone", "live"):
        counters.push(globals_, name, counts.totals(), seq=1, push_every=timedelta(minutes=1), first=True)
    counters.retire(globals_, [one for one in counters.live(globals_) if one.name == "gone"])
    measures.store_completed(globals_, "default", {TASK: 5}, term=term)
    for seen in (Totals(), counts.totals()):
        flow.keep(globals_, flow.Pace.MINUTE, seen)


def _noted(globals_: Any, term: int, now: datetime) -> None:
    worker = {"queues": ["celery"], "slots": 2, "pool": "prefork", "limited": False, "prefetch": 8, "acks_late": False}
    facts = instances.WorkerFacts(**worker, tasks={TASK: 2}, version=RELEASE)
    instances.announce_worker(globals_, "celery@host-1", facts)
    instances.announce(globals_, instances.Kind.PLANNER, "host-1", {"group": "default"})
    asked = {"asked": "{}", "by": "somebody@host-1", "limit": None, "total": 5}
    for name, action in (("running", "retry"), ("ended", "discard")):
        operations.create(globals_, name, action=action, runner="token", **asked)
        operations.advance(globals_, name, "token", looked=2, changed=1, place={"task": TASK, "after": 7})
    operations.end(globals_, "ended", "token", operations.OperationState.FAILED, error="no primary")
    locks.acquire(globals_, "close-the-day", "host-1", timedelta(days=1))
    beats.take(globals_, "nightly", seen=None, at=now)
    orphans.note_time(globals_, "default", TASK, term=term)


def dump(connection: Connection) -> Stored:
    """Return what is stored."""
    bench = bench_of(connection)
    collections = {"records": bench.records, "globals": connection.globals(), "orders": bench.source}
    return {name: list(collection.find(sort=[("_id", 1)])) for name, collection in collections.items()}


def load(connection: Connection, release: str) -> None:
    """Bring a database into the state that a release has left."""
    stored: Stored = json_util.loads((FOLDER / f"{release}.json").read_text(), json_options=EXACT_EJSON)
    bench = bench_of(connection)
    collections = {"records": bench.records, "globals": connection.globals(), "orders": bench.source}
    for name, documents in stored.items():
        collections[name].insert_many(documents)


def shapes(documents: list[dict[str, Any]]) -> set[str]:
    """Return the fields that occur with the types of their values, for each kind of document."""
    return {f"{_kind_of(document)} {field}" for document in documents for field in _fields(document, "")}


def _kind_of(document: dict[str, Any]) -> str:
    identity = document["_id"]
    return (
        identity["k"] if isinstance(identity, dict) and "k" in identity else f"record {document['sourceDocId']!r:.20}"
    )


def _fields(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict) and path not in (".lastObservedValues", "._id", ".token", ".after"):
        for name, inner in value.items():
            yield from _fields(inner, f"{path}.{name}")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from _fields(value[0], f"{path}[]")
    else:
        yield f"{path}: {type(value).__name__}"


def main() -> None:
    """Write the file of this release."""
    with embedded.mongodb() as mongodb:
        connection = Connection(Settings(mongodb_url=mongodb.url_of("stored"), instance_id="host-1"))
        store_everything(connection)
        text = json_util.dumps(dump(connection), json_options=EXACT_EJSON, indent=1)
        connection.close()
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{RELEASE}.json").write_text(text + "\n")


def runtime_of(connection: Connection, settings: Settings) -> Runtime:
    """Return the parts of an app with the task whose records are kept."""
    registry = Registry()
    registry.add(declare(TASK, OPTIONS), celery_name=TASK)
    return Runtime(settings, registry, connection)


if __name__ == "__main__":
    main()
