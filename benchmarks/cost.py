"""What one record's life costs: statements, and processor time of planner, worker and server.

A life is a write, its planning, one run of a no-op handler, and its end. The writes themselves are sent a thousand at
a time and weigh little.
"""

from __future__ import annotations

import project
import stage
from figures import Figure, Section, tell

WAYS = (project.DEFAULT, "1", "32")


def measure(quick: bool) -> Section:  # noqa: FBT001 -- as every benchmark
    """Count what a life costs on each way."""
    count = 60 if quick else 6000
    with stage.set_up(stage.Setting(WAYS)) as on:
        figures = [figure for way in WAYS for figure in _of(on, way, count)]
    note = f"Means over {count} records in a burst; a server of somebody else's tells no processor time."
    return Section("cost", "Cost of a record's life", figures, note)


def _of(on: stage.Stage, way: str, count: int) -> list[Figure]:
    parts = {"planner": on.planner, "worker": on.workers[0], **({"mongod": on.mongod} if on.mongod else {})}
    statements = on.statements()
    used = {name: part.cpu_seconds() for name, part in parts.items()}
    on.begin()
    stage.insert(on.orders(way), range(count))
    on.wait_for(count)
    on.wait_until(lambda: on.records(way).count_documents({"status": "completed"}) >= count)
    name = way if way == project.DEFAULT else f"chunk={way}"
    figures = [Figure(f"{name}: statements", (on.statements() - statements) / count, "")]
    figures += [
        Figure(f"{name}: processor time of {part}", (process.cpu_seconds() - used[part]) / count * 1000, "ms")
        for part, process in parts.items()
    ]
    return figures


if __name__ == "__main__":
    tell(measure)
