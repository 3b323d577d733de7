"""The project that is measured: a reactive no-op per way of running, and a bare Celery no-op beside them.

Loaded by the planner and the worker that `stage` starts. Each run leaves one `Run` at the end of a file: appending
24 bytes costs microseconds and touches neither the database nor the broker, and it costs both sides the same.
"""

from __future__ import annotations

import os
import struct
import time
from typing import Any, NamedTuple

from celery import Celery

from celery_reactive import TaskContext, reactive_task

RUNS_VARIABLE = "CELERY_REACTIVE_BENCHMARK_RUNS"
WAYS_VARIABLE = "CELERY_REACTIVE_BENCHMARK_WAYS"
QUEUE_VARIABLE = "CELERY_REACTIVE_BENCHMARK_QUEUE"
DEFAULT, OTHER, BATCH = "default", "other", "batch"
"""Ways: all options at their defaults, twice; a handler that takes a list. Others are named by their `chunk`."""


class Run(NamedTuple):
    """That something was run: what a handler writes down first."""

    number: int
    started_ns: int
    """Of this machine's clock, since the epoch."""
    sent_ns: int
    """The same clock when a bare task was sent; 0 for a record."""


LAYOUT = struct.Struct("=qqq")
"""Of a `Run` in the file."""


app = Celery("benchmark")
app.conf.update(
    task_default_queue=os.environ.get(QUEUE_VARIABLE, "benchmark"),
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)


def collection_of(way: str) -> str:
    """Return the name of the collection that is watched that way."""
    return f"orders_{way}"


def _note(number: int, *, sent_ns: int = 0) -> None:
    started_ns = time.time_ns()
    path = os.environ[RUNS_VARIABLE]
    descriptor = _open_files.get(path)
    if descriptor is None:
        descriptor = _open_files[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, LAYOUT.pack(number, started_ns, sent_ns))


_open_files: dict[str, int] = {}


@app.task(name="bare")
def bare(number: int, sent_ns: int) -> None:
    """Do nothing, as a plain Celery task."""
    _note(number, sent_ns=sent_ns)


def _declare(way: str) -> None:
    defaults = way in (DEFAULT, OTHER)
    options: dict[str, Any] = {} if defaults else {"batch": 100} if way == BATCH else {"chunk": int(way)}

    def handle(ctx: TaskContext) -> None:
        _note(ctx.doc_id)

    def handle_batch(contexts: list[TaskContext]) -> None:
        for ctx in contexts:
            _note(ctx.doc_id)

    task = app.task(handle_batch if way == BATCH else handle, name=f"reactive_{way}")
    reactive_task(collection=collection_of(way), debounce=0, watch_projection={"v": 1}, **options)(task)


for _way in os.environ.get(WAYS_VARIABLE, DEFAULT).split(","):
    _declare(_way)
