"""What the checks are about: the app's parts, what Celery says of itself, and what was read once for all checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property

from celery_reactive.core.task import ReactiveTask
from celery_reactive.management.renames import Undeclared, undeclared
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, instances
from celery_reactive.store.definitions import Controls
from celery_reactive.store.instances import Instance, Kind, WorkerFacts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CelerySide:
    """The app's Celery configuration and its broker, as far as the checks ask."""

    broker: str
    """The broker's address, without its password."""
    transport: str
    """Kombu's name for its kind, such as `redis`."""
    broker_error: str | None = None
    """Why it does not answer; None: it does."""
    redis_maxmemory: int = 0
    """Bytes; 0: no limit, or no Redis."""
    redis_maxmemory_policy: str | None = None
    """None: no Redis, or it may not be asked."""
    redis_visibility_timeout: timedelta | None = None
    """After so long Redis gives an unacknowledged message to another worker; None: no Redis."""
    always_eager: bool = False
    acks_late: bool = False
    """`task_acks_late`, or that of any reactive task."""
    prefetch_multiplier: int = 4
    result_backend: str | None = None
    accepts_json: bool = True
    queues: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    """Where each reactive task's messages go; None where only the message would tell."""
    time_limits: Mapping[str, tuple[float | None, float | None]] = dataclasses.field(default_factory=dict)
    """Hard and soft time limit of each reactive task that has one, in seconds."""


class Case:
    """One installation under examination."""

    def __init__(self, runtime: Runtime, celery: CelerySide) -> None:
        self.runtime = runtime
        self.celery = celery

    @property
    def tasks(self) -> list[ReactiveTask]:
        """The tasks that this code declares."""
        return list(self.runtime.registry)

    @cached_property
    def controls(self) -> dict[str, Controls]:
        """Stored definition and controls of each declared task."""
        names = [task.name for task in self.tasks]
        return definitions.read_all(self.runtime.connection.globals(), names)

    @cached_property
    def live(self) -> list[Instance]:
        """The processes that were seen within the last half minute."""
        return [one for one in instances.read(self.runtime.connection.globals()) if one.is_live]

    @cached_property
    def workers(self) -> dict[str, WorkerFacts]:
        """What the live workers say of themselves."""
        return instances.live_workers(self.runtime.connection.globals())

    @property
    def planners(self) -> list[Instance]:
        """The live planners."""
        return [one for one in self.live if one.kind is Kind.PLANNER]

    @cached_property
    def undeclared(self) -> list[Undeclared]:
        """Stored tasks that this code does not declare."""
        return undeclared(self.runtime)

    def workers_of(self, task: ReactiveTask) -> dict[str, WorkerFacts]:
        """Return the live workers that consume from the queue of *task*."""
        queue = self.celery.queues.get(task.name)
        return {name: facts for name, facts in self.workers.items() if queue is None or queue in facts.queues}
