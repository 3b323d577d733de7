"""Record states and the transitions between them.

This table is the only place that says which transition is allowed from which state: the store
builds its guards from it, and the tests walk every pair. What *else* a statement demands (the
claim's token, an observation that is new enough) stands with the statement in `store/records`.
"""

from __future__ import annotations

import dataclasses
from enum import StrEnum


class RecordState(StrEnum):
    """The state of a record, as stored (B-21)."""

    PENDING = "pending"
    """Waits for `nextRunAt`."""
    PROCESSING = "processing"
    """A claim owns it; nobody else may start it."""
    PROCESSING_DIRTY = "processing_dirty"
    """As PROCESSING, and a newer state of the document waits: it runs once more."""
    COMPLETED = "completed"
    FAILED = "failed"
    """No attempts left; waits for a data change or an operator."""


RUNNING = frozenset({RecordState.PROCESSING, RecordState.PROCESSING_DIRTY})
FINAL = frozenset({RecordState.COMPLETED, RecordState.FAILED})


@dataclasses.dataclass(frozen=True, slots=True)
class Transition:
    """One named way a record changes state."""

    name: str
    sources: frozenset[RecordState]
    target: RecordState
    target_if_running: RecordState | None = None
    """Where a running record goes instead, if that differs; its claim stays."""
    target_if_waiting: RecordState | None = None
    """Where a running record goes instead when a newer state of its document, or a manual retry, waits."""
    target_if_off: RecordState | None = None
    """Where it goes instead of any PENDING when its document is gone or has left the filter (B-8)."""
    needs_claim: bool = False
    """Whether the statement's guard names the claim's token as well as the state."""

    def target_from(self, state: RecordState, *, waiting: bool = False, off: bool = False) -> RecordState | None:
        """Return the state reached from *state*, or None if the transition is refused.

        Args:
            state: The record's state now.
            waiting: A newer state of the document, or a manual retry, waits (B-26).
            off: The document is gone or has left the filter and nobody retried the record by hand (B-8).
        """
        if state not in self.sources:
            return None
        if state in RUNNING and self.target_if_running is not None:
            return self.target_if_running
        waits = waiting or state is RecordState.PROCESSING_DIRTY
        target = self.target_if_waiting if waits and self.target_if_waiting is not None else self.target
        if off and target is RecordState.PENDING and self.target_if_off is not None:
            return self.target_if_off
        return target


PLAN = Transition(
    "plan",
    FINAL | RUNNING | {RecordState.PENDING},
    RecordState.PENDING,
    target_if_running=RecordState.PROCESSING_DIRTY,
)
DELETE = Transition(
    "delete",
    FINAL | RUNNING | {RecordState.PENDING},
    RecordState.PENDING,
    target_if_running=RecordState.PROCESSING_DIRTY,
)
"""A deletion that is a run of its own (B-61); any other is a LEAVE."""
LEAVE = Transition("leave", frozenset({RecordState.PENDING}), RecordState.COMPLETED)
CLAIM = Transition("claim", frozenset({RecordState.PENDING}), RecordState.PROCESSING)


def _ending(name: str, target: RecordState) -> Transition:
    """A way a run ends: needs its claim; what waits, or a document that is off, decides first."""
    return Transition(
        name,
        RUNNING,
        target,
        target_if_waiting=RecordState.PENDING,
        target_if_off=RecordState.COMPLETED,
        needs_claim=True,
    )


COMPLETE = _ending("complete", RecordState.COMPLETED)
SKIP = _ending("skip", RecordState.COMPLETED)
FAIL = _ending("fail", RecordState.FAILED)
RETRY = _ending("retry", RecordState.PENDING)
DEFER = _ending("defer", RecordState.PENDING)
GIVE_BACK = _ending("give back", RecordState.PENDING)
OVERTAKE = _ending("overtake", RecordState.PENDING)
RETRY_BY_HAND = Transition(
    "retry by hand",
    FINAL | RUNNING | {RecordState.PENDING},
    RecordState.PENDING,
    target_if_running=RecordState.PROCESSING_DIRTY,
)
REPROCESS = Transition(
    "reprocess",
    FINAL | RUNNING | {RecordState.PENDING},
    RecordState.PENDING,
    target_if_running=RecordState.PROCESSING_DIRTY,
)
DISCARD = Transition("discard", frozenset({RecordState.PENDING, RecordState.FAILED}), RecordState.COMPLETED)
REVOKE = Transition("revoke", frozenset({RecordState.PENDING}), RecordState.FAILED)

TRANSITIONS = (
    PLAN,
    DELETE,
    LEAVE,
    CLAIM,
    COMPLETE,
    SKIP,
    FAIL,
    RETRY,
    DEFER,
    GIVE_BACK,
    OVERTAKE,
    RETRY_BY_HAND,
    REPROCESS,
    DISCARD,
    REVOKE,
)
