"""What happens, one dataclass per event: the contract that logs, signals and metrics subscribe to (B-54).

`code` is stable: logs carry it as `event`, the signal of the same name is sent with it. The facts
are the fields. Emitted by planner, worker and management through `Runtime.emit`, after the fact is durable.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from celery_reactive.core.suggest import shown
from celery_reactive.core.task import DEFAULT_GROUP

_LONGEST_TEXT = 300


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""

    code: ClassVar[str] = ""
    level: ClassVar[int] = logging.INFO
    message: ClassVar[str] = ""

    def facts(self) -> dict[str, Any]:
        """Return the fields by name, for structured logs."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def in_words(self) -> str:
        """Return the facts as `name=value` pairs, for people; what is unknown is left out."""
        return in_words(self.facts())


def in_words(facts: Mapping[str, Any]) -> str:
    """Return *facts* as `name=value` pairs on one line."""
    return " ".join(f"{name}={_text(value)}" for name, value in facts.items() if value is not None)


def _text(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3g}"
        case str():
            text = " ".join(value.split())[:_LONGEST_TEXT]
            return f'"{text}"' if " " in text else text
        case tuple() | list() | frozenset():
            return ",".join(str(each) for each in value)
        case int():
            return str(value)
        case _:
            return str(value) if hasattr(value, "isoformat") else shown(value)


@dataclasses.dataclass(frozen=True, slots=True)
class PlannerStarted(Event):
    """A planner process is up: a candidate for leadership."""

    code: ClassVar[str] = "planner_started"
    message: ClassVar[str] = "planner started"
    instance: str
    tasks: int
    group: str = DEFAULT_GROUP


@dataclasses.dataclass(frozen=True, slots=True)
class PlannerStopped(Event):
    """A planner process has stopped in good order."""

    code: ClassVar[str] = "planner_stopped"
    message: ClassVar[str] = "planner stopped"
    instance: str
    group: str = DEFAULT_GROUP


@dataclasses.dataclass(frozen=True, slots=True)
class LeadershipAwaited(Event):
    """Another planner leads; this one stands by, and leads once the other's lock has not been renewed for its TTL."""

    code: ClassVar[str] = "leadership_awaited"
    message: ClassVar[str] = "another planner leads, standing by"
    instance: str
    leader: str
    ttl_seconds: float
    group: str = DEFAULT_GROUP


@dataclasses.dataclass(frozen=True, slots=True)
class LeadershipWon(Event):
    """This planner leads now."""

    code: ClassVar[str] = "leadership_won"
    message: ClassVar[str] = "leadership won"
    instance: str
    term: int
    group: str = DEFAULT_GROUP


@dataclasses.dataclass(frozen=True, slots=True)
class LeadershipEnded(Event):
    """This planner leads no longer: handed over, or lost."""

    code: ClassVar[str] = "leadership_ended"
    message: ClassVar[str] = "leadership ended"
    instance: str
    term: int
    handed_over: bool
    group: str = DEFAULT_GROUP


@dataclasses.dataclass(frozen=True, slots=True)
class StreamOpened(Event):
    """The change stream of a database is open."""

    code: ClassVar[str] = "stream_opened"
    message: ClassVar[str] = "change stream opened"
    database: str
    resumed: bool


@dataclasses.dataclass(frozen=True, slots=True)
class StreamFailed(Event):
    """The change stream of a database failed and is opened again."""

    code: ClassVar[str] = "stream_failed"
    level: ClassVar[int] = logging.WARNING
    message: ClassVar[str] = "change stream failed, opening it again"
    database: str
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class BatchFailed(Event):
    """A batch of changes could not be planned, or its position not be stored; it is planned again (B-47)."""

    code: ClassVar[str] = "batch_failed"
    level: ClassVar[int] = logging.WARNING
    message: ClassVar[str] = "batch of changes not planned, planning it again"
    database: str
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class HistoryLost(Event):
    """The stored position is unusable: affected collections are reconciled (B-49)."""

    code: ClassVar[str] = "history_lost"
    level: ClassVar[int] = logging.WARNING
    message: ClassVar[str] = "stream position lost, reconciling"
    database: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class ReconciliationStarted(Event):
    """A scan of a collection for these tasks begins."""

    code: ClassVar[str] = "reconciliation_started"
    message: ClassVar[str] = "reconciliation started"
    collection: str
    tasks: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ReconciliationProgressed(Event):
    """How far a scan has come; `done` and `total` count documents and records, `seconds_left` is estimated."""

    code: ClassVar[str] = "reconciliation_progressed"
    message: ClassVar[str] = "reconciliation goes on"
    collection: str
    tasks: tuple[str, ...]
    done: int
    total: int
    per_second: float
    seconds_left: float


