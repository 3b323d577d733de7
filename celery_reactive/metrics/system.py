"""One app's metrics in one process: the parts, put together. Read this first in `metrics/`.

Made by the composition root. `listeners` hear what happens; `exposition` answers; `push` says when the rest must be
durable. With `reactive_metrics_enabled` off nothing is counted, written or answered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry

from celery_reactive.core.registry import Registry
from celery_reactive.core.task import ReactiveTask
from celery_reactive.core.totals import Totals
from celery_reactive.errors import ConfigurationError
from celery_reactive.events import Event
from celery_reactive.metrics import relay
from celery_reactive.metrics.chores import Chores
from celery_reactive.metrics.counts import Counts
from celery_reactive.metrics.expose import Exposition, SystemCollector
from celery_reactive.metrics.gauges import Gauges, Sample
from celery_reactive.metrics.listen import Listener
from celery_reactive.metrics.push import Pusher
from celery_reactive.metrics.standing import Standing
from celery_reactive.settings import Settings
from celery_reactive.store import counters
from celery_reactive.store.connection import Connection


class Metrics:
    """Counts in this process, and answers for it or for all."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        connection: Connection,
        *,
        queue_of: Callable[[ReactiveTask], str | None],
    ) -> None:
        """Put the parts together; nothing is read or started.

        Args:
            settings: The app's.
            registry: Its tasks.
            connection: This process's.
            queue_of: Returns the name of the queue of a task's messages; None where nobody can tell.
        """
        self.tasks = registry
        self.connection = connection
        self.enabled = settings.metrics_enabled
        self.is_local = settings.metrics_scrape_mode == "local"
        self.push_interval = settings.metrics_push_interval
        self.port = settings.metrics_port
        """On which a worker serves its own, in `local` mode."""
        self.host = settings.metrics_host
        self.counts = Counts()
        self.standing = Standing()
        self.pusher = Pusher(self.counts, connection, settings)
        self._preference = settings.metrics_read_preference
        self._gauges = Gauges(connection, registry, preference=self._preference, queue_of=queue_of)
        sender = relay.inherited() if self.is_local else None
        if sender is not None:
            # A pool process that was started anew, not forked.
            self.counts.divert(sender.send)

    @property
    def listeners(self) -> tuple[Callable[[Event], None], ...]:
        """What hears the events of this process."""
        if not self.enabled:
            return (self.standing,)
        on_counted = None if self.is_local else self.pusher.on_counted
        return self.standing, Listener(self.counts, self.tasks, on_counted=on_counted)

    @property
    def exposition(self) -> Exposition:
        """What answers.

        Raises:
            ConfigurationError: Metrics are switched off.
        """
        if not self.enabled:
            raise ConfigurationError("reactive_metrics_enabled", ["expected True where metrics are asked for"])
        return Exposition(self.tasks, self.standing, totals=self._totals, gauges=self._measure)

    def _totals(self) -> Totals:
        """Return what was counted: by this process, or by all as MongoDB has it.

        And nowhere else: what is not durable would be counted back when this process ends.
        """
        if self.is_local:
            return self.counts.totals()
        self.pusher.push()
        return counters.read(self.connection.globals(), preference=self._preference)

    def _measure(self) -> Iterable[Sample]:
        """Return the gauges of all, in `local` mode those of the planner groups that this process leads."""
        if not self.is_local:
            return self._gauges.read()
        led = frozenset(self.standing.terms)
        return self._gauges.read(led) if led else ()

    def registry(self) -> CollectorRegistry:
        """Return a registry of `prometheus_client` that holds everything; raises what `exposition` does."""
        registry = CollectorRegistry()
        registry.register(SystemCollector(self.exposition))
        return registry

    def chores(self, group: str, term: int, ended: threading.Event) -> Callable[[], None]:
        """Return the step that the leader of *group* repeats in *term*."""
        chores = Chores(self.connection, tuple(self.tasks), group=group, term=term, ended=ended)
        return chores.step

    def finish(self) -> None:
        """Make durable what this process has counted: it ends."""
        if self.enabled and not self.is_local:
            self.pusher.finish()
