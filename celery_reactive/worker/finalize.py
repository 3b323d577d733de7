"""The durable end of a run: one guarded statement, repeated while the lease may last (B-29)."""

from __future__ import annotations

import logging
import random
import threading
import traceback
from collections.abc import Sequence
from datetime import timedelta
from typing import assert_never

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
    shorten,
)
from celery_reactive.core.record import RecordKey
from celery_reactive.core.states import RecordState
from celery_reactive.errors import LeaseLostError, StatementFailedError, StoreUnavailableError
from celery_reactive.events import (
    Event,
    LeaseLost,
    RunDeferred,
    RunFailed,
    RunFinished,
    RunGivenBack,
    RunRetried,
    RunSkipped,
)
from celery_reactive.store import records
from celery_reactive.store.records import Records, Settled
from celery_reactive.store.wake import wake
from celery_reactive.worker.run import Run

logger = logging.getLogger(__name__)

_SOON = timedelta(seconds=5)
"""A wait longer than this the planner learns of in time by its own looking."""
_UNSTORABLE_BYTES = 300
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 2.0


def finalize(run: Run, outcome: Outcome) -> Settled | None:
    """Write *outcome*, and tell of it once it is durable.

    Returns:
        Where the record is now; None if the run no longer owns it and nothing was written.
    """
    if run.completed:
        return _tell_of_completion(run)
    try:
        settled = _persist(run, outcome)
    except StatementFailedError as error:
        logger.warning("outcome cannot be stored, failing the attempt: %s", error, extra={"event": "unstorable"})
        # In few words: what has no room for an outcome may have room for that.
        outcome = _attempt(run, Failure(shorten(str(error), _UNSTORABLE_BYTES), type(error).__qualname__))
        settled = _persist(run, outcome)
    if settled is None:
        run.lost = True
        run.runtime.emit(LeaseLost(run.task.name, str(run.claim.key), run.claim.attempt))
    else:
        run.runtime.emit(event_of(run.claim.key, run.claim.attempt, outcome, settled))
        _wake_planner(run, settled)
    return settled


