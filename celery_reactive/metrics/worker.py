"""A worker's part: its parent process pushes what it has counted itself, or serves what its pool has.

Celery runs this as a step of the worker's consumer. It is made before the pool forks, and must start no thread in a
process that forks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, ClassVar

from celery import bootsteps

from celery_reactive.errors import ReactiveError
from celery_reactive.metrics import relay
from celery_reactive.metrics.serve import Port, listen
from celery_reactive.metrics.system import Metrics

logger = logging.getLogger(__name__)

_LIMIT = timedelta(seconds=1)
"""The worker's event loop waits so long at most."""
_PREFORK = "celery.concurrency.prefork"


class WorkerMetrics(bootsteps.StartStopStep):
    """Keeps a worker's metrics from its start to its end."""

    name = "reactive-metrics"
    # By name: who imports the worker's modules before an instrumentation has patched them goes without it.
    requires = ("celery.worker.consumer.tasks:Tasks",)
    parts: ClassVar[Callable[[], Metrics | None]]
    """Returns the app's metrics; None where the app has no reactive task."""

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._entry: Any = None
        self._open = ExitStack()
        metrics = type(self).parts()
        self._metrics = metrics if metrics is not None and metrics.enabled else None
        self._forks = any(base.__module__ == _PREFORK for base in type(consumer.pool).__mro__)
        if self._metrics is None:
            return
        if not self._metrics.is_local:
            self._metrics.pusher.has_thread = not self._forks
        elif self._metrics.port is not None:
            self._serve(self._metrics, self._metrics.port)

    def _serve(self, metrics: Metrics, port: int) -> None:
        """Serve what this worker counts.

        Raises:
            ConfigurationError: The port is taken; the worker does not start.
        """
        listening = listen(metrics.host, port)
        if self._forks:
            sender = relay.serve_beside(listening, metrics.tasks)
            metrics.counts.divert(sender.send)
        else:
            self._open.enter_context(Port(listening, text=metrics.exposition.text, is_ready=lambda: True))

    def start(self, consumer: Any) -> None:
        """Push now and then, on the worker's own timer; Celery calls this again after a lost connection."""
        if self._metrics is not None and self._forks and not self._metrics.is_local:
            every = self._metrics.push_interval.total_seconds()
            self._entry = consumer.timer.call_repeatedly(every, self._push)

    def stop(self, consumer: Any) -> None:
        """Push no more on this connection."""
        if self._entry is not None:
            consumer.timer.cancel(self._entry)
            self._entry = None

    def shutdown(self, consumer: Any) -> None:
        """The worker ends in good order."""
        self.stop(consumer)
        self._open.close()
        if self._metrics is not None:
            self._metrics.finish()

    def _push(self) -> None:
        """Push what this process has counted, if it has, on a connection that is closed again."""
        assert self._metrics is not None  # noqa: S101 -- see `start`
        pusher = self._metrics.pusher
        if not pusher.has_news:
            return
        try:
            with self._metrics.connection.brief(_LIMIT) as connection:
                pusher.push(connection)
        except ReactiveError as error:
            logger.info("counters not written, later: %s", error, extra={"event": "counters_not_written"})
