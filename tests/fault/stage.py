"""Servers, network and processes of a chaos run, and what each fault does to them.

Called by `chaos`. Planners and workers are started as a user starts them, and started again when they have ended, as a
supervisor would. They reach the servers through links of their own; the servers reach one another without.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import amqp
import redis
from kombu import Connection as BrokerConnection
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from celery_reactive.cli.demo.processes import Child
from celery_reactive.embedded import MongoServer, RabbitServer, ValkeyServer
from tests.fault.faults import BROKER, MEMBERS, PLANNERS, WORKERS, Fault, Kind
from tests.fault.network import Direction, Link, Network

ROOT = Path(__file__).parents[2]
ROUTED = Path(__file__).with_name("routed")
DATABASE = "chaos"
_SIDES = ((Direction.OUT,), (Direction.IN,), (Direction.OUT, Direction.IN))
_FAILING = ["find", "aggregate", "getMore", "update", "insert", "findAndModify"]
_FAIL_POINTS: tuple[dict[str, Any], ...] = (
    {"errorCode": 91},  # ShutdownInProgress
    {"errorCode": 189},  # PrimarySteppedDown
    {"errorCode": 10107},  # NotWritablePrimary
    {"errorCode": 112},  # WriteConflict
    {"errorCode": 50},  # MaxTimeMSExpired
    {"closeConnection": True},
    {"blockConnection": True, "blockTimeMS": 1500},
    # Applied, and not known to be on a majority.
    {"failCommands": ["update", "insert", "findAndModify"], "writeConcernError": {"code": 91, "errmsg": "chaos"}},
)

Broker = ValkeyServer | RabbitServer


class Stage:
    """Everything that runs. Use it as a context manager.

    Attributes:
        mongodb: Three members.
        broker: Valkey or RabbitMQ.
        unasked: How often each process ended without having been told to.
    """

    def __init__(self, broker: Broker, folder: Path, seed: int) -> None:
        """Prepare; nothing is started.

        Args:
            broker: Not started yet.
            folder: Where the logs go.
            seed: For the handlers.
        """
        self.mongodb = MongoServer(members=3)
        self.broker = broker
        self.unasked: Counter[str] = Counter()
        self._folder = folder
        self._seed = seed
        self._network = Network()
        self._links: dict[str, dict[int, Link]] = {}
        self._children: dict[str, Child] = {}
        self._held_down: set[str] = set()
        self._lock = threading.Lock()
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._ended = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._cleanup = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """The database, straight."""
        return self.mongodb.url_of(DATABASE)

    def __enter__(self) -> Self:
        """Start everything."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.mongodb)
            stack.enter_context(self.broker)
            stack.enter_context(self._network)
            stack.callback(self._end_processes)
            for name in (*PLANNERS, *WORKERS):
                self._links[name] = {port: self._network.link(port) for port in self._server_ports()}
                self._children[name] = self._start(name)
            self._supervisor.start()
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End everything."""
        self._cleanup.close()

    def logs(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in self.log_files())

    def log_files(self) -> list[Path]:
        """Return the logs of planners and workers."""
        return sorted(self._folder.glob("*.log"))

    # --- processes -------------------------------------------------------------------------------

    def _server_ports(self) -> list[int]:
        return [*(member.port for member in self.mongodb.members), self.broker.process.port]

    def _start(self, name: str) -> Child:
        environment = {
            "CHAOS_BROKER_URL": self.broker.url,
            "CHAOS_INSTANCE": name,
            "CHAOS_MONGODB_URL": self.url,
            "CHAOS_SEED": str(self._seed),
            "C_FORCE_ROOT": "1",
            "PYTHONPATH": f"{ROUTED}{os.pathsep}{ROOT}",
            "ROUTES": json.dumps({port: link.port for port, link in self._links[name].items()}),
        }
        app = "tests.fault.chaos_app"
        command = (
            ["-m", "celery_reactive.cli", "-A", app, "planner"]
            if name in PLANNERS
            else ["-m", "celery", "-A", app, "worker", "--concurrency=2", "--loglevel=INFO", f"--hostname={name}@%h"]
        )
        return Child(name, [sys.executable, *command], folder=self._folder, environment=environment)

    def _supervise(self) -> None:
        while not self._ended.wait(0.5):
            with self._lock:
                for name, child in list(self._children.items()):
                    if name not in self._held_down and child.exit_code is not None:
                        self.unasked[name] += 1
                        self._replace(name)

    def _replace(self, name: str) -> None:
        """Start the process again, and end what the one before has left, as a supervisor does."""
        self._children[name].kill()
        self._children[name] = self._start(name)

    @contextlib.contextmanager
    def _down(self, name: str) -> Iterator[Child]:
        """Yield the process, which is not started again before the end of the block."""
        with self._lock:
            self._held_down.add(name)
            child = self._children[name]
        try:
            yield child
        finally:
            with self._lock:
                self._held_down.discard(name)
                if not self._ended.is_set():
                    self._replace(name)

    def _end_processes(self) -> None:
        self._ended.set()
        self._supervisor.join()
        for child in self._children.values():
            child.ask_to_end()
        for child in self._children.values():
            child.stop(within_seconds=15)

    # --- faults ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def suffering(self, fault: Fault) -> Iterator[None]:
        """Let *fault* be there during the block, and be mended at its end; one at a time at each target."""
        with self._turns[fault.target], self._of(fault):
            yield

    def _of(self, fault: Fault) -> contextlib.AbstractContextManager[None]:
        match fault.target:
            case target if target in MEMBERS:
                return self._at_member(fault, MEMBERS.index(target))
            case "mongod":
                return self._at_primary(fault)
            case target if target == BROKER:
                return self._at_broker(fault)
            case _ if fault.kind.name.endswith(("_MONGODB", "_BROKER")):
                return self._at_links(fault)
            case _:
                return self._at_process(fault)

    @contextlib.contextmanager
    def _at_process(self, fault: Fault) -> Iterator[None]:
        child = self._children[fault.target]
        match fault.kind:
            case Kind.KILL | Kind.KILL_PARENT | Kind.TERM | Kind.QUIT:
                with self._down(fault.target) as child:
                    self._end(child, fault.kind)
                    yield
                    if fault.kind in {Kind.TERM, Kind.QUIT}:
                        child.stop(within_seconds=12)
            case Kind.FREEZE:
                with _stopped(lambda number: os.killpg(child.pid, number)):
                    yield
            case Kind.FREEZE_CHILD:
                pool = _pool_process(child.pid, fault.detail)
                with _stopped(lambda number: _send(pool, number)):
                    yield
            case Kind.KILL_CHILD | Kind.TERM_CHILD:
                number = signal.SIGKILL if fault.kind is Kind.KILL_CHILD else signal.SIGTERM
                _send(_pool_process(child.pid, fault.detail), number)
                yield
            case _:
                raise AssertionError(fault)

    def _end(self, child: Child, kind: Kind) -> None:
        match kind:
            case Kind.KILL:
                child.kill()
            case Kind.KILL_PARENT:
                _send(child.pid, signal.SIGKILL)
            case Kind.TERM:
                child.ask_to_end()
            case _:
                _send(child.pid, signal.SIGQUIT)

    @contextlib.contextmanager
    def _at_links(self, fault: Fault) -> Iterator[None]:
        broker_port = self.broker.process.port
        to_broker = fault.kind in {Kind.CUT_BROKER, Kind.SILENCE_BROKER}
        links = [link for port, link in self._links[fault.target].items() if (port == broker_port) == to_broker]
        for link in links:
            match fault.kind:
                case Kind.CUT_MONGODB | Kind.CUT_BROKER:
                    link.cut()
                case Kind.DROP_MONGODB:
                    link.drop()
                case _:
                    link.silence(*_SIDES[fault.detail % len(_SIDES)])
        try:
            yield
        finally:
            for link in links:
                link.heal()

    @contextlib.contextmanager
    def _at_member(self, fault: Fault, number: int) -> Iterator[None]:
        member = self.mongodb.members[number]
        match fault.kind:
            case Kind.FREEZE:
                member.suspend()
                yield
                member.resume()
            case Kind.TERM:
                _send(member.pid, signal.SIGTERM)
                yield
                member.ended(within_seconds=10)
                member.kill()
                member.start()
            case _:
                member.kill()
                yield
                member.start()

    @contextlib.contextmanager
    def _at_primary(self, fault: Fault) -> Iterator[None]:
        primary = self.mongodb.primary()
        if primary is None:
            yield
            return
        with contextlib.suppress(PyMongoError), _admin(primary.port) as client:
            if fault.kind is Kind.STEP_DOWN:
                client.admin.command({"replSetStepDown": 10, "secondaryCatchUpPeriodSecs": 2, "force": True})
            else:
                client.admin.command(_fail_point(fault.detail))
        pid = primary.pid
        yield
        while primary.pid == pid and not _fails_no_more(primary.port):
            threading.Event().wait(0.5)

    @contextlib.contextmanager
    def _at_broker(self, fault: Fault) -> Iterator[None]:
        match fault.kind:
            case Kind.FLUSH:
                self._flush()
                yield
            case Kind.FREEZE:
                self.broker.suspend()
                yield
                self.broker.resume()
            case _:
                self.broker.kill()
                if isinstance(self.broker, RabbitServer):
                    self.broker.discard_data()
                yield
                self.broker.start()

    def _flush(self) -> None:
        if isinstance(self.broker, ValkeyServer):
            with redis.Redis.from_url(self.broker.url, socket_timeout=5) as connection:
                connection.flushall()
            return
        # A queue that does not exist is as empty as can be.
        with BrokerConnection(self.broker.url, connect_timeout=5) as connection, contextlib.suppress(amqp.NotFound):
            connection.default_channel.queue_purge("celery")


def _send(pid: int | None, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        if pid is not None:
            os.kill(pid, number)


@contextlib.contextmanager
def _stopped(send: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Freeze during the block what *send* sends signals to."""
    with contextlib.suppress(ProcessLookupError):
        send(signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            send(signal.SIGCONT)


def _pool_process(parent: int, number: int) -> int | None:
    """Return one of the processes that *parent* has started, None if there is none."""
    try:
        children = sorted(int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    except OSError:
        return None
    return children[number % len(children)] if children else None


def _fail_point(number: int) -> dict[str, Any]:
    what = _FAIL_POINTS[number % len(_FAIL_POINTS)]
    return {
        "configureFailPoint": "failCommand",
        "mode": {"activationProbability": 0.3},
        "data": {"failCommands": _FAILING, "appName": "celery-reactive", **what},
    }


def _fails_no_more(port: int) -> bool:
    """End the fail point of a member; false: it does not answer now."""
    try:
        with _admin(port) as client:
            client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
    except PyMongoError:
        return False
    return True


@contextlib.contextmanager
def _admin(port: int) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](
        "127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=2000, socketTimeoutMS=5000
    ) as client:
        yield client
