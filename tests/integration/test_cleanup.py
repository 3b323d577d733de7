"""Cleanup removes the records that nobody needs, and none that may still have to run (B-41, B-42)."""

from __future__ import annotations

import dataclasses
import random
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import Int64

from celery_reactive.core.outcome import Completed, Skipped
from celery_reactive.core.policies import CleanupPolicy
from celery_reactive.core.states import RecordState
from celery_reactive.errors import StoreUnavailableError, TermEndedError
from celery_reactive.events import CleanupFinished
from celery_reactive.planner import cleanup
from celery_reactive.planner.cleanup import Cleaner
from celery_reactive.store import orphans
from celery_reactive.store.change_stream import ChangeStream
from celery_reactive.store.orphans import Criteria, Seen
from tests.integration.bench import TOOK, Bench
from tests.integration.conftest import MakeBench, MakeDesk
from tests.integration.test_records_planning import IDS

DOCUMENT = {"on": True, "v": "first"}
AT_ONCE = CleanupPolicy(keep_for=0)
GONE_OR_LEFT = CleanupPolicy(delete_when="source_document_deleted_or_no_longer_matching", keep_for=0)
DAY = timedelta(hours=24)

MakeCleaner = Callable[..., Cleaner]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cleaner that has nothing to do looks soon again: a second is what most tests would take."""
    monkeypatch.setattr(cleanup, "_LOOK_SECONDS", 0.2)


@pytest.fixture
def make_cleaner(make_desk: MakeDesk) -> MakeCleaner:
    """Make the cleaner of a leader, with some settings of its own; its desk is at `desk`."""

    def make(*benches: Bench, term: int = 1, collated: bool = False, **settings: Any) -> Cleaner:
        desk = make_desk(*benches, collated=collated)
        runtime = dataclasses.replace(desk.runtime, settings=dataclasses.replace(desk.runtime.settings, **settings))
        return Cleaner(runtime, desk.planning, group="default", term=term, ended=threading.Event())

    return make


def clean(cleaner: Cleaner) -> list[CleanupFinished]:
    """Let the cleaner look at everything once; return what it told."""
    told: list[Any] = []
    cleaner._runtime = dataclasses.replace(cleaner._runtime, listeners=(told.append,))
    cleaner.want_all()
    cleaner.step()
    return told


def age(bench: Bench, *doc_ids: Any, by: timedelta = DAY + timedelta(hours=1), fields: str = "updatedAt") -> None:
    """Let the times of records have come so much earlier: `updatedAt`, or several fields apart by a space."""
    milliseconds = round(by / timedelta(milliseconds=1))
    earlier = {field: {"$subtract": [f"${field}", milliseconds]} for field in fields.split()}
    bench.records.update_many({"sourceDocId": {"$in": list(doc_ids)}}, [{"$set": earlier}])


def gone(bench: Bench, *doc_ids: Any) -> None:
    """Let documents be handled, then deleted, and both be planned."""
    for doc_id in doc_ids:
        bench.handle({**DOCUMENT, "_id": doc_id})
        bench.leave(doc_id, at=bench.delete(doc_id), gone=True)


def left_over(bench: Bench) -> set[Any]:
    """Return the ids of the documents that have records of the bench's task."""
    return {record["sourceDocId"] for record in bench.records.find({"task": bench.task.name})}


# --- which, and when --------------------------------------------------------------------------------


def test_a_record_goes_a_day_after_its_last_update_and_run(bench: Bench, make_cleaner: MakeCleaner) -> None:
    """B-41: the later of the two counts, and the age only of what is gone."""
    gone(bench, "young", "updated", "run", "old")
    bench.handle({**DOCUMENT, "_id": "there"})
    age(bench, "run")
    age(bench, "updated", fields="lastFinalizedAt")
    age(bench, "old", "there", fields="updatedAt lastFinalizedAt")
    assert clean(make_cleaner(bench)) == [CleanupFinished(bench.task.name, 1)]
    assert left_over(bench) == {"young", "updated", "run", "there"}


