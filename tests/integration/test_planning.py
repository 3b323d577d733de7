"""A batch of changes becomes records, and one document's trouble stays its own (B-18, B-20)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from celery_reactive.core.states import RecordState
from celery_reactive.events import DocumentsPlanned, PlanningFailed, PlanningPostponed
from celery_reactive.planner import lay
from celery_reactive.planner.plan import concern_of
from celery_reactive.store import unplanned
from celery_reactive.store.change_stream import Change, ChangeKind
from celery_reactive.store.unplanned import Reason, Unplanned
from tests.integration.bench import Bench, Desk
from tests.integration.conftest import MakeBench, MakeDesk

FIRST = {"_id": 1, "on": True, "v": "first"}
OFF = {"_id": 1, "on": False, "v": "first"}


@pytest.fixture(params=[lay.FEW, 0], ids=["one_by_one", "many_at_once"], autouse=True)
def _few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan few documents as few are planned, and as many are: every rule holds for both."""
    monkeypatch.setattr(lay, "FEW", request.param)


@pytest.fixture
def desk(bench: Bench, make_desk: MakeDesk) -> Desk:
    """A planner's desk for `bench`."""
    return make_desk(bench)


@pytest.fixture
def divider(make_bench: MakeBench) -> Bench:
    """A bench whose task watches `total / parts`, which fails for a document without parts."""
    return make_bench(watch_projection={"each": {"$divide": ["$total", "$parts"]}})


@contextmanager
def held(bench: Bench, doc_id: object) -> Iterator[None]:
    """Hold a record in an open transaction, which is rolled back in the end."""
    with bench.connection.client.start_session() as session, session.start_transaction():
        bench.records.update_one({"_id": bench.key(doc_id).id}, {"$set": {"held": 1}}, session=session)
        yield
        session.abort_transaction()


def noted(bench: Bench) -> list[Unplanned]:
    """Return what is listed as unplanned."""
    return unplanned.find(bench.connection.globals())


# --- batches --------------------------------------------------------------------------------------------


def test_a_batch_makes_marks_and_skips(bench: Bench, desk: Desk) -> None:
    """B-8, B-12: what matches gets a record, what has left or is gone is marked, what never matched has none."""
    bench.plan(*({**FIRST, "_id": doc_id} for doc_id in (1, 2)))
    bench.put({**FIRST, "_id": 3})
    bench.put(OFF)
    bench.delete(2)
    bench.put({**OFF, "_id": 4})
    desk.plan(desk.written(3, inserted=True), desk.written(1), desk.deleted(2), desk.written(4))
    assert bench.state(3) is RecordState.PENDING
    assert bench.record(1)["_r"]["left"] is True
    assert bench.record(2)["_r"]["gone"] is True
    assert bench.records.count_documents({}) == 3
    assert [event for event in desk.events if isinstance(event, DocumentsPlanned)] == [
        DocumentsPlanned(bench.task.name, 4, deleted=1)
    ]


def test_a_document_deleted_and_inserted_again_is_a_new_one(bench: Bench, desk: Desk) -> None:
    """B-18: with the same values, both seen in one batch, in the order of the stream or not."""
    bench.handle(FIRST)
    desk.plan(desk.deleted(1), desk.written(1, inserted=True))
    (claim,) = bench.claim(1)
    assert claim.attempt == 1
    bench.complete(claim)
    desk.plan(desk.written(1, inserted=True), desk.deleted(1), desk.written(1, inserted=True))
    assert bench.state(1) is RecordState.PENDING


def test_a_document_inserted_and_deleted_in_one_batch_has_no_record(bench: Bench, desk: Desk) -> None:
    """B-8."""
    desk.plan(desk.written(1, inserted=True), desk.deleted(1))
    assert bench.records.count_documents({}) == 0


def test_an_id_alone_inserted_again_in_one_batch_runs(make_bench: MakeBench, make_desk: MakeDesk) -> None:
    """B-17, B-18."""
    bench = make_bench(watch_projection={"_id": 1})
    desk = make_desk(bench)
    bench.handle(FIRST)
    desk.plan(desk.written(1))
    assert bench.state(1) is RecordState.COMPLETED
    desk.plan(desk.deleted(1), desk.written(1, inserted=True))
    assert bench.state(1) is RecordState.PENDING


def test_several_tasks_watch_one_collection(make_bench: MakeBench, make_desk: MakeDesk) -> None:
    """B-1: each has its own record of a document, by its own filter."""
    wide, narrow = make_bench("wide"), make_bench("narrow", filter={"on": True})
    desk = make_desk(wide, narrow)
    wide.put(FIRST)
    wide.put({**OFF, "_id": 2})
    desk.plan_written(1, 2)
    assert wide.records.count_documents({"task": "wide"}) == 2
    assert narrow.records.count_documents({"task": "narrow"}) == 1


def test_changes_of_other_collections_concern_no_task(bench: Bench, desk: Desk) -> None:
    """B-10."""
    bench.put(FIRST)
    change = Change(ChangeKind.WRITTEN, "customers", 1)
    assert desk.planning.plan_changes([change], at=bench.cluster_time()) == frozenset()
    assert bench.records.count_documents({}) == 0


