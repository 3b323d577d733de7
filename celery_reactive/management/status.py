"""The state of the whole system at one moment: who leads, how far behind, what waits, what is held back.

Called by `Reactive.status()`. Reads only; times are the server's. What the broker knows (the workers that answer) is
asked by the caller, who knows Celery.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from celery_reactive.core.options import read_integer
from celery_reactive.core.states import RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.management import reconciling
from celery_reactive.management.reconciling import ReconciliationStatus
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, queries, unplanned
from celery_reactive.store.unplanned import Unplanned

_FIRST_FAILURES = 5


@dataclasses.dataclass(frozen=True, slots=True)
class LeaderStatus:
    """The leader of a planner group."""

    instance: str | None
    """None: nobody leads now."""
    term: int
    since: datetime | None
    heartbeat_age: timedelta | None
    """Since the last renewal; None: not renewed yet."""
    is_stale: bool
    """Whether the heartbeat has stood still for longer than the lock's TTL: the leader has vanished."""


@dataclasses.dataclass(frozen=True, slots=True)
class PositionStatus:
    """How far the changes of a database have been planned."""

    database: str
    planned_to: datetime
    lag: timedelta
    """The server's time minus `planned_to`, never negative. In quiet times a position is stored only every 10 s."""


@dataclasses.dataclass(frozen=True, slots=True)
class TaskStatus:
    """One task: its records by state and the controls in force."""

    task: str
    namespace: str
    counts: Mapping[RecordState, int]
    oldest_wait: timedelta | None
    """How long the oldest pending record has been due; None: none is."""
    paused: bool
    throttled_until: datetime | None
    """None: not throttled now."""
    generation: int
    """Of the stored definition; 0: no planner has seen the task yet."""
    reconciled_generation: int
    differs: bool
    """Whether this code's filter or projection is not the stored one: the leader runs other code."""
    priority: int
    """In force, as are the limits: declared, or set by hand (B-58)."""
    rate_limit: str | None
    """None: any number of starts."""
    max_concurrency: int | None
    """None: any number of runs at a time."""
    set_by_hand: tuple[str, ...]
    """Which of the three are."""

    @property
    def is_reconciled(self) -> bool:
        """Whether every document has been looked at under the stored definition."""
        return self.generation > 0 and self.generation == self.reconciled_generation


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """The whole system, as one planner group sees it."""

    group: str
    leader: LeaderStatus | None
    """None: no planner has ever led."""
    positions: tuple[PositionStatus, ...]
    tasks: tuple[TaskStatus, ...]
    reconciliations: tuple[ReconciliationStatus, ...]
    """Those under way."""
    planning_failures: int
    first_failures: tuple[Unplanned, ...]
    """The first few of them."""
    workers: tuple[str, ...] | None = None
    """Names of the workers that answered; None: nobody asked, or the broker did not answer."""


def read_status(
    runtime: Runtime,
    *,
    group: str = "default",
    workers: tuple[str, ...] | None = None,
    enough: int | None = None,
) -> Status:
    """Read the state of the system.

    Args:
        runtime: The app's parts.
        group: The planner group.
        workers: The workers that answered the caller, None if unknown.
        enough: Count up to so many of a task in a state: that number means that there may be more. None: count all.

    Raises:
        StoreUnavailableError: MongoDB does not answer; nothing is known.
    """
    globals_ = runtime.connection.globals()
    names = [task.name for task in runtime.registry]
    controls = definitions.read_all(globals_, names)
    databases = sorted({task.database or runtime.connection.default_database for task in runtime.registry})
    positions = [_position(queries.planned(globals_, group, database)) for database in databases]
    return Status(
        group=group,
        leader=_leader(queries.leading(globals_, group), runtime.settings.leader_ttl),
        positions=tuple(position for position in positions if position is not None),
        tasks=tuple(_task(runtime, task, controls[task.name], enough or 0) for task in runtime.registry),
        reconciliations=reconciling.under_way(runtime, group=group),
        planning_failures=queries.count_unplanned(globals_),
        first_failures=tuple(unplanned.find(globals_, limit=_FIRST_FAILURES)),
        workers=workers,
    )


def read_planning_failures(runtime: Runtime, *, task: str | None = None, limit: int = 1000) -> list[Unplanned]:
    """Return the documents that could not be planned (B-20), for *task* or for all.

    Raises:
        UnknownTaskError: There is no such task; the message lists the known ones.
        ConfigurationError: The limit has no meaning.
        StoreUnavailableError: MongoDB does not answer.
    """
    name = None if task is None else runtime.registry.get(task).name
    most = read_integer(limit, "limit", at_least=1)
    return unplanned.find(runtime.connection.globals(), task=name, limit=most)


def _leader(lock: queries.Leading | None, ttl: timedelta) -> LeaderStatus | None:
    if lock is None:
        return None
    age = None if lock.renewed_at is None else _span(lock.now, lock.renewed_at)
    return LeaderStatus(
        instance=lock.holder,
        term=lock.term,
        since=lock.since,
        heartbeat_age=age,
        is_stale=lock.holder is not None and age is not None and age > ttl,
    )


def _position(planned: queries.Planned | None) -> PositionStatus | None:
    if planned is None:
        return None
    at = datetime.fromtimestamp(planned.at.time, UTC)
    return PositionStatus(planned.database, at, _span(planned.now, at))


def _task(runtime: Runtime, task: ReactiveTask, stored: definitions.Controls, at_most: int) -> TaskStatus:
    records = runtime.connection.records(task)
    oldest = queries.oldest_due(records, task.name)
    texts = (stored.filter_text, stored.projection_text)
    limits, set_ones = stored.limits_of(task), stored.overrides
    by_hand = {
        "priority": set_ones.priority,
        "rate_limit": set_ones.rate,
        "max_concurrency": set_ones.concurrency,
    }
    return TaskStatus(
        task=task.name,
        namespace=runtime.connection.namespace(task),
        counts=queries.count_by_state(records, task.name, at_most=at_most),
        oldest_wait=None if oldest is None or oldest[0] > oldest[1] else _span(oldest[1], oldest[0]),
        paused=stored.paused,
        throttled_until=stored.throttled_until if stored.is_throttled else None,
        generation=stored.generation,
        reconciled_generation=stored.reconciled_generation,
        differs=stored.generation > 0 and texts != definitions.definition_texts(task),
        priority=stored.priority_of(task),
        rate_limit=None if limits.rate is None else str(limits.rate),
        max_concurrency=limits.concurrency,
        set_by_hand=tuple(option for option, value in by_hand.items() if value is not None),
    )


def _span(later: datetime, earlier: datetime) -> timedelta:
    return max(later - earlier, timedelta(0))
