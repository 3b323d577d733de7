"""`demo`: see the whole system work, on this machine, without installing anything else."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress

import click
from rich.console import Console

from celery_reactive.cli.demo import story
from celery_reactive.cli.demo.board import board_for, verdict_for

_PLAIN_WIDTH = 160


@click.command()
@click.option(
    "--seconds",
    default=24.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="How long orders are written.",
)
@click.option("--keep", is_flag=True, help="Leave everything running afterwards, until Ctrl-C.")
@click.option("--prometheus", is_flag=True, help="Have a Prometheus scrape it; expects one on PATH.")
def demo(seconds: float, *, keep: bool, prometheus: bool) -> None:
    """Play the whole system on this machine, kill the leading planner, and audit what came of it.

    Starts a MongoDB and a Valkey of its own (or uses those that MONGODB_URL and BROKER_URL name), two planners that
    serve metrics, a worker, the dashboard, and a shop that writes orders. Ends with 0 only if every order's last state
    was handled, and none twice at the same time.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = _console()
    with board_for(console) as board, story.set_stage(board) as stage:
        if prometheus:
            story.open_prometheus(stage, board)
        verdict = story.play(stage, board, seconds)
        board.close()
        console.print(verdict_for(verdict))
        if keep:
            _wait_for_ctrl_c(console, stage)
    if not verdict.is_good:
        sys.exit(1)


def _wait_for_ctrl_c(console: Console, stage: story.Stage) -> None:
    console.print(f"\nEverything goes on until Ctrl-C. Logs: {stage.folder}", markup=False)
    console.print(f"  export CELERY_REACTIVE_MONGODB_URL='{stage.mongodb_url}'", markup=False, soft_wrap=True)
    console.print(f"  export CELERY_BROKER_URL='{stage.broker_url}'", markup=False, soft_wrap=True)
    console.print("  celery-reactive -A celery_reactive.cli.demo.app status", markup=False)
    if stage.dashboard_url is not None:
        console.print(f"Dashboard: {stage.dashboard_url}", markup=False)
    if stage.prometheus_url is not None:
        console.print(f"Prometheus: {stage.prometheus_url}", markup=False)
    for name, url in stage.metrics_urls.items():
        if stage.children[name].exit_code is None:
            console.print(f"Metrics of {name}: {url}", markup=False)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH, highlight=False)
