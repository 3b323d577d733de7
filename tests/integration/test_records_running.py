"""How a run ends, on the server: each outcome from each situation leads where the table of transitions says."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest
from bson import Decimal128

from celery_reactive.core import states
from celery_reactive.core.outcome import (
    Completed,
    Deferred,
    Errored,
    Exhausted,
    Failure,
    GivenBack,
    Outcome,
    Overtaken,
    Skipped,
)
from celery_reactive.core.record import Claim
from celery_reactive.core.states import RecordState, Transition
from celery_reactive.errors import LeaseLostError, StatementFailedError
from celery_reactive.store import records
from tests.integration.bench import TOOK, Bench, overtaken
from tests.integration.conftest import MakeBench

SOON = timedelta(seconds=5)
FAR = timedelta(days=365)
FIRST = {"_id": 1, "on": True, "v": "first"}
SECOND = {"_id": 1, "on": True, "v": "second"}


# --- the situations a run can be in when it ends ---------------------------------------------------


def undisturbed(bench: Bench) -> None:
    """Nothing came in."""


def changed(bench: Bench) -> None:
    """Other values were observed."""
    bench.plan(SECOND)


def retried(bench: Bench) -> None:
    """Somebody retried it by hand."""
    assert bench.retry(1) == 1


def touched(bench: Bench) -> None:
    """An event told of the document, whose values were the same when it was read."""
    bench.plan({**FIRST, "unwatched": 1})


def gone(bench: Bench) -> None:
    """The document was deleted."""
    assert bench.leave(1, at=bench.delete(1), gone=True) == 1


def left(bench: Bench) -> None:
    """The document left the filter."""
    bench.plan({**FIRST, "on": False})


def changed_and_left(bench: Bench) -> None:
    """Other values were observed, and then the document left the filter."""
    changed(bench)
    left(bench)


def left_and_returned(bench: Bench) -> None:
    """The document left the filter and matched again with the same values."""
    left(bench)
    bench.plan(FIRST)


def gone_and_retried(bench: Bench) -> None:
    """The document was deleted, and somebody retried the record by hand."""
    gone(bench)
    retried(bench)


Situation = Callable[[Bench], None]

WAITING: Mapping[Situation, bool] = {
    undisturbed: False,
    changed: True,
    retried: True,
    touched: False,
    gone: False,
    left: False,
    changed_and_left: True,
    left_and_returned: True,
    gone_and_retried: True,
}
OFF = {gone, left, changed_and_left}

OUTCOMES: Mapping[str, tuple[Transition, Callable[[Bench], Outcome]]] = {
    "completed": (states.COMPLETE, lambda _: Completed(TOOK)),
    "completed, document checked": (states.COMPLETE, lambda _: Completed(TOOK, document_checked=True)),
    "skipped": (states.SKIP, lambda _: Skipped("nothing to do", TOOK)),
    "failed": (states.RETRY, lambda _: Errored(Failure("broken", "ValueError"), TOOK, SOON)),
    "failed at last": (states.FAIL, lambda _: Exhausted(Failure("broken", "ValueError"), TOOK)),
    "deferred": (states.DEFER, lambda bench: Deferred(bench.now() + SOON)),
    "held": (states.DEFER, lambda bench: Deferred(bench.now() + SOON, hold=True)),
    "given back": (states.GIVE_BACK, lambda _: GivenBack()),
    "overtaken": (states.OVERTAKE, lambda _: overtaken({"v": "second"})),
}
REREADS_WHEN_TOUCHED = {"completed", "skipped"}

WALK = [
    pytest.param(situation, name, id=f"{name}, {situation.__name__}")
    for situation, name in itertools.product(WAITING, OUTCOMES)
]


@pytest.mark.parametrize(("situation", "name"), WALK)
def test_a_run_ends_where_the_table_says(bench: Bench, situation: Situation, name: str) -> None:
    """B-8, B-24 to B-27: each outcome from each situation, once, and the times that belong to the state reached."""
    transition, outcome = OUTCOMES[name]
    claim = bench.start(FIRST)
    situation(bench)
    before = bench.record(1)
    waiting = WAITING[situation] or (situation is touched and name in REREADS_WHEN_TOUCHED)
    expected = transition.target_from(RecordState(before["status"]), waiting=waiting, off=situation in OFF)
    settled = bench.settle(claim, outcome(bench))
    record = bench.record(1)
    assert record["status"] == expected
    assert (settled.state, settled.next_run_at) == (expected, record["nextRunAt"])
    assert record["_r"]["wakeAt"] == record["nextRunAt"]
    assert (record["nextRunAt"] is None) is (expected is not RecordState.PENDING)
    assert (record["completedAt"] is None) is (expected is not RecordState.COMPLETED)
    assert record["_r"]["claim"] is None
    assert record["_r"]["sent"] is False
    assert "end" not in record["_r"]
    assert "touched" not in record["_r"]
    with pytest.raises(LeaseLostError):
        bench.settle(claim, outcome(bench))
    assert bench.record(1) == record


def test_a_gone_record_that_would_have_run_again_says_so(bench: Bench) -> None:
    """B-8: the history keeps the failure, then the skip that no handler saw."""
    claim = bench.start(FIRST)
    gone(bench)
    bench.error(claim)
    assert [entry["status"] for entry in bench.record(1)["executionHistory"]] == ["failed", "skipped"]


def test_a_run_started_by_hand_and_given_back_is_still_asked_for(bench: Bench) -> None:
    """B-8: retried by hand while the document is gone, and not run after all, the record stays pending."""
    bench.handle(FIRST)
    gone(bench)
    bench.retry(1)
    for _ in range(2):
        (claim,) = bench.claim(1)
        bench.settle(claim, GivenBack())
        assert bench.state(1) is RecordState.PENDING
    (claim,) = bench.claim(1)
    assert bench.error(claim).state is RecordState.COMPLETED


# --- what an outcome writes -------------------------------------------------------------------------


def test_a_success_is_noted(bench: Bench) -> None:
    """B-24."""
    claim = bench.start(FIRST)
    bench.error(claim, retry_in=timedelta(0))
    (claim,) = bench.claim(1)
    bench.complete(claim)
    record = bench.record(1)
    success = record["lastSuccess"]
    assert success["at"] == record["completedAt"] == record["lastFinalizedAt"]
    assert success["durationMs"] == 12.0
    assert (record["firstErrorAt"], record["lastError"]) == (None, None)
    assert "error" not in record["_r"]
    assert record["executionHistory"][-1] == {"at": success["at"], "status": "completed", "durationMs": 12.0}


def test_a_failure_is_noted_and_the_first_one_remembered(bench: Bench) -> None:
    """B-25: `firstErrorAt` once, the newest message, type and traceback beside it, the wait of the policy."""
    claim = bench.start(FIRST)
    bench.error(claim, retry_in=timedelta(0), message="$first")
    first = bench.record(1)
    (claim,) = bench.claim(1)
    assert claim.attempt == 2
    assert claim.first_error_at == first["firstErrorAt"]
    bench.error(claim, retry_in=timedelta(seconds=30), message="second")
    record = bench.record(1)
    assert first["lastError"] == "$first"
    assert record["firstErrorAt"] == first["firstErrorAt"] == first["lastFinalizedAt"]
    assert record["lastError"] == "second"
    assert record["_r"]["error"] == {"type": "ValueError", "traceback": "traceback"}
    assert record["nextRunAt"] - record["lastFinalizedAt"] == timedelta(seconds=30)
    assert [entry["error"] for entry in record["executionHistory"]] == ["$first", "second"]
    assert record["attempts"] == 2


def test_a_failure_without_attempts_left_is_a_dead_letter(bench: Bench) -> None:
    """B-25: failed, with the error; `completedAt` is for successes."""
    bench.exhaust(bench.start(FIRST))
    record = bench.record(1)
    assert record["status"] == "failed"
    assert record["firstErrorAt"] == record["lastFinalizedAt"]
    assert record["completedAt"] is None
    assert bench.claim(1) == []


@pytest.mark.parametrize(("limit", "kept"), [(0, []), (1, ["c"]), (2, ["b", "c"]), (5, ["a", "b", "c"])])
def test_the_newest_entries_of_the_history_are_kept(make_bench: MakeBench, limit: int, kept: list[str]) -> None:
    """B-24: `execution_history_limit`; 0 keeps none."""
    bench = make_bench(execution_history_limit=limit)
    bench.plan(FIRST)
    for message in "abc":
        (claim,) = bench.claim(1)
        bench.error(claim, retry_in=timedelta(0), message=message)
    assert [entry["error"] for entry in bench.record(1)["executionHistory"]] == kept


@pytest.mark.parametrize("name", ["deferred", "given back", "overtaken"])
def test_what_is_no_attempt_leaves_the_attempts_as_they_were(bench: Bench, name: str) -> None:
    """B-25, B-28, B-33, B-34: no attempt, no history, no `lastFinalizedAt`."""
    bench.error(bench.start(FIRST), retry_in=timedelta(0))
    before = bench.record(1)
    (claim,) = bench.claim(1)
    bench.settle(claim, GivenBack() if name == "overtaken" else OUTCOMES[name][1](bench))
    record = bench.record(1)
    same = ("attempts", "firstErrorAt", "lastError", "lastFinalizedAt", "executionHistory", "dueAt")
    assert {field: record[field] for field in same} == {field: before[field] for field in same}


def test_an_unencodable_error_fails_to_be_written_and_the_claim_stands(bench: Bench) -> None:
    """B-29: what cannot be stored is told apart from a database that is away."""
    claim = bench.start(FIRST)
    with pytest.raises(StatementFailedError):
        bench.settle(claim, Errored(Failure("\ud800", "ValueError"), TOOK, SOON))
    assert bench.state(1) is RecordState.PROCESSING


# --- changes during the run -------------------------------------------------------------------------


@pytest.fixture
def slow(make_bench: MakeBench) -> Bench:
    """A bench whose task waits 10 s after a change, with a record that is due."""
    bench = make_bench(filter={"on": True}, watch_projection={"v": 1}, debounce="10s")
    bench.plan(FIRST)
    bench.make_due(1)
    return bench


@pytest.mark.parametrize("name", [name for name in OUTCOMES if name not in ("held", "overtaken")])
def test_a_changed_record_runs_again_when_its_quiet_time_is_over(slow: Bench, name: str) -> None:
    """B-26: at last change + debounce, whatever the outcome."""
    (claim,) = slow.claim(1)
    changed(slow)
    due = slow.record(1)["dueAt"]
    slow.settle(claim, OUTCOMES[name][1](slow))
    assert slow.record(1)["nextRunAt"] == due


@pytest.mark.parametrize("name", list(OUTCOMES))
def test_a_changed_record_whose_quiet_time_has_passed_runs_at_once(slow: Bench, name: str) -> None:
    """B-26: at max(now, last change + debounce); a held deferral and an overtaken run keep their own wait."""
    (claim,) = slow.claim(1)
    changed(slow)
    slow.records.update_one({}, [{"$set": {"dueAt": {"$subtract": ["$$NOW", 60_000]}}}])
    earliest = slow.now()
    slow.settle(claim, OUTCOMES[name][1](slow))
    wait = slow.record(1)["nextRunAt"] - earliest
    least = timedelta(seconds=4) if name in ("held", "overtaken") else timedelta(0)
    assert least <= wait < least + timedelta(seconds=7)


@pytest.mark.parametrize("name", list(OUTCOMES))
def test_a_record_made_dirty_by_hand_runs_at_once(slow: Bench, name: str) -> None:
    """B-26, B-52: a manual retry does not wait for the quiet time, also when the data changed as well."""
    (claim,) = slow.claim(1)
    changed(slow)
    retried(slow)
    slow.settle(claim, OUTCOMES[name][1](slow))
    assert slow.record(1)["nextRunAt"] <= slow.now()
    (again,) = slow.claim(1)
    assert again.token != claim.token


@pytest.mark.parametrize("name", ["failed", "failed at last", "deferred", "given back"])
def test_a_dirty_record_keeps_what_the_change_made_of_its_attempts(bench: Bench, name: str) -> None:
    """B-26: `attempts` and `firstErrorAt` as the change left them; history and `lastError` are written."""
    claim = bench.start(FIRST)
    changed(bench)
    bench.settle(claim, OUTCOMES[name][1](bench))
    record = bench.record(1)
    assert (record["attempts"], record["firstErrorAt"]) == (0, None)
    assert (record["lastError"], len(record["executionHistory"])) == (("broken", 1) if "failed" in name else (None, 0))
    (again,) = bench.claim(1)
    assert again.attempt == 1


def test_a_dirty_failure_keeps_the_sequence_that_a_change_does_not_reset(make_bench: MakeBench) -> None:
    """B-15, B-26: with `reset_retries_on_data_change` off the attempts of the sequence stay."""
    policy = {"type": "fixed", "interval": "10s", "reset_retries_on_data_change": False}
    bench = make_bench(filter={"on": True}, watch_projection={"v": 1}, retry_policy=policy)
    bench.error(bench.start(FIRST), retry_in=timedelta(0))
    first = bench.record(1)["firstErrorAt"]
    (claim,) = bench.claim(1)
    changed(bench)
    bench.exhaust(claim)
    record = bench.record(1)
    assert (record["status"], record["attempts"], record["firstErrorAt"]) == ("pending", 2, first)


def test_a_touched_run_that_read_the_document_is_over(bench: Bench) -> None:
    """B-13: the check of `get_document` came after the claim and saw these values."""
    claim = bench.start(FIRST)
    touched(bench)
    assert bench.complete(claim, document_checked=True).state is RecordState.COMPLETED


def test_a_touched_run_that_did_not_read_runs_once_more(bench: Bench) -> None:
    """B-10: A → B → A, and the handler read B by itself: A must have its run."""
    claim = bench.start(FIRST)
    bench.put(SECOND)
    bench.plan(FIRST)
    assert bench.complete(claim).state is RecordState.PENDING
    (again,) = bench.claim(1)
    assert bench.complete(again).state is RecordState.COMPLETED


# --- deferral, give-back, overtaken ---------------------------------------------------------------------


def test_a_deferral_runs_at_its_time(bench: Bench) -> None:
    """B-34."""
    claim = bench.start(FIRST)
    until = bench.now() + timedelta(hours=3)
    bench.settle(claim, Deferred(until))
    record = bench.record(1)
    assert record["nextRunAt"] == until
    assert (record["_r"]["deferrals"], claim.deferrals) == (1, 0)
    assert bench.claim(1) == []


def test_a_deferral_into_the_past_waits_a_second(bench: Bench) -> None:
    """B-34."""
    claim = bench.start(FIRST)
    before = bench.now()
    bench.settle(claim, Deferred(before - FAR))
    wait = bench.record(1)["nextRunAt"] - before
    assert timedelta(seconds=1) <= wait < timedelta(seconds=5)


def test_a_change_cuts_a_deferral_short_unless_it_is_held(bench: Bench) -> None:
    """B-34: `hold=True` keeps the time even if the data changes."""
    claim = bench.start(FIRST)
    until = bench.now() + timedelta(hours=3)
    bench.settle(claim, Deferred(until))
    changed(bench)
    assert bench.record(1)["nextRunAt"] < until
    (claim,) = bench.claim(1)
    bench.settle(claim, Deferred(until, hold=True))
    bench.plan(FIRST)
    record = bench.record(1)
    assert (record["nextRunAt"], record["lastObservedValues"]) == (until, {"v": "first"})


def test_a_held_deferral_keeps_its_time_when_the_data_changed_during_the_run(bench: Bench) -> None:
    """B-34."""
    claim = bench.start(FIRST)
    until = bench.now() + timedelta(hours=3)
    changed(bench)
    bench.settle(claim, Deferred(until, hold=True))
    assert bench.record(1)["nextRunAt"] == until


def test_deferrals_are_counted_since_the_last_change_or_success(bench: Bench) -> None:
    """B-31: `ctx.deferrals`."""
    counts = []
    claim = bench.start(FIRST)
    for _ in range(2):
        bench.settle(claim, Deferred(bench.now() - FAR))
        bench.make_due(1)
        (claim,) = bench.claim(1)
        counts.append(claim.deferrals)
    changed(bench)
    bench.complete(claim)
    (claim,) = bench.claim(1)
    counts.append(claim.deferrals)
    bench.settle(claim, Deferred(bench.now() - FAR))
    bench.make_due(1)
    (claim,) = bench.claim(1)
    bench.complete(claim)
    counts.append(bench.record(1)["_r"]["deferrals"])
    assert counts == [1, 2, 0, 0]


def test_a_record_given_back_alone_is_not_claimed_in_company(bench: Bench) -> None:
    """B-28: lost in the company of others, it runs again alone."""
    bench.plan(FIRST, {**FIRST, "_id": 2})
    claims = bench.claim(1, 2)
    bench.settle(claims[0], GivenBack(alone=True))
    bench.complete(claims[1])
    bench.plan({**SECOND, "_id": 2})
    assert [claim.key.doc_id for claim in bench.claim(1, 2)] == [2]
    (due,) = records.find_due(bench.records, bench.task.name, limit=10)
    assert (due.key.doc_id, due.alone) == (1, True)
    assert len(bench.claim(1)) == 1
    assert "alone" not in bench.record(1)["_r"]


def test_an_overtaken_run_leaves_the_newer_values_to_the_next(make_bench: MakeBench) -> None:
    """B-33: what was read is the new observation, pending at now + max(debounce, 1 s)."""
    bench = make_bench(filter={"on": True}, watch_projection={"v": 1}, debounce="5s")
    bench.plan(FIRST)
    bench.make_due(1)
    (claim,) = bench.claim(1)
    bench.put(SECOND)
    before = bench.now()
    bench.settle(claim, overtaken({"v": "second"}))
    record = bench.record(1)
    assert record["lastObservedValues"] == {"v": "second"}
    assert timedelta(seconds=5) <= record["nextRunAt"] - before < timedelta(seconds=9)
    assert (record["dueAt"], record["updatedAt"] >= before) == (record["nextRunAt"], True)
    assert record["_r"]["at"] >= claim.cluster_time
    assert record["_r"]["changedAt"] is not None


def test_the_event_of_an_overtaking_change_changes_nothing_more(bench: Bench) -> None:
    """B-33: the planner finds the values that the worker wrote."""
    claim = bench.start(FIRST)
    bench.put(SECOND)
    bench.settle(claim, overtaken({"v": "second"}))
    before = bench.record(1)
    bench.observe(1)
    record = bench.record(1)
    assert record["_r"].pop("at") > before["_r"].pop("at")
    assert record == before


def test_an_overtaking_change_starts_the_attempts_anew(make_bench: MakeBench) -> None:
    """B-15, B-33: the newer values are a change, whoever saw them first."""
    for resets, expected in ((True, (0, None, None)), (False, (1, "kept", "broken"))):
        policy = {"type": "fixed", "interval": "10s", "reset_retries_on_data_change": resets}
        bench = make_bench(f"resets.{resets}", filter={"on": True}, watch_projection={"v": 1}, retry_policy=policy)
        bench.error(bench.start(FIRST), retry_in=timedelta(0))
        (claim,) = bench.claim(1)
        bench.put(SECOND)
        bench.settle(claim, overtaken({"v": "second"}))
        record = bench.record(1)
        first_error = record["firstErrorAt"] and "kept"
        assert (record["attempts"], first_error, record["lastError"]) == expected


@pytest.mark.parametrize("value", ["$$NOW", {"$literal": 1}, {"a.b": {"$v": [1]}}, None], ids=repr)
def test_overtaking_values_are_data(bench: Bench, value: Any) -> None:
    """B-19."""
    claim = bench.start(FIRST)
    bench.put({**FIRST, "v": value})
    bench.settle(claim, overtaken({"v": value}))
    assert bench.record(1)["lastObservedValues"] == {"v": value}


# --- seen by the worker -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["gone", "left"])
def test_what_the_worker_saw_marks_the_record(bench: Bench, flag: str) -> None:
    """B-8, B-32: a document found absent when it was read; it runs when it matches again."""
    claim = bench.start(FIRST)
    bench.put({**FIRST, "on": False})
    bench.settle(claim, Skipped("not there", TOOK, gone=flag == "gone", left=flag == "left"))
    assert bench.record(1)["_r"][flag] is True
    bench.plan(FIRST)
    record = bench.record(1)
    assert (record["status"], flag in record["_r"]) == ("pending", False)


def test_what_the_worker_saw_does_not_undo_a_newer_observation(bench: Bench) -> None:
    """B-8: it was gone when it was read, and is back by an observation after that."""
    claim = bench.start(FIRST)
    left_and_returned(bench)
    bench.settle(claim, Skipped("gone", TOOK, gone=True))
    record = bench.record(1)
    assert (record["status"], "gone" in record["_r"]) == ("pending", False)


# --- claims -------------------------------------------------------------------------------------------------


def test_a_claim_is_the_right_to_run_once(bench: Bench) -> None:
    """B-23: token, attempt, fence, lease; a second claim finds nothing."""
    claim = bench.start(FIRST)
    record = bench.record(1)
    assert record["status"] == "processing"
    assert record["_r"]["claim"]["token"] == claim.token
    assert (claim.attempt, record["attempts"]) == (1, 1)
    assert claim.fence == record["_r"]["fence"]
    assert record["startedAt"] == claim.started_at
    assert record["nextRunAt"] - claim.started_at == timedelta(seconds=60)
    assert dict(claim.observed["v"]) == {"v": "first"}
    assert bench.claim(1) == []


def test_claims_come_in_the_order_of_their_keys(bench: Bench) -> None:
    """B-22: several records in one statement; what is not due is not among them."""
    ids = [3, "a", 1, None, 2.5]
    bench.plan(*({**FIRST, "_id": doc_id} for doc_id in ids))
    assert [claim.key.doc_id for claim in bench.claim(*ids, "unknown")] == ids
    assert bench.claim(*ids) == []


def test_the_fence_only_grows_also_across_a_removed_record(bench: Bench) -> None:
    """B-27."""
    fences = []
    for _ in range(3):
        claim = bench.start(FIRST)
        fences.append(claim.fence)
        bench.settle(claim, GivenBack())
        (claim,) = bench.claim(1)
        fences.append(claim.fence)
        bench.records.delete_many({})
    assert fences == sorted(set(fences))
    assert all(fence < 2**63 for fence in fences)


def test_a_celery_id_lasts_through_a_chain_of_attempts(bench: Bench) -> None:
    """B-56: one row through retries, deferrals and give-backs; a new one after a final state and a manual retry."""

    def next_cycle(claim: Claim, outcome: Outcome) -> Claim:
        bench.settle(claim, outcome)
        bench.make_due(1)
        (claim,) = bench.claim(1)
        return claim

    claim = bench.start(FIRST)
    cycles = [claim.cycle]
    for name in ("failed", "deferred", "given back"):
        claim = next_cycle(claim, OUTCOMES[name][1](bench))
        cycles.append(claim.cycle)
    changed(bench)
    claim = next_cycle(claim, Completed(TOOK))
    cycles.append(claim.cycle)
    retried(bench)
    claim = next_cycle(claim, Errored(Failure("broken", "ValueError"), TOOK, SOON))
    cycles.append(claim.cycle)
    bench.complete(claim)
    bench.plan(FIRST)
    (claim,) = bench.claim(1)
    cycles.append(claim.cycle)
    assert cycles == [0, 0, 0, 0, 1, 2, 3]


def test_a_renewal_keeps_what_is_owned_and_tells_what_is_not(bench: Bench) -> None:
    """B-23, B-27: one statement for many; the heartbeat moves and the lease's end with it."""
    bench.plan(FIRST, {**FIRST, "_id": 2})
    first, second = bench.claim(1, 2)
    bench.complete(second)
    owned = records.renew(bench.records, [first.key, second.key], first.token, timedelta(seconds=90))
    assert owned == {first.key.exact}
    record = bench.record(1)
    assert record["_r"]["claim"]["beats"] == 1
    assert record["nextRunAt"] - record["startedAt"] >= timedelta(seconds=90)
    assert record["_r"]["wakeAt"] - record["startedAt"] == timedelta(seconds=60)


