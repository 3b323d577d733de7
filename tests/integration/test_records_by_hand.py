"""What operators do to records: retry, discard, revoke (B-40, B-52)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from celery_reactive.core import states
from celery_reactive.core.outcome import Failure
from celery_reactive.core.states import RecordState, Transition
from celery_reactive.store import records
from tests.integration.bench import Bench

FIRST = {"_id": 1, "on": True, "v": "first"}
SECOND = {"_id": 1, "on": True, "v": "second"}
HOUR = timedelta(hours=1)


def bring(bench: Bench, state: RecordState) -> None:
    """Bring the record to *state*; pending: backing off."""
    claim = bench.start(FIRST)
    match state:
        case RecordState.PENDING:
            bench.error(claim, retry_in=HOUR)
        case RecordState.PROCESSING:
            pass
        case RecordState.PROCESSING_DIRTY:
            bench.plan(SECOND)
        case RecordState.COMPLETED:
            bench.complete(claim)
        case RecordState.FAILED:
            bench.exhaust(claim)


def revoke(bench: Bench) -> int:
    """Revoke the record as `celery.control.revoke` does."""
    return records.revoke(bench.records, bench.task, bench.key(1), Failure("revoked", "TaskRevokedError"))


HANDS = {
    states.RETRY_BY_HAND: lambda bench: bench.retry(1),
    states.DISCARD: lambda bench: bench.discard(1),
    states.REVOKE: revoke,
}


@pytest.mark.parametrize("state", RecordState)
@pytest.mark.parametrize("transition", HANDS, ids=lambda transition: transition.name)
def test_a_hand_moves_a_record_as_the_table_says(bench: Bench, transition: Transition, state: RecordState) -> None:
    """B-40, B-52: from each state, or not at all."""
    bring(bench, state)
    before = bench.raw(1)
    expected = transition.target_from(state)
    changed = HANDS[transition](bench)
    if expected is None:
        assert (changed, bench.raw(1)) == (0, before)
        return
    record = bench.record(1)
    assert (changed, record["status"]) == (1, expected)
    if expected not in states.RUNNING:
        assert record["_r"]["wakeAt"] == record["nextRunAt"]
        assert (record["nextRunAt"] is None) is (expected is not RecordState.PENDING)


@pytest.mark.parametrize("state", [RecordState.PENDING, RecordState.FAILED])
def test_a_retry_keeps_attempts_and_error(bench: Bench, state: RecordState) -> None:
    """B-52: so a record out of attempts gets one more; its Celery id is a new one."""
    bring(bench, state)
    before = bench.record(1)
    bench.retry(1)
    record = bench.record(1)
    kept = ("attempts", "dueAt", "lastError", "firstErrorAt", "executionHistory", "updatedAt")
    assert {field: record[field] for field in kept} == {field: before[field] for field in kept}
    assert record["nextRunAt"] <= bench.now()
    (claim,) = bench.claim(1)
    assert (claim.attempt, claim.cycle) == (2, before["_r"]["cycle"] + 1)


def test_a_retry_of_a_success_starts_from_the_first_attempt(bench: Bench) -> None:
    """B-15, B-52: after a completed run the next one starts from nothing."""
    bring(bench, RecordState.COMPLETED)
    bench.retry(1)
    (claim,) = bench.claim(1)
    assert claim.attempt == 1


def test_a_retry_during_a_run_leaves_the_run_alone(bench: Bench) -> None:
    """B-52: dirty, the lease untouched; it runs again at once after, also when it fails at last."""
    claim = bench.start(FIRST)
    before = bench.record(1)
    bench.retry(1)
    record = bench.record(1)
    assert record["nextRunAt"] == before["nextRunAt"]
    assert record["_r"]["claim"] == before["_r"]["claim"]
    assert bench.exhaust(claim).state is RecordState.PENDING
    (again,) = bench.claim(1)
    assert bench.complete(again).state is RecordState.COMPLETED


def test_a_retry_runs_for_a_document_that_is_off(bench: Bench) -> None:
    """B-8, B-52: somebody wants it; when that run is over, nothing runs for it."""
    bench.handle(FIRST)
    bench.plan({**FIRST, "on": False})
    bench.retry(1)
    (claim,) = bench.claim(1)
    assert bench.complete(claim).state is RecordState.COMPLETED


def test_a_leave_does_not_take_a_retry_back(bench: Bench) -> None:
    """B-8: unless it was retried by hand."""
    bench.handle(FIRST)
    bench.retry(1)
    bench.plan({**FIRST, "on": False})
    assert bench.state(1) is RecordState.PENDING


def test_a_retry_ends_a_held_deferral(bench: Bench) -> None:
    """B-34, B-52: now is now, and a later change is not held back."""
    bench.plan(FIRST)
    bench.records.update_one({}, [{"$set": {"_r.held": True, "nextRunAt": {"$add": ["$$NOW", 3_600_000]}}}])
    bench.retry(1)
    assert "held" not in bench.record(1)["_r"]
    assert len(bench.claim(1)) == 1


def test_a_discarded_record_rests_until_the_next_change(bench: Bench) -> None:
    """B-52: completed with an entry `discarded`; the next change runs it from the first attempt."""
    bring(bench, RecordState.FAILED)
    bench.discard(1)
    record = bench.record(1)
    assert [entry["status"] for entry in record["executionHistory"]] == ["failed", "discarded"]
    assert record["completedAt"] == record["executionHistory"][-1]["at"]
    assert bench.claim(1) == []
    bench.plan(SECOND)
    (claim,) = bench.claim(1)
    assert claim.attempt == 1


def test_many_records_at_once_and_only_those_named(bench: Bench) -> None:
    """B-52: what is counted is what was changed."""
    bench.plan(*({**FIRST, "_id": doc_id} for doc_id in range(5)))
    for claim in bench.claim(*range(5)):
        bench.exhaust(claim)
    assert bench.retry(0, 1, 2, "unknown") == 3
    assert bench.discard(1, 3, "unknown") == 2
    assert [bench.state(doc_id).value for doc_id in range(5)] == [
        "pending",
        "completed",
        "pending",
        "completed",
        "failed",
    ]