def test_a_time_that_is_missing_is_replaced_by_that_of_creation(bench: Bench, make_cleaner: MakeCleaner) -> None:
    """B-41: a record that never ran is as old as its last update, but no older than itself."""
    for doc_id in ("created now", "created then"):
        bench.plan({**DOCUMENT, "_id": doc_id})
        bench.leave(doc_id, at=bench.delete(doc_id), gone=True)
    age(bench, "created now", "created then")
    age(bench, "created then", fields="createdAt")
    clean(make_cleaner(bench))
    assert left_over(bench) == {"created now"}


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (AT_ONCE, {"left", "there"}),
        (GONE_OR_LEFT, {"there"}),
        (CleanupPolicy(delete_when="never", keep_for=0), {"gone", "left", "there"}),
        (CleanupPolicy(), {"gone", "left", "there"}),
    ],
    ids=["gone", "gone or left", "never", "by default only what is old"],
)
def test_the_policy_says_which_records_go(
    make_bench: MakeBench, make_cleaner: MakeCleaner, policy: CleanupPolicy, kept: set[str]
) -> None:
    """B-41: `delete_when`."""
    bench = make_bench(filter={"on": True}, cleanup_policy=policy)
    gone(bench, "gone")
    for doc_id in ("left", "there"):
        bench.handle({**DOCUMENT, "_id": doc_id})
    bench.plan({**DOCUMENT, "_id": "left", "on": False})
    clean(make_cleaner(bench))
    assert left_over(bench) == kept


def test_a_document_that_nobody_saw_go_is_found(make_bench: MakeBench, make_cleaner: MakeCleaner) -> None:
    """B-41: a dropped collection tells of no deletion; a record that waits is skipped and goes, a running one stays."""
    bench = make_bench(cleanup_policy=AT_ONCE)
    for doc_id in range(20):
        bench.handle({**DOCUMENT, "_id": doc_id})
    bench.plan({**DOCUMENT, "_id": "waits"}, {**DOCUMENT, "_id": "runs"})
    (claim,) = bench.claim("runs")
    bench.source.drop()
    bench.put({**DOCUMENT, "_id": 7})
    clean(make_cleaner(bench))
    assert left_over(bench) == {7, "runs"}
    bench.complete(claim)
    clean(make_cleaner(bench))
    assert left_over(bench) == {7}


def test_a_document_that_stopped_matching_by_time_alone_counts(
    make_bench: MakeBench, make_cleaner: MakeCleaner
) -> None:
    """B-41: the cleanup evaluates the stored filter itself."""
    bench = make_bench(filter={"$expr": {"$gt": ["$until", "$$NOW"]}}, cleanup_policy=GONE_OR_LEFT)
    soon = bench.now() + timedelta(seconds=1)
    bench.handle({"_id": "over", "until": soon})
    bench.handle({"_id": "goes on", "until": soon + DAY})
    waiting = threading.Event()
    while bench.now() <= soon:
        waiting.wait(0.05)
    clean(make_cleaner(bench))
    assert left_over(bench) == {"goes on"}


def test_a_record_marked_left_stays_while_its_document_matches(
    make_bench: MakeBench, make_cleaner: MakeCleaner
) -> None:
    """B-41: nobody has noticed the return yet."""
    bench = make_bench(filter={"on": True}, cleanup_policy=GONE_OR_LEFT)
    bench.handle({**DOCUMENT, "_id": 1})
    bench.plan({**DOCUMENT, "_id": 1, "on": False})
    bench.put({**DOCUMENT, "_id": 1})
    clean(make_cleaner(bench))
    assert left_over(bench) == {1}


@pytest.mark.parametrize("matches", [True, False], ids=["matching", "not matching"])
def test_a_deleted_documents_record_goes_whatever_has_taken_its_place(
    make_bench: MakeBench, make_cleaner: MakeCleaner, *, matches: bool
) -> None:
    """B-18, B-41: the insertion, which has yet to be planned, is of a new document, and runs if it matches."""
    bench = make_bench(filter={"on": True}, cleanup_policy=AT_ONCE)
    gone(bench, 1)
    bench.put({**DOCUMENT, "_id": 1, "on": matches})
    clean(make_cleaner(bench))
    assert left_over(bench) == set()
    bench.plan({**DOCUMENT, "_id": 1, "on": matches})
    assert left_over(bench) == ({1} if matches else set())


