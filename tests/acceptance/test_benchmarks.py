"""The benchmarks work; how fast anything is, is not a test's business."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUMBER = r"\s+\d+(?:\.\d+)?"
FORMS = {
    "latency.py": (
        ["--seconds=1", "--rate=20"],
        (
            rf"latency at 20 writes/s\n"
            rf"  write to handler start   p50{NUMBER}  p95{NUMBER}  p99{NUMBER} ms\n"
            rf"  bare Celery \.delay\(\)     p50{NUMBER}  p95{NUMBER}  p99{NUMBER} ms\n"
        ),
    ),
    "planning.py": (
        ["--count=300"],
        (
            rf"planning 300 documents, planner at first{NUMBER} MiB\n"
            rf"  raw \$merge {NUMBER}/s   1\.00\n"
            + "".join(
                rf"  {way} {NUMBER}/s {NUMBER}{NUMBER} MiB, peak{NUMBER}\n"
                for way in ("first start, no record", "reconciliation, unchanged", "stream, new", "stream, changed")
            )
        ),
    ),
    "publishing.py": (
        ["--count=20"],
        (
            "".join(
                rf"(?:publishing to {broker}\n"
                rf"  bare apply_async {NUMBER}/s   1\.00\n"
                rf"  planner, one by one {NUMBER}/s{NUMBER}\n"
                rf"  planner, 500 together {NUMBER}/s{NUMBER}\n){count}"
                for broker, count in (("Valkey", "{1}"), ("RabbitMQ", "?"), ("RabbitMQ, all confirmed", "?"))
            )
        ),
    ),
    "throughput.py": (
        ["--count=60"],
        (
            rf"throughput, 60 no-ops\n"
            rf"  bare Celery {NUMBER}/s   1\.00\n"
            rf"  chunk=default {NUMBER}/s{NUMBER}\n"
            rf"  chunk=1 {NUMBER}/s{NUMBER}\n"
            rf"  chunk=32 {NUMBER}/s{NUMBER}\n"
        ),
    ),
}


@pytest.mark.parametrize("program", FORMS)
def test_a_benchmark_prints_our_figures_beside_bare_celerys(program: str) -> None:
    """Every figure has its peer from the same run."""
    options, form = FORMS[program]
    ended = _run(program, *options)
    assert re.fullmatch(form, ended), ended


def test_all_benchmarks_together_print_a_table_of_ratios() -> None:
    """`make bench` shows latency and throughput in one table."""
    table = _run("run.py", "--seconds=0.2", "--count=40")
    for row in ("latency p50 at 50/s", "latency p99 at 50/s", "chunk=default", "chunk=1 ", "chunk=32"):
        line = next((line for line in table.splitlines() if row in line), "")
        assert len(re.findall(r"\d+\.\d\d", line)) == 1, table


def _run(program: str, *options: str) -> str:
    ended = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / program, *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
