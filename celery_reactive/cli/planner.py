"""`planner`: run a planner in this process until it is told to stop.

The planner runs in a thread, and this one only waits for it: a signal's handler runs in this thread, and must
never interrupt a wait on the very event it sets. It wakes every now and then, because the system may deliver a
signal to any thread, and that does not end this one's wait.
"""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from types import FrameType

import click
from celery.bin.base import LOG_LEVEL

from celery_reactive.cli import logs
from celery_reactive.cli.project import open_project
from celery_reactive.core.task import DEFAULT_GROUP

_INTERRUPTED = 1
_GLANCE_SECONDS = 0.25


@click.command()
@click.option("--group", default=DEFAULT_GROUP, show_default=True, help="The planner group to stand for.")
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), help="Serve /metrics, /healthz and /readyz; 0: on a free port."
)
@click.option("--metrics-host", help="Address to serve on; default: reactive_metrics_host, which is 127.0.0.1.")
@click.option("--beat", is_flag=True, help="While it leads, run Celery beat's schedule, too.")
@click.option("-l", "--loglevel", default="INFO", show_default=True, type=LOG_LEVEL, help="Least level logged.")
@click.option("-f", "--logfile", type=click.Path(dir_okay=False), help="Where to log; default: stderr.")
@click.pass_context
def planner(
    ctx: click.Context,
    group: str,
    beat: bool,  # noqa: FBT001 -- click gives it by name
    metrics_port: int | None,
    metrics_host: str | None,
    loglevel: int,
    logfile: str | None,
) -> None:
    """Run a planner until SIGTERM, SIGINT or SIGHUP.

    One planner of a group leads: it watches the collections, keeps the records and sends what is due. Start a
    second one, and it takes over when the first is gone. A second signal ends the process at once.
    """
    handle = open_project(ctx)
    logs.set_up(handle.app, level=loglevel, logfile=logfile, colored=not ctx.obj.no_color)
    stop = threading.Event()
    _stop_on_signals(stop)
    with (
        handle.serve_planner(metrics_port, host=metrics_host, group=group),
        ThreadPoolExecutor(1, thread_name_prefix="reactive-planner") as planning,
    ):
        running = planning.submit(handle.run_planner, stop, group=group, beat=beat)
        while not running.done():
            wait([running], timeout=_GLANCE_SECONDS)
        running.result()


def _stop_on_signals(stop: threading.Event) -> None:
    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(_INTERRUPTED)
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    # A planner whose terminal is closed hands over as well; under nohup it goes on.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, handle)
