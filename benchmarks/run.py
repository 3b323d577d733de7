"""Run all measurements and print a table of ratios: this package's figure over bare Celery's in the same run.

Short by default. Never part of the tests: a machine that is busy elsewhere would fail them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import latency
import stage
import throughput
from rich.console import Console
from rich.table import Table

_SHORT_COUNT, _LONG_COUNT = 2000, 20_000
_SHORT_SECONDS, _LONG_SECONDS = 5.0, 60.0
_SHORT_RATES, _LONG_RATES = (50.0,), (1.0, 50.0, 500.0)

Row = tuple[str, str, str, str]


def measure(*, rates: tuple[float, ...], seconds: float, count: int) -> Iterator[Row]:
    """Yield what was measured, its figure, bare Celery's, and the first over the second."""
    with stage.set_up() as on:
        for rate in rates:
            result = latency.measure(on, rate=rate, count=max(2, round(rate * seconds)))
            for name in ("p50", "p95", "p99"):
                ours, bare = getattr(result.reactive, name), getattr(result.bare, name)
                yield f"latency {name} at {rate:g}/s", f"{ours:.1f} ms", f"{bare:.1f} ms", f"{ours / bare:.2f}"
    with stage.set_up(throughput.CHUNKS) as on:
        rates_of = throughput.measure(on, count=count)
    for chunk, per_second in rates_of.reactive.items():
        ratio = f"{rates_of.ratio(chunk):.2f}"
        yield f"throughput chunk={chunk}", f"{per_second:.0f}/s", f"{rates_of.bare:.0f}/s", ratio


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="more rates, more documents: several minutes")
    parser.add_argument("--seconds", type=float, help="how long at each rate")
    parser.add_argument("--count", type=int, help="documents each way")
    options = parser.parse_args()
    table = Table("measured", "celery-reactive", "bare Celery", "ratio", title="in one run on this machine")
    for row in measure(
        rates=_LONG_RATES if options.long else _SHORT_RATES,
        seconds=options.seconds or (_LONG_SECONDS if options.long else _SHORT_SECONDS),
        count=options.count or (_LONG_COUNT if options.long else _SHORT_COUNT),
    ):
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
