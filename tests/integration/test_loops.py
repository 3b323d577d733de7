"""A handler that triggers itself is stopped, and nobody else's writes count for it (B-64)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from pymongo.client_session import ClientSession

from celery_reactive.core.outcome import Completed, Deferred
from celery_reactive.core.record import Claim
from celery_reactive.core.states import RecordState
from celery_reactive.events import LoopGuarded
from celery_reactive.planner import dispatch
from celery_reactive.planner.dispatch import Dispatcher
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.store import records
from celery_reactive.store.change_stream import ChangeStream
from celery_reactive.store.records import Settled
from tests.integration.bench import TOOK, Bench, Desk
from tests.integration.conftest import MakeBench, MakeDesk
from tests.integration.test_dispatch import Outbox

LIMIT = 3


class Stage:
    """One document, its stream and its planner; runs and writes are the test's."""

    def __init__(self, bench: Bench, desk: Desk) -> None:
        self.bench = bench
        self.outbox = Outbox()
        self.events = desk.events
        self._desk = desk
        self._numbers = iter(range(10_000))
        task = PlannedTask(bench.task, bench.generation, collated=False)
        self.dispatcher = Dispatcher(desk.runtime, [task], self.outbox, ended=threading.Event())
        self.stream = ChangeStream(bench.connection.database(), ["orders"], batch_size=100)
        self.stream.open()

    def write(self, *, session: ClientSession | None = None) -> None:
        """Change the document."""
        change = {"$set": {"v": next(self._numbers)}}
        self.bench.source.update_one({"_id": 1}, change, upsert=True, session=session)

    def plan(self) -> None:
        """Plan what has been written."""
        batch = self.stream.read(timedelta(seconds=2))
        while not batch.changes:
            batch = self.stream.read(timedelta(seconds=2))
        self._desk.planning.plan_changes(batch.changes, at=batch.at)

    def is_sent(self) -> bool:
        """Let the planner send what is due; return whether the record was."""
        sent = len(self.outbox.sent)
        self.dispatcher.kick()
        self.dispatcher.step()
        return len(self.outbox.sent) > sent

    def is_sent_soon(self) -> bool:
        """Let the planner look for a second at most; return whether the record was sent."""
        end = time.monotonic() + 1
        while time.monotonic() < end and not is_guarded(self.bench):
            if self.is_sent():
                return True
        return False

    def claim(self) -> Claim:
        """Begin a run."""
        (claim,) = self.bench.claim(1)
        return claim

    def loop(self, runs: int) -> None:
        """Run the record so often, each run for what the one before wrote."""
        for _ in range(runs):
            assert self.is_sent_soon()
            claim = self.claim()
            self.write()
            self.bench.complete(claim)
            self.plan()

    def guard(self) -> None:
        """Bring the record to the point where the guard takes it out."""
        self.write()
        self.plan()
        self.loop(1 + LIMIT)
        assert not self.is_sent()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a dispatcher that has nothing to send come back soon."""
    monkeypatch.setattr(dispatch, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(dispatch, "_POLL_A_TASK_SECONDS", 0.01)


@pytest.fixture
def stage(make_bench: MakeBench, make_desk: MakeDesk) -> Iterator[Stage]:
    """A task whose runs may cause three further ones in a row."""
    bench = make_bench(watch_projection={"v": 1}, loop_guard=LIMIT)
    stage = Stage(bench, make_desk(bench))
    yield stage
    stage.stream.close()


def is_guarded(bench: Bench) -> bool:
    """Whether the record has been taken out: pending, and due at no time."""
    record = bench.record(1)
    out = record["nextRunAt"] is None and record["_r"]["wakeAt"] is None and record["_r"].get("guarded") is True
    return record["status"] == "pending" and out


def test_a_record_that_causes_its_own_runs_is_taken_out(stage: Stage) -> None:
    """B-64: after so many runs in a row; nobody may claim it, and it is told once."""
    stage.guard()
    assert is_guarded(stage.bench)
    assert not stage.bench.claim(1)
    assert not stage.is_sent()
    assert [event for event in stage.events if isinstance(event, LoopGuarded)] == [
        LoopGuarded("shop.sync", "shop.sync[1]", LIMIT)
    ]


def test_the_stream_may_tell_of_it_during_the_run(stage: Stage) -> None:
    """B-64: whether the change is planned before or after the run's end makes no difference."""
    stage.write()
    stage.plan()
    for _ in range(1 + LIMIT):
        assert stage.is_sent_soon()
        claim = stage.claim()
        stage.write()
        stage.plan()
        stage.bench.complete(claim)
    assert not stage.is_sent()
    assert is_guarded(stage.bench)


def test_writes_between_the_runs_are_somebody_elses(stage: Stage) -> None:
    """B-64: however many they are."""
    for _ in range(3 * LIMIT):
        stage.write()
        stage.plan()
        assert stage.is_sent_soon()
        stage.bench.complete(stage.claim())


