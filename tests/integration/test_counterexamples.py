"""The counterexamples of the formal model, replayed on a real server through the real statements.

Each test is the shortest schedule that breaks the protocol when one part is taken out (`docs/model`, mutant of the same
name); `docs/evidence/model.md` has the table. What a process had read before it paused is played by hand: the document
is put back for the moment of the late write.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from pymongo.client_session import ClientSession

from celery_reactive.core.loss import after_loss
from celery_reactive.core.outcome import Errored, Failure, GivenBack, Skipped
from celery_reactive.core.policies import CleanupPolicy
from celery_reactive.core.record import Claim, Lease
from celery_reactive.core.states import RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import LeaseLostError
from celery_reactive.planner.dispatch import Dispatcher
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.planner.publish import Message, Publisher
from celery_reactive.planner.reconcile import Reconciler
from celery_reactive.planner.watch import Watcher
from celery_reactive.store import documents, orphans, positions, records
from celery_reactive.store.change_stream import ChangeStream
from celery_reactive.store.documents import Read
from celery_reactive.store.orphans import Criteria
from tests.integration.bench import TOOK, Bench, Desk, overtaken
from tests.integration.conftest import MakeDesk

A = {"_id": 1, "on": True, "v": "a"}
B = {"_id": 1, "on": True, "v": "b"}
OFF = {"_id": 1, "on": False, "v": "a"}
OFF_B = {"_id": 1, "on": False, "v": "b"}
PENDING, PROCESSING, DIRTY, COMPLETED, FAILED = RecordState
HOUR = timedelta(hours=1)
LOST = Errored(Failure("the worker has vanished", "WorkerLostError"), TOOK, timedelta(0))


@pytest.fixture
def desk(bench: Bench, make_desk: MakeDesk) -> Desk:
    """A planner over `bench`, its definition stored."""
    desk = make_desk(bench)
    desk.define()
    return desk


def reconcile(desk: Desk) -> None:
    """Look at every document and every record once."""
    Reconciler(desk.runtime, desk.planning, group="default", term=1, ended=threading.Event()).reconcile_needed()


def lease_of(bench: Bench) -> Lease:
    """Return the one running record as the rescuer reads it."""
    (lease,) = records.running(bench.records, bench.task.name)
    return lease


def rescue_all(bench: Bench) -> None:
    """End all runs as the rescuer does when their heartbeats stand still."""
    for lease in records.running(bench.records, bench.task.name):
        outcome = after_loss(bench.task, lease, Failure("the worker has vanished", "WorkerLostError"))
        records.rescue(bench.records, bench.task, lease, outcome)


def step_until_planning(watcher: Watcher) -> None:
    """Read batches until planning one raises."""
    while True:
        watcher.step()


def read_document(bench: Bench, claim: Claim, session: ClientSession) -> object:
    """Read the document of a run as its handler does."""
    return documents.read(bench.source, bench.task, claim, projection=None, session=session, collated=False, options={})


# --- planning ------------------------------------------------------------------------------------


def test_apply_at(bench: Bench) -> None:
    """B-10: the first leader reads A, pauses, and writes it after the second has planned B: B stays."""
    old = bench.put(A)
    bench.plan(B)
    bench.source.replace_one({"_id": 1}, A)
    bench.observe(1, at=old)
    bench.source.replace_one({"_id": 1}, B)
    assert bench.record(1)["lastObservedValues"] == {"v": "b"}


def test_apply_equal(bench: Bench, desk: Desk) -> None:
    """B-18: deletion and insertion come in one batch, so at one time: the observation after the mark counts."""
    bench.handle(A)
    bench.delete(1)
    bench.put(A)
    desk.plan(desk.deleted(1), desk.written(1, inserted=True))
    assert bench.state(1) is PENDING
    assert "gone" not in bench.record(1)["_r"]


def test_apply_gen(bench: Bench) -> None:
    """B-43: the old definition's leader plans the same event after the new one's: the record speaks of the new one."""
    at = bench.put(A)
    bench.generation = 2
    bench.observe(1, at=at)
    bench.generation = 1
    bench.observe(1, at=at)
    assert bench.record(1)["_r"]["gen"] == 2


def test_dirty(bench: Bench) -> None:
    """B-14: B comes while A runs: it gets its run."""
    claim = bench.start(A)
    bench.plan(B)
    bench.complete(claim)
    assert len(bench.claim(1)) == 1
    assert bench.record(1)["lastObservedValues"] == {"v": "b"}


def test_dirty_settle(bench: Bench) -> None:
    """B-26: B comes after the handler has read A and before it ends: success does not hide it."""
    claim = bench.start(A)
    bench.plan(B)
    assert bench.complete(claim, document_checked=True).state is PENDING


def test_touched(bench: Bench) -> None:
    """B-14: A, B, A during a run whose handler read by itself, maybe B: it runs once more."""
    claim = bench.start(A)
    bench.put(B)
    bench.plan(A)
    assert bench.complete(claim).state is PENDING


def test_reentry_gone(bench: Bench, desk: Desk) -> None:
    """B-18: the deletion is planned, then the insertion with the same values: a new document, it runs."""
    bench.handle(A)
    bench.delete(1)
    desk.plan(desk.deleted(1))
    bench.put(A)
    desk.plan(desk.written(1, inserted=True))
    assert bench.state(1) is PENDING


def test_reentry_left(bench: Bench) -> None:
    """B-8: the document was seen outside the filter: when it matches again with the same values it runs."""
    bench.handle(A)
    bench.plan(OFF)
    bench.plan(A)
    assert bench.state(1) is PENDING


def test_leave_at(bench: Bench) -> None:
    """B-46: the first leader pauses with a deletion in hand; the second has planned the insertion since."""
    bench.plan(A)
    old = bench.delete(1)
    bench.plan(A)
    assert bench.leave(1, at=old, gone=True) == 0
    assert bench.state(1) is PENDING


def test_leave_equal(bench: Bench) -> None:
    """B-8: what the observation of the same time found matching has not left."""
    bench.plan(B)
    assert bench.state(1) is PENDING
    assert "left" not in bench.record(1)["_r"]


def test_leave_releases(bench: Bench) -> None:
    """B-23: deleted and inserted again during a run: the run goes on, and nobody starts a second beside it."""
    claim = bench.start(A)
    bench.leave(1, at=bench.delete(1), gone=True)
    bench.plan(A)
    bench.make_due(1)
    assert bench.claim(1) == []
    assert bench.complete(claim).state is PENDING


def test_order(bench: Bench, desk: Desk) -> None:
    """B-18: of one batch the deletion is applied before the insertion, or the new document counts as handled."""
    bench.handle(A)
    bench.delete(1)
    bench.put(A)
    desk.plan(desk.deleted(1), desk.written(1, inserted=True))
    assert bench.state(1) is PENDING


def test_position(bench: Bench, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-47: the leader dies while it plans a batch: the stored position is still before it."""
    database = bench.connection.database().name
    watcher = Watcher(
        desk.runtime,
        desk.planning,
        database,
        group="g",
        term=1,
        on_planned=lambda _: None,
        on_deleted=lambda _: None,
        on_reconcile=lambda: None,
    )
    watcher.step()
    bench.put(A)

    def die(*_args: object, **_kwargs: object) -> bool:
        raise MemoryError

    monkeypatch.setattr(desk.planning, "plan_changes", die)
    with pytest.raises(MemoryError):
        step_until_planning(watcher)
    watcher.finish()
    stored = positions.read(bench.connection.globals(), "g", database)
    assert stored is not None
    stream = ChangeStream(bench.connection.database(), {bench.task.collection}, batch_size=9)
    stream.open(resume_after=stored.token)
    assert [change.doc_id for change in stream.read(timedelta(seconds=5)).changes] == [1]
    stream.close()


