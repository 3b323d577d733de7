"""What has been counted: totals that only grow, as values that can be added, and taken apart again. No I/O.

Made by `metrics`, stored and summed by `store/counters.py`. A series is a metric's name and the values of its labels,
in the order in which the metric declares them.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Series = tuple[str, tuple[str, ...]]

DURATION = "duration_seconds"
"""Histogram of how long runs took, by task and status."""
WAIT = "wait_seconds"
"""Histogram of how long records waited from due to start, by task."""
SUCCESS = "success"
FAILED = "failed"
"""The statuses of runs."""


@dataclasses.dataclass(frozen=True, slots=True)
class Distribution:
    """How many observations fell into each bucket."""

    bounds: tuple[float, ...]
    """Upper bounds, ascending; what is above the last falls into one more bucket."""
    numbers: tuple[int, ...]
    """One more than there are bounds; of each bucket alone."""
    sum: float

    def fitted(self, bounds: Sequence[float]) -> Distribution:
        """Return this one in other buckets: each number goes where its own upper bound belongs.

        Another version of this package may have counted in other buckets.
        """
        if tuple(bounds) == self.bounds:
            return self
        numbers = [0] * (len(bounds) + 1)
        for bound, number in zip((*self.bounds, math.inf), self.numbers, strict=True):
            numbers[bisect.bisect_left(bounds, bound)] += number
        return Distribution(tuple(bounds), tuple(numbers), self.sum)

    @property
    def count(self) -> int:
        """How many observations there are."""
        return sum(self.numbers)

    def quantile(self, share: float) -> float | None:
        """Return the value that a share of the observations does not exceed, None without any.

        As Prometheus estimates it: evenly spread within a bucket, and the last bound for what is above it.
        """
        rank, passed = share * self.count, 0
        if not self.count:
            return None
        for lower, upper, number in zip((0.0, *self.bounds), self.bounds, self.numbers, strict=False):
            if number and passed + number >= rank:
                return lower + (upper - lower) * (rank - passed) / number
            passed += number
        return self.bounds[-1]

    def plus(self, other: Distribution) -> Distribution:
        """Return both together, in the buckets of this one."""
        fitted = other.fitted(self.bounds)
        numbers = tuple(mine + theirs for mine, theirs in zip(self.numbers, fitted.numbers, strict=True))
        return Distribution(self.bounds, numbers, self.sum + fitted.sum)

    def minus(self, earlier: Distribution) -> Distribution:
        """Return what has come since *earlier*, which this one contains."""
        numbers = tuple(mine - theirs for mine, theirs in zip(self.numbers, earlier.numbers, strict=True))
        return Distribution(self.bounds, numbers, self.sum - earlier.sum)


@dataclasses.dataclass(frozen=True, slots=True)
class Totals:
    """Everything counted, by series."""

    counters: Mapping[Series, float] = dataclasses.field(default_factory=dict)
    distributions: Mapping[Series, Distribution] = dataclasses.field(default_factory=dict)

    @property
    def is_nothing(self) -> bool:
        """Whether nothing has been counted."""
        return not any(self.counters.values()) and not any(sum(one.numbers) for one in self.distributions.values())

    def plus(self, other: Totals) -> Totals:
        """Return both together."""
        counters = dict(self.counters)
        for series, value in other.counters.items():
            counters[series] = counters.get(series, 0.0) + value
        distributions = dict(self.distributions)
        for series, one in other.distributions.items():
            distributions[series] = distributions[series].plus(one) if series in distributions else one
        return Totals(counters, distributions)

    def minus(self, earlier: Totals) -> Totals:
        """Return what has come since *earlier*, which these contain."""
        return Totals(
            {series: value - earlier.counters.get(series, 0.0) for series, value in self.counters.items()},
            {
                series: one.minus(earlier.distributions[series]) if series in earlier.distributions else one
                for series, one in self.distributions.items()
            },
        )

    def to_entries(self) -> list[dict[str, Any]]:
        """Return one small document for each series, as they are stored: `m` metric, `l` labels, `v` or `le, n, s`."""
        counters = [{"m": name, "l": list(labels), "v": value} for (name, labels), value in self.counters.items()]
        distributions = [
            {"m": name, "l": list(labels), "le": list(one.bounds), "n": list(one.numbers), "s": one.sum}
            for (name, labels), one in self.distributions.items()
        ]
        return [*counters, *distributions]

    @classmethod
    def from_entries(cls, entries: Iterable[Mapping[str, Any]]) -> Totals:
        """Return what `to_entries` has written."""
        counters: dict[Series, float] = {}
        distributions: dict[Series, Distribution] = {}
        for entry in entries:
            series = (entry["m"], tuple(entry["l"]))
            if "v" in entry:
                counters[series] = float(entry["v"])
            else:
                distributions[series] = Distribution(tuple(entry["le"]), tuple(map(int, entry["n"])), float(entry["s"]))
        return cls(counters, distributions)
