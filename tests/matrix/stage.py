"""Plays the cells of one pool on one broker: a planner, one worker after the other, documents and plain tasks.

Called by `run`. Each pool and broker has a database and a queue of its own, so that several are played at a time on
the same servers. What the cells have come to is read at the end: from the records, from what the handlers noted, from
the change stream of the records (when a state was left), and from Flower's API.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from pymongo import MongoClient

from celery_reactive import Reactive, embedded
from celery_reactive.core.record import RecordKey
from celery_reactive.embedded.process import free_port
from tests.acceptance.project import Process, wait_until
from tests.matrix.outcomes import (
    DONE_BY_THEMSELVES,
    NOT_PLAIN,
    QUICK,
    REACTIVE,
    SOFT_SECONDS,
    VARIANTS,
    Broker,
    Company,
    Outcome,
    Pool,
    Seen,
    Variant,
    differences,
    impossible,
    neighbour_expected,
)

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
TASKS = "tests.matrix.matrix_tasks"
SOURCE = Path(__file__).with_name("matrix_tasks.py")
SLOTS = len(VARIANTS)
_LOADING = threading.Lock()
_PATIENCE_SECONDS = 60.0
_SETTLING_SECONDS = 30.0
_MOST_NEIGHBOURS = 5
_FLOWER_STATES = {"retried": "RETRY", "failed": "FAILURE", "revoked": "REVOKED", "succeeded": "SUCCESS"}
_RUNNING = {"processing", "processing_dirty"}

Document = dict[str, Any]
Key = tuple[Outcome, Variant]
Act = Callable[[Sequence[Key]], None]


class Flower:
    """A real Flower on one broker."""

    def __init__(self, broker_url: str, folder: Path) -> None:
        """Start it, and wait until it answers."""
        port = free_port()
        self._url = f"http://127.0.0.1:{port}/api/tasks"
        self._process = Process(
            f"flower-{port}",
            [sys.executable, "-m", "celery", "-A", TASKS, "flower", "--address=127.0.0.1", f"--port={port}"],
            folder,
            {"BROKER_URL": broker_url, "FLOWER_UNAUTHENTICATED_API": "1", "PYTHONPATH": str(ROOT)},
        )
        wait_until(self._answers, logs=self._process.text, timeout=_PATIENCE_SECONDS)

    def stop(self) -> None:
        """End it."""
        self._process.kill()

    def rows(self) -> dict[str, Document]:
        """Return all tasks by their Celery id, as its page shows them."""
        with urllib.request.urlopen(self._url, timeout=60) as answer:  # noqa: S310 -- our own address
            rows: dict[str, Document] = json.load(answer)
        return rows

    def _answers(self) -> bool:
        try:
            return isinstance(self.rows(), dict)
        except OSError:
            return False


class Servers:
    """Everything that pools share. Use it as a context manager."""

    def __init__(self, brokers: Iterable[Broker], folder: Path) -> None:
        self.folder = folder
        self._brokers = set(brokers)
        self._cleanup = contextlib.ExitStack()
        self._urls: dict[Broker, str] = {}
        self._flowers: dict[Broker, Flower] = {}

    def __enter__(self) -> Self:
        """Start them."""
        with contextlib.ExitStack() as stack:
            self.mongodb = stack.enter_context(embedded.MongoServer())
            self.client = stack.enter_context(MongoClient[Document](self.mongodb.url))
            if Broker.VALKEY in self._brokers:
                self._add(stack, stack.enter_context(embedded.ValkeyServer()).url, [Broker.VALKEY])
            rabbits = sorted(self._brokers - {Broker.VALKEY})
            if rabbits:
                self._add(stack, stack.enter_context(embedded.RabbitServer()).url, rabbits)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End them."""
        self._cleanup.close()

    def _add(self, stack: contextlib.ExitStack, url: str, brokers: Sequence[Broker]) -> None:
        flower = Flower(url, self.folder)
        stack.callback(flower.stop)
        for broker in brokers:
            self._urls[broker], self._flowers[broker] = url, flower

    def url_of(self, broker: Broker) -> str:
        """Return a broker's URL."""
        return self._urls[broker]

    def flower_of(self, broker: Broker) -> Flower:
        """Return a broker's Flower."""
        return self._flowers[broker]


