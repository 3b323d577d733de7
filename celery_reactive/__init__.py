"""Celery tasks that run when MongoDB documents change: durable, retried, observable.

`@reactive_task(collection=…, filter=…)` on a Celery task is all that workers and planner need; see the README.
"""

from __future__ import annotations

from celery_reactive import signals
from celery_reactive.app import Reactive, reactive_task
from celery_reactive.core.batch import Batch
from celery_reactive.core.policies import CleanupPolicy, Evolution
from celery_reactive.core.retry import RetryPolicy
from celery_reactive.errors import (
    ArgumentError,
    ConfigurationError,
    DocumentInvalidError,
    ForeignRecordsError,
    LeaseLostError,
    LockAlreadyAcquiredError,
    NotAReplicaSetError,
    ReactiveError,
    ServerTooOldError,
    StatementFailedError,
    StoreBusyError,
    StoreUnavailableError,
    TaskConditionFailedError,
    TermEndedError,
    UnknownTaskError,
)
from celery_reactive.management.explain import Explanation
from celery_reactive.management.listing import Page, TaskRecord
from celery_reactive.management.operations import Operation
from celery_reactive.management.plan import PlanReport
from celery_reactive.metrics.expose import CONTENT_TYPE as METRICS_CONTENT_TYPE
from celery_reactive.worker.context import TaskContext

__all__ = [
    "METRICS_CONTENT_TYPE",
    "ArgumentError",
    "Batch",
    "CleanupPolicy",
    "ConfigurationError",
    "DocumentInvalidError",
    "Evolution",
    "Explanation",
    "ForeignRecordsError",
    "LeaseLostError",
    "LockAlreadyAcquiredError",
    "NotAReplicaSetError",
    "Operation",
    "Page",
    "PlanReport",
    "Reactive",
    "ReactiveError",
    "RetryPolicy",
    "ServerTooOldError",
    "StatementFailedError",
    "StoreBusyError",
    "StoreUnavailableError",
    "TaskConditionFailedError",
    "TaskContext",
    "TaskRecord",
    "TermEndedError",
    "UnknownTaskError",
    "reactive_task",
    "signals",
]
