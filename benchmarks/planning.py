"""Documents planned a second, from the change stream and by reconciliation, and what that costs the planner in memory.

The task is paused and no worker runs, so that planning alone is measured. Beside each figure stands that of a plain
`$merge` of the same documents into an empty collection, in batches of the same size: what the server can do at best.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import project
import stage
from figures import Figure, Section, number, tell
from stage import Documents, Setting

_BATCH = 1000
_BYTES_MORE = 200
_RAW = "a plain $merge"
_TASK = f"reactive_{project.DEFAULT}"
GOALS = {
    "first start, no record": "≥ 0.7 × raw",
    "reconciliation, unchanged": "≥ 40,000 /s",
    "stream, new": "≥ 0.5 × raw",
}


def measure(quick: bool) -> Section:  # noqa: FBT001 -- as every benchmark
    """Plan the documents that are there when the planner starts, and then others and changed ones as they come."""
    many, some = (300, 300) if quick else (1_000_000, 50_000)

    def fill(documents: Documents) -> None:
        stage.insert(documents, range(many), bytes_more=_BYTES_MORE)

    with stage.set_up(Setting(workers=0), fill=fill) as on:
        on.wait_until(stage.has_leader)
        at_first = on.planner.memory_mib()
        rates = dict(_rates(on, many, some))
        grown = on.planner.memory_mib() - at_first
        peak = on.planner.memory_mib("VmHWM")
        raw = _raw_per_second(on.orders(), some)
    figures = [Figure(_RAW, raw, "/s")]
    figures += [Figure(what, rate, "/s", _RAW, rate / raw, GOALS.get(what, "")) for what, rate in rates.items()]
    figures.append(Figure("planner's memory grown by", grown, "MiB", goal="< 50 MiB"))
    figures.append(Figure("planner's memory at most", peak, "MiB"))
    note = f"{number(many)} documents scanned, {number(some)} streamed."
    return Section("planning", "Planning and reconciliation, documents a second", figures, note)


def _rates(on: stage.Stage, many: int, some: int) -> Iterator[tuple[str, float]]:
    documents, records = on.orders(), on.records()

    def have_seen_change() -> bool:
        streamed = {"$gte": {"t": _TASK, "d": many}, "$lt": {"t": _TASK, "d": many + some}}
        return records.count_documents({"_id": streamed, "lastObservedValues.v": 1}, hint="_id_") >= some

    def timed(count: int, do: Callable[[], object], until: Callable[[], bool]) -> float:
        began = time.monotonic()
        do()
        on.wait_until(until)
        return count / (time.monotonic() - began)

    def come() -> None:
        stage.insert(documents, range(many, many + some), bytes_more=_BYTES_MORE)

    def change() -> None:
        documents.update_many({"_id": {"$gte": many}}, {"$set": {"v": 1}})

    yield "first start, no record", timed(many, lambda: None, on.is_reconciled)
    yield "reconciliation, unchanged", timed(many, on.reconcile, on.is_reconciled)
    yield "stream, new", timed(some, come, lambda: records.estimated_document_count() >= many + some)
    yield "stream, changed", timed(some, change, have_seen_change)


def _raw_per_second(documents: Documents, count: int) -> float:
    merge = {"into": f"{documents.name}_raw", "whenMatched": "replace", "whenNotMatched": "insert"}
    began, last = time.monotonic(), -1
    for _ in range(0, count, _BATCH):
        page: list[Any] = [
            one["_id"] for one in documents.find({"_id": {"$gt": last}}, ["_id"], sort=[("_id", 1)], limit=_BATCH)
        ]
        documents.aggregate([{"$match": {"_id": {"$in": page}}}, {"$project": {"v": 1}}, {"$merge": merge}])
        last = page[-1]
    return count / (time.monotonic() - began)


if __name__ == "__main__":
    tell(measure)
