"""Reconciliation looks at everything once, beside live work, and loses nothing (B-48, B-50)."""

from __future__ import annotations

import random
import threading
from datetime import timedelta
from typing import Any

import pytest
from bson import Int64

from celery_reactive.core.outcome import Completed
from celery_reactive.core.states import RecordState
from celery_reactive.events import ReconciliationFinished, ReconciliationStarted
from celery_reactive.planner import lay
from celery_reactive.planner.reconcile import Reconciler
from celery_reactive.planner.watch import Watcher
from celery_reactive.store import definitions, unplanned
from celery_reactive.store.change_stream import ChangeStream
from tests.integration.bench import TOOK, Bench, Desk
from tests.integration.conftest import MakeBench, MakeDesk
from tests.integration.test_records_planning import IDS

DOCUMENT = {"on": True, "v": "first"}


@pytest.fixture(params=[lay.FEW, 0], ids=["one_by_one", "many_at_once"], autouse=True)
def _few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan few documents as few are planned, and as many are: every rule holds for both."""
    monkeypatch.setattr(lay, "FEW", request.param)


def reconcile(desk: Desk, *, term: int = 1) -> bool:
    """Reconcile what needs it; return whether anything did."""
    return Reconciler(
        desk.runtime, desk.planning, group="default", term=term, ended=threading.Event()
    ).reconcile_needed()


@pytest.fixture
def desk(bench: Bench, make_desk: MakeDesk) -> Desk:
    """A planner's desk for `bench`, whose task is defined and has never been reconciled."""
    desk = make_desk(bench)
    desk.define()
    return desk


def again(desk: Desk, bench: Bench) -> None:
    """Let everything be reconciled once more."""
    definitions.mark_unreconciled(bench.connection.globals(), bench.task.name, term=1)
    assert reconcile(desk)


def test_a_collection_is_looked_at_once(bench: Bench, desk: Desk) -> None:
    """B-48: over several pages, with progress told; done once for a generation."""
    for doc_id in range(30):
        bench.put({**DOCUMENT, "_id": doc_id, "on": doc_id % 3 != 0})
    assert reconcile(desk)
    assert bench.records.count_documents({"status": "pending"}) == 20
    assert not reconcile(desk)
    names = (bench.task.name,)
    assert desk.events[0] == ReconciliationStarted("orders", names)
    finished = desk.events[-1]
    assert isinstance(finished, ReconciliationFinished)
    assert (finished.tasks, finished.documents) == (names, 30)


def test_a_collection_that_does_not_exist_is_reconciled(bench: Bench, desk: Desk) -> None:
    """B-48: tasks may be declared before their collection is there."""
    assert reconcile(desk)
    assert not reconcile(desk)
    assert bench.records.count_documents({}) == 0


def test_documents_of_every_id_type_are_found(bench: Bench, desk: Desk) -> None:
    """B-48: a scan does not stop at the end of a type; missing records, and those of absent documents, too."""
    ids = [doc_id for doc_id in IDS if doc_id != 1 or isinstance(doc_id, bool)]
    bench.source.insert_many({**DOCUMENT, "_id": doc_id} for doc_id in ids)
    reconcile(desk)
    assert bench.records.count_documents({"status": "pending"}) == len(ids)
    bench.source.delete_many({})
    again(desk, bench)
    assert bench.records.count_documents({"_r.gone": True, "status": "completed"}) == len(ids)


def test_records_deleted_by_hand_are_made_again(bench: Bench, desk: Desk) -> None:
    """B-50: pending; the others are left alone."""
    for doc_id in range(10):
        bench.handle({**DOCUMENT, "_id": doc_id})
    bench.records.delete_many({"sourceDocId": {"$in": [3, 7]}})
    reconcile(desk)
    assert sorted(record["sourceDocId"] for record in bench.records.find({"status": "pending"})) == [3, 7]
    assert bench.records.count_documents({"status": "completed"}) == 8


def test_what_is_gone_or_has_left_is_marked(bench: Bench, desk: Desk) -> None:
    """B-8, B-49: history that was lost told of neither."""
    for doc_id in range(30):
        bench.plan({**DOCUMENT, "_id": doc_id})
    (claim,) = bench.claim(0)
    bench.source.delete_many({"_id": {"$in": [0, 1, 2]}})
    bench.source.update_many({"_id": {"$in": [10, 11]}}, {"$set": {"on": False}})
    reconcile(desk)
    assert {record["sourceDocId"] for record in bench.records.find({"_r.gone": True})} == {0, 1, 2}
    assert {record["sourceDocId"] for record in bench.records.find({"_r.left": True})} == {10, 11}
    assert bench.state(0) is RecordState.PROCESSING
    assert bench.state(1) is bench.state(10) is RecordState.COMPLETED
    assert bench.records.count_documents({"status": "pending"}) == 25
    assert bench.error(claim).state is RecordState.COMPLETED


