"""Planner and worker in this process, for tests: threads of it instead of programs beside it.

Called by tests and by the fixtures. What runs is what runs in production; only the processes are missing, so that time
limits, a killed worker and a lost leader are for tests that start programs. Must leave no thread and no setting behind.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from celery import Celery
from celery.worker import WorkController, state

from celery_reactive.app import Reactive
from celery_reactive.core.duration import Duration
from celery_reactive.errors import ConfigurationError
from celery_reactive.planner.publish import Publisher
from celery_reactive.store import definitions
from celery_reactive.testing.configured import MEMORY, configured
from celery_reactive.testing.pace import at_pace
from celery_reactive.testing.waiting import wait_until

_POLL_SECONDS = 0.01
_TIMER_SECONDS = 0.05
"""How long the worker's timer sleeps, and so how long its end takes: a second by default."""
_STOP_SECONDS = 30.0
_only_one = threading.Lock()
"""Celery's worker keeps state for its whole process."""


@contextmanager
def run_inline(app: Celery, *, broker: str | None = MEMORY, timeout: Duration = 30) -> Iterator[Reactive]:
    """Run a planner and a worker of the app in this process inside the block, on the app's MongoDB.

    The block begins when every document that is there has been looked at. Handlers run one at a time, in a thread of
    their own. At the end a running handler ends, and what is not done stays as it is stored. `task_always_eager` is
    off inside, so that a plain `delay()` is a message too, which the worker takes.

    Args:
        app: The Celery app; its `reactive_mongodb_url` should be a test's own database.
        broker: The broker's URL, by default one in memory; None: the app's own.
        timeout: Longest wait for the start.

    Yields:
        The app's handle.

    Raises:
        ConfigurationError: Settings, tasks or server are not fit, or the process runs one already.
        StoreUnavailableError: MongoDB does not answer at the start.
        BrokerUnavailableError: The broker does not answer at the start.
        AssertionError: It did not start within *timeout*, or a handler did not end.
        Exception: Whatever ended planner or worker inside the block.
    """
    app.loader.import_default_modules()
    app.finalize()
    with _alone(), ExitStack() as running:
        handle = running.enter_context(configured(app, **_settings(broker)))
        running.enter_context(at_pace(app))
        if _is_in_memory(broker):
            running.callback(_empty_memory, app, _queues(handle))
        threads = [running.enter_context(_planner(handle, group)) for group in _groups(handle)]
        ready = threading.Event()
        threads.append(running.enter_context(_worker(app, _queues(handle), ready)))

        def has_started() -> bool:
            for thread in threads:
                thread.raise_error()
            return ready.is_set() and _is_reconciled(handle)

        wait_until(has_started, timeout=timeout, interval=_POLL_SECONDS, explain=lambda: _why_not(handle, ready))
        yield handle
        for thread in threads:
            thread.raise_error()


@contextmanager
def _alone() -> Iterator[None]:
    if not _only_one.acquire(blocking=False):
        raise ConfigurationError("run_inline", ["expected one at a time in a process, got a second one"])
    try:
        yield
    finally:
        _only_one.release()


def _settings(broker: str | None) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "task_always_eager": False,
        "worker_enable_remote_control": True,
        "broker_connection_retry_on_startup": False,
    }
    if broker is not None:
        settings["broker_url"] = broker
    if _is_in_memory(broker):
        settings["broker_transport_options"] = {"polling_interval": _POLL_SECONDS}
    return settings


def _is_in_memory(broker: str | None) -> bool:
    return broker is not None and broker.startswith("memory:")


def _groups(handle: Reactive) -> list[str]:
    return sorted({task.group for task in handle.registry}) or ["default"]


def _queues(handle: Reactive) -> list[str]:
    """Return the names of all queues that a worker of the app could be asked to serve."""
    publisher = Publisher(handle.app, handle.runtime)
    of_tasks = {publisher.queue_name(task) for task in handle.registry} - {None}
    return sorted({*handle.app.amqp.queues, *map(str, of_tasks)})


def _is_reconciled(handle: Reactive) -> bool:
    names = [task.name for task in handle.registry]
    stored = definitions.read_all(handle.runtime.connection.globals(), names)
    return all(0 < each.generation == each.reconciled_generation for each in stored.values())


def _why_not(handle: Reactive, ready: threading.Event) -> str:
    if not ready.is_set():
        return "the worker has not connected to the broker"
    leader = handle.status().leader
    return f"the planner has not looked at every document; the leader is {leader.instance if leader else None}"


# --- threads -----------------------------------------------------------------------------------------


class _Thread(threading.Thread):
    """A thread that keeps what it raised, for the one who waits for it."""

    def __init__(self, name: str, work: Callable[[], object]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do the work."""
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 -- raised again where it is waited for
            self._error = error

    def raise_error(self) -> None:
        """Raise what ended the thread, if anything did."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait for its end.

        Raises:
            AssertionError: It does not end.
        """
        self.join(_STOP_SECONDS)
        if self.is_alive():
            raise AssertionError(f"{self.name} did not end within {_STOP_SECONDS:g} s; does a handler still run?")


@contextmanager
def _planner(handle: Reactive, group: str) -> Iterator[_Thread]:
    """Run a planner of *group* inside the block, and end it in good order."""
    stop = threading.Event()
    thread = _Thread(f"inline-planner-{group}", lambda: handle.run_planner(stop, group=group))
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.finish()


@contextmanager
def _worker(app: Celery, queues: list[str], ready: threading.Event) -> Iterator[_Thread]:
    """Run a worker of *queues* inside the block, and end it in good order."""
    hostname = f"inline-{secrets.token_hex(4)}@{socket.gethostname()}"

    def work() -> None:
        app.set_current()
        WorkController(
            app=app,
            hostname=hostname,
            pool="solo",
            concurrency=1,
            queues=queues,
            loglevel=logging.WARNING,
            without_heartbeat=True,
            without_mingle=True,
            without_gossip=True,
            timer_precision=_TIMER_SECONDS,
            ready_callback=lambda _: ready.set(),
        ).start()

    thread = _Thread("inline-worker", work)
    thread.start()
    try:
        yield thread
    finally:
        try:
            state.should_stop = 0
            if thread.is_alive():
                # Wakes it: without a message it looks every two seconds.
                with app.connection_for_write() as connection:
                    app.control.shutdown(destination=[hostname], connection=connection)
        finally:
            thread.finish()
            state.should_stop = None


def _empty_memory(app: Celery, queues: list[str]) -> None:
    """Throw away what nobody took: the broker in memory outlives the block."""
    with app.connection_for_write() as connection, connection.channel() as channel:
        for queue in queues:
            channel.queue_purge(queue)