def test_only_updates_of_paths_that_a_task_reads_are_looked_at(make_bench: MakeBench, make_desk: MakeDesk) -> None:
    """B-10: `items.3.price` meets `items.price`; inserts and replacements always may concern it."""
    task = make_bench(filter={"on": True}, watch_projection={"items.price": 1}).task
    desk = make_desk(make_bench())
    changes = [
        desk.written(1, paths=["items.3.price"]),
        desk.written(2, paths=["items"]),
        desk.written(3, paths=["on"]),
        desk.written(4, paths=["unwatched", "items.0.name", "one"]),
        desk.written(5),
        desk.written(6, inserted=True),
    ]
    concern = concern_of(task, changes)
    assert concern.written == [1, 2, 3, 5]
    assert concern.inserted == [6]


def test_each_document_of_a_batch_is_looked_at_once(bench: Bench, desk: Desk) -> None:
    """B-10: several quick changes, one look; ids of different types are different documents."""
    concern = concern_of(bench.task, [desk.written(doc_id) for doc_id in (1, 1, "1", True, None, 1)])
    assert [repr(doc_id) for doc_id in concern.written] == ["1", "'1'", "True", "None"]


def test_a_collection_with_a_collation_is_planned(make_bench: MakeBench, make_desk: MakeDesk) -> None:
    """B-5, B-13: matched as `find` does there, compared exactly."""
    bench = make_bench(filter={"v": "PAID"}, watch_projection={"v": 1})
    bench.connection.database().create_collection("orders", collation={"locale": "en", "strength": 2})
    desk = make_desk(bench, collated=True)
    bench.put({"_id": 1, "v": "paid"})
    desk.plan_written(1)
    bench.complete(bench.claim(1)[0])
    bench.put({"_id": 1, "v": "PAID"})
    desk.plan_written(1)
    assert bench.record(1)["lastObservedValues"] == {"v": "PAID"}
    bench.put({"_id": 1, "v": "open"})
    desk.plan_written(1)
    assert bench.record(1)["_r"]["left"] is True


# --- documents that cannot be planned --------------------------------------------------------------------


def test_a_poison_document_affects_only_itself(divider: Bench, make_desk: MakeDesk) -> None:
    """B-20: the rest of its batch is planned; the failure is listed and told of."""
    desk = make_desk(divider)
    for doc_id in range(40):
        divider.put({"_id": doc_id, "total": 6, "parts": 0 if doc_id in (17, 30) else 2})
    desk.plan_written(*range(40))
    assert divider.records.count_documents({"status": "pending"}) == 38
    assert [(entry.key.doc_id, entry.reason, entry.tries) for entry in noted(divider)] == [
        (17, Reason.FAILED, 1),
        (30, Reason.FAILED, 1),
    ]
    assert "divide by zero" in noted(divider)[0].error
    failures = [event for event in desk.events if isinstance(event, PlanningFailed)]
    assert [event.record for event in failures] == ["shop.sync[17]", "shop.sync[30]"]


def test_a_poison_document_is_planned_when_it_has_changed(divider: Bench, make_desk: MakeDesk) -> None:
    """B-20: retried when the document changes, also by the next leader; then it is no longer listed."""
    desk = make_desk(divider)
    divider.put({"_id": 1, "total": 6, "parts": 0})
    desk.plan_written(1)
    desk.plan_written(1)
    assert [entry.tries for entry in noted(divider)] == [2]
    assert desk.planning.retry_locked() == 0
    desk.succeed()
    divider.put({"_id": 1, "total": 6, "parts": 3})
    desk.plan_written(1)
    assert divider.record(1)["lastObservedValues"] == {"each": 2}
    assert noted(divider) == []


def test_a_poison_document_that_is_deleted_is_forgotten(divider: Bench, make_desk: MakeDesk) -> None:
    """B-20."""
    desk = make_desk(divider)
    divider.put({"_id": 1, "total": 6, "parts": 0})
    desk.plan_written(1)
    divider.delete(1)
    desk.plan(desk.deleted(1))
    assert noted(divider) == []


def test_a_poison_change_leaves_the_record_as_it_was(divider: Bench, make_desk: MakeDesk) -> None:
    """B-20: it is not taken for one that has left the filter."""
    desk = make_desk(divider)
    divider.handle({"_id": 1, "total": 6, "parts": 3})
    before = divider.raw(1)
    divider.put({"_id": 1, "total": 6, "parts": 0})
    desk.plan_written(1)
    assert divider.raw(1) == before


def test_a_filter_that_fails_on_a_document_affects_only_it(make_bench: MakeBench, make_desk: MakeDesk) -> None:
    """B-20: the same for an expression in the filter."""
    bench = make_bench(filter={"$expr": {"$gt": [{"$divide": ["$total", "$parts"]}, 1]}})
    desk = make_desk(bench)
    for doc_id, parts in enumerate((2, 0, 100)):
        bench.put({"_id": doc_id, "total": 6, "parts": parts})
    desk.plan_written(0, 1, 2)
    assert [record["sourceDocId"] for record in bench.records.find()] == [0]
    assert [entry.key.doc_id for entry in noted(bench)] == [1]


