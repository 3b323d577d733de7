"""Runs whose worker has vanished are ended; those whose heart beats are not (B-28)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from celery_reactive.core.states import RecordState
from celery_reactive.errors import StoreUnavailableError
from celery_reactive.events import LeaseExpired
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.planner.rescue import Rescuer
from celery_reactive.store import records
from celery_reactive.store.errors import translate
from tests.integration.bench import LEASE, Bench, Desk
from tests.integration.conftest import MakeBench, MakeDesk

FIRST = {"_id": 1, "on": True, "v": "first"}
READINGS = 7
"""The first sees the counter, six more find it unchanged."""


@pytest.fixture
def desk(bench: Bench, make_desk: MakeDesk) -> Desk:
    """A planner's desk for `bench`."""
    return make_desk(bench)


def rescuer_of(desk: Desk, bench: Bench) -> Rescuer:
    """Return the rescuer of a new leader."""
    return Rescuer(desk.runtime, [PlannedTask(bench.task, 1, collated=False)])


@pytest.fixture
def rescuer(desk: Desk, bench: Bench) -> Rescuer:
    """The rescuer for `bench`."""
    return rescuer_of(desk, bench)


def look(rescuer: Rescuer, times: int) -> int:
    """Read the heartbeats several times; return how many runs were ended."""
    return sum(rescuer.look() for _ in range(times))


def test_a_silent_worker_has_failed_an_attempt(bench: Bench, desk: Desk, rescuer: Rescuer) -> None:
    """B-28: after six readings that found the counter unchanged, and not one earlier."""
    bench.start(FIRST)
    assert look(rescuer, READINGS - 1) == 0
    assert rescuer.look() == 1
    record = bench.record(1)
    assert (record["status"], record["attempts"]) == ("pending", 1)
    assert record["_r"]["error"]["type"] == "WorkerLostError"
    assert record["firstErrorAt"] == record["lastFinalizedAt"]
    assert record["executionHistory"][-1]["status"] == "failed"
    assert record["nextRunAt"] - record["lastFinalizedAt"] == timedelta(seconds=10)
    assert [event for event in desk.events if isinstance(event, LeaseExpired)] == [
        LeaseExpired("shop.sync", "shop.sync[1]", RecordState.PENDING)
    ]


def test_a_worker_that_renews_is_left_alone(bench: Bench, rescuer: Rescuer) -> None:
    """B-28: each move of the counter starts the count anew, however old the lease looks by any clock."""
    claim = bench.start(FIRST)
    bench.records.update_one({}, [{"$set": {"nextRunAt": {"$subtract": ["$$NOW", 10**9]}}}])
    for _ in range(3):
        assert look(rescuer, READINGS - 1) == 0
        records.renew(bench.records, [claim.key], claim.token, LEASE)
    assert bench.complete(claim).state is RecordState.COMPLETED


def test_a_new_run_of_the_record_is_another_worker(bench: Bench, rescuer: Rescuer) -> None:
    """B-28: the count belongs to the claim, not to the record."""
    claim = bench.start(FIRST)
    look(rescuer, READINGS - 1)
    bench.error(claim, retry_in=timedelta(0))
    bench.claim(1)
    assert look(rescuer, READINGS - 1) == 0
    assert rescuer.look() == 1


def test_a_new_leader_counts_anew(bench: Bench, desk: Desk, rescuer: Rescuer) -> None:
    """B-28, B-46."""
    bench.start(FIRST)
    look(rescuer, READINGS - 1)
    assert look(rescuer_of(desk, bench), READINGS - 1) == 0