def test_a_stranger_with_the_token_ends_the_run(bench: Bench) -> None:
    """B-28: the worker's parent knows key and token only."""
    claim = bench.start(FIRST)
    outcome = Errored(Failure("killed", "WorkerLostError"), TOOK, SOON)
    with pytest.raises(LeaseLostError):
        records.settle_by_token(bench.records, bench.task, claim.key, "another", outcome)
    settled = records.settle_by_token(bench.records, bench.task, claim.key, claim.token, outcome)
    assert settled.state is RecordState.PENDING


def test_a_completion_inside_a_transaction_is_rolled_back_with_it(bench: Bench) -> None:
    """B-36: the statement goes through the caller's session."""
    claim = bench.start(FIRST)
    with bench.connection.client.start_session() as session, session.start_transaction():
        records.settle(bench.records, bench.task, claim, Completed(TOOK), session=session)
        session.abort_transaction()
    assert bench.state(1) is RecordState.PROCESSING
    with bench.connection.client.start_session() as session, session.start_transaction():
        records.settle(bench.records, bench.task, claim, Completed(TOOK), session=session)
    assert bench.state(1) is RecordState.COMPLETED


def test_outcomes_are_all_walked() -> None:
    """B-24 to B-28: no kind of outcome is left out above."""
    walked = {Completed, Skipped, Errored, Exhausted, Deferred, GivenBack, Overtaken}
    assert walked == set(Outcome.__args__)


