"""No-op documents from the first write until all are handled, beside bare Celery no-op tasks, by pool and broker.

What is compared is measured in one run, on one broker and one worker: documents are inserted as fast as the server
takes them, bare tasks are sent with `.delay()`. The clock stops at the start of the last handler.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import project
import stage
from figures import Figure, Section, tell
from stage import Setting

WAYS = (project.DEFAULT, "1", "32", project.BATCH)
SETTINGS = (
    Setting(WAYS),
    Setting(WAYS, pool="threads"),
    Setting(WAYS, pool="solo", slots=1),
    Setting(WAYS, broker="RabbitMQ"),
)
GOALS = {project.DEFAULT: "≥ 2 × bare Celery", "1": "≥ 0.5 × bare Celery"}


def measure(quick: bool) -> Section:  # noqa: FBT001 -- as every benchmark
    """Measure each way in each setting."""
    settings, count = (SETTINGS[:1], 60) if quick else (SETTINGS, 8000)
    figures: list[Figure] = []
    for setting in settings:
        with stage.set_up(setting) as on:
            figures += _in_one_run(on, setting, count)
    note = f"{count} documents each way; a worker of two slots (solo: one)."
    return Section("throughput", "Throughput, write to handled, no-op handler", figures, note)


def _in_one_run(on: stage.Stage, setting: Setting, count: int) -> Iterator[Figure]:
    where = f"{setting.pool}, {setting.broker}"
    bare = bare_per_second(on, count)
    yield Figure(f"bare Celery ({where})", bare, "/s")
    for way in setting.ways:
        rate = reactive_per_second(on, way, count)
        name = way if way in (project.DEFAULT, project.BATCH) else f"chunk={way}"
        goal = GOALS.get(way, "") if setting == SETTINGS[0] else ""
        yield Figure(f"{name} ({where})", rate, "/s", "bare Celery", rate / bare, goal)


def bare_per_second(on: stage.Stage, count: int) -> float:
    """Return how many bare tasks are run a second, from the first `.delay()`."""
    on.begin()
    began_ns = time.time_ns()
    for number in range(count):
        project.bare.delay(number, time.time_ns())
    return _per_second(on.wait_for(count), began_ns)


def reactive_per_second(on: stage.Stage, way: str, count: int) -> float:
    """Return how many documents are handled a second, from the first write."""
    on.begin()
    began_ns = time.time_ns()
    stage.insert(on.orders(way), range(count))
    return _per_second(on.wait_for(count), began_ns)


def _per_second(runs: Sequence[project.Run], began_ns: int) -> float:
    return len(runs) / (max(run.started_ns for run in runs) - began_ns) * 1e9


if __name__ == "__main__":
    tell(measure)
