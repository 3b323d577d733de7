"""What this process has counted since it began.

Fed by `listen`, from every thread that emits events; read by whoever pushes or exposes. A forked child begins with
nothing: what its parent has counted is the parent's.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref

from celery_reactive.core.totals import Distribution, Series, Totals
from celery_reactive.metrics.catalogue import Metric


class Counts:
    """Counters and histograms of one process and app."""

    def __init__(self) -> None:
        self.reset()
        os.register_at_fork(after_in_child=functools.partial(_reset, weakref.ref(self)))

    def reset(self) -> None:
        """Begin with nothing."""
        self._lock = threading.Lock()
        self._counters: dict[Series, float] = {}
        self._distributions: dict[Series, Distribution] = {}

    def add(self, metric: Metric, *labels: str, number: float = 1) -> None:
        """Count *number* more."""
        series = metric.name, labels
        with self._lock:
            self._counters[series] = self._counters.get(series, 0.0) + number

    def observe(self, metric: Metric, *labels: str, value: float) -> None:
        """Note one observation in a histogram."""
        series = metric.name, labels
        with self._lock:
            known = self._distributions.get(series) or Distribution.empty(metric.buckets)
            self._distributions[series] = known.observing(value)

    def totals(self) -> Totals:
        """Return everything counted so far."""
        with self._lock:
            return Totals(dict(self._counters), dict(self._distributions))

    def take(self) -> Totals:
        """Return what was counted since the last call, and count on from nothing."""
        with self._lock:
            taken = Totals(self._counters, self._distributions)
            self._counters, self._distributions = {}, {}
        return taken


def _reset(alive: weakref.ref[Counts]) -> None:
    counts = alive()
    if counts is not None:
        counts.reset()
