"""What each guard of the protocol is for: a history that loses something, or runs twice, without it.

One test per row of the protocol. Each names the guard that it needs; taken out of the statement, the test fails.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from bson import Timestamp

from celery_reactive.core.outcome import Completed, Errored, Failure, GivenBack
from celery_reactive.core.record import Lease
from celery_reactive.core.states import RecordState
from celery_reactive.errors import LeaseLostError, TermEndedError
from celery_reactive.store import definitions, leadership, positions, records
from celery_reactive.store.leadership import Lock
from celery_reactive.store.positions import Position
from tests.integration.bench import LEASE, TOOK, Bench, overtaken
from tests.integration.conftest import MakeBench, MakeDesk

A = {"_id": 1, "on": True, "v": "a"}
B = {"_id": 1, "on": True, "v": "b"}
OFF = {"_id": 1, "on": False, "v": "a"}
PENDING, PROCESSING, DIRTY, COMPLETED, FAILED = RecordState


def lease_of(bench: Bench) -> Lease:
    """Return the one running record as the rescuer reads it."""
    (lease,) = records.running(bench.records, bench.task.name)
    return lease


def test_an_older_observation_does_not_overwrite_a_newer_one(bench: Bench) -> None:
    """B-10: plan's `at >=`: a paused old leader's late write would bring back values nobody handles again."""
    old = bench.put(A)
    bench.handle(B)
    bench.source.replace_one({"_id": 1}, A)  # what the paused leader read, played by hand
    bench.observe(1, at=old)
    assert bench.record(1)["lastObservedValues"] == {"v": "b"}
    assert bench.state(1) is COMPLETED


def test_an_observation_of_an_older_generation_is_refused(bench: Bench) -> None:
    """B-43: plan's `gen >=`: during a deployment the old definition would undo the new one's observations."""
    bench.generation = 2
    bench.handle(A)
    bench.generation = 1
    bench.plan(B)
    assert bench.record(1)["_r"]["gen"] == 2
    assert bench.state(1) is COMPLETED


def test_a_change_during_a_run_is_run_again(bench: Bench) -> None:
    """B-14: plan makes a running record dirty: completed over it, the change is lost."""
    claim = bench.start(A)
    bench.plan(B)
    assert bench.state(1) is DIRTY
    assert bench.complete(claim).state is PENDING


def test_a_change_there_and_back_during_a_run_is_not_lost(bench: Bench) -> None:
    """B-14: `touched`: the handler may have read B of A, B, A, and the record shows A all along."""
    claim = bench.start(A)
    bench.put(B)
    bench.plan(A)
    assert bench.complete(claim).state is PENDING


def test_a_checked_read_needs_no_second_run_for_the_same_values(bench: Bench) -> None:
    """B-32: `touched` with a passed check is complete: what was read is what is there."""
    claim = bench.start(A)
    bench.put(B)
    bench.plan(A)
    assert bench.complete(claim, document_checked=True).state is COMPLETED


def test_a_change_between_checked_read_and_end_is_not_lost(bench: Bench) -> None:
    """B-26: dirty sends the record round again whatever the run read."""
    claim = bench.start(A)
    bench.plan(B)
    assert bench.complete(claim, document_checked=True).state is PENDING


def test_a_deletion_never_releases_a_running_record(bench: Bench) -> None:
    """B-23: leave keeps the claim: a re-insert would start a second worker beside the first."""
    claim = bench.start(A)
    bench.leave(1, at=bench.delete(1), gone=True)
    bench.plan(A)
    bench.make_due(1)
    assert bench.claim(1) == []
    assert bench.complete(claim).state is PENDING


def test_leaving_the_filter_does_not_undo_an_observation_of_the_same_time(bench: Bench) -> None:
    """B-8: leave's `at <`: after the observation with the same time only what did not match has left."""
    at = bench.put(A)
    bench.observe(1, at=at)
    assert bench.leave(1, at=at) == 0
    assert bench.state(1) is PENDING


def test_an_old_leaders_leave_does_not_skip_a_newer_change(bench: Bench) -> None:
    """B-46: leave's `at <`: a paused leader that saw the document gone would complete the re-inserted one unrun."""
    bench.plan(A)
    old = bench.delete(1)
    bench.plan(A)
    assert bench.leave(1, at=old, gone=True) == 0
    assert bench.state(1) is PENDING


def test_a_document_that_left_and_came_back_runs(bench: Bench) -> None:
    """B-8: the mark `left`: with the same values it would count as no change."""
    bench.handle(A)
    bench.plan(OFF)
    bench.plan(A)
    assert bench.state(1) is PENDING


