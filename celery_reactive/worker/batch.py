"""The records of one message as one call of a handler (B-60).

Called by `execute`, with what it has claimed. Each record ends by what its own context was told; those that were told
nothing complete when the handler returns and fail when it raises. All ends are written together.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

from celery_reactive.core.outcome import Completed, Deferred, GivenBack, Outcome, Overtaken, Skipped
from celery_reactive.errors import ReactiveError, TaskConditionFailedError
from celery_reactive.worker.finalize import finalize, finalize_together
from celery_reactive.worker.heartbeat import HEARTBEAT
from celery_reactive.worker.run import Run

logger = logging.getLogger(__name__)


def outcomes_of_error(runs: Sequence[Run], error: BaseException, of_one: Callable[[Run], Outcome]) -> list[Outcome]:
    """Return what the runs came to whose handler has raised.

    A context that was told to defer stays deferred. A read that found that a document is no longer what its run is
    for says nothing of the others: they go back without an attempt spent.

    Args:
        runs: Those of the call.
        error: What was raised.
        of_one: Says it of a run whose own handler has raised that.
    """
    about_one = isinstance(error, TaskConditionFailedError)
    return [_deferred(run) or (GivenBack() if about_one and not _is_decided(run) else of_one(run)) for run in runs]


def _deferred(run: Run) -> Deferred | None:
    if run.deferral is None or run.completed or run.overtaken is not None:
        return None
    return dataclasses.replace(run.deferral, duration=run.took)


def _is_decided(run: Run) -> bool:
    """Whether *run* was told what becomes of it, or a read has found its document not to be what it is for."""
    told = run.completed or run.completes or run.failure is not None
    return told or run.gone or run.left or run.overtaken is not None


def finalize_batch(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> None:
    """Write what the runs of a call came to, alike ones in one statement; return when it is durable.

    One that cannot be stored takes no other with it.
    """
    groups: dict[object, list[tuple[Run, Outcome]]] = {}
    for run, outcome in zip(runs, outcomes, strict=True):
        groups.setdefault(_kind(run, outcome), []).append((run, outcome))
    for kind, group in groups.items():
        if kind is _ALONE or not _written_together(group):
            for run, outcome in group:
                finalize(run, outcome)
    for run in runs:
        HEARTBEAT.settled(run)


_ALONE = "alone"


def _kind(run: Run, outcome: Outcome) -> object:
    """Return what tells the runs apart that cannot be ended by the same statement."""
    if run.completed or run.completing or run.lease_lost:
        return _ALONE
    match outcome:
        case Completed(document_checked=checked):
            return Completed, checked
        case Overtaken() | Skipped() | GivenBack():
            return type(outcome)
        case _:
            return "failed or deferred"


def _written_together(group: Sequence[tuple[Run, Outcome]]) -> bool:
    runs, outcomes = [run for run, _ in group], [outcome for _, outcome in group]
    try:
        finalize_together(runs, outcomes)
    except ReactiveError as error:
        logger.warning("ends of a batch are written one by one: %s", error, extra={"event": "batch_not_written"})
        for run in runs:
            run.in_doubt = True
        return False
    return True
