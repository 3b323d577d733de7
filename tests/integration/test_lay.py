"""Many documents planned at once end as each of them planned alone would, and cost few statements (B-10 to B-20)."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from bson import Timestamp
from pymongo import InsertOne, MongoClient, UpdateOne
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from celery_reactive import embedded
from celery_reactive.core.declaration import declare
from celery_reactive.core.outcome import Deferred
from celery_reactive.core.states import RecordState
from celery_reactive.planner import lay
from celery_reactive.planner.lay import Lay
from celery_reactive.planner.reconcile import Reconciler
from celery_reactive.settings import Settings
from celery_reactive.store import records
from celery_reactive.store.change_stream import ChangeStream
from celery_reactive.store.connection import Connection
from celery_reactive.store.records import Observation
from tests.integration.bench import Bench, Desk, Document
from tests.integration.conftest import MakeBench

FIRST, SECOND = "first", "second"
ALONE, TOGETHER = "alone", "together"
AHEAD = 1000
"""Seconds between the time of an observation and that of an older or newer one."""

Held = Callable[[], AbstractContextManager[threading.Event]]


def document(doc_id: Any, v: Any = FIRST, *, on: bool = True) -> Document:
    """Return a document that the task of `bench` watches."""
    return {"_id": doc_id, "on": on, "v": v}


# --- as each alone ---------------------------------------------------------------------------------------


def _untouched(bench: Bench, doc_id: Any) -> None:
    bench.put(document(doc_id))


def _pending(bench: Bench, doc_id: Any) -> None:
    bench.plan(document(doc_id))


def _running(bench: Bench, doc_id: Any) -> None:
    bench.start(document(doc_id))


def _dirty(bench: Bench, doc_id: Any) -> None:
    bench.start(document(doc_id, "before"))
    bench.plan(document(doc_id))


def _completed(bench: Bench, doc_id: Any) -> None:
    bench.handle(document(doc_id))


def _failing(bench: Bench, doc_id: Any) -> None:
    bench.error(bench.start(document(doc_id)))


def _failed(bench: Bench, doc_id: Any) -> None:
    bench.exhaust(bench.start(document(doc_id)))


def _held(bench: Bench, doc_id: Any) -> None:
    bench.settle(bench.start(document(doc_id)), Deferred(bench.now() + timedelta(hours=1), hold=True))


def _gone(bench: Bench, doc_id: Any) -> None:
    bench.handle(document(doc_id))
    bench.leave(doc_id, at=bench.delete(doc_id), gone=True)
    bench.put(document(doc_id))


def _left(bench: Bench, doc_id: Any) -> None:
    bench.handle(document(doc_id))
    bench.plan(document(doc_id, on=False))
    bench.put(document(doc_id))


def _left_running(bench: Bench, doc_id: Any) -> None:
    bench.start(document(doc_id))
    bench.plan(document(doc_id, on=False))
    bench.put(document(doc_id))


def _skipped(bench: Bench, doc_id: Any) -> None:
    bench.plan(document(doc_id))
    bench.leave(doc_id, gone=True)


def _forced(bench: Bench, doc_id: Any) -> None:
    bench.handle(document(doc_id))
    bench.retry(doc_id)


def _unrun(bench: Bench, doc_id: Any) -> None:
    bench.put(document(doc_id))
    bench.observe(doc_id, live=False)


def _off(bench: Bench, doc_id: Any) -> None:
    bench.plan(document(doc_id))
    bench.put(document(doc_id, on=False))


PASTS = (
    _untouched,
    _pending,
    _running,
    _dirty,
    _completed,
    _failing,
    _failed,
    _held,
    _gone,
    _left,
    _left_running,
    _skipped,
    _forced,
    _unrun,
    _off,
)
SEEN: dict[str, dict[str, Any]] = {
    "told of the same": {"live": True, "stamps": True},
    "told of a change": {"live": True, "stamps": True, "v": SECOND},
    "found the same by a scan": {"live": False, "stamps": False},
    "found changed by a scan": {"live": False, "stamps": False, "v": SECOND},
    "told of a change once more": {"live": True, "stamps": True, "v": SECOND, "twice": True},
    "told late of a change": {"live": True, "stamps": True, "v": SECOND, "ahead": -AHEAD},
    "told of a change under a new definition": {"live": True, "stamps": True, "v": SECOND, "generation": 3},
    "told of the same under a new filter": {"live": True, "stamps": True, "generation": 3, "comparable": {1, 2}},
    "found the same by a scan under a new filter": {"live": False, "stamps": False, "generation": 3, "comparable": {2}},
    "told of a change under an old definition": {"live": True, "stamps": True, "v": SECOND, "generation": 1},
}


@pytest.mark.parametrize("backfill", [True, False], ids=["backfill", "none"])
@pytest.mark.parametrize("seen", SEEN)
def test_many_at_once_end_as_each_alone(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, seen: str, *, backfill: bool
) -> None:
    """B-8, B-12 to B-18, B-43: whatever a record's past is, and whoever tells of its document."""
    bench = make_bench(filter={"on": True}, watch_projection={"v": 1}, backfill=backfill)
    waiting = make_bench(
        filter={"on": True}, watch_projection={"v": 1}, backfill=backfill, debounce=7, debounce_max_wait=60
    )
    bench.generation = 2
    for past, way in itertools.product(PASTS, (ALONE, TOGETHER)):
        past(bench, f"{past.__name__} {way}")
    options = dict(SEEN[seen])
    for doc in list(bench.source.find({"on": True})) if "v" in options else []:
        bench.put({**doc, "v": options["v"]})
    now = bench.cluster_time()
    at = Timestamp(now.time + int(options.pop("ahead", 0)), now.inc)
    options.pop("v", None)
    twice = options.pop("twice", False)
    observation = Observation(
        waiting.task,
        at=at,
        generation=int(options.pop("generation", 2)),
        comparable=frozenset(options.pop("comparable", ())),
        **options,
    )
    monkeypatch.setattr(lay, "FEW", 0)
    laying = Lay(bench.source, bench.records, observation)
    for _ in range(2 if twice else 1):
        for past in PASTS:
            records.apply_observations(bench.source, bench.records, observation, [f"{past.__name__} {ALONE}"])
        left = laying.over([f"{past.__name__} {TOGETHER}" for past in PASTS])
        records.apply_observations(bench.source, bench.records, observation, left)
    found = {past.__name__: [_told(bench, f"{past.__name__} {way}", at) for way in (ALONE, TOGETHER)] for past in PASTS}
    assert {name: together for name, (_, together) in found.items()} == {
        name: alone for name, (alone, _) in found.items()
    }