def test_a_document_on_which_the_filter_fails_is_left_alone(make_bench: MakeBench, make_cleaner: MakeCleaner) -> None:
    """B-20, B-41: the others of its page are looked at."""
    matches = {"$expr": {"$gt": [{"$divide": ["$total", "$parts"]}, 1]}}
    bench = make_bench(filter=matches, cleanup_policy=GONE_OR_LEFT)
    for doc_id in range(10):
        bench.handle({"_id": doc_id, "total": 9, "parts": 3})
    bench.put({"_id": 4, "total": 9, "parts": 0})
    bench.put({"_id": 5, "total": 9, "parts": 9})
    clean(make_cleaner(bench, batch_size=1000))
    assert left_over(bench) == set(range(10)) - {5}


def test_records_of_documents_of_every_id_type_go(make_bench: MakeBench, make_cleaner: MakeCleaner) -> None:
    """B-41: marked or not, over several pages."""
    bench = make_bench(cleanup_policy=AT_ONCE)
    ids = [doc_id for doc_id in IDS if doc_id != 1 or isinstance(doc_id, bool)]
    gone(bench, *ids[::2])
    for doc_id in [*ids[1::2], "there"]:
        bench.handle({**DOCUMENT, "_id": doc_id})
    bench.source.delete_many({"_id": {"$ne": "there"}})
    (told,) = clean(make_cleaner(bench))
    assert told.records == len(ids)
    assert left_over(bench) == {"there"}


@pytest.mark.parametrize("policy", [AT_ONCE, GONE_OR_LEFT], ids=["gone", "gone or left"])
@pytest.mark.parametrize(("old", "new"), [(1, 1.0), (5.0, Int64(5)), ({"k": 1}, {"k": Int64(1)})], ids=["1", "5", "k"])
def test_an_id_of_another_number_type_is_the_same_document(
    make_bench: MakeBench, make_cleaner: MakeCleaner, policy: CleanupPolicy, old: Any, new: Any
) -> None:
    """B-41: the server calls them equal, so that the record of the one is no orphan."""
    bench = make_bench(cleanup_policy=policy)
    bench.handle({**DOCUMENT, "_id": old})
    bench.handle({**DOCUMENT, "_id": "absent"})
    bench.source.delete_many({})
    bench.put({**DOCUMENT, "_id": new})
    clean(make_cleaner(bench))
    assert bench.records.count_documents({}) == 1
    assert not {"gone", "left"} & bench.record(new)["_r"].keys()


@pytest.mark.parametrize("policy", [AT_ONCE, GONE_OR_LEFT], ids=["gone", "gone or left"])
def test_ids_that_a_collation_calls_equal_are_told_apart(
    make_bench: MakeBench, make_cleaner: MakeCleaner, policy: CleanupPolicy
) -> None:
    """B-41: the record of `a` is an orphan, that of `A` is none; the filter is asked under the collation."""
    bench = make_bench(filter={"state": "PAID"}, cleanup_policy=policy)
    bench.connection.database().create_collection("orders", collation={"locale": "en", "strength": 2})
    bench.put({"_id": "a", "state": "paid"})
    bench.observe("a", collated=True)
    bench.complete(*bench.claim("a"))
    bench.delete("a")
    bench.put({"_id": "A", "state": "paid"})
    bench.observe("A", collated=True)
    bench.complete(*bench.claim("A"))
    clean(make_cleaner(bench, collated=True))
    assert left_over(bench) == {"A"}


# --- never what may have to run ---------------------------------------------------------------------


def decide(bench: Bench, doc_id: Any, criteria: Criteria) -> list[Seen]:
    """Return what a cleanup has found to remove of one document's record."""
    with bench.connection.causal_session() as session:
        page = orphans.read(bench.records, bench.task.name, [doc_id], criteria, session=session)
        found = orphans.find(bench.source, bench.records, bench.task, page, criteria, session=session)
    assert len(found) == 1
    return found.as_marked()