# --- several runs of one message ---------------------------------------------------------------------------


def settle_together(bench: Bench, claims: list[Claim]) -> dict[bytes, records.Settled]:
    """End runs in success that took 1, 2, 3 … milliseconds."""
    durations = [timedelta(milliseconds=number) for number, _ in enumerate(claims, start=1)]
    return records.settle_together(bench.records, bench.task, claims, Completed(TOOK), durations=durations)


def test_runs_of_one_message_end_in_one_statement(bench: Bench) -> None:
    """B-19, B-24: each with its own duration, whatever the ids of its document looks like."""
    doc_ids: list[Any] = [0, "", "$v", {"a.b": "$$NOW"}, {"b": {"c": 1}}, None, True, 1.5, b"x", Decimal128("2")]
    bench.plan(*({"_id": doc_id, "on": True, "v": "first"} for doc_id in doc_ids))
    settled = settle_together(bench, bench.claim(*doc_ids))
    for number, doc_id in enumerate(doc_ids, start=1):
        record = bench.record(doc_id)
        assert settled[bench.key(doc_id).exact] == records.Settled(RecordState.COMPLETED, None)
        assert record["status"] == "completed"
        assert record["lastSuccess"]["durationMs"] == number
        assert record["executionHistory"][-1]["durationMs"] == number