def _told(bench: Bench, doc_id: str, at: Timestamp) -> object:
    """Return what a record says, without what tells it from that of another document with the same past."""
    record = bench.records.find_one({"_id": bench.key(doc_id).id})
    if record is None:
        return None
    for name in ("_id", "sourceDocId"):
        del record[name]
    bookkeeping = record["_r"]
    for name in ("fence", "done"):
        bookkeeping.pop(name, None)
    bookkeeping["at"] = bookkeeping["at"] == at
    if bookkeeping["claim"]:
        del bookkeeping["claim"]["token"]
    waits = record["nextRunAt"] - record["updatedAt"] if record["nextRunAt"] else None
    return _without_times(record), waits is not None and round(waits.total_seconds())


def _without_times(value: Any) -> Any:
    match value:
        case dict():
            return {name: _without_times(inner) for name, inner in value.items()}
        case list():
            return [_without_times(inner) for inner in value]
        case datetime():
            return "a time"
        case _:
            return value


# --- what moves meanwhile --------------------------------------------------------------------------------


@pytest.fixture
def held(client: MongoClient[Document], mongo_server: embedded.MongoServer | embedded.ExternalServer) -> Held:
    """Hold merges between their read and their write; the event lets them go on."""
    if not isinstance(mongo_server, embedded.MongoServer) or mongo_server.name == "secantus":
        pytest.skip("needs fail points, on a server of our own")
    point = "hangWhileBuildingDocumentSourceMergeBatch"

    @contextmanager
    def held() -> Iterator[threading.Event]:
        client.admin.command({"configureFailPoint": point, "mode": "alwaysOn"})
        try:
            yield threading.Event()
        finally:
            client.admin.command({"configureFailPoint": point, "mode": "off"})

    return held


def _meanwhile(bench: Bench, held: Held, laying: Lay, doc_ids: list[Any], do: Callable[[], Any], **more: Any) -> Any:
    """Lay documents over their records, and do something between a merge's read and its write."""
    left: list[Any] = []
    thread = threading.Thread(target=lambda: left.extend(laying.over(doc_ids, **more)))
    with held():
        thread.start()
        _wait_for_merge(bench)
        done = do()
    thread.join(30)
    assert not thread.is_alive()
    return left, done