def test_missed_changes_run(bench: Bench, desk: Desk) -> None:
    """B-48: compared like any other; what has not changed does not run."""
    for doc_id in range(10):
        bench.handle({**DOCUMENT, "_id": doc_id})
    bench.source.update_many({"_id": {"$lt": 4}}, {"$set": {"v": "second"}})
    reconcile(desk)
    assert bench.records.count_documents({"status": "pending", "lastObservedValues.v": "second"}) == 4
    assert bench.records.count_documents({"status": "completed"}) == 6


def test_no_backfill_makes_completed_records(make_bench: MakeBench, make_desk: MakeDesk) -> None:
    """B-2: a change after the scan's start runs, also when the scan has seen it."""
    bench = make_bench(backfill=False)
    desk = make_desk(bench)
    desk.define()
    stream = ChangeStream(bench.connection.database(), ["orders"], batch_size=100, wake_collection="_")
    for doc_id in range(20):
        bench.put({"_id": doc_id})
    stream.open()
    assert not stream.read(timedelta(0)).changes
    reconciler = Reconciler(desk.runtime, desk.planning, group="default", term=1, ended=threading.Event())
    observe = desk.planning.apply

    def apply_and_touch(*args: Any, **kwargs: Any) -> set[bytes]:
        """Change a document that the scan has passed, and one that it has yet to reach, without other values."""
        found = observe(*args, **kwargs)
        for doc_id in (0, 19):
            bench.source.replace_one({"_id": doc_id}, {"_id": doc_id})
            bench.source.update_one({"_id": doc_id}, {"$set": {"x": 1}})
        return found

    desk.planning.apply = apply_and_touch  # type: ignore[method-assign]
    assert reconciler.reconcile_needed()
    desk.planning.apply = observe  # type: ignore[method-assign]
    assert bench.records.count_documents({}) == 20
    batch = stream.read(timedelta(seconds=1))
    desk.planning.plan_changes(batch.changes, at=batch.at)
    stream.close()
    assert {record["sourceDocId"] for record in bench.records.find({"status": "pending"})} == {0, 19}


def test_a_scan_leaves_one_bad_document_behind(make_bench: MakeBench, make_desk: MakeDesk) -> None:
    """B-20: also in the filter, and also where there is a record of it."""
    bench = make_bench(filter={"$expr": {"$gt": [{"$divide": ["$total", "$parts"]}, 1]}})
    desk = make_desk(bench)
    desk.define()
    for doc_id in range(20):
        bench.plan({"_id": doc_id, "total": 9, "parts": 3})
    bench.put({"_id": 4, "total": 9, "parts": 0})
    bench.put({"_id": 5, "total": 9, "parts": 9})
    bench.delete(6)
    assert reconcile(desk)
    assert not reconcile(desk)
    assert [entry.key.doc_id for entry in unplanned.find(bench.connection.globals())] == [4]
    assert bench.state(4) is RecordState.PENDING
    assert bench.record(5)["_r"]["left"] is True
    assert bench.record(6)["_r"]["gone"] is True
    assert bench.records.count_documents({"status": "pending"}) == 18


@pytest.mark.parametrize(("old", "new"), [(1, 1.0), (5.0, Int64(5)), ({"k": 1}, {"k": Int64(1)})], ids=["1", "5", "k"])
def test_an_id_of_another_number_type_is_the_same_document(bench: Bench, desk: Desk, old: object, new: object) -> None:
    """B-48: the server calls them equal; the record of the one is the record of the other, and it matches."""
    bench.handle({**DOCUMENT, "_id": old})
    bench.delete(old)
    bench.put({**DOCUMENT, "_id": new, "v": "second"})
    reconcile(desk)
    assert not {"gone", "left"} & bench.record(new)["_r"].keys()
    assert bench.state(new) is RecordState.PENDING


def test_ids_that_a_collation_calls_equal_are_told_apart(make_bench: MakeBench, make_desk: MakeDesk) -> None:
    """B-48: the record of `a` is gone, that of `A` is not touched by it."""
    bench = make_bench(filter={"on": True})
    bench.connection.database().create_collection("orders", collation={"locale": "en", "strength": 2})
    desk = make_desk(bench, collated=True)
    desk.define()
    bench.handle({**DOCUMENT, "_id": "a"})
    bench.delete("a")
    bench.put({**DOCUMENT, "_id": "A"})
    reconcile(desk)
    assert bench.record("a")["_r"]["gone"] is True
    assert bench.state("A") is RecordState.PENDING
    assert not {"gone", "left"} & bench.record("A")["_r"].keys()


