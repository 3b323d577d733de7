"""What this process has counted since it began.

Fed by `listen`, from every thread that emits events; read by whoever pushes or exposes. A forked child begins with
nothing: what its parent has counted is the parent's.
"""

from __future__ import annotations

import bisect
import functools
import os
import threading
import weakref
from collections.abc import Callable

from celery_reactive.core.totals import Distribution, Series, Totals
from celery_reactive.metrics.catalogue import Metric

Elsewhere = Callable[[Metric, tuple[str, ...], float], None]
"""Takes a metric, the values of its labels, and how many more or what was observed."""


class Counts:
    """Counters and histograms of one process and app."""

    def __init__(self) -> None:
        self._elsewhere: Elsewhere | None = None
        self.reset()
        os.register_at_fork(after_in_child=functools.partial(_reset, weakref.ref(self)))

    def reset(self) -> None:
        """Begin with nothing."""
        self._lock = threading.Lock()
        self._counters: dict[Series, float] = {}
        self._observed: dict[Series, _Observed] = {}

    def add(self, metric: Metric, *labels: str, number: float = 1) -> None:
        """Count *number* more."""
        if self._elsewhere is not None:
            self._elsewhere(metric, labels, number)
            return
        series = metric.name, labels
        with self._lock:
            self._counters[series] = self._counters.get(series, 0.0) + number

    def observe(self, metric: Metric, *labels: str, value: float) -> None:
        """Note one observation in a histogram."""
        if self._elsewhere is not None:
            self._elsewhere(metric, labels, value)
            return
        series = metric.name, labels
        with self._lock:
            observed = self._observed.get(series)
            if observed is None:
                observed = self._observed[series] = _Observed(metric.buckets)
            observed.numbers[bisect.bisect_left(metric.buckets, value)] += 1
            observed.sum += value

    def totals(self) -> Totals:
        """Return everything counted so far."""
        with self._lock:
            distributions = {
                series: Distribution(one.bounds, tuple(one.numbers), one.sum) for series, one in self._observed.items()
            }
            return Totals(dict(self._counters), distributions)

    def divert(self, elsewhere: Elsewhere) -> None:
        """Have everything counted *elsewhere* from now on, also by forked processes."""
        self._elsewhere = elsewhere


class _Observed:
    """A distribution that is counted into: it is, for each run, twice."""

    __slots__ = ("bounds", "numbers", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.numbers = [0] * (len(bounds) + 1)
        self.sum = 0.0


def _reset(alive: weakref.ref[Counts]) -> None:
    counts = alive()
    if counts is not None:
        counts.reset()