def _wait_for_merge(bench: Bench) -> None:
    """Wait until a merge has read what it will write."""
    hangs = {"ns": bench.source.full_name, "failpointMsg": "hangWhileBuildingDocumentSourceMergeBatch"}
    deadline = time.monotonic() + 20
    admin = bench.connection.client.admin
    while not list(admin.aggregate([{"$currentOp": {"localOps": True}}, {"$match": hangs}])):
        assert time.monotonic() < deadline


@pytest.fixture
def laying(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Lay]:
    """Lay documents as of now, however few there are."""
    monkeypatch.setattr(lay, "FEW", 0)

    def lay_now() -> Lay:
        return Lay(bench.source, bench.records, Observation(bench.task, at=bench.cluster_time(), generation=1))

    return lay_now


def test_a_record_that_is_claimed_meanwhile_is_left_to_the_guarded_statement(
    bench: Bench, held: Held, laying: Callable[[], Lay]
) -> None:
    """B-14, B-23: the change makes it dirty; what was read before the claim must not come back."""
    bench.plan(*(document(doc_id) for doc_id in range(4)))
    bench.source.update_many({}, {"$set": {"v": SECOND}})
    now = laying()
    left, (claim,) = _meanwhile(bench, held, now, [0, 1, 2, 3], lambda: bench.claim(1))
    assert left == [1]
    assert bench.state(1) is RecordState.PROCESSING
    assert {bench.record(doc_id)["lastObservedValues"]["v"] for doc_id in (0, 2, 3)} == {SECOND}
    records.apply_observations(bench.source, bench.records, now.observation, left)
    assert bench.state(1) is RecordState.PROCESSING_DIRTY
    assert bench.complete(claim).state is RecordState.PENDING


def test_documents_told_as_inserted_may_have_records(bench: Bench, laying: Callable[[], Lay]) -> None:
    """B-12, B-48: a scan was there before the stream, and a worker has it already."""
    bench.source.insert_many([document(doc_id) for doc_id in range(4)])
    early = bench.cluster_time()
    bench.observe(1, at=early)
    (claim,) = bench.claim(1)
    bench.put(document(1, SECOND))
    now = laying()
    left = now.over([], inserted=[0, 1, 2, 3])
    records.apply_observations(bench.source, bench.records, now.observation, left)
    _check_change_during_run(bench, claim)