def test_a_deletion_and_reinsertion_in_one_batch_runs(bench: Bench, make_desk: MakeDesk) -> None:
    """B-18: deletes are applied before what follows them: the other way round the new document counts as handled."""
    bench.handle(A)
    desk = make_desk(bench)
    desk.plan(desk.deleted(1), desk.written(1, inserted=True))
    assert bench.state(1) is PENDING


def test_a_skip_in_the_worker_is_remembered(bench: Bench) -> None:
    """B-32: the worker marks what it saw: a leave and return the planner sees as one would never run."""
    from celery_reactive.core.outcome import Skipped  # noqa: PLC0415 -- only here

    claim = bench.start(A)
    bench.settle(claim, Skipped("left", TOOK, left=True))
    bench.plan(A)
    assert bench.state(1) is PENDING


def test_two_deliveries_of_a_message_give_one_claim(bench: Bench) -> None:
    """B-22: claim's `pending`: a doubled message would run the record twice at once."""
    bench.start(A)
    assert bench.claim(1) == []


def test_a_record_is_not_claimed_before_its_time(make_bench: MakeBench) -> None:
    """B-22: claim's `nextRunAt <= $$NOW`: a stale message would cut a back-off or a debounce short."""
    bench = make_bench(debounce="1h")
    bench.plan(A)
    assert bench.claim(1) == []


def test_a_record_without_a_wake_up_time_is_not_claimed(bench: Bench) -> None:
    """B-22: claim's `wakeAt`: what the planner has put to rest must stay there."""
    bench.plan(A)
    bench.records.update_one({}, {"$set": {"_r.wakeAt": None}})
    assert bench.claim(1) == []


def test_a_record_that_must_run_alone_is_not_claimed_in_company(bench: Bench) -> None:
    """B-28: claim's `alone`: a handler that kills its process would take its neighbours with it again."""
    claim = bench.start(A)
    bench.settle(claim, GivenBack(alone=True))
    bench.plan({**A, "_id": 2})
    assert [won.key.doc_id for won in bench.claim(1, 2)] == [2]
    assert len(bench.claim(1)) == 1


def test_an_end_without_the_claim_writes_nothing(bench: Bench) -> None:
    """B-27: settle's token: the first worker, frozen past its lease, would complete the second one's run."""
    first = bench.start(A)
    bench.settle(first, GivenBack())
    (second,) = bench.claim(1)
    before = bench.raw(1)
    with pytest.raises(LeaseLostError):
        bench.complete(first)
    assert bench.raw(1) == before
    assert bench.complete(second).state is COMPLETED


def test_a_renewal_without_the_claim_renews_nothing(bench: Bench) -> None:
    """B-27: renew's token: a frozen worker would keep another one's dead run alive."""
    first = bench.start(A)
    bench.settle(first, GivenBack())
    bench.claim(1)
    assert records.renew(bench.records, [first.key], first.token, timedelta(seconds=60)) == set()
    assert lease_of(bench).beats == 0


def test_a_fence_grows_with_each_claim_and_across_removal(bench: Bench) -> None:
    """B-27: a fence that starts anew with a new record would let an old run overwrite a newer one's result."""
    claim = bench.start(A)
    bench.settle(claim, GivenBack())
    (again,) = bench.claim(1)
    bench.records.delete_many({})
    assert claim.fence < again.fence < bench.start(B).fence


def test_a_run_whose_heart_beats_is_not_rescued(bench: Bench) -> None:
    """B-28: rescue's `beats`: a worker that renewed after the reading would lose a live lease."""
    claim = bench.start(A)
    seen = lease_of(bench)
    records.renew(bench.records, [claim.key], claim.token, timedelta(seconds=60))
    with pytest.raises(LeaseLostError):
        records.rescue(bench.records, bench.task, seen, GivenBack())
    assert bench.complete(claim).state is COMPLETED


def test_a_finished_run_is_not_rescued(bench: Bench) -> None:
    """B-28: rescue's token: the verdict on a run must not fall on the next one."""
    claim = bench.start(A)
    seen = lease_of(bench)
    bench.settle(claim, GivenBack())
    (again,) = bench.claim(1)
    with pytest.raises(LeaseLostError):
        records.rescue(bench.records, bench.task, seen, Errored(Failure("lost", "X"), TOOK, TOOK))
    assert bench.complete(again).state is COMPLETED


