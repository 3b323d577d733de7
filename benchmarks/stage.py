"""What a measurement runs on: real servers, one planner and one prefork worker, each a process of its own.

Called by the benchmarks. `MONGODB_URL` and `BROKER_URL` name running servers to use instead of embedded ones.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import project
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.write_concern import WriteConcern

from celery_reactive import Reactive, embedded
from celery_reactive.cli.demo.processes import Child

CONCURRENCY = 2
"""Pool processes of the worker."""
_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.005
_ORDER_OF_ENDING_SECONDS = 10.0


class BenchmarkError(Exception):
    """What was to be measured did not happen."""


class Stage:
    """Servers, planner and worker that are up and have run something."""

    def __init__(
        self, client: MongoClient[dict[str, Any]], database: str, runs: Path, children: Sequence[Child]
    ) -> None:
        self._database = client[database]
        self._runs = runs
        self._children = children
        self._seen = 0

    def orders(self, chunk: str = project.DEFAULT) -> Collection[dict[str, Any]]:
        """Return the watched collection of that `chunk`, written with majority."""
        name = project.collection_of(chunk)
        return self._database.get_collection(name, write_concern=WriteConcern(w="majority"))

    def records(self, chunk: str = project.DEFAULT) -> Collection[dict[str, Any]]:
        """Return the records of what `orders` returns."""
        return self._database[f"{project.collection_of(chunk)}_tasks"]

    @property
    def planner_pid(self) -> int:
        """The planner's process."""
        return self._children[0].pid

    def reconcile(self) -> None:
        """Have everything reconciled."""
        Reactive.of(project.app).reconcile()

    def is_reconciled(self) -> bool:
        """Whether everything is."""
        return all(task.is_reconciled for task in Reactive.of(project.app).status().tasks)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds, however long that takes; a planner that has ended ends it."""
        while not condition():
            if self._children[0].exit_code is not None:
                raise BenchmarkError(self._tails())
            time.sleep(10 * _POLL_SECONDS)

    def begin(self) -> None:
        """Forget the runs so far: what follows is measured."""
        self._seen = self._runs.stat().st_size if self._runs.exists() else 0

    def wait_for(self, count: int) -> list[project.Run]:
        """Wait until *count* different things have run since `begin`, and return the first run of each.

        Raises:
            BenchmarkError: Nothing ran for a minute; the message holds the ends of the logs.
        """
        size, last_progress = 0, time.monotonic()
        while True:
            now = self._runs.stat().st_size - self._seen if self._runs.exists() else 0
            if now >= count * project.LAYOUT.size and len(runs := self._first_runs()) >= count:
                return runs
            if now != size:
                size, last_progress = now, time.monotonic()
            elif time.monotonic() - last_progress > _PATIENCE_SECONDS:
                raise BenchmarkError(f"{now // project.LAYOUT.size} of {count} runs\n{self._tails()}")
            time.sleep(_POLL_SECONDS)

    def _first_runs(self) -> list[project.Run]:
        with self._runs.open("rb") as file:
            file.seek(self._seen)
            whole = file.read()
        first: dict[int, project.Run] = {}
        for fields in project.LAYOUT.iter_unpack(whole):
            run = project.Run(*fields)
            first.setdefault(run.number, run)
        return list(first.values())

    def _tails(self) -> str:
        return "\n".join(f"--- {child.name}\n{child.tail()}" for child in self._children)

    def warm_up(self, chunks: Sequence[str], *, count: int = 40) -> None:
        """Let every process open its connections and every code path run once."""
        for chunk in chunks:
            self._once_run(count, partial(_insert, self.orders(chunk)))
        self._once_run(count, lambda number: project.bare.delay(-number, time.time_ns()))

    def _once_run(self, count: int, do: Callable[[int], Any]) -> None:
        self.begin()
        for number in range(1, count + 1):
            do(number)
        self.wait_for(count)


def _insert(orders: Collection[dict[str, Any]], number: int) -> None:
    orders.insert_one({"_id": -number, "v": 0})


@contextmanager
def set_up(
    chunks: Sequence[str] = (project.DEFAULT,), *, fill: Callable[[Collection[dict[str, Any]]], None] | None = None
) -> Iterator[Stage]:
    """Start everything, yield it warm, end it.

    Args:
        chunks: One reactive task is declared for each: a number of records, or `project.DEFAULT`.
        fill: Puts documents into the watched collection; then the planner starts, alone, and is to send nothing.
    """
    name = f"benchmark_{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celery-reactive-benchmark-")))
        mongodb = stack.enter_context(embedded.mongodb())
        broker = stack.enter_context(embedded.broker())
        environment = {
            "CELERY_REACTIVE_MONGODB_URL": mongodb.url_of(name),
            "CELERY_BROKER_URL": broker.url,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
            project.RUNS_VARIABLE: str(folder / "runs"),
            project.CHUNKS_VARIABLE: ",".join(chunks),
            project.QUEUE_VARIABLE: name,
        }
        project.app.conf.update(broker_url=broker.url, task_default_queue=name)
        vars(project.app).pop(
            "amqp", None
        )  # made from the configuration once: connections and queues of the last stage
        client = stack.enter_context(MongoClient[dict[str, Any]](mongodb.url))
        stack.callback(client.drop_database, name)
        if fill is not None:
            project.app.conf.reactive_mongodb_url = mongodb.url_of(name)
            _hold_back()
            fill(client[name][project.collection_of(project.DEFAULT)])
        children = _start(folder, environment, stack, planner_alone=fill is not None)
        stage = Stage(client, name, folder / "runs", children)
        if fill is None:
            stage.warm_up(chunks)
        yield stage


def _hold_back() -> None:
    reactive = Reactive.of(project.app)
    for task in reactive.registry:
        reactive.pause(task.name)


def _start(folder: Path, environment: dict[str, str], stack: ExitStack, *, planner_alone: bool) -> list[Child]:
    worker = ["worker", f"--concurrency={CONCURRENCY}", "--loglevel=INFO", "--without-gossip", "--without-mingle"]
    commands = {
        "planner": ["-m", "celery_reactive.cli", "-A", "project", "planner"],
        "worker": ["-m", "celery", "-A", "project", *worker],
    }
    if planner_alone:
        del commands["worker"]
    children = []
    for name, command in commands.items():
        child = Child(name, command, folder=folder, environment=environment)
        stack.callback(child.stop, within_seconds=_ORDER_OF_ENDING_SECONDS)
        children.append(child)
    stack.callback(_ask_to_end, children)
    return children


def _ask_to_end(children: Sequence[Child]) -> None:
    for child in children:
        child.ask_to_end()