@dataclasses.dataclass(frozen=True, slots=True)
class ReconciliationFinished(Event):
    """A scan of a collection for these tasks is done."""

    code: ClassVar[str] = "reconciliation_finished"
    message: ClassVar[str] = "reconciliation finished"
    collection: str
    tasks: tuple[str, ...]
    documents: int
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class ReprocessingFinished(Event):
    """A handler has a new version, and the records that its policy names were made to run again (B-44)."""

    code: ClassVar[str] = "reprocessing_finished"
    message: ClassVar[str] = "records reset for a new version of their handler"
    task: str
    version: int
    records: int


@dataclasses.dataclass(frozen=True, slots=True)
class DocumentsPlanned(Event):
    """A batch of changes has been laid over the records of a task."""

    code: ClassVar[str] = "documents_planned"
    level: ClassVar[int] = logging.DEBUG
    message: ClassVar[str] = "documents planned"
    task: str
    documents: int
    deleted: int = 0
    """Of them, those whose deletion was planned."""
    set_aside: int = 0
    """Of them, those that could not be planned."""


@dataclasses.dataclass(frozen=True, slots=True)
class PlanningFailed(Event):
    """A document could not be planned; it is listed and tried again when it changes (B-20)."""

    code: ClassVar[str] = "planning_failed"
    level: ClassVar[int] = logging.ERROR
    message: ClassVar[str] = "document could not be planned"
    task: str
    record: str
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class PlanningPostponed(Event):
    """A record is locked by somebody's transaction; it is tried again on its own (B-20)."""

    code: ClassVar[str] = "planning_postponed"
    message: ClassVar[str] = "record locked, planned apart"
    task: str
    record: str


@dataclasses.dataclass(frozen=True, slots=True)
class RecordsDispatched(Event):
    """Messages for these records were published."""

    code: ClassVar[str] = "records_dispatched"
    level: ClassVar[int] = logging.DEBUG
    message: ClassVar[str] = "records dispatched"
    task: str
    records: int
    messages: int
    queue: str | None = None
    """None: a router of the user's names none."""
    again: int = 0
    """Of the records, those sent before and not claimed by their dispatch deadline."""


@dataclasses.dataclass(frozen=True, slots=True)
class DispatchFailed(Event):
    """The broker did not take messages; the records wait in MongoDB and are sent again."""

    code: ClassVar[str] = "dispatch_failed"
    level: ClassVar[int] = logging.WARNING
    message: ClassVar[str] = "broker did not take messages"
    error: str
    reason: str = "unavailable"
    """`unavailable`: the broker does not answer; `refused`: it did not take messages of some tasks."""


@dataclasses.dataclass(frozen=True, slots=True)
class BrokerContentsLost(Event):
    """Messages seem to be lost (broker emptied, queue purged or deleted); these records are sent again (B-66)."""

    code: ClassVar[str] = "broker_contents_lost"
    level: ClassVar[int] = logging.WARNING
    message: ClassVar[str] = "messages lost by the broker, sending them again"
    broker: str
    records: int


@dataclasses.dataclass(frozen=True, slots=True)
class LoopGuarded(Event):
    """A record was taken out: its handler's own writes have caused too many runs in a row (B-64)."""

    code: ClassVar[str] = "loop_guarded"
    level: ClassVar[int] = logging.ERROR
    message: ClassVar[str] = "record paused, its handler triggers itself"
    task: str
    record: str
    runs: int
    """In a row, caused by the handler."""


@dataclasses.dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """A worker claimed a record and is about to call the handler."""

    code: ClassVar[str] = "run_started"
    level: ClassVar[int] = logging.DEBUG
    message: ClassVar[str] = "run started"
    task: str
    record: str
    attempt: int
    waited_seconds: float | None = None
    """From the time it became due to its start, by the server's clock; None for a retry, and after a deferral."""