def test_a_claimed_record_is_not_marked_as_sent(bench: Bench) -> None:
    """B-21: mark_sent's `pending`: it would move the wake-up time of a run and hide it from the rescuer."""
    claim = bench.start(A)
    bench.records.update_one({}, [{"$set": {"_r.wakeAt": {"$subtract": ["$$NOW", 1]}}}])
    hour = timedelta(hours=1)
    assert records.mark_sent(bench.records, [claim.key], first_deadline=hour, longest_deadline=hour) == 0


def test_an_overtaken_read_does_not_hide_what_the_planner_has_seen_since(bench: Bench) -> None:
    """B-33: the worker's observation carries the claim's time: it must not undo a newer one."""
    claim = bench.start(A)
    bench.plan(B)
    assert bench.settle(claim, overtaken({"v": "between"})).state is PENDING
    assert bench.record(1)["lastObservedValues"] == {"v": "b"}


def test_an_overtaken_read_is_run_again_even_if_the_planner_sees_nothing_new(bench: Bench) -> None:
    """B-33: the values read become the observation and the record is pending, attempts as before."""
    claim = bench.start(A)
    assert bench.settle(claim, overtaken({"v": "b"})).state is PENDING
    bench.plan(B)
    record = bench.record(1)
    assert (record["lastObservedValues"], record["attempts"]) == ({"v": "b"}, 0)


def test_a_retry_by_hand_during_a_run_runs_again(bench: Bench) -> None:
    """B-52: `forced`: a retry while it runs would be swallowed by the run's end."""
    claim = bench.start(A)
    assert bench.retry(1) == 1
    assert bench.complete(claim, document_checked=True).state is PENDING
    assert len(bench.claim(1)) == 1


def test_a_leader_of_an_older_term_stores_no_position(bench: Bench) -> None:
    """B-46: the position's term: an old leader would move the stream back or over what it never planned."""
    globals_ = bench.connection.globals()
    position = Position({"_data": "82"}, Timestamp(5, 1), None, frozenset())
    positions.store(globals_, "g", "db", position, term=2)
    with pytest.raises(TermEndedError):
        positions.store(globals_, "g", "db", position, term=1)


def test_a_leader_of_an_older_term_stores_no_definition(bench: Bench) -> None:
    """B-43: the definition's term: while two versions are deployed, the older leader would take it back."""
    globals_ = bench.connection.globals()
    definitions.define(globals_, bench.task, namespace="db.orders", collated=False, term=2)
    with pytest.raises(TermEndedError):
        definitions.mark_reconciled(globals_, bench.task.name, generation=1, needs=0, term=1)


def test_only_one_of_two_candidates_is_elected(bench: Bench) -> None:
    """B-46: acquire's seen lock: both saw it free, and both would plan in the same term."""
    globals_ = bench.connection.globals()
    seen = leadership.read(globals_, "g")
    assert leadership.acquire(globals_, "g", "one", seen) == 1
    assert leadership.acquire(globals_, "g", "two", Lock(None, 0, 0)) is None


def test_a_leader_that_renewed_is_not_replaced(bench: Bench) -> None:
    """B-46: acquire's `beats`: the heartbeat that came after the candidate's last look counts."""
    globals_ = bench.connection.globals()
    leadership.acquire(globals_, "g", "one", leadership.read(globals_, "g"))
    seen = leadership.read(globals_, "g")
    assert leadership.renew(globals_, "g", "one", 1)
    assert leadership.acquire(globals_, "g", "two", seen) is None


def test_a_lock_that_its_holder_has_taken_anew_is_not_the_one_that_was_seen(bench: Bench) -> None:
    """B-46: acquire's `term`: the same planner with a heartbeat count of nought once more lives, and leads."""
    globals_ = bench.connection.globals()
    leadership.acquire(globals_, "g", "one", leadership.read(globals_, "g"))
    seen = leadership.read(globals_, "g")
    leadership.release(globals_, "g", "one", 1)
    assert leadership.acquire(globals_, "g", "one", leadership.read(globals_, "g")) == 2
    assert leadership.acquire(globals_, "g", "two", seen) is None


def test_a_lock_that_was_handed_over_is_no_longer_held(bench: Bench) -> None:
    """B-46: renew's and release's `holder`: what was freed is nobody's, whose term it was included."""
    globals_ = bench.connection.globals()
    leadership.acquire(globals_, "g", "one", leadership.read(globals_, "g"))
    assert leadership.release(globals_, "g", "one", 1)
    assert not leadership.renew(globals_, "g", "one", 1)
    assert not leadership.release(globals_, "g", "one", 1)


