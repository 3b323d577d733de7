"""Statements that are repeated do nothing more the second time.

The driver repeats no `updateMany` and no `$merge`; the planner does, when it plans a batch again. In between a worker
may have claimed and finished the record.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from bson import Timestamp

from celery_reactive.core.outcome import Deferred, GivenBack
from celery_reactive.store import indexes, positions, records, unplanned
from celery_reactive.store.positions import Position
from celery_reactive.store.unplanned import Reason
from tests.integration.bench import Bench
from tests.integration.conftest import MakeBench, MakeDesk

FIRST = {"_id": 1, "on": True, "v": "first"}
SECOND = {"_id": 1, "on": True, "v": "second"}
OFF = {"_id": 1, "on": False, "v": "first"}
MINUTE = timedelta(minutes=1)

Step = Callable[[Bench], object]


# --- what may have happened in between ---------------------------------------------------------------------


def nothing(_: Bench) -> None:
    """Nothing."""


def claimed(bench: Bench) -> None:
    """A worker runs it."""
    bench.claim(1)


def completed(bench: Bench) -> None:
    """A worker ran it."""
    for claim in bench.claim(1):
        bench.complete(claim)


def failed(bench: Bench) -> None:
    """A worker ran it, and no attempt is left."""
    for claim in bench.claim(1):
        bench.exhaust(claim)


def backing_off(bench: Bench) -> None:
    """A worker ran it, and it waits for its next attempt."""
    for claim in bench.claim(1):
        bench.error(claim)


def deferred(bench: Bench) -> None:
    """Its handler deferred it."""
    for claim in bench.claim(1):
        bench.settle(claim, Deferred(bench.now() + MINUTE, hold=True))


def given_back(bench: Bench) -> None:
    """Its worker was stopped."""
    for claim in bench.claim(1):
        bench.settle(claim, GivenBack())


INTERLUDES: list[Step] = [nothing, claimed, completed, failed, backing_off, deferred, given_back]


# --- what the record was before ----------------------------------------------------------------------------


def absent(_: Bench) -> None:
    """There is none."""


def pending(bench: Bench) -> None:
    """It is due."""
    bench.plan(FIRST)


def running(bench: Bench) -> None:
    """A worker runs it."""
    bench.start(FIRST)


def rested(bench: Bench) -> None:
    """It was handled."""
    bench.handle(FIRST)


def left(bench: Bench) -> None:
    """It was handled, and its document has left the filter."""
    bench.handle(FIRST)
    bench.plan(OFF)


def gone(bench: Bench) -> None:
    """It was handled, and its document was deleted."""
    bench.handle(FIRST)
    bench.leave(1, at=bench.delete(1), gone=True)


BEGINNINGS: list[Step] = [absent, pending, running, rested, left, gone]


def repeat(bench: Bench, statement: Step, interlude: Step) -> None:
    """Do a statement twice; the second time changes nothing, to the byte."""
    statement(bench)
    interlude(bench)
    before = [bench.raw(record["sourceDocId"]) for record in bench.records.find()]
    statement(bench)
    assert [bench.raw(record["sourceDocId"]) for record in bench.records.find()] == before


@pytest.mark.parametrize("interlude", INTERLUDES)
@pytest.mark.parametrize("document", [FIRST, SECOND, OFF], ids=["same values", "other values", "left"])
def test_planning_a_write_again_changes_nothing(bench: Bench, document: dict[str, Any], interlude: Step) -> None:
    """B-47: whatever the record was before, and whatever a worker did in between."""
    for beginning in BEGINNINGS:
        bench.records.delete_many({})
        beginning(bench)
        at = bench.put(document)

        def plan(bench: Bench, at: Timestamp = at) -> None:
            bench.observe(1, at=at)
            bench.leave(1, at=at)

        repeat(bench, plan, interlude)


@pytest.mark.parametrize("interlude", INTERLUDES)
def test_planning_a_deletion_again_changes_nothing(bench: Bench, interlude: Step) -> None:
    """B-47."""
    for beginning in BEGINNINGS:
        bench.records.delete_many({})
        beginning(bench)
        at = bench.delete(1)
        repeat(bench, lambda bench, at=at: bench.leave(1, at=at, gone=True), interlude)  # type: ignore[misc]


@pytest.mark.parametrize("interlude", INTERLUDES)
def test_planning_a_deletion_and_an_insert_again_changes_nothing(
    bench: Bench, make_desk: MakeDesk, interlude: Step
) -> None:
    """B-18, B-47: the whole batch, as after a crash before its position was stored."""
    desk = make_desk(bench)
    for beginning in BEGINNINGS:
        bench.records.delete_many({})
        beginning(bench)
        bench.delete(1)
        at = bench.put(FIRST)
        changes = [desk.deleted(1), desk.written(1, inserted=True)]
        repeat(bench, lambda _, at=at, changes=changes: desk.planning.plan_changes(changes, at=at), interlude)  # type: ignore[misc]


@pytest.mark.parametrize("interlude", INTERLUDES)
def test_a_scan_done_again_changes_nothing(make_bench: MakeBench, interlude: Step) -> None:
    """B-48: a scan that is begun anew, also without back-fill."""
    for backfill in (True, False):
        bench = make_bench(f"backfill.{backfill}", filter={"on": True}, watch_projection={"v": 1}, backfill=backfill)
        for beginning in BEGINNINGS:
            bench.records.delete_many({})
            beginning(bench)
            at = bench.put(SECOND)
            repeat(bench, lambda bench, at=at: bench.observe(1, at=at, live=False), interlude)  # type: ignore[misc]


def mark_sent(bench: Bench) -> int:
    """Mark the record as sent."""
    return records.mark_sent(bench.records, [bench.key(1)], first_deadline=MINUTE, longest_deadline=MINUTE)


def mark_unsent(bench: Bench) -> int:
    """Clear the mark."""
    return records.mark_unsent(bench.records, [bench.key(1)])


@pytest.mark.parametrize("interlude", [nothing, claimed, completed, failed, backing_off, deferred])
@pytest.mark.parametrize("statement", [mark_sent, mark_unsent])
def test_marking_again_changes_nothing(bench: Bench, statement: Step, interlude: Step) -> None:
    """B-22: above all it does not touch a run."""
    pending(bench)
    if statement is mark_unsent:
        mark_sent(bench)
    repeat(bench, statement, interlude)


@pytest.mark.parametrize("interlude", [nothing, claimed, completed])
def test_discarding_again_changes_nothing(bench: Bench, interlude: Step) -> None:
    """B-52."""
    for beginning in (pending, rested):
        bench.records.delete_many({})
        beginning(bench)
        repeat(bench, lambda bench: bench.discard(1), interlude)


def test_retrying_again_asks_for_no_second_run(bench: Bench) -> None:
    """B-52: pending or running, a retry asked for twice is one retry."""
    rested(bench)
    bench.retry(1)
    bench.retry(1)
    (claim,) = bench.claim(1)
    bench.retry(1)
    bench.retry(1)
    bench.complete(claim)
    (claim,) = bench.claim(1)
    bench.complete(claim)
    assert bench.claim(1) == []


def test_a_renewal_again_keeps_the_lease(bench: Bench) -> None:
    """B-23: each only moves the counter."""
    claim = bench.start(FIRST)
    for _ in range(2):
        assert records.renew(bench.records, [claim.key], claim.token, MINUTE) == {claim.key.exact}
    bench.complete(claim)
    before = bench.raw(1)
    assert records.renew(bench.records, [claim.key], claim.token, MINUTE) == set()
    assert bench.raw(1) == before


def test_notes_and_positions_written_again_are_the_same(bench: Bench) -> None:
    """B-20, B-47."""
    globals_ = bench.connection.globals()
    position = Position({"_data": "82"}, Timestamp(5, 1), None, frozenset({("a", 1)}))
    for _ in range(2):
        positions.store(globals_, "g", "db", position, term=1)
        unplanned.note(globals_, bench.key(1), at=Timestamp(5, 1), gone=False, reason=Reason.LOCKED, error="$held")
    assert positions.read(globals_, "g", "db") == position
    (entry,) = unplanned.find(globals_)
    assert (entry.key, entry.at, entry.error) == (bench.key(1), Timestamp(5, 1), "$held")
    for _ in range(2):
        assert unplanned.clear(globals_, bench.key(1), up_to=Timestamp(5, 1))


def test_indexes_are_made_once(bench: Bench) -> None:
    """B-49: made again without harm."""
    before = bench.records.index_information()
    indexes.prepare(bench.records)
    assert bench.records.index_information() == before
    assert before.keys() == {"_id_", "reactive_wake", "reactive_next_run", "reactive_oldest_due", "reactive_last_run"}
