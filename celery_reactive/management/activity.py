"""What has been run lately, how long it waited and how long it took, in steps of time: for charts.

Called by the dashboard. Reads only, and little whatever there is. Every run that workers have counted is in it, as the
leader keeps them (`store/flow.py`). Where nobody counts, or nobody has for long enough, it covers the last runs of the
newest records instead, and says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from celery_reactive.core.states import RecordState
from celery_reactive.core.totals import DURATION, FAILED, SUCCESS, WAIT, Distribution, Totals
from celery_reactive.management.selection import TaskFilters, select
from celery_reactive.runtime import Runtime
from celery_reactive.store import activity as statements
from celery_reactive.store import flow, queries
from celery_reactive.store.activity import LastRun
from celery_reactive.store.flow import Flow, Pace

MOST_RUNS = 5000
"""Records looked at, over all collections, where nobody counts."""
STEPS = 60
"""Of time, where nobody counts."""
ENOUGH = timedelta(minutes=15)
"""So far back what was counted must reach, to be shown instead of last runs."""
_LEAST_EACH = 100
"""Records looked at in each collection, however many collections there are."""
_FINEST_UP_TO = timedelta(hours=1)
"""A span beyond it is shown in ten minutes each, others in minutes."""


class Covers(StrEnum):
    """What the numbers are of."""

    ALL_RUNS = "all runs"
    """That came to success or failure, each attempt, as workers have counted them."""
    LAST_RUNS = "last runs"
    """Of each record the last one; a failed run counts once no attempt is left."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What ended within one step of time."""

    at: datetime
    """Its beginning."""
    completed: int | None
    """None: not known, as nobody kept it, or it is not complete yet."""
    failed: int | None
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
    """How many runs it covers."""
    covers: Covers
    late: timedelta
    """After so long at most it knows of a run that has ended."""
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
    name = None if task is None else runtime.registry.get(task).name
    now = queries.server_time(runtime.connection.globals())
    return _counted(runtime, now, span, name) or _last_runs(runtime, now, span, name)


# --- what workers have counted -------------------------------------------------------------------------------


def _counted(runtime: Runtime, now: datetime, span: timedelta, task: str | None) -> Activity | None:
    """Return every run, None where they are not counted for all, or have not been for long enough."""
    settings = runtime.settings
    if not settings.metrics_enabled or settings.metrics_scrape_mode != "cluster":
        return None
    pace = Pace.MINUTE if span <= _FINEST_UP_TO else Pace.TEN_MINUTES
    since, until = _begin(now - span, pace.step), _begin(now, pace.step) + pace.step
    kept = flow.read(runtime.connection.globals(), pace, since=since, task=task)
    if not kept or now - kept[0].since < ENOUGH:
        return None
    steps = _steps_of(kept, since, until, pace.step)
    runs = sum((step.completed or 0) + (step.failed or 0) for step in steps)
    late = settings.metrics_push_interval + pace.step
    return Activity(since, until, pace.step, steps, runs, Covers.ALL_RUNS, late, is_cut=False)


def _begin(moment: datetime, step: timedelta) -> datetime:
    """Return the beginning of the step that a time is in."""
    seconds = step.total_seconds()
    return datetime.fromtimestamp(moment.timestamp() // seconds * seconds, UTC)


def _steps_of(kept: Sequence[Flow], since: datetime, until: datetime, length: timedelta) -> tuple[Step, ...]:
    """Return one step after the other; what was kept belongs to the one in which its middle lies."""
    found: dict[int, Totals] = {}
    for one in kept:
        number = (one.since + (one.until - one.since) / 2 - since) // length
        found[number] = found.get(number, Totals()).plus(one.totals)
    return tuple(
        _counted_step(since + length * number, found.get(number)) for number in range((until - since) // length)
    )


def _counted_step(at: datetime, totals: Totals | None) -> Step:
    if totals is None:
        return Step(at, None, None, None, None, None, None)
    waits, good, bad = (_of(totals, WAIT), _of(totals, DURATION, SUCCESS), _of(totals, DURATION, FAILED))
    return Step(
        at=at,
        completed=good.count,
        failed=bad.count,
        wait_p50=_span(waits.quantile(0.5)),
        wait_p95=_span(waits.quantile(0.95)),
        duration_p50=_span(good.quantile(0.5)),
        duration_p95=_span(good.quantile(0.95)),
    )


def _of(totals: Totals, name: str, *labels: str) -> Distribution:
    """Return the distribution of a metric with these labels beside the task's, of nothing if there is none."""
    for (metric, (_, *others)), one in totals.distributions.items():
        if metric == name and tuple(others) == labels:
            return one
    return Distribution((), (0,), 0.0)


def _span(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


# --- where nobody counts -------------------------------------------------------------------------------------


def _last_runs(runtime: Runtime, until: datetime, span: timedelta, task: str | None) -> Activity:
    filters: TaskFilters = {} if task is None else {"task": task}
    parts = select(runtime, filters).parts
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
        covers=Covers.LAST_RUNS,
        late=timedelta(0),
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