def test_a_document_that_others_write_all_the_time_is_not_taken_out(stage: Stage) -> None:
    """B-64: also where each run begins so soon after the last that all their writes come during runs."""
    stage.write()
    stage.plan()
    for _ in range(3 * LIMIT):
        if not stage.is_sent():
            stage.write()
            stage.plan()
            assert stage.is_sent()
        claim = stage.claim()
        stage.write()
        stage.plan()
        threading.Event().wait(0.05)
        stage.bench.complete(claim)


def test_a_row_ends_when_others_stop_to_write(stage: Stage) -> None:
    """B-10, B-64: the last run of what looked like a loop finds nothing of its own, and is the end of it."""
    stage.write()
    stage.plan()
    stage.loop(LIMIT)
    assert stage.is_sent_soon()
    stage.bench.complete(stage.claim())
    assert stage.bench.state(1) is RecordState.COMPLETED


def test_somebody_elses_deletion_breaks_the_row(make_bench: MakeBench, make_desk: MakeDesk) -> None:
    """B-61, B-64: it is a change like any other."""
    bench = make_bench(watch_projection={"v": 1}, loop_guard=LIMIT, on_delete=True)
    stage = Stage(bench, make_desk(bench))
    stage.write()
    stage.plan()
    stage.loop(LIMIT)
    assert stage.is_sent_soon()
    claim = stage.claim()
    stage.write()
    stage.plan()
    bench.complete(claim)
    bench.delete(1)
    stage.plan()
    assert stage.is_sent()
    stage.stream.close()


def test_somebody_elses_write_after_its_own_breaks_the_row(stage: Stage) -> None:
    """B-64: the newest change decides, also where the stream tells of both at once."""
    stage.write()
    stage.plan()
    for _ in range(2):
        stage.loop(LIMIT)
        assert stage.is_sent_soon()
        claim = stage.claim()
        stage.write()
        stage.bench.complete(claim)
        stage.write()
        stage.plan()
    assert stage.is_sent()


def test_a_retry_counts_once(stage: Stage) -> None:
    """B-64: attempts for the same change are no further runs of the loop, and do not end it."""
    stage.write()
    stage.plan()
    for _ in range(1 + LIMIT):
        assert stage.is_sent_soon()
        stage.bench.error(stage.claim())
        stage.bench.make_due(1)
        assert stage.is_sent_soon()
        claim = stage.claim()
        stage.write()
        stage.bench.complete(claim)
        stage.plan()
    assert not stage.is_sent()


def test_a_handler_that_fails_and_writes_loops_too(stage: Stage) -> None:
    """B-64: its write sets the attempts back, so that nothing else would stop it."""
    stage.write()
    stage.plan()
    for _ in range(1 + LIMIT):
        assert stage.is_sent_soon()
        claim = stage.claim()
        stage.write()
        stage.bench.error(claim)
        stage.plan()
    assert not stage.is_sent()


@pytest.mark.parametrize("own", [True, False])
def test_a_transaction_that_completes_the_run_is_its_own(stage: Stage, *, own: bool) -> None:
    """B-64: it is committed after the statement that ends the run; another's transaction is another's."""
    stage.write()
    stage.plan()
    client = stage.bench.connection.client
    for _ in range(1 + LIMIT):
        assert stage.is_sent_soon()
        claim = stage.claim()
        with client.start_session() as session, client.start_session() as other:
            with session.start_transaction():
                records.settle(stage.bench.records, stage.bench.task, claim, Completed(TOOK), session=session)
                stage.write(session=session if own else None)
            if not own:
                with other.start_transaction():
                    stage.write(session=other)
        stage.plan()
    assert stage.is_sent() is not own


def test_deferrals_to_the_past_count(stage: Stage) -> None:
    """B-34: each of them waits a second, and that would go on for ever."""
    stage.write()
    stage.plan()
    for _ in range(1 + LIMIT):
        assert stage.is_sent_soon()
        claim = stage.claim()
        stage.bench.settle(claim, Deferred(stage.bench.now() - timedelta(seconds=1)))
        stage.bench.make_due(1)
    assert not stage.is_sent()
    assert is_guarded(stage.bench)


def test_deferrals_to_the_future_do_not_count(stage: Stage) -> None:
    """B-64: a handler may poll as long as it likes."""
    stage.write()
    stage.plan()
    for _ in range(3 * LIMIT):
        assert stage.is_sent_soon()
        stage.bench.settle(stage.claim(), Deferred(stage.bench.now() + timedelta(hours=1)))
        stage.bench.make_due(1)