def test_readings_that_failed_do_not_count(bench: Bench, rescuer: Rescuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-28: a database that was away rescues no live run."""
    bench.start(FIRST)
    look(rescuer, READINGS - 1)

    def away(*_: Any) -> None:
        raise translate(AutoReconnect("away"))

    with monkeypatch.context() as patch:
        patch.setattr(records, "running", away)
        for _ in range(READINGS):
            with pytest.raises(StoreUnavailableError):
                rescuer.look()
    assert rescuer.look() == 1


def test_a_run_that_ends_between_reading_and_rescue_is_left_alone(
    bench: Bench, rescuer: Rescuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-27, B-28: the statement names token and counter."""
    claim = bench.start(FIRST)
    look(rescuer, READINGS - 1)
    rescue = records.rescue

    def too_late(*args: Any) -> Any:
        bench.complete(claim)
        return rescue(*args)

    monkeypatch.setattr(records, "rescue", too_late)
    assert rescuer.look() == 0
    assert bench.state(1) is RecordState.COMPLETED


def test_an_attempt_too_many_is_a_dead_letter(make_bench: MakeBench, make_desk: MakeDesk) -> None:
    """B-28: a handler that kills its process is not tried for ever."""
    bench = make_bench(retry_policy={"type": "fixed", "interval": 0, "max_attempts": 2})
    rescuer = rescuer_of(make_desk(bench), bench)
    bench.plan({"_id": 1})
    for expected in (RecordState.PENDING, RecordState.FAILED):
        assert len(bench.claim(1)) == 1
        look(rescuer, READINGS)
        assert bench.state(1) is expected


def test_those_lost_in_company_run_again_alone(bench: Bench, rescuer: Rescuer) -> None:
    """B-28: without an attempt spent, at once; one lost alone then spends one."""
    bench.plan(*({**FIRST, "_id": doc_id} for doc_id in range(3)))
    assert len(bench.claim(0, 1, 2)) == 3
    assert look(rescuer, READINGS) == 3
    for doc_id in range(3):
        record = bench.record(doc_id)
        assert (record["status"], record["attempts"], record["_r"]["alone"]) == ("pending", 0, True)
        assert record["executionHistory"] == []
    assert bench.claim(0, 1, 2) == []
    bench.claim(0)
    look(rescuer, READINGS)
    assert bench.record(0)["attempts"] == 1


def test_a_change_during_the_lost_run_decides(bench: Bench, rescuer: Rescuer) -> None:
    """B-26: dirty: pending when the changes are quiet, attempts as the change left them."""
    bench.start(FIRST)
    bench.plan({**FIRST, "v": "second"})
    look(rescuer, READINGS)
    record = bench.record(1)
    assert (record["status"], record["attempts"], record["firstErrorAt"]) == ("pending", 0, None)
    assert len(bench.claim(1)) == 1


def test_a_lost_run_of_a_document_that_is_gone_is_over(bench: Bench, rescuer: Rescuer) -> None:
    """B-8: rescued, it would go back to pending."""
    bench.start(FIRST)
    bench.leave(1, at=bench.delete(1), gone=True)
    look(rescuer, READINGS)
    assert bench.state(1) is RecordState.COMPLETED


def test_a_record_held_by_a_transaction_is_rescued_when_it_is_free(bench: Bench, rescuer: Rescuer) -> None:
    """B-36: while an open `mark_completed` holds it the lease cannot be lost; the count starts anew."""
    bench.plan(FIRST, {**FIRST, "_id": 2})
    bench.claim(1)
    bench.claim(2)
    with bench.connection.client.start_session() as session, session.start_transaction():
        bench.records.update_one({"_id": bench.key(1).id}, {"$set": {"held": 1}}, session=session)
        assert look(rescuer, READINGS) == 1
        session.abort_transaction()
    assert (bench.state(1), bench.state(2)) == (RecordState.PROCESSING, RecordState.PENDING)
    assert look(rescuer, READINGS - 2) == 0
    assert rescuer.look() == 1


def test_a_record_without_room_for_its_end_holds_up_no_other(bench: Bench, rescuer: Rescuer) -> None:
    """B-28: it is given back, and the others are ended in the same reading."""
    bench.start({**FIRST, "_id": "full"})
    bench.start({**FIRST, "_id": "other"})
    room = 16 * 1024 * 1024 - len(bench.raw("full")) - 40
    bench.records.update_one({"_id": bench.key("full").id}, {"$set": {"lastObservedValues.v": "x" * room}})
    look(rescuer, READINGS)
    assert bench.state("other") is RecordState.PENDING
    record = bench.record("full")
    assert (record["status"], record["attempts"], record["_r"]["claim"]) == ("pending", 0, None)
