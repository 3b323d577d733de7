"""What a measurement runs on: real servers, one planner and some workers, each a process of its own.

Called by the benchmarks. `MONGODB_URL` and `BROKER_URL` name running servers to use instead of embedded ones.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
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
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from celery_reactive import Reactive, embedded
from celery_reactive.cli.demo.processes import Child
from celery_reactive.store import definitions

_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.005
_ORDER_OF_ENDING_SECONDS = 10.0
_INSERTED_AT_ONCE = 1000
_FIRST_NUMBER = 100_000_000
_KIB = 1024
_MIB = 1024 * 1024

Documents = Collection[dict[str, Any]]


class BenchmarkError(Exception):
    """What was to be measured did not happen."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is started."""

    ways: Sequence[str] = (project.DEFAULT,)
    """One reactive task is declared for each, see `project`."""
    pool: str = "prefork"
    slots: int = 2
    """Of each worker's pool."""
    workers: int = 1
    """0: what is planned is held back, and nothing runs."""
    broker: str = "Valkey"
    """Or RabbitMQ."""


class Process:
    """A process that is measured, with its children (Linux)."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def cpu_seconds(self) -> float:
        """Return what it has used of processors."""
        return sum(_ticks(pid) for pid in self._family()) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self, field: str = "VmRSS") -> float:
        """Return `VmRSS` or `VmHWM` of the process itself."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith(field))
        return int(line.split()[1]) * _KIB / _MIB

    def _family(self) -> Iterator[int]:
        waiting = [self._pid]
        while waiting:
            pid = waiting.pop()
            yield pid
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                waiting += map(int, children.read_text().split())


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


