"""The project that is measured: a reactive no-op per way of making messages, and a bare Celery no-op beside them.

Loaded by the planner and the worker that `stage` starts. Each run leaves one `Run` at the end of a file: appending
24 bytes costs microseconds and touches neither the database nor the broker, and it costs both sides the same.
"""

from __future__ import annotations

import os
import struct
import time
from typing import NamedTuple

from celery import Celery

from celery_reactive import TaskContext, reactive_task

RUNS_VARIABLE = "CELERY_REACTIVE_BENCHMARK_RUNS"
CHUNKS_VARIABLE = "CELERY_REACTIVE_BENCHMARK_CHUNKS"
QUEUE_VARIABLE = "CELERY_REACTIVE_BENCHMARK_QUEUE"
DEFAULT = "default"
"""Names the task that leaves `chunk` at its default."""


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


def collection_of(chunk: str) -> str:
    """Return the name of the collection that is watched with that `chunk`."""
    return f"orders_{chunk}"


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


def _declare(chunk: str) -> None:
    options = {} if chunk == DEFAULT else {"chunk": int(chunk)}

    @reactive_task(collection=collection_of(chunk), debounce=0, watch_projection={"v": 1}, **options)
    @app.task(name=f"reactive_{chunk}")
    def handle(ctx: TaskContext) -> None:
        _note(ctx.doc_id)


for _chunk in os.environ.get(CHUNKS_VARIABLE, DEFAULT).split(","):
    _declare(_chunk)
