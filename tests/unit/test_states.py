"""Every transition from every state, and nothing besides."""

from __future__ import annotations

import itertools

import pytest

from celery_reactive.core.states import (
    CLAIM,
    COMPLETE,
    DEFER,
    DELETE,
    DISCARD,
    FAIL,
    FINAL,
    GIVE_BACK,
    LEAVE,
    OVERTAKE,
    PLAN,
    REPROCESS,
    RETRY,
    RETRY_BY_HAND,
    REVOKE,
    RUNNING,
    SKIP,
    TRANSITIONS,
    RecordState,
    Transition,
)

PENDING, PROCESSING, DIRTY, COMPLETED, FAILED = RecordState

REACHED: dict[str, tuple[RecordState | None, ...]] = {
    # from:                pending     processing   dirty        completed    failed
    PLAN.name:            (PENDING,    DIRTY,       DIRTY,       PENDING,     PENDING),
    DELETE.name:          (PENDING,    DIRTY,       DIRTY,       PENDING,     PENDING),
    LEAVE.name:           (COMPLETED,  None,        None,        None,        None),
    CLAIM.name:           (PROCESSING, None,        None,        None,        None),
    COMPLETE.name:        (None,       COMPLETED,   PENDING,     None,        None),
    SKIP.name:            (None,       COMPLETED,   PENDING,     None,        None),
    FAIL.name:            (None,       FAILED,      PENDING,     None,        None),
    RETRY.name:           (None,       PENDING,     PENDING,     None,        None),
    DEFER.name:           (None,       PENDING,     PENDING,     None,        None),
    GIVE_BACK.name:       (None,       PENDING,     PENDING,     None,        None),
    OVERTAKE.name:        (None,       PENDING,     PENDING,     None,        None),
    RETRY_BY_HAND.name:   (PENDING,    DIRTY,       DIRTY,       PENDING,     PENDING),
    REPROCESS.name:       (PENDING,    DIRTY,       DIRTY,       PENDING,     PENDING),
    DISCARD.name:         (COMPLETED,  None,        None,        None,        COMPLETED),
    REVOKE.name:          (FAILED,     None,        None,        None,        None),
}  # fmt: skip

PAIRS = [
    pytest.param(transition, state, expected, id=f"{transition.name} from {state}")
    for transition in TRANSITIONS
    for state, expected in zip(RecordState, REACHED[transition.name], strict=True)
]
CLAIMED = [transition for transition in TRANSITIONS if transition.needs_claim]


def test_the_table_names_every_transition_once() -> None:
    """B-21: nothing is walked that does not exist, and nothing exists that is not walked."""
    assert [transition.name for transition in TRANSITIONS] == list(REACHED)


@pytest.mark.parametrize(("transition", "state", "expected"), PAIRS)
def test_a_transition_leads_where_the_table_says(
    transition: Transition, state: RecordState, expected: RecordState | None
) -> None:
    """B-21: from each state, to one state or refused."""
    assert transition.target_from(state) is expected


@pytest.mark.parametrize("transition", CLAIMED, ids=lambda transition: transition.name)
def test_the_end_of_a_run_goes_round_again_when_something_waits(transition: Transition) -> None:
    """B-26: a newer state or a manual retry leads to pending, whatever the run came to."""
    assert {transition.target_from(state, waiting=True) for state in RUNNING} == {PENDING}


@pytest.mark.parametrize("transition", CLAIMED, ids=lambda transition: transition.name)
def test_nothing_runs_again_for_a_document_that_is_off(transition: Transition) -> None:
    """B-8: what would go back to pending is completed instead; what would not keeps its own state."""
    for state, waiting in itertools.product(RUNNING, (True, False)):
        on = transition.target_from(state, waiting=waiting)
        off = transition.target_from(state, waiting=waiting, off=True)
        assert off is (COMPLETED if on is PENDING else on)


@pytest.mark.parametrize("transition", [PLAN, LEAVE, CLAIM, RETRY_BY_HAND, DISCARD, REVOKE], ids=lambda each: each.name)
def test_only_the_end_of_a_run_asks_what_waits(transition: Transition) -> None:
    """B-26: planner and operators act on the state alone."""
    for state, waiting, off in itertools.product(RecordState, (True, False), (True, False)):
        assert transition.target_from(state, waiting=waiting, off=off) is transition.target_from(state)


@pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda each: each.name)
def test_what_ends_a_run_needs_its_claim_and_nothing_else_does(transition: Transition) -> None:
    """B-27: a transition out of a running state either names the claim or leaves the run running."""
    for state in RUNNING & transition.sources:
        leaves_it_running = transition.target_from(state) in RUNNING
        assert transition.needs_claim is not leaves_it_running


def test_only_a_claim_starts_a_run() -> None:
    """B-23: no other transition leads from a state at rest into a running one."""
    starting = {
        transition.name
        for transition in TRANSITIONS
        for state in FINAL | {PENDING}
        if transition.target_from(state) in RUNNING
    }
    assert starting == {CLAIM.name}


def test_final_and_running_states_are_told_apart() -> None:
    """B-21: with pending they are all there are."""
    assert {PENDING} | RUNNING | FINAL == set(RecordState)
    assert not RUNNING & FINAL
