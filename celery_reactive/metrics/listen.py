"""From events to counts: the only place that knows which event is counted where.

Called by `Runtime.emit` in planner, worker and whoever manages, after the fact is durable.
"""

from __future__ import annotations

from collections.abc import Callable

from celery_reactive.core.registry import Registry
from celery_reactive.core.states import RecordState
from celery_reactive.events import (
    BatchFailed,
    DispatchFailed,
    DocumentsPlanned,
    Event,
    HistoryLost,
    LeadershipWon,
    LeaseExpired,
    LeaseLost,
    PlanningFailed,
    PlanningPostponed,
    RecordsDispatched,
    RunFailed,
    RunFinished,
    RunRetried,
    RunStarted,
    StreamFailed,
)
from celery_reactive.metrics import catalogue
from celery_reactive.metrics.catalogue import FAILED, SUCCESS, UNDECLARED
from celery_reactive.metrics.counts import Counts


class Listener:
    """Counts the events of one process."""

    def __init__(self, counts: Counts, registry: Registry, *, on_counted: Callable[[], None] | None) -> None:
        self._counts = counts
        self._registry = registry
        self._on_counted = on_counted

    def __call__(self, event: Event) -> None:
        """Count *event*, if it is one that is counted."""
        if self._count(event) and self._on_counted is not None:
            self._on_counted()

    def _count(self, event: Event) -> bool:
        match event:
            case RunStarted(waited_seconds=float(seconds)):
                self._counts.observe(catalogue.WAIT, self._name(event.task), value=seconds)
            case RunFinished():
                self._counts.observe(catalogue.DURATION, self._name(event.task), SUCCESS, value=event.seconds)
            case RunFailed():
                self._counts.observe(catalogue.DURATION, self._name(event.task), FAILED, value=event.seconds)
            case RunRetried():
                self._counts.observe(catalogue.DURATION, self._name(event.task), FAILED, value=event.seconds)
                self._counts.add(catalogue.RETRIES, self._name(event.task))
            case LeaseLost():
                self._counts.add(catalogue.LOCK_LOST, self._name(event.task))
            case LeaseExpired():
                self._counts.add(catalogue.LOCK_LOST, self._name(event.task))
                if event.state == RecordState.PENDING:
                    self._counts.add(catalogue.RETRIES, self._name(event.task))
            case _:
                return self._count_planners(event)
        return True

    def _count_planners(self, event: Event) -> bool:
        """Count an event of a planner."""
        match event:
            case LeadershipWon():
                self._counts.add(catalogue.ELECTIONS)
            case DocumentsPlanned():
                self._count_planned(event)
            case PlanningFailed():
                self._counts.add(catalogue.PLANNED, self._name(event.task), "failed")
            case PlanningPostponed():
                self._counts.add(catalogue.PLANNED, self._name(event.task), "locked")
            case RecordsDispatched():
                self._counts.add(catalogue.DISPATCHED, event.queue or "", number=event.records)
                self._counts.add(catalogue.REDISPATCHED, number=event.again)
            case DispatchFailed():
                self._counts.add(catalogue.DISPATCH_FAILURES, event.reason)
            case StreamFailed() | HistoryLost():
                self._counts.add(catalogue.STREAM_ERRORS)
            case BatchFailed():
                self._counts.add(catalogue.FLUSH_FAILURES)
            case _:
                return False
        return True

    def _count_planned(self, event: DocumentsPlanned) -> None:
        written = max(event.documents - event.deleted - event.set_aside, 0)
        for result, number in (("written", written), ("deleted", event.deleted)):
            if number:
                self._counts.add(catalogue.PLANNED, self._name(event.task), result, number=number)

    def _name(self, task: str) -> str:
        """Return *task* as a label's value: what is not declared here cannot multiply series."""
        return task if task in self._registry else UNDECLARED
