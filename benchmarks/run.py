"""Run all benchmarks, each in a process of its own, keep what they found, and write the page.

`make bench` runs this unattended, for about twenty minutes. A benchmark that fails or takes too long is told of, the
others go on, and what an earlier run found of it stays.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import page
from figures import Section, machine

BENCHMARKS = (
    "throughput",
    "peer",
    "latency",
    "planning",
    "cost",
    "idle",
    "scaling",
    "growth",
    "dashboard",
    "publishing",
)
_PATIENCE_SECONDS = 600
_HERE = Path(__file__).parent


def main() -> None:
    """Measure, print, keep, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="samples that only show that everything works")
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, metavar="NAME", help="some of them"
    )
    parser.add_argument(
        "--results", type=Path, help="where to keep what was found; the page is made of the default one"
    )
    options = parser.parse_args()
    began = time.monotonic()
    found, failed = _measure(options.only, quick=options.quick)
    results = options.results or (None if options.quick else page.RESULTS)
    if results is not None:
        _keep(results, found)
    if results == page.RESULTS:
        page.write()
    print(f"{len(found)} of {len(options.only)} benchmarks in {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(1 if failed else 0)


def _measure(names: Sequence[str], *, quick: bool) -> tuple[list[Section], list[str]]:
    found, failed = [], []
    for name in names:
        command = [sys.executable, str(_HERE / f"{name}.py"), "--json", *(["--quick"] if quick else [])]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=True)
        except subprocess.SubprocessError as error:
            failed.append(name)
            print(f"{name} failed: {error}\n{getattr(error, 'stderr', '')}", file=sys.stderr, flush=True)
        else:
            found.append(Section.from_json(json.loads(ended.stdout)))
            print(f"{found[-1]}\n", flush=True)
    return found, failed


def _keep(results: Path, found: Sequence[Section]) -> None:
    """Put what was found in place of what was known of the same benchmarks."""
    known = json.loads(results.read_text())["sections"] if results.exists() else {}
    sections = known | {section.name: dataclasses.asdict(section) for section in found}
    in_order = {name: sections[name] for name in BENCHMARKS if name in sections}
    results.write_text(json.dumps({"machine": machine(), "sections": in_order}, indent=1) + "\n")


if __name__ == "__main__":
    main()