def reinsert(bench: Bench) -> None:
    """Let the document be inserted again, and that be planned."""
    bench.plan({**DOCUMENT, "_id": 1})


def reinsert_in_the_same_batch(bench: Bench) -> None:
    """As above, with the time of the deletion, as one batch of changes has one; and let it run."""
    bench.put({**DOCUMENT, "_id": 1})
    bench.observe(1, at=bench.record(1)["_r"]["at"])
    bench.complete(*bench.claim(1))


def delete_once_more(bench: Bench) -> None:
    """Let the document be inserted, handled and deleted once more: that deletion has a cleanup of its own."""
    gone(bench, 1)


def retry(bench: Bench) -> None:
    """Retry it by hand."""
    bench.retry(1)


def start(bench: Bench) -> None:
    """Retry it by hand, and let that run begin."""
    bench.retry(1)
    bench.claim(1)


def note_a_change(bench: Bench) -> None:
    """Let a change wait, in whatever way it came to."""
    bench.records.update_one({"sourceDocId": 1}, [{"$set": {"_r.changedAt": "$$NOW"}}])


@pytest.mark.parametrize(
    "happening",
    [reinsert, reinsert_in_the_same_batch, delete_once_more, retry, start, note_a_change],
    ids=lambda happening: happening.__name__,
)
def test_what_comes_between_decision_and_removal_keeps_the_record(
    bench: Bench, happening: Callable[[Bench], None]
) -> None:
    """B-41: not running, no unhandled change, marked and observed as read; else a re-insertion loses its run."""
    criteria = Criteria(gone=True, left=False, keep_for=timedelta(0))
    gone(bench, 1)
    found = decide(bench, 1, criteria)
    happening(bench)
    before = bench.raw(1)
    assert orphans.remove(bench.records, bench.task.name, found, criteria) == 0
    assert bench.raw(1) == before


def test_a_run_between_decision_and_removal_keeps_the_record(bench: Bench) -> None:
    """B-41: it is young again."""
    criteria = Criteria(gone=True, left=False, keep_for=DAY)
    gone(bench, 1)
    age(bench, 1, fields="updatedAt lastFinalizedAt")
    found = decide(bench, 1, criteria)
    bench.retry(1)
    (claim,) = bench.claim(1)
    bench.settle(claim, Skipped("gone", TOOK, gone=True))
    assert orphans.remove(bench.records, bench.task.name, found, criteria) == 0


