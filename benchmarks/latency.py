"""From a write to the start of its handler, beside from `.delay()` to the start of a bare Celery task.

A document is written with majority at an even rate; the clock starts before the write is sent. The bare task is a
no-op on the same broker and worker, sent at the same rate directly after. Under a backlog, another task has so many
documents to handle when the writes begin.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import project
import stage
from figures import Figure, Section, tell

_FIRST_OF_BACKLOG = 10_000_000


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds from cause to start."""

    p50: float
    p99: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        """Return the percentiles of at least two measurements."""
        cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
        return cls(cuts[49], cuts[98])

    def figures(self, what: str, beside: Latency | None, goals: tuple[str, str] = ("", "")) -> Iterator[Figure]:
        """Yield both, beside bare Celery's."""
        for name, goal in zip(("p50", "p99"), goals, strict=True):
            ours = getattr(self, name)
            ratio = None if beside is None else ours / getattr(beside, name)
            yield Figure(f"{name} {what}", ours, "ms", "" if beside is None else "bare Celery", ratio, goal)


def measure(quick: bool) -> Section:  # noqa: FBT001 -- as every benchmark
    """Measure at several rates, and under a backlog."""
    rates, backlog = ({20.0: 1.0}, 200) if quick else ({1.0: 20.0, 50.0: 20.0, 500.0: 10.0}, 100_000)
    figures: list[Figure] = []
    with stage.set_up(stage.Setting((project.DEFAULT, project.OTHER))) as on:
        for rate, seconds in rates.items():
            count = max(2, round(rate * seconds))
            reactive, bare = of_writes(on, rate=rate, count=count), of_bare(on, rate=rate, count=count)
            goals = ("≤ 10 ms", "≤ 50 ms") if rate == 50 else ("", "")
            figures += reactive.figures(f"at {rate:g} writes/s", bare, goals)
            figures += bare.figures(f"at {rate:g} bare tasks/s", None)
        on.plan_backlog(project.OTHER, range(_FIRST_OF_BACKLOG, _FIRST_OF_BACKLOG + backlog))
        behind = of_writes(on, rate=20.0, count=20 if quick else 200)
        figures += behind.figures(f"at 20 writes/s behind {backlog} of another task", None)
    return Section("latency", "Latency, write to start of the handler, debounce=0", figures, "Majority writes.")


def of_writes(on: stage.Stage, *, rate: float, count: int) -> Latency:
    """Measure *count* writes at *rate* a second."""
    orders, numbers = on.orders(), on.numbers(count)
    written: dict[int, int] = {}

    def write(index: int) -> None:
        number = numbers[index]
        written[number] = time.time_ns()
        orders.insert_one({"_id": number, "v": 0})

    on.begin()
    evenly(write, rate=rate, count=count)
    runs = on.wait_for(count, of=lambda run: run.number in written)
    return Latency.of([(run.started_ns - written[run.number]) / 1e6 for run in runs])


def of_bare(on: stage.Stage, *, rate: float, count: int) -> Latency:
    """Measure *count* bare tasks at *rate* a second."""
    on.begin()
    evenly(lambda number: project.bare.delay(number, time.time_ns()), rate=rate, count=count)
    return Latency.of([(run.started_ns - run.sent_ns) / 1e6 for run in on.wait_for(count)])


def evenly(do: Callable[[int], Any], *, rate: float, count: int) -> None:
    """Call *do* with 0, 1, … at *rate* a second, by the clock: a slow call does not move those after it."""
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        do(number)


if __name__ == "__main__":
    tell(measure)
