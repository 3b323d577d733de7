"""Documents planned a second, from the change stream and by reconciliation, and what that costs the planner in memory.

The task is paused and no worker runs, so that planning alone is measured. Beside each figure stands that of a plain
`$merge` of the same documents into an empty collection, in batches of the same size: what the server can do at best.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import stage
from pymongo.collection import Collection

_BATCH = 1000
_INSERTED_AT_ONCE = 1000
_POLL_SECONDS = 0.05
_KIB = 1024
_MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Measured:
    """One way of planning all documents."""

    what: str
    per_second: float
    resident_mib: float
    """The planner's memory afterwards."""
    peak_mib: float
    """Its highest ever."""


@dataclasses.dataclass(frozen=True)
class Result:
    """All ways, of the same documents."""

    count: int
    raw_per_second: float
    resident_mib: float
    """The planner's memory before the first."""
    ways: tuple[Measured, ...]

    def __str__(self) -> str:
        head = f"planning {self.count} documents, planner at first {self.resident_mib:.0f} MiB"
        lines = [head, f"  raw $merge                {self.raw_per_second:8.0f}/s   1.00"]
        lines += [
            f"  {way.what:<25} {way.per_second:8.0f}/s  {way.per_second / self.raw_per_second:5.2f}"
            f"   {way.resident_mib:4.0f} MiB, peak {way.peak_mib:.0f}"
            for way in self.ways
        ]
        return "\n".join(lines)


class _Planner:
    """The planner's process, and what it keeps of the documents."""

    def __init__(self, on: stage.Stage) -> None:
        self._on = on
        self.documents = on.orders()
        self.records = on.records()
        self._status = Path(f"/proc/{on.planner_pid}/status")

    def memory_mib(self, field: str) -> float:
        """Return `VmRSS` or `VmHWM`, as Linux tells them."""
        (line,) = (line for line in self._status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * _KIB / _MIB

    def time(self, what: str, count: int, do: Callable[[], object], *, until: Callable[[], bool]) -> Measured:
        """Do something and wait until the planner is done with it."""
        began = time.monotonic()
        do()
        self._on.wait_until(until)
        took = time.monotonic() - began
        return Measured(what, count / took, self.memory_mib("VmRSS"), self.memory_mib("VmHWM"))

    def counts(self, value: int, count: int) -> Callable[[], bool]:
        """Return whether so many records have seen this value of `v`."""
        query = {"lastObservedValues.v": value}
        return lambda: self.records.count_documents(query) >= count


def measure(on: stage.Stage, *, count: int, stream: bool = True) -> Result:
    """Plan the *count* documents that are there when the planner starts, and others or changed ones as they come."""
    planner = _Planner(on)
    before = planner.memory_mib("VmRSS")
    ways = tuple(_ways(on, planner, count, stream=stream))
    return Result(count, _raw_per_second(planner.documents), before, ways)


def _ways(on: stage.Stage, planner: _Planner, count: int, *, stream: bool) -> Iterator[Measured]:
    def come() -> None:
        _insert(planner.documents, range(count, 2 * count))

    def change() -> None:
        planner.documents.update_many({"_id": {"$lt": count}}, {"$set": {"v": 1}})

    yield planner.time("first start, no record", count, lambda: None, until=on.is_reconciled)
    yield planner.time("reconciliation, unchanged", count, on.reconcile, until=on.is_reconciled)
    if stream:
        yield planner.time("stream, new", count, come, until=planner.counts(0, 2 * count))
        yield planner.time("stream, changed", count, change, until=planner.counts(1, count))


def _insert(documents: Collection[dict[str, Any]], numbers: range) -> None:
    for first in range(0, len(numbers), _INSERTED_AT_ONCE):
        part = numbers[first : first + _INSERTED_AT_ONCE]
        documents.insert_many([{"_id": number, "v": 0, "more": "x" * 200} for number in part], ordered=False)


def _raw_per_second(documents: Collection[dict[str, Any]]) -> float:
    began, done = time.monotonic(), 0
    last: Any = -1
    while page := [
        one["_id"] for one in documents.find({"_id": {"$gt": last}}, ["_id"], sort=[("_id", 1)], limit=_BATCH)
    ]:
        merge = {"into": f"{documents.name}_raw", "whenMatched": "replace", "whenNotMatched": "insert"}
        documents.aggregate([{"$match": {"_id": {"$in": page}}}, {"$project": {"v": 1}}, {"$merge": merge}])
        last, done = page[-1], done + len(page)
    return done / (time.monotonic() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="documents")
    parser.add_argument("--no-stream", action="store_true", help="measure reconciliation only")
    options = parser.parse_args()

    def fill(documents: Collection[dict[str, Any]]) -> None:
        _insert(documents, range(options.count))

    with stage.set_up(fill=fill) as on:
        print(measure(on, count=options.count, stream=not options.no_stream))


if __name__ == "__main__":
    main()
