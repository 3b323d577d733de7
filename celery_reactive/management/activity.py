"""What has been run lately, how long it waited and how long it took, in steps of time: for charts.

Called by the dashboard. Reads only, and a limited number of records whatever there are; what it says covers the last
runs of the newest records, and says how many these are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timedelta

from celery_reactive.core.states import RecordState
from celery_reactive.management.selection import TaskFilters, select
from celery_reactive.runtime import Runtime
from celery_reactive.store import activity as statements
from celery_reactive.store import queries
from celery_reactive.store.activity import LastRun

MOST_RUNS = 5000
"""Records looked at, over all collections."""
STEPS = 60
_LEAST_EACH = 100
"""Records looked at in each collection, however many collections there are."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What ended within one step of time."""

    at: datetime
    """Its beginning."""
    completed: int
    failed: int
    wait_p50: timedelta | None
    """From due to start; None: nothing was started."""
    wait_p95: timedelta | None
    duration_p50: timedelta | None
    duration_p95: timedelta | None


@dataclasses.dataclass(frozen=True, slots=True)
class Activity:
    """What has been run within a span of time."""

    since: datetime
    until: datetime
    step: timedelta
    steps: tuple[Step, ...]
    runs: int
    """How many runs it covers: of each record the last."""
    is_cut: bool
    """Whether there were more records than are looked at, so that the older ones are missing."""


def read_activity(runtime: Runtime, *, span: timedelta, task: str | None = None) -> Activity:
    """Return what has been run within *span* until now, by the server's clock.

    Args:
        runtime: The app's parts.
        span: How far back.
        task: Only this task; None: all.

    Raises:
        UnknownTaskError: There is no such task; the message lists the known ones.
        StoreBusyError: Not found within the time limit.
        StoreUnavailableError: MongoDB does not answer.
    """
    filters: TaskFilters = {} if task is None else {"task": task}
    parts = select(runtime, filters).parts
    until = queries.server_time(runtime.connection.globals())
    since = until - span
    limit = max(MOST_RUNS // max(len(parts), 1), _LEAST_EACH)
    found = [statements.last_runs(part.records, part.wanted.tasks, since=since, limit=limit) for part in parts if limit]
    runs = [run for of_part in found for run in of_part]
    return Activity(
        since=since,
        until=until,
        step=span / STEPS,
        steps=_steps(runs, since, span / STEPS),
        runs=len(runs),
        is_cut=any(len(of_part) == limit for of_part in found),
    )


def _steps(runs: Sequence[LastRun], since: datetime, length: timedelta) -> tuple[Step, ...]:
    sorted_in: list[list[LastRun]] = [[] for _ in range(STEPS)]
    for run in runs:
        sorted_in[min((run.ended_at - since) // length, STEPS - 1)].append(run)
    return tuple(_step(since + length * number, ended) for number, ended in enumerate(sorted_in))


def _step(at: datetime, ended: Sequence[LastRun]) -> Step:
    completed = sum(run.state is RecordState.COMPLETED for run in ended)
    waits = sorted(run.wait for run in ended if run.wait is not None)
    durations = sorted(run.duration for run in ended if run.duration is not None)
    return Step(
        at=at,
        completed=completed,
        failed=len(ended) - completed,
        wait_p50=_quantile(waits, 0.5),
        wait_p95=_quantile(waits, 0.95),
        duration_p50=_quantile(durations, 0.5),
        duration_p95=_quantile(durations, 0.95),
    )


def _quantile(ordered: Sequence[timedelta], share: float) -> timedelta | None:
    return ordered[round((len(ordered) - 1) * share)] if ordered else None
