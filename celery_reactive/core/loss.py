"""What becomes of a run whose worker was lost (B-28): for the leader and the worker's parent process alike."""

from __future__ import annotations

import dataclasses
import random
from datetime import timedelta

from celery_reactive.core.outcome import Errored, Exhausted, Failure, GivenBack
from celery_reactive.core.record import Lease
from celery_reactive.core.task import ReactiveTask


def after_loss(
    task: ReactiveTask,
    lease: Lease,
    error: Failure,
    *,
    least_wait: timedelta = timedelta(0),
) -> GivenBack | Errored | Exhausted:
    """Return the outcome of a run that was lost.

    A record lost in company runs again alone, unpunished; one lost alone has failed an attempt, so that
    a handler that kills its process is not tried for ever, and it stays alone.

    Args:
        task: Its definition.
        lease: The run as read.
        error: What is stored as its error.
        least_wait: Shortest wait before the next attempt, where the process may still be dying.
    """
    if lease.company:
        return GivenBack(wait=least_wait, alone=True)
    attempt = failed_attempt(task, lease, error, least_wait=least_wait)
    return dataclasses.replace(attempt, alone=True) if isinstance(attempt, Errored) else attempt


def failed_attempt(
    task: ReactiveTask,
    lease: Lease,
    error: Failure,
    *,
    least_wait: timedelta = timedelta(0),
) -> Errored | Exhausted:
    """Return the outcome of a run that failed outside its process, by the task's retry policy."""
    wait = task.retry_policy.next_wait(
        lease.attempts,
        failing_for=lease.now - lease.first_error_at if lease.first_error_at else timedelta(0),
        now=lease.now,
        random=random.random(),  # noqa: S311 -- jitter
    )
    duration = lease.now - lease.started_at
    return Exhausted(error, duration) if wait is None else Errored(error, duration, max(wait, least_wait))