def test_a_record_may_be_made_after_it_was_missed(
    bench: Bench, laying: Callable[[], Lay], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-12, B-48: between the comparison and the insertion another one makes it, a worker claims, a user writes."""
    bench.source.insert_many([document(doc_id) for doc_id in range(4)])
    early = bench.cluster_time()
    claims: list[Any] = []
    compare = records.find_unlike

    def compare_and_be_overtaken(*args: Any) -> records.Unlike:
        unlike = compare(*args)
        if not claims:
            bench.observe(1, at=early)
            claims.extend(bench.claim(1))
            bench.put(document(1, SECOND))
        return unlike

    now = laying()
    monkeypatch.setattr(records, "find_unlike", compare_and_be_overtaken)
    left = now.over([0, 1, 2, 3])
    assert 1 in left
    records.apply_observations(bench.source, bench.records, now.observation, left)
    _check_change_during_run(bench, claims[0])


def _check_change_during_run(bench: Bench, claim: Any) -> None:
    """See that all records are there, and that the change during the run makes another."""
    assert bench.records.count_documents({}) == 4
    assert bench.state(1) is RecordState.PROCESSING_DIRTY
    assert bench.complete(claim).state is RecordState.PENDING


# --- what it costs ---------------------------------------------------------------------------------------


class Counting(CommandListener):
    """Counts the statements sent to documents and records."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        """Count it."""
        if str(event.command.get(event.command_name)).startswith("orders"):
            merges = any("$merge" in stage for stage in event.command.get("pipeline", ()))
            self.sent.append("merge" if merges else event.command_name)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Nothing."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Nothing."""


@pytest.fixture
def counted(settings: Settings) -> Iterator[tuple[Counting, Desk, Bench]]:
    """A planner's desk for a bench whose task watches `v` of every document, and what it sends."""
    counting = Counting()
    url = settings.mongodb_url
    listened = dataclasses.replace(
        settings, mongodb_client=lambda: MongoClient(url, event_listeners=[counting]), batch_size=1000
    )
    connection = Connection(listened)
    bench = Bench(
        connection, declare("shop.sync", {"collection": "orders", "debounce": 0, "watch_projection": {"v": 1}})
    )
    desk = Desk(connection, listened, bench)
    desk.define()
    counting.sent.clear()
    yield counting, desk, bench
    connection.close()


Counted = tuple[Counting, Desk, Bench]


def test_updates_that_concern_no_task_cost_no_statement(counted: Counted) -> None:
    """B-10: not on documents, not on records."""
    counting, desk, bench = counted
    bench.handle(document(1))
    counting.sent.clear()
    desk.plan(*(desk.written(1, paths=["on", f"more.{number}"]) for number in range(50)))
    assert counting.sent == []
    desk.plan(desk.written(1, paths=["v"]))
    assert counting.sent == ["merge", "update"]


def test_inserts_cost_one_statement_a_batch(counted: Counted) -> None:
    """B-12: however many there are."""
    counting, desk, bench = counted
    bench.source.insert_many([document(doc_id) for doc_id in range(100)])
    counting.sent.clear()
    desk.plan(*(desk.written(doc_id, inserted=True) for doc_id in range(100)))
    assert counting.sent == ["merge"]
    assert bench.records.count_documents({"status": "pending"}) == 100


def test_a_scan_of_what_has_not_changed_writes_nothing(counted: Counted) -> None:
    """B-13, B-48: a page costs three reads, and one of its records two."""
    counting, desk, bench = counted
    bench.source.insert_many([document(doc_id) for doc_id in range(100)])
    desk.plan(*(desk.written(doc_id, inserted=True) for doc_id in range(100)))
    for claim in bench.claim(*range(50)):
        bench.complete(claim)
    before = [bench.raw(doc_id) for doc_id in range(100)]
    counting.sent.clear()
    Reconciler(desk.runtime, desk.planning, group="default", term=1, ended=threading.Event()).reconcile_needed()
    asked = [sent for sent in counting.sent if sent not in ("listIndexes", "createIndexes")]
    assert asked == ["count", *["aggregate"] * 8]
    assert [bench.raw(doc_id) for doc_id in range(100)] == before


def test_a_storm_on_one_document_does_not_hold_up_the_others(counted: Counted) -> None:
    """B-10: a batch looks at it once, however often it has changed."""
    counting, desk, bench = counted
    bench.handle(document("hot"))
    stream = ChangeStream(bench.connection.database(), ["orders"], batch_size=1000, wake_collection="_")
    stream.open()
    writes: list[UpdateOne | InsertOne[Document]] = []
    for number in range(100):
        writes += [UpdateOne({"_id": "hot"}, {"$set": {"v": 30 * number + i}}) for i in range(30)]
        writes.append(InsertOne(document(number)))
    bench.source.bulk_write(writes)
    counting.sent.clear()
    told = batches = 0
    while told < len(writes):
        batch = stream.read(timedelta(seconds=1))
        desk.planning.plan_changes(batch.changes, at=batch.at)
        told += len(batch.changes)
        batches += 1
        inserted = {change.doc_id for change in batch.changes if change.inserted}
        assert bench.records.count_documents({"sourceDocId": {"$in": [*inserted]}}) == len(inserted)
    stream.close()
    assert batches < 10
    planned = [sent for sent in counting.sent if sent in ("merge", "update")]
    assert len(planned) <= 3 * batches
    assert bench.record("hot")["lastObservedValues"] == {"v": 2999}


def test_a_crowd_of_records_without_documents_is_not_read_to_plan_those_between(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-48: a page is small in documents and in records."""
    _, desk, bench = counted
    bench.source.insert_many([document(doc_id) for doc_id in range(40)])
    desk.plan(*(desk.written(doc_id, inserted=True) for doc_id in range(40)))
    bench.source.delete_many({"_id": {"$nin": [0, 39]}})
    asked: list[object] = []
    compare = records.find_unlike

    def note(*args: Any) -> records.Unlike:
        asked.append(args[-1])
        return compare(*args)

    monkeypatch.setattr(lay, "FEW", 0)
    monkeypatch.setattr(records, "find_unlike", note)
    Reconciler(desk.runtime, desk.planning, group="default", term=1, ended=threading.Event()).reconcile_needed()
    assert asked[0] == [0, 39]
    assert bench.records.count_documents({"_r.gone": True}) == 38
