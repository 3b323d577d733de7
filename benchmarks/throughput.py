"""No-op documents from the first write until all are handled, beside bare Celery no-op tasks.

All is measured in one run, on one broker and one worker: documents are inserted as fast as the server takes them, bare
tasks are sent with `.delay()`. The clock stops at the start of the last handler.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence

import project
import stage

CHUNKS = (project.DEFAULT, "1", "32")
_INSERTED_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class Result:
    """Handled a second."""

    count: int
    bare: float
    reactive: dict[str, float]
    """By `chunk`."""

    def ratio(self, chunk: str) -> float:
        """Return how many times bare Celery's throughput this is."""
        return self.reactive[chunk] / self.bare

    def __str__(self) -> str:
        lines = [f"throughput, {self.count} no-ops", f"  bare Celery          {self.bare:7.0f}/s   1.00"]
        lines += [
            f"  chunk={chunk:<14} {per_second:7.0f}/s   {self.ratio(chunk):.2f}"
            for chunk, per_second in self.reactive.items()
        ]
        return "\n".join(lines)


def measure(on: stage.Stage, *, count: int, chunks: Sequence[str] = CHUNKS) -> Result:
    """Measure *count* no-ops each way."""
    bare = _bare_per_second(on, count)
    return Result(count, bare, {chunk: _reactive_per_second(on, chunk, count) for chunk in chunks})


def _bare_per_second(on: stage.Stage, count: int) -> float:
    on.begin()
    began_ns = time.time_ns()
    for number in range(count):
        project.bare.delay(number, time.time_ns())
    return _per_second(on.wait_for(count), began_ns)


def _reactive_per_second(on: stage.Stage, chunk: str, count: int) -> float:
    orders = on.orders(chunk)
    on.begin()
    began_ns = time.time_ns()
    for first in range(0, count, _INSERTED_AT_ONCE):
        numbers = range(first, min(first + _INSERTED_AT_ONCE, count))
        orders.insert_many([{"_id": number, "v": 1} for number in numbers], ordered=False)
    return _per_second(on.wait_for(count), began_ns)


def _per_second(runs: Sequence[project.Run], began_ns: int) -> float:
    return len(runs) / (max(run.started_ns for run in runs) - began_ns) * 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="documents each way (default: %(default)s)")
    options = parser.parse_args()
    with stage.set_up(CHUNKS) as on:
        print(measure(on, count=options.count), flush=True)


if __name__ == "__main__":
    main()