class Stage:
    """Servers, planner and workers that are up and have run something."""

    def __init__(
        self,
        client: MongoClient[dict[str, Any]],
        database: str,
        runs: Path,
        children: Sequence[Child],
        mongod: int | None,
    ) -> None:
        self.client = client
        self.planner = Process(children[0].pid)
        self.workers = [Process(child.pid) for child in children[1:]]
        self.mongod = None if mongod is None else Process(mongod)
        """None: somebody else runs it."""
        self._database: Database[dict[str, Any]] = client[database]
        self._runs = runs
        self._children = children
        self._seen = 0
        self._numbers = itertools.count(_FIRST_NUMBER)

    def numbers(self, count: int) -> list[int]:
        """Return *count* ids that no document has had."""
        return list(itertools.islice(self._numbers, count))

    def orders(self, way: str = project.DEFAULT) -> Documents:
        """Return the collection that is watched that way, written with majority."""
        return self._database.get_collection(project.collection_of(way), write_concern=WriteConcern(w="majority"))

    def records(self, way: str = project.DEFAULT) -> Documents:
        """Return the records of what `orders` returns."""
        return self._database[f"{project.collection_of(way)}_tasks"]

    def plan_backlog(self, way: str, numbers: range) -> None:
        """Insert documents, wait until all are planned, and only then let them run."""
        globals_ = Reactive.of(project.app).runtime.connection.globals()
        definitions.set_paused(globals_, f"reactive_{way}", paused=True)
        known = self.records(way).count_documents({})
        insert(self.orders(way), numbers)
        self.wait_until(lambda: self.records(way).count_documents({}) == known + len(numbers))
        definitions.set_paused(globals_, f"reactive_{way}", paused=False)

    def statements(self) -> int:
        """Return how many requests anybody has sent to the server; what it does by itself for one is not counted."""
        return int(self.client.admin.command("serverStatus")["network"]["numRequests"])

    def reconcile(self) -> None:
        """Have everything reconciled."""
        Reactive.of(project.app).reconcile()

    def is_reconciled(self) -> bool:
        """Whether everything is."""
        return all(task.is_reconciled for task in Reactive.of(project.app).status().tasks)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds, however long that takes; a process that has ended ends it."""
        while not condition():
            self._check()
            time.sleep(10 * _POLL_SECONDS)

    def begin(self) -> None:
        """Forget the runs so far: what follows is measured."""
        self._seen = self._runs.stat().st_size if self._runs.exists() else 0

    def wait_for(self, count: int, *, of: Callable[[project.Run], bool] = lambda _: True) -> list[project.Run]:
        """Wait until *count* different things have run since `begin`, and return the first run of each.

        Args:
            count: How many.
            of: Which runs count.

        Raises:
            BenchmarkError: Nothing ran for a minute; the message holds the ends of the logs.
        """
        size, last_progress = 0, time.monotonic()
        while True:
            now = self._runs.stat().st_size - self._seen if self._runs.exists() else 0
            if now >= count * project.LAYOUT.size and len(runs := self._first_runs(of)) >= count:
                return runs
            if now != size:
                size, last_progress = now, time.monotonic()
            elif time.monotonic() - last_progress > _PATIENCE_SECONDS:
                raise BenchmarkError(f"{now // project.LAYOUT.size} of {count} runs\n{self._tails()}")
            self._check()
            time.sleep(_POLL_SECONDS)

    def _check(self) -> None:
        if any(child.exit_code is not None for child in self._children):
            raise BenchmarkError(self._tails())

    def _first_runs(self, of: Callable[[project.Run], bool]) -> list[project.Run]:
        with self._runs.open("rb") as file:
            file.seek(self._seen)
            whole = file.read()
        first: dict[int, project.Run] = {}
        for fields in project.LAYOUT.iter_unpack(whole):
            run = project.Run(*fields)
            if of(run):
                first.setdefault(run.number, run)
        return list(first.values())

    def _tails(self) -> str:
        return "\n".join(f"--- {child.name}\n{child.tail()}" for child in self._children)

    def warm_up(self, ways: Sequence[str], *, count: int = 40) -> None:
        """Let every process open its connections and every code path run once."""
        for way in ways:
            self._once_run(count, partial(_insert, self.orders(way)))
        self._once_run(count, lambda number: project.bare.delay(-number, time.time_ns()))

    def _once_run(self, count: int, do: Callable[[int], Any]) -> None:
        self.begin()
        for number in range(1, count + 1):
            do(number)
        self.wait_for(count)


def has_leader() -> bool:
    """Whether a planner leads."""
    leader = Reactive.of(project.app).status().leader
    return leader is not None and leader.instance is not None


def _insert(orders: Documents, number: int) -> None:
    orders.insert_one({"_id": -number, "v": 0})


def insert(documents: Documents, numbers: range, *, bytes_more: int = 0) -> None:
    """Insert documents with these ids as fast as the server takes them."""
    more = {"more": "x" * bytes_more} if bytes_more else {}
    for first in range(0, len(numbers), _INSERTED_AT_ONCE):
        part = numbers[first : first + _INSERTED_AT_ONCE]
        documents.insert_many([{"_id": number, "v": 0, **more} for number in part], ordered=False)


@contextmanager
def set_up(
    setting: Setting = Setting(),
    *,
    fill: Callable[[Documents], None] | None = None,
    mongodb: embedded.MongoServer | embedded.ExternalServer | None = None,
) -> Iterator[Stage]:
    """Start everything, yield it warm, end it.

    Args:
        setting: What is started.
        fill: Puts documents into the watched collection before the planner starts; for a stage without workers.
        mongodb: A running server to use; None: one of its own.
    """
    name = f"benchmark_{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celery-reactive-benchmark-")))
        if mongodb is None:
            mongodb = stack.enter_context(embedded.mongodb())
        broker = embedded.RabbitServer() if setting.broker == "RabbitMQ" else embedded.broker()
        stack.enter_context(broker)
        environment = {
            "CELERY_REACTIVE_MONGODB_URL": mongodb.url_of(name),
            "CELERY_BROKER_URL": broker.url,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
            project.RUNS_VARIABLE: str(folder / "runs"),
            project.WAYS_VARIABLE: ",".join(setting.ways),
            project.QUEUE_VARIABLE: name,
        }
        _point_app_at(broker.url, mongodb.url_of(name), queue=name)
        client = stack.enter_context(MongoClient[dict[str, Any]](mongodb.url))
        stack.callback(client.drop_database, name)
        if not setting.workers:
            _hold_back()
        if fill is not None:
            fill(client[name][project.collection_of(project.DEFAULT)])
        children = _start(folder, environment, stack, setting)
        primary = mongodb.primary() if isinstance(mongodb, embedded.MongoServer) else None
        stage = Stage(client, name, folder / "runs", children, primary and primary.pid)
        if setting.workers:
            stage.warm_up(setting.ways)
        yield stage


def _point_app_at(broker: str, mongodb: str, *, queue: str) -> None:
    project.app.conf.update(broker_url=broker, task_default_queue=queue)
    # Made from the configuration once: connections and queues of the last stage.
    vars(project.app).pop("amqp", None)
    project.app.conf.reactive_mongodb_url = mongodb


def _hold_back() -> None:
    reactive = Reactive.of(project.app)
    for task in reactive.registry:
        reactive.pause(task.name)


def _start(folder: Path, environment: dict[str, str], stack: ExitStack, setting: Setting) -> list[Child]:
    commands = {"planner": ["-m", "celery_reactive.cli", "-A", "project", "planner"]}
    for number in range(setting.workers):
        commands[f"worker{number}"] = [
            *("-m", "celery", "-A", "project", "worker", f"--hostname=worker{number}@%h", f"--pool={setting.pool}"),
            *(f"--concurrency={setting.slots}", "--loglevel=INFO", "--without-gossip", "--without-mingle"),
        ]
    children = []
    for name, command in commands.items():
        child = Child(name, [sys.executable, *command], folder=folder, environment=environment)
        stack.callback(child.stop, within_seconds=_ORDER_OF_ENDING_SECONDS)
        children.append(child)
    stack.callback(_ask_to_end, children)
    return children


def _ask_to_end(children: Sequence[Child]) -> None:
    for child in children:
        child.ask_to_end()