def finalize_together(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> None:
    """Write what several runs of one message came to, in one command, and tell of each once it is durable.

    Raises:
        StatementFailedError: One of them cannot be stored. Others may have been written; doing it again alone tells.
    """
    settled = _persist_together(runs, outcomes)
    wakes: tuple[Run, Settled] | None = None
    for run, outcome in zip(runs, outcomes, strict=True):
        where = settled.get(run.claim.key.exact)
        if where is None:
            run.lost = True
            run.runtime.emit(LeaseLost(run.claim.key.task, str(run.claim.key), run.claim.attempt))
            continue
        run.runtime.emit(event_of(run.claim.key, run.claim.attempt, outcome, where))
        if where.next_run_at is not None:
            wakes = run, where
    if wakes is not None:
        _wake_planner(*wakes)


def _persist_together(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> dict[bytes, Settled]:
    """Write outcomes of several runs; a database that is away is waited for while a lease may last."""
    first = runs[0]
    target = first.runtime.connection.records(first.task)
    wait = _FIRST_WAIT_SECONDS
    while True:
        try:
            return _settle(target, runs, outcomes)
        except StoreUnavailableError as error:
            if all(run.lease_lost for run in runs):
                logger.warning(
                    "outcomes not written, the leases are over: %s", error, extra={"event": "finalize_failed"}
                )
                return {}
            threading.Event().wait(wait)
            wait = min(wait * 2, _LONGEST_WAIT_SECONDS)


def _settle(target: Records, runs: Sequence[Run], outcomes: Sequence[Outcome]) -> dict[bytes, Settled]:
    """Write outcomes in the one statement that ends alike runs, where they are alike."""
    task, claims, first = runs[0].task, [run.claim for run in runs], outcomes[0]
    match first:
        case Completed(document_checked=checked) if all(
            isinstance(one, Completed) and one.document_checked is checked for one in outcomes
        ):
            durations = [one.duration for one in outcomes if isinstance(one, Completed)]
            return records.settle_together(target, task, claims, first, durations=durations)
        case GivenBack() if all(one == first for one in outcomes):
            return records.settle_together(target, task, claims, first)
        case _:
            return records.settle_each(target, task, claims, outcomes)


def _tell_of_completion(run: Run) -> Settled:
    """Tell what `mark_completed` has written; the record may be in another run by now."""
    written, settled = run.settled or (Completed(run.took), Settled(RecordState.COMPLETED, None))
    outcome = Completed(run.took) if isinstance(written, Completed) else written
    run.runtime.emit(event_of(run.claim.key, run.claim.attempt, outcome, settled))
    _wake_planner(run, settled)
    return settled


def _wake_planner(run: Run, settled: Settled) -> None:
    """Tell the planner of a record that is due again at once: no change of its document will."""
    if settled.next_run_at is None or settled.next_run_at - run.server_time() > _SOON:
        return
    try:
        wake(run.runtime.connection.globals(), run.claim.key.task)
    except StoreUnavailableError:
        logger.info("planner not woken, it will look by itself", extra={"event": "not_woken"})


def failed_attempt(run: Run, error: BaseException, *, retry_in: timedelta | None = None) -> Errored | Exhausted:
    """Return the outcome of a failed attempt, by the task's retry policy (B-38, B-39).

    Args:
        run: The run.
        error: What the handler raised.
        retry_in: A wait that Celery's own `retry` asked for, instead of the policy's.
    """
    return _attempt(run, Failure.of(error, "".join(traceback.format_exception(error))), retry_in=retry_in)


def _attempt(run: Run, failure: Failure, *, retry_in: timedelta | None = None) -> Errored | Exhausted:
    elapsed = run.elapsed
    wait = run.task.retry_policy.next_wait(
        run.claim.attempt,
        failing_for=run.claim.failing_for(elapsed),
        now=run.claim.now(elapsed),
        random=random.random(),  # noqa: S311 -- jitter
    )
    if wait is None:
        return Exhausted(failure, run.took)
    return Errored(failure, run.took, wait if retry_in is None else retry_in)


def _persist(run: Run, outcome: Outcome) -> Settled | None:
    """Write *outcome*; a database that is away is waited for while the lease may last."""
    target = run.runtime.connection.records(run.task)
    wait = _FIRST_WAIT_SECONDS
    in_doubt = run.completing or run.in_doubt
    while True:
        try:
            return _settle_or_find(target, run, outcome, in_doubt=in_doubt)
        except StoreUnavailableError as error:
            in_doubt = True
            if run.lease_lost:
                logger.warning("outcome not written, the lease is over: %s", error, extra={"event": "finalize_failed"})
                return None
            threading.Event().wait(wait)
            wait = min(wait * 2, _LONGEST_WAIT_SECONDS)


def _settle_or_find(target: Records, run: Run, outcome: Outcome, *, in_doubt: bool) -> Settled | None:
    """End *run*, or find where an earlier try has left it whose answer was lost; None: it is not owned any more."""
    try:
        return records.settle(target, run.task, run.claim, outcome)
    except LeaseLostError:
        return records.settled_by(target, run.claim.key, run.claim.token) if in_doubt else None


def event_of(key: RecordKey, attempt: int, outcome: Outcome, settled: Settled) -> Event:
    """Return what is told of a run's durable end.

    Args:
        key: The record.
        attempt: Number of the attempt.
        outcome: What it came to.
        settled: Where that left the record.
    """
    task, record = key.task, str(key)
    match outcome:
        case Completed(duration=duration):
            return RunFinished(task, record, attempt, settled.state, duration.total_seconds())
        case Skipped(reason=reason):
            return RunSkipped(task, record, attempt, reason)
        case Deferred() | Overtaken():
            return RunDeferred(task, record, attempt, settled.next_run_at, isinstance(outcome, Overtaken))
        case GivenBack():
            return RunGivenBack(task, record, attempt, "not started")
        case Errored(error=error, duration=duration):
            seconds = duration.total_seconds()
            return RunRetried(task, record, attempt, error.message, seconds, settled.next_run_at)
        case Exhausted(error=error, duration=duration):
            if settled.state is RecordState.FAILED:
                return RunFailed(task, record, attempt, error.message, duration.total_seconds())
            return RunRetried(task, record, attempt, error.message, duration.total_seconds(), settled.next_run_at)
        case _:
            assert_never(outcome)