def test_scan_and_live_work_together_lose_no_final_state(bench: Bench, desk: Desk) -> None:
    """B-10, B-48: writers, a scan, the stream and a worker at once; every last state was handled by a run."""
    documents, writes = 40, 400
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 -- shown when the test fails
    bench.source.insert_many({**DOCUMENT, "_id": doc_id} for doc_id in range(documents))
    stream = ChangeStream(bench.connection.database(), ["orders"], batch_size=50, wake_collection="_")
    stream.open()
    written, planned = threading.Event(), threading.Event()
    handled: dict[int, Any] = {}
    failures: list[BaseException] = []

    def write() -> None:
        dice = random.Random(seed)
        for number in range(writes):
            doc_id = dice.randrange(documents)
            if dice.random() < 0.2:
                bench.source.delete_one({"_id": doc_id})
            else:
                document = {"_id": doc_id, "on": dice.random() < 0.8, "v": dice.choice(["a", "b", number])}
                bench.source.replace_one({"_id": doc_id}, document, upsert=True)
        written.set()

    def watch() -> None:
        while True:
            last = written.is_set()
            batch = stream.read(timedelta(milliseconds=100))
            if batch.changes:
                desk.planning.plan_changes(batch.changes, at=batch.at)
            elif last:
                break
        planned.set()

    def work() -> None:
        while True:
            last = planned.is_set() and scanned.is_set()
            claims = bench.claim(*range(documents))
            for claim in claims:
                found = bench.source.find_one({"_id": claim.key.doc_id}) or {}
                handled[claim.key.doc_id] = found.get("v") if found.get("on") else None
                bench.settle(claim, Completed(TOOK))
            if last and not claims:
                break

    def scan() -> None:
        while not written.is_set():
            definitions.mark_unreconciled(bench.connection.globals(), bench.task.name, term=1)
            reconcile(desk)
        scanned.set()

    scanned = threading.Event()

    def guarded(step: Any) -> None:
        try:
            step()
        except BaseException as error:
            failures.append(error)
            for event in (written, planned, scanned):
                event.set()
            raise

    threads = [threading.Thread(target=guarded, args=(step,)) for step in (write, watch, work, scan)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stream.close()
    assert not failures
    final = {document["_id"]: document["v"] for document in bench.source.find({"on": True})}
    assert {doc_id: handled.get(doc_id) for doc_id in final} == final
    assert {bench.state(doc_id) for doc_id in final} == {RecordState.COMPLETED}
    off = {record["sourceDocId"] for record in bench.records.find({"$or": [{"_r.gone": True}, {"_r.left": True}]})}
    assert off == {record["sourceDocId"] for record in bench.records.find()} - final.keys()


def test_a_scan_does_not_hide_a_deletion_and_reinsertion_before_it(bench: Bench, desk: Desk) -> None:
    """B-18, B-48: the scan reads the new document with the old one's values before the stream tells of both."""
    document = {**DOCUMENT, "_id": 1}
    bench.handle(document)
    bench.delete(1)
    told = bench.put(document)
    reconcile(desk)
    desk.planning.plan_changes([desk.deleted(1), desk.written(1, inserted=True)], at=told)
    assert bench.state(1) is RecordState.PENDING


def test_a_scan_does_not_hide_that_the_document_of_a_run_was_deleted_and_inserted_again(
    bench: Bench, desk: Desk
) -> None:
    """B-18, B-48: the run has read the old document, the scan sees the new one before the stream tells of both."""
    document = {**DOCUMENT, "_id": 1}
    claim = bench.start(document)
    bench.delete(1)
    told = bench.put(document)
    reconcile(desk)
    desk.planning.plan_changes([desk.deleted(1), desk.written(1, inserted=True)], at=told)
    assert bench.complete(claim, document_checked=True).state is RecordState.PENDING


def test_a_scan_that_ends_before_the_stream_begins_is_not_the_one(
    bench: Bench, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-47, B-49: what changes between the two is told by neither; one that comes after the stream is needed."""
    reconciler = Reconciler(desk.runtime, desk.planning, group="default", term=1, ended=threading.Event())
    really = ChangeStream.open

    def open_late(stream: ChangeStream, **options: Any) -> None:
        reconciler.reconcile_needed()
        bench.put({"_id": 1, "on": True, "v": "first"})
        really(stream, **options)

    monkeypatch.setattr(ChangeStream, "open", open_late)
    watcher = Watcher(
        desk.runtime,
        desk.planning,
        bench.source.database.name,
        group="default",
        term=1,
        on_planned=lambda _: None,
        on_deleted=lambda _: None,
        on_reconcile=lambda: None,
    )
    watcher.step()
    reconciler.reconcile_needed()
    assert bench.state(1) is RecordState.PENDING


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "left"])
def test_a_scan_runs_what_is_back(bench: Bench, desk: Desk, *, gone: bool) -> None:
    """B-8, B-18, B-48: nobody told of the return; its values are those that were handled."""
    document = {**DOCUMENT, "_id": 1}
    bench.handle(document)
    if gone:
        bench.leave(1, at=bench.delete(1), gone=True)
    else:
        bench.leave(1, at=bench.put({**document, "on": False}))
    bench.put(document)
    reconcile(desk)
    assert bench.state(1) is RecordState.PENDING
