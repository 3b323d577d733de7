"""A worker's document among the live processes: which queues it serves and how much it takes at once.

Celery runs this as a step of the worker's consumer, in the worker's own process. It writes with Celery's timer, on a
connection of its own that is closed again: a client that is kept would be inherited by the pool's children, and its
threads would be broken there.
"""

from __future__ import annotations

import importlib.metadata
import logging
from datetime import timedelta
from typing import Any

from celery import bootsteps, concurrency

from celery_reactive.errors import ReactiveError
from celery_reactive.store import instances
from celery_reactive.store.instances import Kind, WorkerFacts
from celery_reactive.worker.celery_task import ReactiveMixin, limits_in_force

logger = logging.getLogger(__name__)

_LIMIT = timedelta(seconds=1)
"""The worker's event loop waits so long at most."""


class Presence(bootsteps.StartStopStep):
    """Announces the worker while it consumes."""

    name = "reactive-presence"
    # By name: who imports the worker's modules before an instrumentation has patched them goes without it.
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._entries: list[Any] = []

    def start(self, consumer: Any) -> None:
        """Announce the worker soon, and with each heartbeat; Celery calls this again after a lost connection."""
        every = instances.HEARTBEAT.total_seconds()
        self._entries = [
            consumer.timer.call_after(0, self._announce, (consumer,)),
            consumer.timer.call_repeatedly(every, self._announce, (consumer,)),
        ]

    def stop(self, consumer: Any) -> None:
        """Say nothing more on this connection."""
        for entry in self._entries:
            consumer.timer.cancel(entry)
        self._entries = []

    def shutdown(self, consumer: Any) -> None:
        """The worker ends in good order."""
        self.stop(consumer)
        for task in _reactive_tasks(consumer)[:1]:
            try:
                with task.reactive_runtime.connection.brief(_LIMIT) as connection:
                    instances.leave(connection.globals(), Kind.WORKER, consumer.hostname)
            except ReactiveError as error:
                logger.info("worker not signed off: %s", error, extra={"event": "not_signed_off"})

    def _announce(self, consumer: Any) -> None:
        tasks = _reactive_tasks(consumer)
        if not tasks:
            return
        try:
            with tasks[0].reactive_runtime.connection.brief(_LIMIT) as connection:
                instances.announce_worker(connection.globals(), consumer.hostname, _facts(consumer, tasks))
        except ReactiveError as error:
            logger.info("worker not announced: %s", error, extra={"event": "not_announced"})


def _reactive_tasks(consumer: Any) -> list[ReactiveMixin]:
    return [task for task in consumer.app.tasks.values() if isinstance(task, ReactiveMixin)]


def _facts(consumer: Any, tasks: list[ReactiveMixin]) -> WorkerFacts:
    worker = consumer.controller
    return WorkerFacts(
        queues=sorted(queue.name for queue in consumer.task_consumer.queues),
        slots=max(1, consumer.pool.num_processes or 1),
        pool=_name_of(type(consumer.pool)),
        limited=limits_in_force(worker.time_limit, worker.soft_time_limit, consumer.pool),
        prefetch=consumer.initial_prefetch_count or 0,
        acks_late=bool(consumer.app.conf.task_acks_late),
        tasks={task.reactive.name: task.reactive.evolution.handler_version for task in tasks},
        version=importlib.metadata.version("celery-reactive"),
    )


def _name_of(pool: type[Any]) -> str:
    """Return what the command line calls a pool; of a user's own, the name of its class."""
    place = f"{pool.__module__}:{pool.__qualname__}"
    # Several names mean prefork; the first is the usual one.
    return next((name for name, known in concurrency.ALIASES.items() if known == place), pool.__qualname__)
