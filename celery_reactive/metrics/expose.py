"""Exposition: counters and gauges in the form in which Prometheus reads them (B-55).

Called by `system` with the ways to get at them, for a whole system or for one process.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TypeVar, assert_never

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from celery_reactive.core.registry import Registry
from celery_reactive.core.totals import Distribution, Series, Totals
from celery_reactive.errors import ReactiveError
from celery_reactive.metrics import catalogue
from celery_reactive.metrics.catalogue import METRICS, UNDECLARED, Kind, Metric
from celery_reactive.metrics.gauges import Sample
from celery_reactive.metrics.standing import Standing
from celery_reactive.store.errors import time_limit

logger = logging.getLogger(__name__)

_WITHIN = timedelta(seconds=8)
"""Prometheus gives up after ten seconds, if it is told nothing else."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `Reactive.metrics()` returns."""

Counted = TypeVar("Counted")

_VALUES: dict[str, tuple[str, ...]] = {
    "reason": ("unavailable", "refused"),
    "result": ("written", "deleted", "failed", "locked"),
}
"""Labels whose values are known without asking anybody."""


class Exposition:
    """Answers for one app's system, or for one process of it."""

    def __init__(
        self,
        registry: Registry,
        standing: Standing,
        *,
        totals: Callable[[], Totals],
        gauges: Callable[[], Iterable[Sample]],
    ) -> None:
        """Make an exposition.

        Args:
            registry: The app's tasks.
            standing: What the planner of this process is doing.
            totals: Returns what has been counted.
            gauges: Returns what there is now.
        """
        self._registry = registry
        self._standing = standing
        self._totals = totals
        self._gauges = gauges

    def text(self) -> bytes:
        """Return everything in Prometheus' text format.

        Raises:
            StoreUnavailableError: MongoDB does not answer: nothing that could be said would be true.
        """
        return as_text(self.families())

    def families(self) -> list[Family]:
        """Return everything as `prometheus_client` has it; raises what `text` does."""
        with time_limit(_WITHIN):
            totals = self._totals()
            samples = [*self._gauges(), *self._told()]
        return [_family(metric, totals, samples, self._registry) for metric in METRICS]

    def _told(self) -> Iterator[Sample]:
        """Yield what this process knows of itself."""
        for group in sorted(self._standing.groups):
            yield Sample(catalogue.LEADER, (group,), float(group in self._standing.terms))
        yield Sample(catalogue.BUILD, (importlib.metadata.version("celery-reactive"),), 1.0)


class SystemCollector(Collector):
    """For a registry of the user's: what cannot be read is missing there, and takes nothing else with it."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition

    def describe(self) -> Iterable[Family]:
        """Return nothing: a registry that it is added to must not read the database for it."""
        return []

    def collect(self) -> Iterable[Family]:
        """Return everything, or nothing where MongoDB does not answer."""
        try:
            return self._exposition.families()
        except ReactiveError as error:
            logger.warning("metrics not read: %s", error, extra={"event": "metrics_not_read"})
            return []


class Given(Collector):
    """A collector of what has been collected already."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        """Return it."""
        return self._families


def as_text(families: Iterable[Family]) -> bytes:
    """Return *families* in Prometheus' text format; those without a value are left out."""
    registry = CollectorRegistry()
    registry.register(Given([family for family in families if family.samples]))
    return generate_latest(registry)


def _family(metric: Metric, totals: Totals, samples: Iterable[Sample], registry: Registry) -> Family:
    match metric.kind:
        case Kind.COUNTER:
            return _counter(metric, totals, registry)
        case Kind.HISTOGRAM:
            return _histogram(metric, totals, registry)
        case Kind.GAUGE:
            gauge = GaugeMetricFamily(metric.full_name, metric.meaning, labels=metric.labels)
            for sample in samples:
                if sample.metric is metric:
                    gauge.add_metric(sample.labels, sample.value)
            return gauge
        case _:
            assert_never(metric.kind)


def _counter(metric: Metric, totals: Totals, registry: Registry) -> Family:
    """Return a counter; its series begin with 0, so that the first count is seen as an increase."""
    counter = CounterMetricFamily(metric.full_name, metric.meaning, labels=metric.labels)
    values: dict[Series, float] = dict.fromkeys(_foreseen(metric, registry), 0.0)
    values |= totals.counters
    for labels, value in _of_known_tasks(metric, values, registry):
        counter.add_metric(labels, value)
    return counter


def _foreseen(metric: Metric, registry: Registry) -> Iterator[Series]:
    known = {**_VALUES, "task_name": tuple(task.name for task in registry)}
    if all(label in known for label in metric.labels):
        for labels in itertools.product(*(known[label] for label in metric.labels)):
            yield metric.name, labels


def _histogram(metric: Metric, totals: Totals, registry: Registry) -> Family:
    histogram = HistogramMetricFamily(metric.full_name, metric.meaning, labels=metric.labels)
    for labels, found in _of_known_tasks(metric, totals.distributions, registry):
        one = found.fitted(metric.buckets)
        histogram.add_metric(labels, _cumulated(one), one.sum)
    return histogram


def _of_known_tasks(
    metric: Metric, series: Mapping[Series, Counted], registry: Registry
) -> Iterator[tuple[tuple[str, ...], Counted]]:
    """Yield labels and value of a metric's series, but of tasks that are declared no longer: those would pile up."""
    place = metric.labels.index("task_name") if "task_name" in metric.labels else None
    for (name, labels), value in series.items():
        if name == metric.name and (place is None or labels[place] in registry or labels[place] == UNDECLARED):
            yield labels, value


def _cumulated(one: Distribution) -> list[tuple[str, float]]:
    bounds = [*map(repr, one.bounds), "+Inf"]
    return list(zip(bounds, map(float, itertools.accumulate(one.numbers)), strict=True))