# --- reconciliation and cleanup ------------------------------------------------------------------


def test_scan_stamps(bench: Bench, desk: Desk) -> None:
    """B-18: a scan reads over a deletion and an insertion whose events come later: they are still told."""
    bench.handle(A)
    bench.delete(1)
    at = bench.put(A)
    reconcile(desk)
    desk.planning.plan_changes([desk.deleted(1), desk.written(1, inserted=True)], at=at)
    assert bench.state(1) is PENDING


def test_scan_late(bench: Bench, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-48: a scan reads A, B is written: the event of B is newer than the scan's time, which was known before."""
    bench.put(A)
    written: list[Any] = []
    apply = desk.planning.apply

    def apply_and_write(*args: Any, **kwargs: Any) -> set[bytes]:
        at_fault = apply(*args, **kwargs)
        written.append(bench.put(B))
        return at_fault

    monkeypatch.setattr(desk.planning, "apply", apply_and_write)
    reconcile(desk)
    bench.observe(1, at=written[0])
    assert bench.record(1)["lastObservedValues"] == {"v": "b"}


def test_scan_off(bench: Bench, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-18: a scan finds the document gone; it is inserted before the scan looks once more: it runs."""
    bench.handle(A)
    deleted = bench.delete(1)
    inserted: list[Any] = []
    find_absent = records.find_absent

    def find_and_insert(*args: Any, **kwargs: Any) -> list[Any]:
        found = find_absent(*args, **kwargs)
        inserted.append(bench.put(A))
        return found

    monkeypatch.setattr(records, "find_absent", find_and_insert)
    reconcile(desk)
    monkeypatch.undo()
    desk.planning.plan_changes([desk.deleted(1)], at=deleted)
    desk.planning.plan_changes([desk.written(1, inserted=True)], at=inserted[0])
    assert bench.state(1) is PENDING


def test_cleanup(bench: Bench) -> None:
    """B-41: cleanup has chosen the record of a deleted document, which is inserted again before it removes it."""
    bench.handle(A)
    bench.leave(1, at=bench.delete(1), gone=True)
    criteria = Criteria.of(CleanupPolicy(keep_for=timedelta(0)))
    assert criteria is not None
    with bench.connection.causal_session() as session:
        chosen = orphans.read(bench.records, bench.task.name, [1], criteria, session=session)
    bench.plan(A)
    assert orphans.remove(bench.records, bench.task.name, chosen, criteria) == 0
    assert bench.state(1) is PENDING


# --- dispatch ------------------------------------------------------------------------------------


class Outbox(Publisher):
    """Lets the test do something the moment a message is published."""

    def __init__(self, on_publish: Callable[[], object]) -> None:
        self._on_publish = on_publish

    def publish_all(self, messages: Sequence[Message]) -> None:
        """Take the messages."""
        self._on_publish()

    def prioritize(self, task: str, priority: int) -> None:
        """Nothing is published in any order here."""

    def has_time_limit(self, task: ReactiveTask) -> bool:
        """Return false: nobody's Celery task has one here."""
        return False

    def queue_of(self, task: ReactiveTask) -> None:
        """Return None: there is no Celery app here that knows one."""


def test_deadline(bench: Bench) -> None:
    """B-22: the broker loses the message: after its deadline the record is sent again."""
    bench.plan(A)
    key = bench.key(1)
    records.mark_sent(bench.records, [key], first_deadline=HOUR, longest_deadline=HOUR)
    assert records.find_due(bench.records, bench.task.name, limit=9) == []
    bench.records.update_one({}, [{"$set": {"_r.wakeAt": {"$subtract": ["$$NOW", 1]}}}])
    assert [due.key for due in records.find_due(bench.records, bench.task.name, limit=9)] == [key]


def test_mark_after(bench: Bench, desk: Desk) -> None:
    """B-22: a worker is done with the message before the planner goes on: the failed record waits for no deadline."""
    bench.plan(A)
    failed: list[object] = []

    def fail_at_once() -> None:
        (claim,) = bench.claim(1)
        failed.append(bench.error(claim, retry_in=timedelta(0)))

    planned = [PlannedTask(bench.task, 1, collated=False)]
    Dispatcher(desk.runtime, planned, Outbox(fail_at_once), ended=threading.Event()).step()
    assert len(failed) == 1
    assert bench.record(1)["_r"]["sent"] is False


# --- running -------------------------------------------------------------------------------------


def test_claim_state(bench: Bench) -> None:
    """B-23: the message is doubled: the second worker finds the record running, however late it comes."""
    claim = bench.start(A)
    past = {"$subtract": ["$$NOW", 1]}
    bench.records.update_one({}, [{"$set": {"nextRunAt": past, "_r.wakeAt": past}}])
    assert bench.claim(1) == []
    assert bench.complete(claim).state is COMPLETED


def test_read_first(bench: Bench) -> None:
    """B-32: what a run is told is what was observed when it was claimed, and its read is made after that."""
    bench.plan(A)
    before = bench.cluster_time()
    bench.put(B)
    bench.observe(1)
    (claim,) = bench.claim(1)
    assert claim.cluster_time > before
    with bench.connection.causal_session() as session:
        session.advance_operation_time(claim.cluster_time)
        found = read_document(bench, claim, session)
    assert isinstance(found, Read)
    assert found.document == B


def test_token(bench: Bench) -> None:
    """B-27: the frozen worker wakes up beside the one that took its record over, and ends nothing."""
    frozen = bench.start(A)
    records.rescue(bench.records, bench.task, lease_of(bench), LOST)
    bench.make_due(1)
    (present,) = bench.claim(1)
    with pytest.raises(LeaseLostError):
        bench.complete(frozen)
    assert bench.state(1) is PROCESSING
    assert bench.complete(present).state is COMPLETED


def test_beats(bench: Bench) -> None:
    """B-28: the frozen worker wakes up and renews between the rescuer's last reading and its verdict."""
    claim = bench.start(A)
    seen = lease_of(bench)
    records.renew(bench.records, [claim.key], claim.token, HOUR)
    with pytest.raises(LeaseLostError):
        records.rescue(bench.records, bench.task, seen, LOST)
    assert bench.complete(claim).state is COMPLETED


def test_rescue_token(bench: Bench) -> None:
    """B-28: the frozen worker wakes up and ends its run, another begins: the verdict was on the first."""
    first = bench.start(A)
    seen = lease_of(bench)
    bench.complete(first)
    second = bench.start(B)
    with pytest.raises(LeaseLostError):
        records.rescue(bench.records, bench.task, seen, LOST)
    assert bench.complete(second).state is COMPLETED


# --- what the worker saw -------------------------------------------------------------------------


def test_overtake_at(bench: Bench) -> None:
    """B-33: the worker read B; the planner has seen the document back at A since: A stays."""
    claim = bench.start(A)
    bench.put(B)
    bench.plan(A)
    bench.settle(claim, overtaken({"v": "b"}))
    assert bench.record(1)["lastObservedValues"] == {"v": "a"}


def test_overtake_flags(bench: Bench) -> None:
    """B-33: outside the filter, retried by hand, back as B: a run that read B has seen it match, and B runs.

    The event of B is older than the claim, so nothing else tells of it.
    """
    bench.handle(A)
    bench.plan(OFF)
    at = bench.put(B)
    bench.retry(1)
    (claim,) = bench.claim(1)
    assert bench.settle(claim, overtaken({"v": "b"})).state is PENDING
    bench.observe(1, at=at)
    assert bench.state(1) is PENDING


def test_overtake_flags_of_a_document_that_was_gone(bench: Bench) -> None:
    """B-18, B-33: deleted, retried by hand, back as B: as above."""
    bench.handle(A)
    bench.leave(1, at=bench.delete(1), gone=True)
    at = bench.put(B)
    bench.retry(1)
    (claim,) = bench.claim(1)
    assert bench.settle(claim, overtaken({"v": "b"})).state is PENDING
    bench.observe(1, at=at)
    assert bench.state(1) is PENDING


def test_overtake_stamp(bench: Bench) -> None:
    """B-43: values read under an older definition are not kept, so the event that tells of them is not refused."""
    bench.generation = 2
    bench.plan(A)
    at = bench.put(B)
    (claim,) = bench.claim(1)
    bench.settle(claim, overtaken({"v": "b"}, generation=1))
    bench.observe(1, at=at)
    assert bench.record(1)["lastObservedValues"] == {"v": "b"}


def test_skip_unmarked(bench: Bench) -> None:
    """B-8: only the worker saw the document outside the filter: when it is planned back it runs."""
    claim = bench.start(B)
    bench.put(OFF_B)
    bench.settle(claim, Skipped("left", TOOK, left=True, generation=1))
    bench.plan(B)
    assert bench.state(1) is PENDING


def test_skip_gen(bench: Bench) -> None:
    """B-43: a worker that read the old definition says nothing of a record that was observed under the new one."""
    bench.generation = 2
    claim = bench.start(A)
    assert bench.settle(claim, Skipped("left", TOOK, left=True, generation=1)).state is PENDING
    assert "left" not in bench.record(1)["_r"]


def test_skip_marks(bench: Bench, desk: Desk) -> None:
    """B-49: gone when the worker read, inserted again, position lost: the scan saw it, and no event will tell."""
    claim = bench.start(A)
    bench.delete(1)
    bench.put(A)
    reconcile(desk)
    assert bench.settle(claim, Skipped("gone", TOOK, gone=True)).state is PENDING
    assert "gone" not in bench.record(1)["_r"]


# --- company ---------------------------------------------------------------------------------------


def test_company_alone(bench: Bench) -> None:
    """B-28: a message that names both comes once more: whoever must run alone is not claimed by it."""
    bench.plan(A, {**A, "_id": 2})
    claims = bench.claim(1, 2)
    bench.settle(claims[0], GivenBack(alone=True))
    bench.settle(claims[1], GivenBack())
    assert [claim.key.doc_id for claim in bench.claim(1, 2)] == [2]


def test_company_give_back(bench: Bench) -> None:
    """B-28: a record whose turn came too late is given back as it was."""
    bench.plan(A, {**A, "_id": 2})
    _, second = bench.claim(1, 2)
    bench.settle(second, GivenBack())
    assert (bench.state(2), bench.record(2)["attempts"]) == (PENDING, 0)


def test_company_unpunished(bench: Bench) -> None:
    """B-28: what was lost in company has spent no attempt, what was lost alone has."""
    bench.plan(A, {**A, "_id": 2})
    bench.claim(1, 2)
    rescue_all(bench)
    assert [bench.record(doc_id)["attempts"] for doc_id in (1, 2)] == [0, 0]
    bench.claim(1)
    rescue_all(bench)
    assert bench.record(1)["attempts"] == 1


def test_what_was_lost_alone_stays_alone(bench: Bench) -> None:
    """B-28: a deadly handler takes no company with it before any of its attempts."""
    bench.start(A)
    (lease,) = records.running(bench.records, bench.task.name)
    outcome = after_loss(bench.task, lease, Failure("the worker has vanished", "WorkerLostError"))
    records.rescue(bench.records, bench.task, lease, outcome)
    bench.make_due(1)
    assert [one.alone for one in records.find_due(bench.records, bench.task.name, limit=9)] == [True]


def test_company_mark_alone(bench: Bench) -> None:
    """B-28: what was lost in company travels alone the next time."""
    bench.plan(A, {**A, "_id": 2})
    bench.claim(1, 2)
    rescue_all(bench)
    due = records.find_due(bench.records, bench.task.name, limit=9)
    assert [one.alone for one in due] == [True, True]


# --- what the protocol does not promise ----------------------------------------------------------


@pytest.mark.xfail(reason="a handler that reads by itself is not covered once its run has ended", strict=True)
def test_limit_own_reads(bench: Bench) -> None:
    """B-10: B is read by the handler itself, A comes back, both are planned after the run: the record shows A."""
    claim = bench.start(A)
    bench.put(B)
    bench.complete(claim)
    bench.plan(A)
    assert bench.state(1) is PENDING


@pytest.mark.xfail(reason="an old leader that sleeps through the loss of the stream position", strict=True)
def test_limit_lost_position_beside_an_old_leader(bench: Bench, desk: Desk) -> None:
    """B-46: it holds a deletion; the insertion is lost with the position; the scan finds nothing new to date."""
    bench.plan(A)
    old = bench.delete(1)
    bench.put(A)
    reconcile(desk)
    bench.leave(1, at=old, gone=True)
    assert bench.state(1) is PENDING


@pytest.mark.xfail(reason="an old leader makes a removed record again for a handler that reads by itself", strict=True)
def test_limit_removed_record_beside_an_old_leader(bench: Bench) -> None:
    """B-46: it wrote what it had read before the deletion; the run finds nothing, says nothing, and A is inserted."""
    old = bench.put(A)
    bench.observe(1, at=old)
    bench.source.delete_one({"_id": 1})
    bench.records.delete_many({})
    bench.source.insert_one(A)
    bench.observe(1, at=old)
    bench.source.delete_one({"_id": 1})
    (claim,) = bench.claim(1)
    bench.complete(claim)
    bench.plan(A)
    assert bench.state(1) is PENDING
