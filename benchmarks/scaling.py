"""Throughput with one worker to four, of one process each, beside bare Celery on the same workers."""

from __future__ import annotations

import project
import stage
import throughput
from figures import Figure, Plot, Section, tell

MOST = 4


def measure(quick: bool) -> Section:  # noqa: FBT001 -- as every benchmark
    """Measure with each number of workers."""
    numbers, count = ((1, 2), 60) if quick else (tuple(range(1, MOST + 1)), 8000)
    figures: list[Figure] = []
    lines: dict[str, list[tuple[float, float]]] = {"reactive": [], "bare Celery": []}
    for workers in numbers:
        setting = stage.Setting((project.DEFAULT,), pool="solo", slots=1, workers=workers)
        with stage.set_up(setting) as on:
            bare = throughput.bare_per_second(on, count)
            rate = throughput.reactive_per_second(on, project.DEFAULT, count)
        figures.append(Figure(f"workers: {workers}", rate, "/s", "bare Celery", rate / bare))
        lines["reactive"].append((workers, rate))
        lines["bare Celery"].append((workers, bare))
    plot = Plot("scaling", "Throughput by number of workers", "workers", "handled a second", lines)
    note = "Load generator, servers, planner and workers share the machine's cores."
    return Section("scaling", "Scaling over workers of one process", figures, note, [plot])


if __name__ == "__main__":
    tell(measure)