def test_one_of_several_whose_document_has_changed_runs_again(bench: Bench) -> None:
    """B-26: the others complete."""
    bench.plan(*({"_id": doc_id, "on": True, "v": "first"} for doc_id in (1, 2)))
    claims = bench.claim(1, 2)
    bench.plan({"_id": 2, "on": True, "v": "second"})
    settled = settle_together(bench, claims)
    assert settled[bench.key(1).exact].state is RecordState.COMPLETED
    assert settled[bench.key(2).exact].state is RecordState.PENDING
    assert (bench.state(1), bench.state(2)) == (RecordState.COMPLETED, RecordState.PENDING)


def test_one_of_several_that_somebody_else_runs_is_left_to_them(bench: Bench) -> None:
    """B-27: a process frozen past its lease ends only what it still owns."""
    bench.plan(*({"_id": doc_id, "on": True, "v": "first"} for doc_id in (1, 2)))
    first = bench.claim(1, 2)
    bench.settle(first[1], GivenBack())
    bench.claim(2)
    before = bench.raw(2)
    settle_together(bench, first)
    assert (bench.state(1), bench.raw(2)) == (RecordState.COMPLETED, before)


def test_a_token_that_owns_nothing_ends_nothing(bench: Bench) -> None:
    """B-27: and says so."""
    bench.plan(*({"_id": doc_id, "on": True, "v": "first"} for doc_id in (1, 2)))
    strangers = [dataclasses.replace(claim, token=f"not {claim.token}") for claim in bench.claim(1, 2)]
    assert settle_together(bench, strangers) == {}
    assert (bench.state(1), bench.state(2)) == (RecordState.PROCESSING, RecordState.PROCESSING)


