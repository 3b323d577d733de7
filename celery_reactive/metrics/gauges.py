"""Gauges: what there is at the moment somebody asks, read from MongoDB.

Called by `expose`. A value that cannot be told (no right to read the oplog, a count that takes too long) is missing and
harms no other; a database that is away is an error, as everything would be missing.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from celery_reactive.core.registry import Registry
from celery_reactive.core.states import RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import StatementFailedError, StoreBusyError
from celery_reactive.metrics import catalogue
from celery_reactive.metrics.catalogue import Metric
from celery_reactive.store import checkpoints, counters, definitions, measures, queries, records
from celery_reactive.store.connection import Connection
from celery_reactive.store.definitions import Controls
from celery_reactive.store.queries import Planned

logger = logging.getLogger(__name__)

_IDLE_FOR = timedelta(seconds=15)
"""An idle planner stores its position every ten seconds; one that has not for longer stands still."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One value of a gauge."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


class Gauges:
    """Measures one app's system, or the planner groups that one process leads."""

    def __init__(
        self,
        connection: Connection,
        registry: Registry,
        *,
        preference: str,
        queue_of: Callable[[ReactiveTask], str | None],
    ) -> None:
        self._connection = connection
        self._registry = registry
        self._preference = preference
        self._queue_of = queue_of

    def read(self, groups: frozenset[str] | None = None) -> Iterator[Sample]:
        """Yield every gauge.

        Args:
            groups: Only of these planner groups; None: of all.

        Raises:
            StoreUnavailableError: MongoDB does not answer; what was yielded is good.
        """
        tasks = [task for task in self._registry if groups is None or task.group in groups]
        controls = definitions.read_all(self._globals, [task.name for task in tasks])
        parts: list[Callable[[], Iterator[Sample]]] = [
            lambda: self._depths(tasks),
            lambda: self._lags(tasks),
            lambda: self._in_flight(tasks),
            lambda: self._controls(tasks, controls),
            lambda: self._failures(tasks),
            lambda: self._stream(tasks),
            lambda: self._progress(tasks),
            self._oplog,
        ]
        for part in parts:
            yield from _what_can_be_told(part)

    def _depths(self, tasks: list[ReactiveTask]) -> Iterator[Sample]:
        completed = measures.read_completed(self._globals, sorted({task.group for task in tasks}))
        for task in tasks:
            source = counters.preferring(self._connection.records(task), self._preference)
            for state in measures.UNFINISHED:
                number = queries.count_in_state(source, task.name, state)
                yield Sample(catalogue.QUEUE_DEPTH, (task.name, state.value), number)
            if task.name in completed:
                labels = task.name, RecordState.COMPLETED.value
                yield Sample(catalogue.QUEUE_DEPTH, labels, completed[task.name])

    def _lags(self, tasks: list[ReactiveTask]) -> Iterator[Sample]:
        for task in tasks:
            source = counters.preferring(self._connection.records(task), self._preference)
            oldest = queries.oldest_due(source, task.name)
            lag = 0.0 if oldest is None else _seconds_between(*oldest)
            yield Sample(catalogue.GLOBAL_LAG, (task.name,), lag)
            yield Sample(catalogue.GUARDED, (task.name,), queries.count_guarded(source, task.name))

    def _in_flight(self, tasks: list[ReactiveTask]) -> Iterator[Sample]:
        numbers: dict[str, int] = {}
        for task in tasks:
            source = counters.preferring(self._connection.records(task), self._preference)
            queue = self._queue_of(task) or ""
            numbers[queue] = numbers.get(queue, 0) + records.count_in_flight(source, task.name)
        for queue, number in numbers.items():
            yield Sample(catalogue.IN_FLIGHT, (queue,), number)

    def _controls(self, tasks: list[ReactiveTask], controls: dict[str, Controls]) -> Iterator[Sample]:
        for task in tasks:
            found = controls[task.name]
            until = found.throttled_until if found.is_throttled else None
            yield Sample(catalogue.PAUSED, (task.name,), float(found.paused))
            yield Sample(catalogue.THROTTLED, (task.name,), 0.0 if until is None else until.timestamp())
        reconciled = [found.reconciled_at for found in controls.values() if found.reconciled_at is not None]
        if reconciled:
            yield Sample(catalogue.LAST_RECONCILIATION, (), max(reconciled).timestamp())

    def _failures(self, tasks: list[ReactiveTask]) -> Iterator[Sample]:
        numbers = measures.count_unplanned(self._globals)
        for task in tasks:
            yield Sample(catalogue.PLANNING_FAILURES, (task.name,), numbers.get(task.name, 0))

    def _stream(self, tasks: list[ReactiveTask]) -> Iterator[Sample]:
        for group in sorted({task.group for task in tasks}):
            leading = queries.leading(self._globals, group)
            if leading is not None:
                yield Sample(catalogue.TERM, (group,), leading.term)
        streams = {(task.group, task.database or self._connection.default_database) for task in tasks}
        positions = [queries.planned(self._globals, group, database) for group, database in sorted(streams)]
        lags = [_lag_of(position) for position in positions if position is not None]
        if lags:
            yield Sample(catalogue.STREAM_LAG, (), max(lags))

    def _progress(self, tasks: list[ReactiveTask]) -> Iterator[Sample]:
        known = {task.name for task in tasks}
        for group in sorted({task.group for task in tasks}):
            for scan in checkpoints.progress(self._globals, group):
                ratio = min(scan.done / scan.total, 1.0) if scan.total else 0.0
                for task in scan.tasks:
                    if task in known:
                        yield Sample(catalogue.PROGRESS, (task,), ratio)

    def _oplog(self) -> Iterator[Sample]:
        window = measures.oplog_window(self._globals)
        if window is not None:
            yield Sample(catalogue.OPLOG, (), window.total_seconds())

    @property
    def _globals(self) -> definitions.Globals:
        return self._connection.globals()


def _what_can_be_told(part: Callable[[], Iterator[Sample]]) -> Iterator[Sample]:
    try:
        yield from part()
    except (StatementFailedError, StoreBusyError) as error:
        logger.warning("gauges not read: %s", error, extra={"event": "gauges_not_read"})


def _lag_of(position: Planned) -> float:
    """Return how far the planning of one stream is behind; an idle stream is not."""
    at = datetime.fromtimestamp(position.at.time, position.now.tzinfo)
    is_awake = position.stored_at is not None and position.now - position.stored_at <= _IDLE_FOR
    return 0.0 if position.idle and is_awake else _seconds_between(at, position.now)


def _seconds_between(earlier: datetime, later: datetime) -> float:
    return max((later - earlier).total_seconds(), 0.0)