def test_a_reinsertion_between_search_and_mark_keeps_the_record(
    make_bench: MakeBench, make_cleaner: MakeCleaner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-41: what the search found missing has been planned since; it is neither marked nor removed."""
    bench = make_bench(cleanup_policy=AT_ONCE)
    bench.handle({**DOCUMENT, "_id": 1})
    bench.delete(1)
    cleaner = make_cleaner(bench)
    leave = cleaner._planning.leave

    def reinsert_and_leave(*args: Any, **options: Any) -> set[bytes]:
        bench.plan({"_id": 1, "v": "second"})
        return leave(*args, **options)

    monkeypatch.setattr(cleaner._planning, "leave", reinsert_and_leave)
    clean(cleaner)
    assert bench.state(1) is RecordState.PENDING


def test_removing_twice_removes_once(bench: Bench) -> None:
    """B-41: an answer that was lost is asked for again."""
    criteria = Criteria(gone=True, left=False, keep_for=timedelta(0))
    gone(bench, 1)
    found = decide(bench, 1, criteria)
    assert orphans.remove(bench.records, bench.task.name, found, criteria) == 1
    assert orphans.remove(bench.records, bench.task.name, found, criteria) == 0


def test_a_record_that_somebodys_transaction_holds_is_left_for_the_next_time(bench: Bench) -> None:
    """B-41: the statement is limited in time."""
    criteria = Criteria(gone=True, left=False, keep_for=timedelta(0))
    gone(bench, 1)
    found = decide(bench, 1, criteria)
    with bench.connection.client.start_session() as session, session.start_transaction():
        bench.records.update_one({"sourceDocId": 1}, {"$set": {"mine": True}}, session=session)
        assert orphans.remove(bench.records, bench.task.name, found, criteria) == 0
        session.abort_transaction()
    assert orphans.remove(bench.records, bench.task.name, found, criteria) == 1


def test_cleanup_beside_live_work_loses_no_final_state(
    make_bench: MakeBench, make_desk: MakeDesk, make_cleaner: MakeCleaner
) -> None:
    """B-10, B-41: a writer, the stream, a worker and an eager cleanup at once; every last state was handled."""
    documents, writes = 20, 600
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 -- shown when the test fails
    bench = make_bench(filter={"on": True}, watch_projection={"v": 1}, cleanup_policy=GONE_OR_LEFT)
    desk, cleaner = make_desk(bench), make_cleaner(bench)
    stream = ChangeStream(bench.connection.database(), ["orders"], batch_size=50, wake_collection="_")
    stream.open()
    written, planned = threading.Event(), threading.Event()
    handled: dict[int, Any] = {}

    def write() -> None:
        dice = random.Random(seed)
        for _ in range(writes):
            doc_id, fate = dice.randrange(documents), dice.random()
            if fate < 0.4:
                bench.source.delete_one({"_id": doc_id})
            else:
                document = {"_id": doc_id, "on": fate < 0.8, "v": dice.choice("ab")}
                bench.source.replace_one({"_id": doc_id}, document, upsert=True)
        written.set()

    def watch() -> None:
        last = False
        while not last:
            last = written.is_set()
            while (batch := stream.read(timedelta(milliseconds=50))).changes:
                desk.planning.plan_changes(batch.changes, at=batch.at)
                cleaner.note_deleted(batch.changes)
        planned.set()

    def work() -> None:
        last = False
        while not last:
            last = planned.is_set()
            while claims := bench.claim(*range(documents)):
                for claim in claims:
                    found = bench.source.find_one({"_id": claim.key.doc_id}) or {}
                    handled[claim.key.doc_id] = found.get("v") if found.get("on") else None
                    bench.settle(claim, Completed(TOOK))

    def sweep() -> None:
        last = False
        while not last:
            last = planned.is_set()
            cleaner.want_all()
            cleaner.step()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(step) for step in (write, watch, work, sweep)]:
            done.result(60)
    stream.close()
    clean(cleaner)
    final = {document["_id"]: document["v"] for document in bench.source.find({"on": True})}
    assert {doc_id: handled.get(doc_id) for doc_id in final} == final
    assert left_over(bench) == final.keys()
    assert {bench.state(doc_id) for doc_id in final} == {RecordState.COMPLETED}


def test_an_insert_only_task_runs_again_once_the_record_is_removed(
    make_bench: MakeBench, make_cleaner: MakeCleaner
) -> None:
    """B-17: re-entry alone does not run it."""
    bench = make_bench(filter={"on": True}, watch_projection={"_id": 1}, cleanup_policy=GONE_OR_LEFT)
    cleaner = make_cleaner(bench)
    bench.handle({**DOCUMENT, "_id": 1})
    bench.plan({**DOCUMENT, "_id": 1, "on": False})
    bench.plan({**DOCUMENT, "_id": 1})
    clean(cleaner)
    assert bench.state(1) is RecordState.COMPLETED
    bench.plan({**DOCUMENT, "_id": 1, "on": False})
    clean(cleaner)
    bench.plan({**DOCUMENT, "_id": 1})
    assert bench.state(1) is RecordState.PENDING


def test_the_fence_grows_across_a_removal(make_bench: MakeBench, make_cleaner: MakeCleaner) -> None:
    """B-27: the new record's first claim has a higher one than the old record's last."""
    bench = make_bench(cleanup_policy=AT_ONCE)
    fences = []
    for _ in range(3):
        for value in range(5):
            claim = bench.start({"_id": 1, "v": value})
            fences.append(claim.fence)
            bench.complete(claim)
        bench.leave(1, at=bench.delete(1), gone=True)
        clean(make_cleaner(bench))
        assert bench.records.count_documents({}) == 0
    assert fences == sorted(set(fences))


def test_many_orphans_go_in_batches_with_flat_memory(make_bench: MakeBench, make_cleaner: MakeCleaner) -> None:
    """B-42: 6,000 records, half of them orphans that nobody has marked."""
    number = 6_000
    bench = make_bench(cleanup_policy=AT_ONCE)
    bench.handle({"_id": 0, "load": "x" * 500})
    clone = {"$range": [1, number]}
    names = {"_id": {"t": "$_id.t", "d": "$copy"}, "sourceDocId": "$copy"}
    target = {"into": {"db": bench.records.database.name, "coll": bench.records.name}}
    stages = [{"$set": {"copy": clone}}, {"$unwind": "$copy"}, {"$set": names}, {"$unset": "copy"}, {"$merge": target}]
    bench.records.aggregate(stages)
    bench.source.insert_many({"_id": doc_id} for doc_id in range(1, number // 2))
    cleaner = make_cleaner(bench, batch_size=10_000)
    cleaner._runtime.connection.client.admin.command("ping")
    tracemalloc.start()
    try:
        (told,) = clean(cleaner)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert told.records == number // 2
    assert bench.records.count_documents({}) == number // 2
    assert peak < 3 * 1024 * 1024


# --- on deletions -----------------------------------------------------------------------------------


def test_a_deletion_removes_the_record_at_once(
    make_bench: MakeBench, make_desk: MakeDesk, make_cleaner: MakeCleaner
) -> None:
    """B-42: `keep_for` 0; the records of other documents, and those that must be kept for longer, stay."""
    bench, keeping = make_bench("at once", cleanup_policy=AT_ONCE), make_bench("keeping")
    desk, cleaner = make_desk(bench, keeping), make_cleaner(bench, keeping)
    for each in (bench, keeping):
        for doc_id in (1, 2):
            each.handle({**DOCUMENT, "_id": doc_id})
    bench.source.delete_many({})
    desk.plan(desk.deleted(1))
    cleaner.note_deleted([desk.deleted(1)])
    cleaner.step()
    assert left_over(bench) == {2}
    assert left_over(keeping) == {1, 2}


def test_what_is_no_deletion_of_the_tasks_documents_costs_no_look(
    bench: Bench, make_desk: MakeDesk, make_cleaner: MakeCleaner
) -> None:
    """B-42: writes, and what happens in other collections."""
    desk, cleaner = make_desk(bench), make_cleaner(bench)
    elsewhere = dataclasses.replace(desk.deleted(2), collection="customers")
    cleaner.note_deleted([desk.written(1), elsewhere])
    assert cleaner._deleted[bench.task.name].take(10) == []


def test_an_old_record_goes_with_its_document(bench: Bench, make_desk: MakeDesk, make_cleaner: MakeCleaner) -> None:
    """B-42: what has not been updated or run for longer than `keep_for` needs no further wait."""
    desk, cleaner = make_desk(bench), make_cleaner(bench)
    bench.handle({**DOCUMENT, "_id": 1})
    age(bench, 1, fields="updatedAt lastFinalizedAt")
    bench.delete(1)
    desk.plan(desk.deleted(1))
    cleaner.note_deleted([desk.deleted(1)])
    cleaner.step()
    assert left_over(bench) == set()


def test_a_document_deleted_by_its_own_handler_leaves_no_record(
    make_bench: MakeBench, make_desk: MakeDesk, make_cleaner: MakeCleaner
) -> None:
    """B-42: the deletion is told of while the record runs; it goes soon after the run."""
    bench = make_bench(cleanup_policy=AT_ONCE)
    desk, cleaner = make_desk(bench), make_cleaner(bench)
    claim = bench.start({**DOCUMENT, "_id": 1})
    bench.delete(1)
    desk.plan(desk.deleted(1))
    cleaner.note_deleted([desk.deleted(1)])
    cleaner.step()
    assert bench.state(1) is RecordState.PROCESSING
    bench.complete(claim)
    cleaner.step()
    cleaner.step()
    assert left_over(bench) == set()


def test_a_deletion_that_is_a_run_leaves_no_record(
    make_bench: MakeBench, make_desk: MakeDesk, make_cleaner: MakeCleaner
) -> None:
    """B-42, B-61: it goes soon after that run, not with the next cleanup of everything."""
    bench = make_bench(cleanup_policy=AT_ONCE, on_delete=True)
    desk, cleaner = make_desk(bench), make_cleaner(bench)
    bench.handle({**DOCUMENT, "_id": 1})
    bench.delete(1)
    desk.plan(desk.deleted(1))
    cleaner.note_deleted([desk.deleted(1)])
    cleaner.step()
    assert bench.state(1) is RecordState.PENDING
    bench.complete(*bench.claim(1))
    cleaner.step()
    cleaner.step()
    assert left_over(bench) == set()


def test_more_deletions_than_are_kept_in_mind_have_everything_looked_at(
    make_bench: MakeBench, make_desk: MakeDesk, make_cleaner: MakeCleaner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-42: bounded memory, and none is forgotten."""
    monkeypatch.setattr(cleanup, "_MOST_DELETIONS", 3)
    bench = make_bench(cleanup_policy=AT_ONCE)
    desk, cleaner = make_desk(bench), make_cleaner(bench)
    gone(bench, *range(10))
    cleaner.note_deleted([desk.deleted(doc_id) for doc_id in range(10)])
    assert len(cleaner._deleted[bench.task.name].take(10)) == 3
    cleaner.step()
    assert left_over(bench) == set()


@pytest.mark.parametrize("statement", ["read", "pages"])
def test_an_outage_is_waited_out(
    make_bench: MakeBench,
    make_desk: MakeDesk,
    make_cleaner: MakeCleaner,
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
) -> None:
    """B-42: the next step looks at the same again."""
    bench = make_bench(cleanup_policy=AT_ONCE)
    desk, cleaner = make_desk(bench), make_cleaner(bench)
    gone(bench, 1)
    with monkeypatch.context() as away:

        def fail(*_: Any, **__: Any) -> None:
            raise StoreUnavailableError("away")

        away.setattr(orphans, statement, fail)
        cleaner.note_deleted([desk.deleted(1)]) if statement == "read" else cleaner.want_all()
        with pytest.raises(StoreUnavailableError):
            cleaner.step()
    assert left_over(bench) == {1}
    cleaner.step()
    assert left_over(bench) == set()


# --- from time to time ------------------------------------------------------------------------------


def passed(bench: Bench, by: timedelta) -> None:
    """Let so much time have passed since the last cleanup."""
    milliseconds = round(by / timedelta(milliseconds=1))
    bench.connection.globals().update_many(
        {"_id.k": "cleanup"}, [{"$set": {"at": {"$subtract": ["$at", milliseconds]}}}]
    )


def test_it_runs_every_interval_from_the_first_start_on(make_bench: MakeBench, make_cleaner: MakeCleaner) -> None:
    """B-42: a restart neither skips nor repeats it."""
    bench = make_bench(cleanup_policy=AT_ONCE)
    gone(bench, 1)
    make_cleaner(bench).step()
    passed(bench, timedelta(hours=23))
    make_cleaner(bench).step()
    assert left_over(bench) == {1}
    passed(bench, timedelta(hours=1))
    make_cleaner(bench).step()
    assert left_over(bench) == set()
    gone(bench, 2)
    make_cleaner(bench).step()
    assert left_over(bench) == {2}
    passed(bench, timedelta(hours=24))
    make_cleaner(bench).step()
    assert left_over(bench) == set()


def test_one_leader_runs_it_again_and_again(make_bench: MakeBench, make_cleaner: MakeCleaner) -> None:
    """B-42: the interval ends while it leads."""
    bench = make_bench(cleanup_policy=AT_ONCE)
    cleaner = make_cleaner(bench, cleanup_interval=timedelta(seconds=1))
    for doc_id in range(2):
        gone(bench, doc_id)
        steps = 0
        while left_over(bench) and steps < 20:
            cleaner.step()
            steps += 1
        assert left_over(bench) == set()


@pytest.mark.parametrize(
    ("interval", "hour"), [("CRON 0 3 * * *", 3), ("cron 0 3 * * * Asia/Tokyo", 18)], ids=["UTC", "a zone"]
)
def test_it_runs_at_the_times_of_a_cron_expression(
    make_bench: MakeBench, make_cleaner: MakeCleaner, interval: str, hour: int
) -> None:
    """B-42: UTC unless a zone follows the five fields; a time that passed without a leader is made up for."""
    bench = make_bench(cleanup_policy=AT_ONCE)
    gone(bench, 1)
    cleaner = make_cleaner(bench, cleanup_interval=interval)
    last = datetime(2026, 1, 1, 0, 30, tzinfo=UTC)
    assert cleaner._next_time(last) == datetime(2026, 1, 1, hour, tzinfo=UTC)
    cleaner.step()
    assert left_over(bench) == {1}
    passed(bench, timedelta(hours=24))
    make_cleaner(bench, cleanup_interval=interval).step()
    assert left_over(bench) == set()


def test_an_old_leader_does_not_move_the_time(make_bench: MakeBench, make_cleaner: MakeCleaner) -> None:
    """B-46: what it writes to the globals names its term and is refused."""
    bench = make_bench(cleanup_policy=AT_ONCE)
    clean(make_cleaner(bench, term=2))
    old = make_cleaner(bench, term=1)
    old.want_all()
    with pytest.raises(TermEndedError):
        old.step()


def test_a_cleanup_that_the_end_of_the_term_cut_short_does_not_count(
    make_bench: MakeBench, make_cleaner: MakeCleaner
) -> None:
    """B-42: the next leader goes over all records."""
    bench = make_bench(cleanup_policy=AT_ONCE)
    gone(bench, *range(10))
    make_cleaner(bench).step()
    passed(bench, DAY)
    cleaner = make_cleaner(bench)
    leaving = cleaner._clear_page

    def end_after(*args: Any) -> int:
        cleaner._ended.set()
        return leaving(*args)

    cleaner._clear_page = end_after  # type: ignore[method-assign]
    cleaner.step()
    assert len(left_over(bench)) == 3
    make_cleaner(bench).step()
    assert left_over(bench) == set()


def test_a_long_cleanup_holds_no_deletion_up(
    make_bench: MakeBench, make_desk: MakeDesk, make_cleaner: MakeCleaner
) -> None:
    """B-42: what is told of meanwhile goes between two pages."""
    bench, other = make_bench("long", cleanup_policy=AT_ONCE), make_bench("other", cleanup_policy=AT_ONCE)
    desk, cleaner = make_desk(bench, other), make_cleaner(bench, other)
    for doc_id in range(20):
        bench.handle({**DOCUMENT, "_id": doc_id})
    other.handle({**DOCUMENT, "_id": 1})
    other.delete(1)
    desk.plan(desk.deleted(1))
    seen: list[int] = []
    clear_page = cleaner._clear_page

    def note(task: Any, *args: Any) -> int:
        if task.definition.name == "long" and not seen:
            cleaner.note_deleted([desk.deleted(1)])
        seen.append(len(left_over(other)))
        return clear_page(task, *args)

    cleaner._clear_page = note  # type: ignore[method-assign]
    with cleaner._lock:
        cleaner._wanted["long"] = None
    cleaner.step()
    assert 0 in seen[:-1]


def test_a_task_that_keeps_everything_costs_nothing(make_bench: MakeBench, make_cleaner: MakeCleaner) -> None:
    """B-41: `never`: no time is stored, no page is read."""
    bench = make_bench(cleanup_policy={"delete_when": "never"})
    assert clean(make_cleaner(bench)) == []
    assert bench.connection.globals().count_documents({"_id.k": "cleanup"}) == 0