def test_a_term_that_is_over_is_not_renewed_nor_handed_over(bench: Bench) -> None:
    """B-46: renew's and release's `term`: also where the same planner leads again."""
    globals_ = bench.connection.globals()
    leadership.acquire(globals_, "g", "one", leadership.read(globals_, "g"))
    leadership.acquire(globals_, "g", "one", leadership.read(globals_, "g"))
    assert not leadership.renew(globals_, "g", "one", 1)
    assert not leadership.release(globals_, "g", "one", 1)
    assert leadership.renew(globals_, "g", "one", 2)


def test_a_replaced_leader_cannot_renew_or_free_the_lock(bench: Bench) -> None:
    """B-46: renew's term: a paused leader that wakes up finds out before it does anything."""
    globals_ = bench.connection.globals()
    leadership.acquire(globals_, "g", "one", leadership.read(globals_, "g"))
    leadership.acquire(globals_, "g", "two", leadership.read(globals_, "g"))
    assert not leadership.renew(globals_, "g", "one", 1)
    assert not leadership.release(globals_, "g", "one", 1)
    assert leadership.read(globals_, "g").holder == "two"


def test_statements_done_twice_do_what_they_do_once(bench: Bench) -> None:
    """B-47: a batch planned again, with a claim and a completion in between, runs nothing again."""
    at = bench.put(A)
    bench.observe(1, at=at)
    (claim,) = bench.claim(1)
    bench.complete(claim)
    before = bench.raw(1)
    bench.observe(1, at=at)
    bench.leave(1, at=at)
    assert bench.raw(1) == before
    gone = bench.delete(1)
    bench.leave(1, at=gone, gone=True)
    bench.put(A)
    bench.observe(1, at=gone)
    (claim,) = bench.claim(1)
    bench.settle(claim, Completed(TOOK))
    before = bench.raw(1)
    bench.leave(1, at=gone, gone=True)
    bench.observe(1, at=gone)
    assert bench.raw(1) == before


def test_what_a_run_saw_under_an_earlier_definition_overwrites_no_newer_snapshot(bench: Bench) -> None:
    """B-33, B-43: settle's generation: the record was given its snapshot under the new projection meanwhile."""
    claim = bench.start({"_id": 1, "on": True, "v": "first"})
    adopted = {"_r.gen": 7, "lastObservedValues": {"v": "first", "w": "other"}}
    bench.records.update_one({}, {"$set": adopted})
    assert bench.settle(claim, overtaken({"v": "second"}, generation=1)).state is RecordState.PENDING
    record = bench.record(1)
    assert (record["lastObservedValues"], record["_r"]["gen"]) == ({"v": "first", "w": "other"}, 7)


def test_what_does_not_run_is_not_ended(bench: Bench) -> None:
    """B-27: settle's state: a record that is at rest stays as it is, whatever its books say of a claim."""
    claim = bench.start({"_id": 1, "on": True, "v": "first"})
    bench.records.update_one({}, {"$set": {"status": "failed"}})
    before = bench.raw(1)
    with pytest.raises(LeaseLostError):
        bench.complete(claim)
    assert bench.raw(1) == before


def test_what_does_not_run_is_not_renewed(bench: Bench) -> None:
    """B-27: renew's state: a record that is at rest has no lease, whatever its books say of a claim."""
    claim = bench.start({"_id": 1, "on": True, "v": "first"})
    bench.records.update_one({}, {"$set": {"status": "failed"}})
    before = bench.raw(1)
    assert records.renew(bench.records, [claim.key], claim.token, LEASE) == set()
    assert bench.raw(1) == before


def test_a_retry_by_hand_during_a_run_waits_for_nothing(make_bench: MakeBench) -> None:
    """B-26: settle's `forced`: at once, although a change during the run would wait for its debounce."""
    bench = make_bench(debounce="1h")
    bench.plan({"_id": 1, "v": "first"})
    bench.make_due(1)
    (claim,) = bench.claim(1)
    bench.plan({"_id": 1, "v": "second"})
    bench.retry(1)
    settled = bench.complete(claim)
    assert settled.next_run_at is not None
    assert settled.next_run_at <= bench.now()


def test_a_workers_parent_ends_no_run_but_its_own(bench: Bench) -> None:
    """B-27: settle_by_token's token: the child it lost was rescued, and another worker runs the record now."""
    lost = bench.start({"_id": 1, "on": True, "v": "first"})
    bench.settle(lost, GivenBack())
    (mine,) = bench.claim(1)
    before = bench.raw(1)
    with pytest.raises(LeaseLostError):
        records.settle_by_token(bench.records, bench.task, lost.key, lost.token, GivenBack())
    assert bench.raw(1) == before
    assert bench.complete(mine).state is RecordState.COMPLETED
