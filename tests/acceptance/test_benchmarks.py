"""The benchmarks run and print what they should; how fast anything is, is not a test's business.

Some of them: the others are in `test_all_benchmarks.py`, which `make fault` runs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
ROWS = {
    "cost": ["default: statements", "chunk=1: processor time of worker", "chunk=32: processor time of planner"],
    "dashboard": ["overview, at 2000", "records, at 2000", "errors, at 2000"],
    "growth": ["find 500 due, at 2000", "run a chunk of 32, at 2000", "counts by state, at 2000"],
    "idle": ["planner", "worker", "statements"],
    "latency": ["p50 at 20 writes/s", "p99 at 20 bare tasks/s", "p99 at 20 writes/s behind 200 of another task"],
    "peer": [],
    "planning": ["a plain $merge", "first start, no record", "stream, changed", "planner's memory grown by"],
    "publishing": ["bare apply_async (Valkey)", "planner, 500 together (Valkey)"],
    "scaling": ["workers: 1", "workers: 2"],
    "throughput": ["bare Celery (prefork, Valkey)", "default (prefork, Valkey)", "chunk=32 (prefork, Valkey)"],
}
SOME = ("dashboard", "growth", "planning", "throughput")


@pytest.mark.parametrize("name", SOME)
def test_a_benchmark_prints_its_figures(name: str) -> None:
    """A sample of what it measures, and no figure is missing or negative where it cannot be."""
    assert_prints_its_figures(name)


def assert_prints_its_figures(name: str) -> None:
    """Let a benchmark measure a sample of everything, and look at its figures."""
    section = json.loads(_run(f"{name}.py", "--quick", "--json"))
    figures = {figure["what"]: figure["value"] for figure in section["figures"]}
    assert [row for row in ROWS[name] if row not in figures] == []
    assert section["name"] == name
    assert figures or section["note"].startswith("Not measured: ")
    assert all(value >= 0 or "memory" in what for what, value in figures.items()), figures


def test_every_benchmark_is_run_and_shown() -> None:
    """`make bench` runs them all, and the page has a place for each and for the machine."""
    run, page = _load("run"), _load("page")
    assert sorted(run.BENCHMARKS) == sorted(ROWS)
    shown = re.findall(r"<!-- measured (\w+) -->", page.PAGE.read_text())
    assert sorted(shown) == sorted(["machine", *ROWS])


def test_the_page_shows_what_was_measured() -> None:
    """`python benchmarks/page.py` brings tables and plots up to date."""
    page = _load("page")
    results = json.loads(page.RESULTS.read_text())
    assert page.PAGE.read_text() == page.with_tables(page.PAGE.read_text(), results)
    stored = [plot for section in results["sections"].values() for plot in section["plots"]]
    for plot in stored:
        drawn = (page.IMAGES / f"bench-{plot['name']}.svg").read_text()
        assert drawn == page.plots.svg(page.Plot(**plot)), plot["name"]


def test_results_name_no_place() -> None:
    """The machine is described by cores and versions only."""
    results = json.loads((BENCHMARKS / "results.json").read_text())
    assert not re.search(r"/(?:work|home|root|tmp|dev)\b|https?:|\d+\.\d+\.\d+\.\d+", json.dumps(results))


def test_one_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    """`make bench` runs unattended."""
    kept = tmp_path / "results.json"
    kept.write_text(json.dumps({"machine": {}, "sections": {"idle": {"name": "idle"}}}))
    run = _load("run")
    (tmp_path / "latency.py").write_text("raise SystemExit('no server')")
    shown = {"name": "publishing", "title": "t", "figures": [], "note": "", "plots": []}
    (tmp_path / "publishing.py").write_text(f"print({json.dumps(shown)!r})")
    run._HERE = tmp_path
    found, failed = run._measure(["latency", "publishing"], quick=True)
    assert ([section.name for section in found], failed) == (["publishing"], ["latency"])
    run._keep(kept, found)
    assert list(json.loads(kept.read_text())["sections"]) == ["idle", "publishing"]


def _load(name: str) -> Any:
    """Return a module of the benchmarks as their programs see it."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        for own in ("figures", "plots", "page", "run"):
            sys.modules.pop(own, None)
        return __import__(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def _run(program: str, *options: str) -> str:
    ended = subprocess.run(
        [sys.executable, BENCHMARKS / program, *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