def test_a_record_that_would_be_too_large_affects_only_itself(make_bench: MakeBench, make_desk: MakeDesk) -> None:
    """B-20: a document near 16 MB watched whole."""
    bench = make_bench()
    desk = make_desk(bench)
    bench.source.insert_one({"_id": 1, "x": b"x" * (16 * 1024 * 1024 - 100)})
    bench.put({"_id": 2})
    desk.plan_written(1, 2)
    assert [entry.key.doc_id for entry in noted(bench)] == [1]
    assert bench.state(2) is RecordState.PENDING


# --- records held by a transaction ------------------------------------------------------------------------


def test_a_held_record_does_not_hold_up_the_others(bench: Bench, desk: Desk) -> None:
    """B-20: set aside within 4 s while the others are planned; planned when it is free, and then not listed."""
    bench.plan({**FIRST, "_id": 500})
    bench.delete(500)
    bench.source.insert_many({**FIRST, "_id": doc_id, "v": "second"} for doc_id in range(1000))
    with held(bench, 500):
        started = time.monotonic()
        desk.plan_written(*range(1000))
        took = time.monotonic() - started
        assert bench.records.count_documents({"lastObservedValues.v": "second"}) == 999
        assert [(entry.key.doc_id, entry.reason) for entry in noted(bench)] == [(500, Reason.LOCKED)]
        assert desk.planning.retry_locked() == 0
    assert took < 6  # 4 s, and what a busy machine adds
    assert {event.record for event in desk.events if isinstance(event, PlanningPostponed)} == {"shop.sync[500]"}
    assert not [event for event in desk.events if isinstance(event, PlanningFailed)]
    assert desk.planning.retry_locked() == 1
    assert bench.record(500)["lastObservedValues"] == {"v": "second"}
    assert noted(bench) == []


def test_a_new_leader_takes_up_what_was_set_aside(bench: Bench, desk: Desk) -> None:
    """B-20: it is durable before the stream position advances."""
    bench.plan(FIRST)
    bench.put(OFF)
    with held(bench, 1):
        desk.plan_written(1)
    desk.succeed()
    assert desk.planning.retry_locked() == 1
    assert bench.record(1)["_r"]["left"] is True


def test_a_later_change_plans_what_was_set_aside(bench: Bench, desk: Desk) -> None:
    """B-20: what has been planned in the meantime is not planned again."""
    bench.plan(FIRST)
    bench.put({**FIRST, "v": "second"})
    with held(bench, 1):
        desk.plan_written(1)
    bench.put({**FIRST, "v": "third"})
    desk.plan_written(1)
    assert noted(bench) == []
    assert bench.record(1)["lastObservedValues"] == {"v": "third"}


def test_what_is_set_aside_anew_is_not_forgotten_for_the_old(bench: Bench, desk: Desk) -> None:
    """B-20: mending the older change must not strike the newer one off the list."""
    bench.plan(FIRST)
    old = bench.cluster_time()
    with held(bench, 1):
        bench.put({**FIRST, "v": "second"})
        desk.plan_written(1)
    assert unplanned.clear(bench.connection.globals(), bench.key(1), up_to=old) is False
    assert desk.planning.retry_locked() == 1


def test_a_deletion_set_aside_is_a_deletion(make_bench: MakeBench, make_desk: MakeDesk) -> None:
    """B-17, B-18, B-20: the record is marked gone, and the document inserted again runs."""
    bench = make_bench(watch_projection={"_id": 1})
    desk = make_desk(bench)
    bench.handle(FIRST)
    bench.delete(1)
    with held(bench, 1):
        desk.plan(desk.deleted(1))
    assert desk.planning.retry_locked() == 1
    assert bench.record(1)["_r"]["gone"] is True
    bench.put(FIRST)
    desk.plan(desk.written(1, inserted=True))
    assert bench.state(1) is RecordState.PENDING


@pytest.mark.parametrize("mended_by", ["the insert's event", "the retry", "the next leader"])
def test_a_deletion_set_aside_before_a_new_insert_is_remembered(
    bench: Bench, make_desk: MakeDesk, mended_by: str
) -> None:
    """B-18, B-20: deleted while its record was held, inserted again with the same values: a new document, it runs."""
    desk = make_desk(bench)
    bench.handle(FIRST)
    with held(bench, 1):
        bench.delete(1)
        desk.plan(desk.deleted(1))
        bench.put(FIRST)
        if mended_by != "the insert's event":
            desk.plan(desk.written(1, inserted=True))
    match mended_by:
        case "the insert's event":
            desk.plan(desk.written(1, inserted=True))
        case "the retry":
            desk.planning.retry_locked()
        case _:
            desk.succeed()
            desk.planning.retry_locked()
    assert bench.state(1) is RecordState.PENDING
    assert noted(bench) == []