class Stage:
    """One pool on one broker: play the outcomes, then ask `seen`. Use it as a context manager."""

    def __init__(self, servers: Servers, pool: Pool, broker: Broker) -> None:
        self._servers, self.pool, self.broker = servers, pool, broker
        name = f"m_{uuid.uuid4().hex[:12]}"
        self._folder = servers.folder / name
        self._folder.mkdir()
        self._database = servers.client[name]
        self._environment = {
            "MONGODB_URL": servers.mongodb.url_of(name),
            "BROKER_URL": servers.url_of(broker),
            "QUEUE": name,
            "QUEUE_TYPE": "quorum" if broker is Broker.QUORUM else "classic",
        }
        self._app = _load(self._environment).app
        self._app.finalize()
        self._reactive = Reactive.of(self._app)
        self._options: tuple[str, ...] = ()
        self._soft = False
        self._workers = 0
        self._acted: dict[Key, float] = {}
        self._played: set[Key] = set()
        self._left_at: defaultdict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def __enter__(self) -> Self:
        """Start planner and worker."""
        self._watcher.start()
        self._planner = self._start("planner", "-m", "celery_reactive.cli", "-A", TASKS, "planner")
        try:
            self._start_worker()
            globals_ = self._database["_celery_reactive"]
            self.wait(lambda: globals_.find_one({"_id": {"k": "leader", "g": "default"}}))
            self.wait(lambda: all(task.is_reconciled for task in self._reactive.status().tasks))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End them."""
        self._end()

    def _end(self) -> None:
        self._kill_worker()
        self._planner.kill()
        self._ended.set()
        self._watcher.join()
        self._reactive.runtime.connection.close()
        self._app.close()

    # --- processes -------------------------------------------------------------------------------

    def _start(self, name: str, *arguments: str) -> Process:
        environment = {
            **self._environment,
            "INSTANCE": f"{name}-{self._workers}",
            "PYTHONPATH": str(ROOT),
            "AUTOSCALE_KEEPALIVE": "1",
            "SOFT_SECONDS": str(SOFT_SECONDS if self._soft else 0),
        }
        if name == "worker" and self.pool is Pool.SPAWN:
            environment["START_METHOD"] = "spawn"
        return Process(f"{name}-{self._workers}", [sys.executable, *arguments], self._folder, environment)

    def _start_worker(self) -> None:
        self._workers += 1
        slots = 1 if self.pool is Pool.SOLO else SLOTS
        self._host = f"{self._database.name}-{self._workers}@matrix"
        command = ["-m", "celery", "-A", TASKS, "worker", "-P", self.pool.option, "-E", "-l", "INFO", "-n", self._host]
        options = self._options or ("-c", str(slots))
        self._worker = self._start("worker", *command, "--without-gossip", "--without-mingle", *options)

        def is_ready() -> bool:
            assert self._worker._process.poll() is None, self._logs()
            return "ready." in self._worker.text()

        wait_until(is_ready, logs=self._logs, timeout=_PATIENCE_SECONDS)

    def _kill_worker(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._worker.pid, signal.SIGKILL)
        self._worker.wait()

    def _restart(self, *options: str, soft: bool = False) -> None:
        """Let another worker take over from the one that runs."""
        self._options, self._soft = options, soft
        self._worker.stop()
        self._kill_worker()
        self._start_worker()

    def _supervise(self) -> None:
        """Start the worker again if it has ended, as a supervisor does."""
        if self._worker._process.poll() is not None:
            self._kill_worker()
            self._start_worker()

    def _logs(self) -> str:
        logs = sorted(self._folder.glob("*.log"), key=lambda log: log.stat().st_mtime)[-3:]
        return "\n".join(f"--- {self.pool}, {self.broker}: {log}\n{log.read_text()[-3000:]}" for log in logs)

    def wait(self, condition: Callable[[], object], timeout: float = _PATIENCE_SECONDS) -> None:
        """Wait until *condition* holds, and start the worker again whenever it has ended."""

        def holds() -> bool:
            self._supervise()
            return bool(condition())

        wait_until(holds, logs=self._logs, timeout=timeout)

    def _watch(self) -> None:
        """Note when each record came into which state."""
        with self._database["docs_tasks"].watch(max_await_time_ms=300) as stream:
            while not self._ended.is_set():
                change = stream.try_next()
                if change is None:
                    continue
                fields = change.get("updateDescription", {}).get("updatedFields", {})
                status = fields.get("status") or change.get("fullDocument", {}).get("status")
                if status:
                    key = change["documentKey"]["_id"]
                    at = change["wallTime"].timestamp()
                    self._left_at[key["t"], key["d"]].append((at, status))

    # --- scenes ----------------------------------------------------------------------------------

    def play(self, outcomes: Sequence[Outcome] = tuple(Outcome)) -> None:
        """Play every variant of *outcomes*, those first that leave the worker alone."""
        chosen = [outcome for outcome in outcomes if impossible(self.pool, outcome) is None]
        quick = [outcome for outcome in chosen if outcome in QUICK]
        if quick:
            self._play_quick(quick)
        for outcome in chosen:
            if outcome not in QUICK:
                started = time.monotonic()
                self._play_one(outcome)
                logger.info("%s, %s, %s: %.1f s", self.pool, self.broker, outcome, time.monotonic() - started)

    def _play_quick(self, outcomes: Sequence[Outcome]) -> None:
        # Neighbours in a message, but not so many that some would have to wait and go alone.
        half = (len(outcomes) + 1) // 2 if len(outcomes) > _MOST_NEIGHBOURS else len(outcomes)
        for some in filter(None, (outcomes[:half], outcomes[half:])):
            with self._held_back():
                for outcome in some:
                    keys = [(outcome, variant) for variant in VARIANTS]
                    self._send(keys, QUICK[outcome], neighbours=len(some) == 1)
            self._settle([(outcome, variant) for outcome in some for variant in VARIANTS], patience=1.5)

    def _play_one(self, outcome: Outcome) -> None:
        match outcome:
            case Outcome.SOFT_LIMIT:
                self._scene(outcome, "limited", VARIANTS, limited=True)
            case Outcome.HARD_LIMIT:
                self._scene(outcome, "stubborn", VARIANTS, limited=True)
            case Outcome.REVOKED:
                self._play_revoked()
            case Outcome.TERMINATED:
                self._each_batch(outcome, "nap:2", self._terminate)
            case Outcome.CHILD_KILLED:
                self._each_batch(outcome, "nap:6", self._kill_children)
            case Outcome.MEMORY | Outcome.EXIT | Outcome.SEGV:
                self._each_batch(outcome, DONE_BY_THEMSELVES[outcome])
            case Outcome.WARM:
                self._each_batch(outcome, "nap:1", self._signal(signal.SIGTERM))
            case Outcome.SOFT:
                self._restart(soft=True)
                self._each_batch(outcome, "nap:1.5", self._signal(signal.SIGQUIT))
                self._restart()
            case Outcome.COLD:
                self._each_batch(outcome, "nap:6", self._signal(signal.SIGQUIT))
            case Outcome.CRASH:
                self._each_batch(outcome, "nap:6", self._crash)
            case Outcome.RECYCLED | Outcome.LIMITED_BY_WORKER:
                self._play_with_options(outcome)
            case Outcome.AUTOSCALED:
                self._restart(f"--autoscale={SLOTS},1")
                self._scene(outcome, "nap:1.5", VARIANTS)
                self._restart()

    def _play_with_options(self, outcome: Outcome) -> None:
        options = {
            Outcome.RECYCLED: ("--max-tasks-per-child=1", "-c", "2"),
            Outcome.LIMITED_BY_WORKER: ("--time-limit=2", "-c", str(SLOTS)),
        }
        self._restart(*options[outcome])
        self._scene(outcome, "success" if outcome is Outcome.RECYCLED else "overrun", VARIANTS)
        self._restart()

    def _each_batch(self, outcome: Outcome, do: str, act: Act | None = None) -> None:
        """Play all variants at a time; one after the other where the pool runs one, or each ends the worker."""
        single = self.pool is Pool.SOLO or outcome in _ends_the_worker(self.pool)
        batches = [[variant] for variant in VARIANTS] if single else [list(VARIANTS)]
        for batch in batches:
            self._scene(outcome, do, batch, act)

    def _scene(
        self, outcome: Outcome, do: str, variants: Sequence[Variant], act: Act | None = None, *, limited: bool = False
    ) -> None:
        keys = [(outcome, variant) for variant in variants]
        with self._held_back():
            self._send(keys, do, limited=limited, neighbours=True)
        if act is not None:
            self.wait(lambda: self._called(keys))
            act(keys)
        self._settle(keys, patience=2)

    def _play_revoked(self) -> None:
        keys = [(Outcome.REVOKED, variant) for variant in VARIANTS]
        with self._held_back():
            self._send([key for key in keys if key[1] in REACTIVE], "success", neighbours=True)
            self._revoke(keys, terminate=False)
            self._send([key for key in keys if key[1] not in REACTIVE], "success")
        self._acted.update((key, self._resumed_at) for key in keys)
        self._settle(keys, patience=1.5)

    @contextlib.contextmanager
    def _held_back(self) -> Iterator[None]:
        """Let what is written during the block be sent at its end, so that it travels together."""
        names = [task.name for task in self._reactive.registry]
        for name in names:
            self._reactive.pause(name)
        yield
        written = {doc["_id"] for doc in self._database.docs.find({"task": {"$in": names}}, {"_id": 1})}
        records = self._database["docs_tasks"]
        self.wait(lambda: written <= set(records.distinct("sourceDocId", {"task": {"$in": names}})))
        self._resumed_at = time.time()
        for name in names:
            self._reactive.resume(name)

    def _send(self, keys: Sequence[Key], do: str, *, limited: bool = False, neighbours: bool = False) -> None:
        """Write the documents, and publish the plain messages, of some cells."""
        documents = []
        for outcome, variant in keys:
            self._played.add((outcome, variant))
            suffix = f"{variant.acks}_limited" if limited else variant.acks
            doc = _doc_id(outcome, variant)
            if variant.company is Company.PLAIN:
                if outcome not in NOT_PLAIN:
                    self._app.tasks[f"plain_{suffix}"].apply_async((doc, do), task_id=self._plain_id(doc))
                continue
            task = f"{variant.company}_{suffix}"
            beside = neighbours and variant.company is Company.COMPANY
            documents += [{"_id": f"{doc}/before", "task": task, "do": "success"}] if beside else []
            documents.append({"_id": doc, "task": task, "do": do})
            documents += [{"_id": f"{doc}/beside", "task": task, "do": "success"}] if beside else []
        if documents:
            self._database.docs.insert_many(documents)

    def _settle(self, keys: Sequence[Key], patience: float) -> None:
        """Wait until the records are at rest, and a while longer for the plain tasks."""
        ids = [found["_id"] for key in keys for found in self._documents_of(key)]
        records = self._database["docs_tasks"]
        at_rest = {"sourceDocId": {"$in": ids}, "status": {"$in": ["completed", "failed"]}, "_r.claim": None}
        with contextlib.suppress(AssertionError):  # what is not at rest is seen to be in another state
            self.wait(lambda: records.count_documents(at_rest) >= len(ids), timeout=_SETTLING_SECONDS)
        deadline = time.monotonic() + patience
        plain = {_doc_id(*key) for key in keys if key[1].company is Company.PLAIN and key[0] not in NOT_PLAIN}
        done = {"doc": {"$in": list(plain)}, "ok": True}
        self.wait(lambda: time.monotonic() > deadline or set(self._database.runs.distinct("doc", done)) == plain)

    def _documents_of(self, key: Key) -> list[Document]:
        """Return the document of a cell and those beside it."""
        return list(self._database.docs.find({"_id": {"$regex": f"^{_doc_id(*key)}(/|$)"}}, {"_id": 1}))

    # --- what is done to a run or a worker -------------------------------------------------------

    def _called(self, keys: Sequence[Key]) -> bool:
        docs = [_doc_id(*key) for key in keys]
        return len(self._database.runs.distinct("doc", {"doc": {"$in": docs}})) == len(docs)

    def _note_act(self, keys: Sequence[Key]) -> None:
        now = time.time()
        self._acted.update((key, now) for key in keys)

    def _revoke(self, keys: Sequence[Key], *, terminate: bool) -> None:
        ids = [self._celery_ids(key)[0] for key in keys]
        self._note_act(keys)
        self._app.control.revoke(ids, terminate=terminate, destination=[self._host], reply=True, timeout=3)

    def _terminate(self, keys: Sequence[Key]) -> None:
        self._revoke(keys, terminate=True)

    def _kill_children(self, keys: Sequence[Key]) -> None:
        self._note_act(keys)
        for key in keys:
            run = self._database.runs.find_one({"doc": _doc_id(*key)})
            assert run is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(run["pid"], signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> Act:
        def act(keys: Sequence[Key]) -> None:
            self._note_act(keys)
            self._worker.send(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._worker.wait()
            self._kill_worker()

        return act

    def _crash(self, keys: Sequence[Key]) -> None:
        self._note_act(keys)
        self._kill_worker()

    # --- what it came to -------------------------------------------------------------------------

    def seen(self) -> dict[Key, Seen]:
        """Return what every cell that was played has come to."""
        threading.Event().wait(1)  # Flower reads its events with a delay that nothing shows.
        self._rows = self._servers.flower_of(self.broker).rows()
        return {key: self._seen(key) for key in sorted(self._played, key=str) if not _has_nothing_to_compare(key)}

    def _seen(self, key: Key) -> Seen:
        doc = _doc_id(*key)
        runs = self._runs(doc)
        seen = Seen(
            calls=len(runs),
            done=any(run.get("ok") for run in runs),
            overlaps=any(run["overlaps"] for run in runs),
        )
        rows = [self._rows[celery_id] for celery_id in self._celery_ids(key) if celery_id in self._rows]
        seen.flower = tuple(state for row in rows for state in _states_of(row))
        seen.flower_args = rows[0].get("args") or "" if rows else ""
        self._measure(key, seen, runs)
        if key[1].company is not Company.PLAIN:
            self._read_record(key, seen)
        if key[1].company is Company.COMPANY:
            seen.neighbours = tuple(self._odd_neighbours(key))
            if runs and runs[0]["together"] < self._together(key):
                seen.note = f"travelled with {runs[0]['together']} records"
        return seen

    def _runs(self, doc: str) -> list[Document]:
        return list(self._database.runs.find({"doc": doc}, sort=[("n", 1)]))

    def _together(self, key: Key) -> int:
        if key[0] in {Outcome.SOFT_LIMIT, Outcome.HARD_LIMIT, Outcome.LIMITED_BY_WORKER}:
            return 1
        return 2

    def _measure(self, key: Key, seen: Seen, runs: Sequence[Document]) -> None:
        cause = self._cause(key, runs)
        if cause is None:
            return
        after = [at for at, status in self._left_at[_task_of(key), _doc_id(*key)] if status not in _RUNNING]
        # The first entry is the record's making.
        landed = [at for at in after[1:] if at >= cause - 0.1]
        if landed:
            seen.landed_seconds = round(max(0.0, landed[0] - cause), 2)
        done = [run["end"] for run in runs if run.get("ok")]
        if done:
            seen.done_seconds = round(max(0.0, done[-1] - cause), 2)

    def _cause(self, key: Key, runs: Sequence[Document]) -> float | None:
        """Return when that happened of which the record must tell."""
        outcome, _ = key
        if outcome is Outcome.REVOKED:
            return self._acted.get(key)
        if not runs:
            return None
        first = runs[0]
        if "end" in first and (first["ok"] or key not in self._acted):
            return float(first["end"])
        limit = {Outcome.SOFT_LIMIT: 1.0, Outcome.HARD_LIMIT: 2.0, Outcome.LIMITED_BY_WORKER: 2.0}.get(outcome)
        return self._acted.get(key, first["begin"] + limit if limit else first["begin"])

    def _read_record(self, key: Key, seen: Seen) -> None:
        record = self._record(key, _doc_id(*key))
        seen.status = record["status"]
        seen.attempts = record["attempts"]
        seen.history = tuple(entry["status"] for entry in record["executionHistory"])

    def _record(self, key: Key, doc: str) -> Document:
        found = self._database["docs_tasks"].find_one({"_id": {"t": _task_of(key), "d": doc}})
        assert found is not None, f"{doc} has no record"
        return found

    def _odd_neighbours(self, key: Key) -> Iterator[str]:
        """Say what is wrong with the others of the message; the quick ones are neighbours of one another."""
        if key[0] in QUICK:
            return
        for name in ("before", "beside"):
            doc = f"{_doc_id(*key)}/{name}"
            record, runs = self._record(key, doc), self._runs(doc)
            beside = Seen(
                status=record["status"],
                attempts=record["attempts"],
                history=tuple(entry["status"] for entry in record["executionHistory"]),
                calls=len(runs),
                flower=("SUCCESS",),
            )
            for difference in differences(neighbour_expected(), beside):
                yield f"neighbour {name}: {difference}"

    def _plain_id(self, doc: str) -> str:
        """Return a Celery id that no other pool on this broker has."""
        return f"{self._database.name}/{doc}"

    def _celery_ids(self, key: Key) -> list[str]:
        doc = _doc_id(*key)
        if key[1].company is Company.PLAIN:
            return [self._plain_id(doc)]
        record = self._database["docs_tasks"].find_one({"sourceDocId": doc})
        cycles = record["_r"]["cycle"] if record else 0
        name = RecordKey(_task_of(key), doc)
        namespace = self._reactive.runtime.connection.namespace(self._reactive.registry.get(name.task))
        return [name.celery_id(namespace, cycle) for cycle in range(cycles + 1)]


def _ends_the_worker(pool: Pool) -> set[Outcome]:
    """Return the outcomes by which a handler ends the whole worker: its neighbours there would suffer them too."""
    return {Outcome.MEMORY} if pool.has_processes else {Outcome.MEMORY, Outcome.EXIT, Outcome.SEGV}


def _doc_id(outcome: Outcome, variant: Variant) -> str:
    return f"{outcome.name}/{variant.company}/{variant.acks}"


def _task_of(key: Key) -> str:
    outcome, variant = key
    limited = outcome in {Outcome.SOFT_LIMIT, Outcome.HARD_LIMIT}
    return f"{variant.company}_{variant.acks}" + ("_limited" if limited else "")


def _has_nothing_to_compare(key: Key) -> bool:
    return key[1].company is Company.PLAIN and key[0] in NOT_PLAIN


def _states_of(row: Document) -> list[str]:
    """Return the states through which a row of Flower went, as far as it keeps them, and the one it shows."""
    told = sorted((row[name], state) for name, state in _FLOWER_STATES.items() if row.get(name))
    states = [state for _, state in told]
    return states if states and states[-1] == row["state"] else [*states, row["state"]]


def _load(environment: dict[str, str]) -> ModuleType:
    """Load the project into this process, as the worker does into its own."""
    with _LOADING:
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            spec = importlib.util.spec_from_file_location(f"matrix_{environment['QUEUE']}", SOURCE)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
        finally:
            os.environ.clear()
            os.environ.update(before)
