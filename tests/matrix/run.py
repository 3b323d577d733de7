"""Plays the matrix and stores what it came to: `python -m tests.matrix.run [--write]`, or `make matrix`.

Several pools are played at a time: most of a cell's time is waiting. `--write` stores the results of this version of
Celery beside this module and puts the tables into docs/evidence/celery.md; without it they are only printed.
Ends with 1 if a cell differs from what is expected of it and the page does not say why.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import celery

from tests.matrix import report
from tests.matrix.outcomes import Broker, Cell, Outcome, Pool, Seen, comparisons, findings
from tests.matrix.stage import Key, Servers, Stage

AT_A_TIME = 4


def play(combinations: Iterable[tuple[Pool, Broker]], outcomes: Sequence[Outcome] = tuple(Outcome)) -> dict[Cell, Seen]:
    """Play *outcomes* on pools and brokers; return what every cell came to."""
    chosen = list(combinations)
    with (
        tempfile.TemporaryDirectory(prefix="celery-reactive-matrix-") as folder,
        Servers({broker for _, broker in chosen}, Path(folder)) as servers,
        ThreadPoolExecutor(AT_A_TIME) as threads,
    ):

        def one(combination: tuple[Pool, Broker]) -> dict[Key, Seen]:
            with Stage(servers, *combination) as stage:
                stage.play(outcomes)
                return stage.seen()

        return {
            (pool, broker, *key): seen
            for (pool, broker), cells in zip(chosen, threads.map(one, chosen), strict=True)
            for key, seen in cells.items()
        }


def to_text(cells: dict[Cell, Seen], took_seconds: float) -> str:
    """Return the results as they are stored: a line for each cell, without what is as in any `Seen`."""
    defaults = dataclasses.asdict(Seen())
    rows = [
        {
            "pool": pool.name,
            "broker": broker.name,
            "outcome": outcome.name,
            "company": variant.company.value,
            "acks": variant.acks,
            **{name: value for name, value in dataclasses.asdict(seen).items() if value != defaults[name]},
        }
        for (pool, broker, outcome, variant), seen in cells.items()
    ]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    head = json.dumps({"celery": celery.__version__, "took_seconds": round(took_seconds)})
    return f'{head[:-1]}, "cells": [\n{lines}\n]}}\n'


def _store(cells: dict[Cell, Seen], took_seconds: float) -> None:
    """Put what was played into the stored results of this version of Celery, and those into the page."""
    version = ".".join(celery.__version__.split(".")[:2])
    known: dict[Cell, Seen] = {}
    if version in report.stored_versions():
        result, known = report.stored(version)
        if not known.keys() <= cells.keys():
            took_seconds = result["took_seconds"]
    report.RESULTS.mkdir(exist_ok=True)
    (report.RESULTS / f"celery-{version}.json").write_text(to_text(known | cells, took_seconds))
    report.main()


def main() -> None:
    """Play, print, and store if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", action="append", choices=[pool.name for pool in Pool], help="default: all")
    parser.add_argument("--broker", action="append", choices=[broker.name for broker in Broker], help="default: all")
    parser.add_argument("--outcome", action="append", choices=[one.name for one in Outcome], help="default: all")
    parser.add_argument("--json", type=Path, help="store the results in this file")
    parser.add_argument(
        "--write",
        action="store_true",
        help="store the results beside those of cells not played now, and put the tables into the page",
    )
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("tests.matrix").setLevel(logging.INFO)
    combinations = [
        (pool, broker)
        for pool in (Pool.SOLO, Pool.SPAWN, Pool.GEVENT, Pool.THREADS, Pool.FORK)  # the longest first
        for broker in Broker
        if pool.name in (options.pool or Pool.__members__) and broker.name in (options.broker or Broker.__members__)
    ]
    outcomes = [one for one in Outcome if one.name in (options.outcome or Outcome.__members__)]
    started = time.monotonic()
    cells = play(combinations, outcomes)
    took = time.monotonic() - started
    if options.json:
        options.json.write_text(to_text(cells, took))
    if options.write:
        _store(cells, took)
    found = findings(cells) + comparisons(cells)
    print("\n".join(found))
    print(f"{len(cells)} cells in {took:.0f} s, {len(found)} findings")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
