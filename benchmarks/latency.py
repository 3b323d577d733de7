"""From a write to the start of its handler, beside from `.delay()` to the start of a bare Celery task.

A document is written with majority at an even rate; the clock starts before the write is sent. The bare task is a
no-op on the same broker and worker, sent at the same rate directly after.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import project
import stage


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds from cause to start."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        """Return the percentiles of at least two measurements."""
        cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
        return cls(cuts[49], cuts[94], cuts[98])

    def __str__(self) -> str:
        return f"p50 {self.p50:6.1f}  p95 {self.p95:6.1f}  p99 {self.p99:6.1f} ms"


@dataclasses.dataclass(frozen=True)
class Result:
    """Both sides at one rate."""

    rate: float
    reactive: Latency
    bare: Latency

    def __str__(self) -> str:
        return (
            f"latency at {self.rate:g} writes/s\n"
            f"  write to handler start   {self.reactive}\n"
            f"  bare Celery .delay()     {self.bare}"
        )


def measure(on: stage.Stage, *, rate: float, count: int) -> Result:
    """Measure *count* writes, and as many bare tasks, at *rate* a second."""
    orders = on.orders()
    orders.delete_many({})
    written: dict[int, int] = {}

    def write(number: int) -> None:
        written[number] = time.time_ns()
        orders.insert_one({"_id": number, "v": 1})

    on.begin()
    _evenly(write, rate=rate, count=count)
    reactive = [(run.started_ns - written[run.number]) / 1e6 for run in on.wait_for(count)]
    on.begin()
    _evenly(lambda number: project.bare.delay(number, time.time_ns()), rate=rate, count=count)
    bare = [(run.started_ns - run.sent_ns) / 1e6 for run in on.wait_for(count)]
    return Result(rate, Latency.of(reactive), Latency.of(bare))


def _evenly(do: Callable[[int], Any], *, rate: float, count: int) -> None:
    """Call *do* at *rate* a second, by the clock: a slow call does not move those after it."""
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        do(number)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, action="append", help="writes a second; may be repeated (default: 50)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long at each rate (default: %(default)s)")
    options = parser.parse_args()
    with stage.set_up() as on:
        for rate in options.rate or [50.0]:
            print(measure(on, rate=rate, count=max(2, round(rate * options.seconds))), flush=True)


if __name__ == "__main__":
    main()
