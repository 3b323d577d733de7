"""The judge of the chaos runs finds what it is there to find, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.fault.audit import LEASE_SECONDS, MAX_ATTEMPTS, Finding, Key, Last, Ran, judge
from tests.fault.faults import MEMBERS, PLANNERS, WORKERS, Kind, draw

DOC = "d"
LAST = Last(exists=True, matches=True, v=2, w=5, inserted=0.0)
FIRST = Ran("sync", DOC, 1, started=10.0, finished=10.5, renewed=9.9, outcome="handled", saw={"v": 1, "w": 4})
SECOND = Ran("sync", DOC, 2, started=20.0, finished=20.5, renewed=19.9, outcome="handled", saw={"v": 2, "w": 5})
TALLIED = Ran("tally", DOC, 1, started=20.0, finished=20.5, renewed=19.9, outcome="handled", saw={"v": 2, "w": 5})


def record(**fields: Any) -> dict[str, Any]:
    """Return a record at rest, but for what is given."""
    return {"status": "completed", "attempts": 1, "lastObservedValues": {"v": 2, "w": 5}, **fields}


def found(*runs: Ran, last: Last = LAST, tallied_at: float = TALLIED.started, **fields: Any) -> list[str]:
    """Return the promises that were broken for the record of `sync`; all is well with that of `tally`."""
    tallied = dataclasses.replace(TALLIED, started=tallied_at, finished=tallied_at + 1)
    records: dict[Key, dict[str, Any]] = {("sync", DOC): record(**fields), ("tally", DOC): record()}
    findings: list[Finding] = judge([*runs, tallied], {DOC: last}, records)
    assert all(finding.key == ("sync", DOC) for finding in findings)
    return [finding.promise for finding in findings]


def test_a_history_without_fault_is_passed() -> None:
    """B-10: each state handled, one after the other."""
    assert found(FIRST, SECOND) == []


# --- lost ------------------------------------------------------------------------------------------


def test_a_state_that_no_run_saw_is_lost() -> None:
    """B-10: the newest handled run saw an older one."""
    assert found(FIRST) == ["lost"]


def test_a_document_that_never_ran_is_lost() -> None:
    """B-10: no run at all."""
    assert found() == ["lost"]


def test_a_run_that_did_not_do_its_work_handles_nothing() -> None:
    """B-10: it saw the state, and failed or was killed."""
    failed = dataclasses.replace(SECOND, outcome="ChaosError", saw=None)
    killed = dataclasses.replace(SECOND, outcome=None, finished=None, renewed=None, saw=None)
    assert found(FIRST, failed) == ["lost"]
    assert found(FIRST, killed) == ["lost"]


def test_what_was_in_between_is_not_the_last_state() -> None:
    """B-14: there and back: the newest run saw B of A, B, A."""
    between = dataclasses.replace(SECOND, saw={"v": 3, "w": 4})
    assert found(dataclasses.replace(FIRST, saw={"v": 2, "w": 3}), between) == ["lost"]


def test_a_document_inserted_anew_with_the_same_values_must_run() -> None:
    """B-18: the run that saw these values was for its last life."""
    runs = [dataclasses.replace(SECOND, started=started, finished=started + 1) for started in (20.0, 31.0)]
    assert found(runs[0], last=dataclasses.replace(LAST, inserted=30.0), tallied_at=31.0) == ["lost"]
    assert found(runs[1], last=dataclasses.replace(LAST, inserted=30.0), tallied_at=31.0) == []


def test_a_document_that_is_gone_or_does_not_match_need_not_run() -> None:
    """B-8: nothing runs for it."""
    assert found(last=dataclasses.replace(LAST, exists=False)) == []
    assert found(last=dataclasses.replace(LAST, matches=False)) == []


def test_a_failed_record_of_the_last_state_is_excused() -> None:
    """B-25: its attempts are spent, on the state that is there."""
    assert found(FIRST, status="failed", attempts=MAX_ATTEMPTS) == []
    older = {"v": 1, "w": 4}
    assert found(FIRST, status="failed", attempts=MAX_ATTEMPTS, lastObservedValues=older) == ["lost", "record"]


# --- overlaps --------------------------------------------------------------------------------------


def test_two_live_runs_at_once_overlap() -> None:
    """B-23: the second begins while the first is at work and its lease lasts."""
    first = dataclasses.replace(FIRST, finished=20.2, renewed=19.5)
    assert found(first, SECOND) == ["overlap"]


def test_an_acknowledged_renewal_after_the_second_began_is_a_live_first_run() -> None:
    """B-23: it owned its record all along."""
    first = dataclasses.replace(FIRST, finished=20.4, renewed=20.1)
    assert found(first, SECOND) == ["overlap"]


def test_a_run_whose_lease_is_over_is_not_live() -> None:
    """B-23: its process was frozen or cut off; it is at work still, and owns nothing."""
    first = dataclasses.replace(FIRST, finished=20.2, renewed=20.0 - LEASE_SECONDS)
    assert found(first, SECOND) == []


def test_a_killed_run_is_not_judged() -> None:
    """B-28: nobody knows until when it was at work."""
    killed = dataclasses.replace(FIRST, finished=None, renewed=None, outcome=None, saw=None)
    assert found(killed, SECOND) == []


def test_runs_of_two_tasks_may_overlap() -> None:
    """B-1: each task has a record of its own."""
    assert found(FIRST, dataclasses.replace(SECOND, started=TALLIED.started)) == []


# --- stale -----------------------------------------------------------------------------------------


def test_an_older_state_after_a_newer_one_is_stale() -> None:
    """B-10: the second run began after the first had finished, and handled an older write."""
    late = dataclasses.replace(SECOND, fence=3, started=30.0, finished=30.5, renewed=29.9)
    back = dataclasses.replace(SECOND, saw={"v": 2, "w": 3})
    assert found(dataclasses.replace(FIRST, saw={"v": 2, "w": 4}), back, late) == ["stale"]


def test_a_fence_that_falls_is_stale() -> None:
    """B-27: it only grows."""
    assert found(dataclasses.replace(FIRST, fence=2, saw=SECOND.saw), dataclasses.replace(SECOND, fence=1)) == ["stale"]


def test_a_run_that_was_not_live_when_it_began_is_excused() -> None:
    """B-23: its process was frozen between claim and handler; `lease_lost` tells it so."""
    late = dataclasses.replace(FIRST, started=30.0, finished=30.1, renewed=30.0 - LEASE_SECONDS)
    assert found(SECOND, late) == []


# --- records ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["pending", "processing", "processing_dirty"])
def test_a_record_that_is_not_at_rest_is_wrong(status: str) -> None:
    """B-22, B-28: something is stuck."""
    assert found(SECOND, status=status) == ["record"]


def test_a_record_with_attempts_beyond_its_limit_is_wrong() -> None:
    """B-39: one more than the policy allows."""
    assert found(SECOND, attempts=MAX_ATTEMPTS + 1) == ["record"]


def test_a_record_that_failed_with_attempts_left_is_wrong() -> None:
    """B-25: it was given up too early."""
    assert found(SECOND, status="failed", attempts=MAX_ATTEMPTS - 1) == ["record"]


def test_a_record_that_shows_an_old_state_is_wrong() -> None:
    """B-10: the document was never planned."""
    assert found(SECOND, lastObservedValues={"v": 1, "w": 4}) == ["record"]


# --- faults ----------------------------------------------------------------------------------------


def test_a_seed_always_brings_the_same_faults() -> None:
    """A run can be replayed; a longer one begins alike; another seed brings others."""
    assert draw(7, 60) == draw(7, 60)
    assert draw(7, 120)[: len(draw(7, 60))] == draw(7, 60)
    assert draw(8, 60) != draw(7, 60)


def test_an_hour_brings_every_kind_of_fault_to_every_target() -> None:
    """Nothing is left out by the way faults are drawn."""
    faults = draw(7, 3600)
    assert {fault.target for fault in faults} == {*PLANNERS, *WORKERS, *MEMBERS, "mongod", "broker"}
    assert {fault.kind for fault in faults} == set(Kind)


def test_nothing_is_hit_again_before_it_has_settled() -> None:
    """A fault's end must not mend the next one."""
    until: dict[str, float] = {}
    for fault in draw(7, 3600):
        assert fault.at >= until.get(fault.target, 0)
        until[fault.target] = fault.at + fault.seconds