def test_without_a_limit_nothing_is_taken_out(make_bench: MakeBench, make_desk: MakeDesk) -> None:
    """B-64: none means off."""
    bench = make_bench(watch_projection={"v": 1}, loop_guard=None)
    stage = Stage(bench, make_desk(bench))
    stage.write()
    stage.plan()
    stage.loop(2 * LIMIT)
    stage.stream.close()


def test_a_change_does_not_bring_it_back(stage: Stage) -> None:
    """B-64: it is seen, and runs when somebody resumes the record."""
    stage.guard()
    stage.write()
    stage.plan()
    assert is_guarded(stage.bench)
    assert not stage.is_sent()
    seen = stage.bench.record(1)["lastObservedValues"]
    assert seen == {"v": stage.bench.source.find_one()["v"]}  # type: ignore[index]


def resume(bench: Bench) -> int:
    """Resume the record."""
    return records.resume(bench.records, bench.key(1))


def reprocess(bench: Bench) -> int:
    """Let the record run for a new version of the handler."""
    return records.reprocess(bench.records, bench.task.name, [1], version=2)


def retry(bench: Bench) -> int:
    """Retry the record by hand."""
    return bench.retry(1)


@pytest.mark.parametrize("bring_back", [resume, retry, reprocess])
def test_what_brings_it_back_starts_a_new_row(stage: Stage, bring_back: Callable[[Bench], int]) -> None:
    """B-64: `resume`, a retry by hand, a new version of the handler."""
    stage.guard()
    assert bring_back(stage.bench) == 1
    stage.loop(1)
    assert stage.is_sent()


def test_only_a_guarded_record_is_resumed(stage: Stage) -> None:
    """B-64: of any other it says that there was nothing to do."""
    assert not records.resume(stage.bench.records, stage.bench.key(1))
    stage.write()
    stage.plan()
    before = stage.bench.raw(1)
    assert not records.resume(stage.bench.records, stage.bench.key(1))
    assert stage.bench.raw(1) == before
    claim = stage.claim()
    assert not records.resume(stage.bench.records, stage.bench.key(1))
    stage.bench.complete(claim)


def leave(bench: Bench) -> None:
    """Let the document have left the filter."""
    bench.leave(1)


def discard(bench: Bench) -> None:
    """Discard the record by hand."""
    bench.discard(1)


@pytest.mark.parametrize("end", [leave, discard])
def test_a_record_that_ends_is_guarded_no_longer(stage: Stage, end: Callable[[Bench], None]) -> None:
    """B-64: the next change runs."""
    stage.guard()
    end(stage.bench)
    assert stage.bench.state(1) is RecordState.COMPLETED
    assert not stage.is_sent()
    stage.write()
    stage.plan()
    assert stage.is_sent()
    assert "guarded" not in stage.bench.record(1)["_r"]


def test_a_record_that_moved_on_is_not_taken_out(stage: Stage) -> None:
    """B-64: between the planner's look and its statement somebody else's change may come, or a claim."""
    stage.write()
    stage.plan()
    stage.loop(1 + LIMIT)
    stage.write()
    stage.plan()
    assert not records.guard(stage.bench.records, stage.bench.key(1), loop_guard=LIMIT)
    claim = stage.claim()
    assert not records.guard(stage.bench.records, stage.bench.key(1), loop_guard=LIMIT)
    settled = stage.bench.complete(claim)
    assert settled == Settled(RecordState.COMPLETED, None)


def test_a_record_that_waits_for_nothing_is_not_taken_out(stage: Stage) -> None:
    """B-64: its handler has written what it had read, and the run has handled that."""
    stage.write()
    stage.plan()
    stage.loop(LIMIT)
    assert stage.is_sent_soon()
    claim = stage.claim()
    value = stage.bench.source.find_one({"_id": 1})["v"]  # type: ignore[index]
    stage.bench.source.update_one({"_id": 1}, {"$set": {"v": "other"}})
    stage.bench.source.update_one({"_id": 1}, {"$set": {"v": value}})
    stage.plan()
    stage.bench.complete(claim, document_checked=True)
    assert stage.bench.state(1) is RecordState.COMPLETED
    assert not records.guard(stage.bench.records, stage.bench.key(1), loop_guard=LIMIT)


def test_many_documents_of_a_batch_keep_their_own_times(stage: Stage) -> None:
    """B-64: a batch has one cluster time, and each document its own."""
    ids: list[Any] = list(range(2, 40))
    stage.bench.source.insert_many([{"_id": each, "v": 0} for each in ids])
    stage.write()
    stage.plan()
    for _ in range(1 + LIMIT):
        assert stage.is_sent_soon()
        claim = stage.claim()
        stage.write()
        stage.bench.complete(claim)
        stage.bench.source.update_many({"_id": {"$in": ids}}, {"$inc": {"v": 1}})
        stage.plan()
    stage.is_sent()
    assert is_guarded(stage.bench)
    assert not [each for each in ids if stage.bench.record(each)["_r"].get("guarded")]