@dataclasses.dataclass(frozen=True, slots=True)
class RunFinished(Event):
    """A run succeeded; `state` is where it left the record. Celery has logged its success already."""

    code: ClassVar[str] = "run_finished"
    level: ClassVar[int] = logging.DEBUG
    message: ClassVar[str] = "run finished"
    task: str
    record: str
    attempt: int
    state: str
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class RunSkipped(Event):
    """A run, or a pending record, ended because there was nothing to do."""

    code: ClassVar[str] = "run_skipped"
    message: ClassVar[str] = "run skipped"
    task: str
    record: str
    attempt: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class RunFailed(Event):
    """A run failed for good: the record is in the dead-letter state."""

    code: ClassVar[str] = "run_failed"
    # Celery itself has logged the exception as an error: two would be counted as two by what listens to errors.
    level: ClassVar[int] = logging.WARNING
    message: ClassVar[str] = "run failed, no attempts left"
    task: str
    record: str
    attempt: int
    error: str
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class RunRetried(Event):
    """A run failed and will be tried again."""

    code: ClassVar[str] = "run_retried"
    level: ClassVar[int] = logging.WARNING
    message: ClassVar[str] = "run failed, will be tried again"
    task: str
    record: str
    attempt: int
    error: str
    seconds: float
    next_run_at: datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class RunDeferred(Event):
    """A handler asked to run later, or its document moved on before it was read."""

    code: ClassVar[str] = "run_deferred"
    message: ClassVar[str] = "run deferred"
    task: str
    record: str
    attempt: int
    next_run_at: datetime | None
    overtaken: bool


@dataclasses.dataclass(frozen=True, slots=True)
class RunGivenBack(Event):
    """A claimed record was given back without a finished run; its attempts are as before."""

    code: ClassVar[str] = "run_given_back"
    message: ClassVar[str] = "run given back"
    task: str
    record: str
    attempt: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseLost(Event):
    """A worker found that it no longer owns the record it ran; its result was not written."""

    code: ClassVar[str] = "lease_lost"
    level: ClassVar[int] = logging.WARNING
    message: ClassVar[str] = "result discarded, the lease was lost"
    task: str
    record: str
    attempt: int


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseExpired(Event):
    """The leader ended a run whose worker has vanished (B-28)."""

    code: ClassVar[str] = "lease_expired"
    level: ClassVar[int] = logging.WARNING
    message: ClassVar[str] = "worker vanished, its run was ended"
    task: str
    record: str
    state: str


@dataclasses.dataclass(frozen=True, slots=True)
class TaskThrottled(Event):
    """All future runs of a task pause until a time (B-35)."""

    code: ClassVar[str] = "task_throttled"
    level: ClassVar[int] = logging.WARNING
    message: ClassVar[str] = "task throttled"
    task: str
    until: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class TaskPaused(Event):
    """A task was paused or resumed by hand."""

    code: ClassVar[str] = "task_paused"
    message: ClassVar[str] = "task paused or resumed"
    task: str
    paused: bool


@dataclasses.dataclass(frozen=True, slots=True)
class TaskLimited(Event):
    """Limits or the priority of a task were set by hand (B-58); None: the declared one counts."""

    code: ClassVar[str] = "task_limited"
    message: ClassVar[str] = "limits of a task set"
    task: str
    rate: str | None
    concurrency: int | str | None
    priority: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class ManualAction(Event):
    """Somebody changed records by hand."""

    code: ClassVar[str] = "manual_action"
    message: ClassVar[str] = "records changed by hand"
    action: str
    task: str
    records: int


@dataclasses.dataclass(frozen=True, slots=True)
class ContextMisused(Event):
    """A handler called its context in an order that has no effect."""

    code: ClassVar[str] = "context_misused"
    level: ClassVar[int] = logging.WARNING
    message: ClassVar[str] = "context call has no effect"
    record: str
    detail: str


@dataclasses.dataclass(frozen=True, slots=True)
class CleanupFinished(Event):
    """Orphaned records were removed."""

    code: ClassVar[str] = "cleanup_finished"
    message: ClassVar[str] = "orphaned records removed"
    task: str
    records: int


EVENTS: tuple[type[Event], ...] = tuple({event.code: event for event in Event.__subclasses__()}.values())
"""Every event once, in the order above; by code, as a dataclass with slots leaves the class it replaces behind."""