def test_several_runs_end_only_from_the_states_of_a_run(bench: Bench) -> None:
    """B-21: the table of transitions, as for one."""
    bench.plan(*({"_id": doc_id, "on": True, "v": "first"} for doc_id in (1, 2)))
    claims = bench.claim(1, 2)
    bench.records.update_one({"_id": bench.key(2).id}, {"$set": {"status": "failed"}})
    assert settle_together(bench, claims).keys() == {bench.key(1).exact}
    assert bench.state(2) is RecordState.FAILED


def test_different_ends_are_written_only_from_the_states_of_a_run(bench: Bench) -> None:
    """B-21, B-60: each record as if it were ended alone."""
    bench.plan(*({"_id": doc_id, "on": True, "v": "first"} for doc_id in (1, 2)))
    claims = bench.claim(1, 2)
    bench.records.update_one({"_id": bench.key(2).id}, {"$set": {"status": "failed"}})
    ended = records.settle_each(bench.records, bench.task, claims, [GivenBack(), GivenBack()])
    assert ended.keys() == {bench.key(1).exact}
    assert bench.state(2) is RecordState.FAILED


def test_several_ends_written_twice_are_as_written_once(bench: Bench) -> None:
    """B-29: the answer was lost; the second time finds its own marks and changes nothing."""
    bench.plan(*({"_id": doc_id, "on": True, "v": "first"} for doc_id in (1, 2)))
    claims = bench.claim(1, 2)
    once = settle_together(bench, claims)
    before = [bench.raw(1), bench.raw(2)]
    assert settle_together(bench, claims) == once
    assert [bench.raw(1), bench.raw(2)] == before


def test_several_are_given_back_in_one_statement(bench: Bench) -> None:
    """B-28: attempts as before the run."""
    bench.plan(*({"_id": doc_id, "on": True, "v": "first"} for doc_id in (1, 2)))
    claims = bench.claim(1, 2)
    records.settle_together(bench.records, bench.task, claims, GivenBack())
    assert [(bench.record(one)["status"], bench.record(one)["attempts"]) for one in (1, 2)] == [("pending", 0)] * 2
