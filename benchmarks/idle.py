"""What planner and worker cost while nothing happens: share of a core, and statements a second.

Beside them, a worker of bare Celery costs what the same worker costs without our planner: it is the same process, so
that only what the package adds is told apart by the statements.
"""

from __future__ import annotations

import time

import stage
from figures import Figure, Section, tell

_SETTLE_SECONDS = 5.0


def measure(quick: bool) -> Section:  # noqa: FBT001 -- as every benchmark
    """Let everything be idle."""
    seconds = 1.0 if quick else 40.0
    with stage.set_up() as on:
        time.sleep(seconds and min(_SETTLE_SECONDS, seconds))
        parts = {"planner": on.planner, "worker": on.workers[0], **({"mongod": on.mongod} if on.mongod else {})}
        statements, began = on.statements(), time.monotonic()
        used = {name: part.cpu_seconds() for name, part in parts.items()}
        time.sleep(seconds)
        took = time.monotonic() - began
        shares = {name: (part.cpu_seconds() - used[name]) / took * 100 for name, part in parts.items()}
        per_second = (on.statements() - statements - 1) / took
    goals = {"planner": "< 1 % with the worker", "worker": "< 1 % with the planner"}
    figures = [Figure(f"{name}", share, "% of a core", goal=goals.get(name, "")) for name, share in shares.items()]
    figures.append(Figure("statements", per_second, "/s", goal="< 10 /s"))
    return Section("idle", "Idle planner and worker", figures, f"Over {seconds:g} s; one task, one database.")


if __name__ == "__main__":
    tell(measure)
