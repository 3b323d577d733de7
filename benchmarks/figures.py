"""What a benchmark found, as a table for people and as JSON for the page; and the machine it was found on.

Called by every benchmark: each has a `measure` that returns one `Section`, and ends with `tell`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Self

from celery_reactive.embedded.mongo import find_mongod


@dataclasses.dataclass(frozen=True)
class Figure:
    """One measured number beside what it is compared with in the same run."""

    what: str
    value: float
    unit: str
    """`/s`, `ms`, `MiB`, `%`, or nothing."""
    beside: str = ""
    """What the ratio is to; empty: there is nothing to compare with."""
    ratio: float | None = None
    goal: str = ""
    """As written in the design; empty: none."""

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"  {self.ratio:7.2f} × {self.beside}"
        return f"  {self.what:<46} {number(self.value):>9} {self.unit:<16}{ratio}".rstrip()


@dataclasses.dataclass(frozen=True)
class Plot:
    """Lines over a common axis, for the page."""

    name: str
    """Of its file."""
    title: str
    x_title: str
    y_title: str
    lines: dict[str, list[tuple[float, float]]]
    logarithmic: bool = False
    """Both axes."""


@dataclasses.dataclass(frozen=True)
class Section:
    """What one benchmark found."""

    name: str
    """Of its program."""
    title: str
    figures: list[Figure]
    note: str = ""
    """For people: how it was measured; or why it was not."""
    plots: list[Plot] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([self.title, *map(str, self.figures), *([f"  {self.note}"] if self.note else [])])

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """Return what `dataclasses.asdict` was made of."""
        figures = [Figure(**figure) for figure in stored["figures"]]
        plots = [Plot(**plot) for plot in stored["plots"]]
        return cls(stored["name"], stored["title"], figures, stored["note"], plots)


def number(value: float) -> str:
    """Return *value* with three digits that count, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> dict[str, str]:
    """Return what the machine is, by cores and versions: nothing that tells whose it is."""
    packages = {name: version(name) for name in ("celery", "kombu", "pymongo", "redis")}
    cores = f"{os.cpu_count()} cores, {platform.machine()}"
    return {"machine": cores, "Python": platform.python_version(), **_mongodb(), **packages}


def _mongodb() -> dict[str, str]:
    """Return the version of the embedded server, nothing where another is used."""
    program = None if "MONGODB_URL" in os.environ else find_mongod()
    if program is None:
        return {}
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return {"MongoDB": told.split()[2].removeprefix("v")}


def tell(measure: Callable[[bool], Section]) -> None:
    """Be a benchmark's program: measure, and print the table or the JSON."""
    parser = argparse.ArgumentParser(description="Measure and print; see README.md beside this file.")
    parser.add_argument("--quick", action="store_true", help="a sample that only shows that the program works")
    parser.add_argument("--json", action="store_true", help="print JSON, for run.py")
    options = parser.parse_args()
    section = measure(options.quick)
    print(json.dumps(dataclasses.asdict(section)) if options.json else section)
