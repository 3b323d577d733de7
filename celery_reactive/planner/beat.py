"""Celery beat inside the leading planner: the schedule survives the process that runs it (B-67).

Called by the composition root as a duty of the leader, and for whoever looks at the schedule. The configured scheduler
decides what is due, as in `celery beat`; when an entry ran last is kept in MongoDB instead of a file. A run is taken
there before it is sent, so that no two planners send it, and what became due while nobody led is sent once.
"""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any

from celery import Celery
from celery.beat import PersistentScheduler, Scheduler, SchedulingError
from kombu.utils.imports import symbol_by_name

from celery_reactive.core.suggest import did_you_mean, listed
from celery_reactive.errors import ArgumentError, ReactiveError
from celery_reactive.runtime import Runtime
from celery_reactive.store import beats

_LEAST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.01, 5.0
_CONNECT_SECONDS = 5.0


def scheduler_of(app: Celery, runtime: Runtime) -> Any:
    """Return the configured scheduler with its schedule, as a leader runs it: last runs in MongoDB.

    Raises:
        ImportError: `beat_scheduler` names no class.
        StoreUnavailableError: MongoDB does not answer.
    """
    return _scheduler(app, runtime, _Durable)


def scheduler_seen(app: Celery, runtime: Runtime) -> Any:
    """Return it for somebody who looks or sends an entry now: last runs from MongoDB, to which nothing is written.

    Raises:
        ImportError: `beat_scheduler` names no class.
        StoreUnavailableError: MongoDB does not answer.
    """
    return _scheduler(app, runtime, _Informed)


def send_now(app: Celery, runtime: Runtime, name: str) -> str:
    """Send the task of an entry once, now; its schedule stays as it is.

    Returns:
        The id of the message.

    Raises:
        ArgumentError: There is no such entry; the message lists those there are. Nothing was sent.
        ReactiveError: The broker does not answer, or the task refuses its arguments. It may have been sent.
        StoreUnavailableError: MongoDB does not answer. Nothing was sent.
    """
    scheduler = scheduler_seen(app, runtime)
    known = sorted(scheduler.schedule)
    if name not in known:
        expected = f"expected one of {listed(known)}" if known else "expected an entry of the schedule, which has none"
        raise ArgumentError("entry", [f"{expected}, got {name!r}{did_you_mean(name, known)}"])
    try:
        sent = scheduler.apply_async(scheduler.schedule[name], advance=False)
    except (SchedulingError, OSError) as error:
        raise ReactiveError(f"{name} could not be sent: {error}") from error
    return str(sent.id)


def _scheduler(app: Celery, runtime: Runtime, kind: type[_Informed]) -> Any:
    configured = symbol_by_name(app.conf.beat_scheduler)  # type: ignore[no-untyped-call]
    # Celery's own keeps last runs in a file, which is all that it adds to its base.
    base = Scheduler if configured is PersistentScheduler else configured
    made = type(
        f"{kind.__name__.strip('_')}Scheduler", (kind, base), {"store": staticmethod(runtime.connection.globals)}
    )
    return made(app=app, schedule_filename=app.conf.beat_schedule_filename)


class Beat:
    """The schedule, run by the leader of one term."""

    def __init__(self, app: Celery, runtime: Runtime, ended: threading.Event) -> None:
        self._app = app
        self._runtime = runtime
        self._ended = ended
        self._scheduler: Any = None

    def step(self) -> None:
        """Send what is due, and wait for the next entry, some seconds at most.

        Raises:
            StoreUnavailableError: MongoDB is away; what is due is sent when it is back.
            OperationalError: The broker is away, likewise.
        """
        try:
            if self._scheduler is None:
                self._scheduler = scheduler_of(self._app, self._runtime)
            # Connected before a run is taken: what is taken and not sent is lost.
            _ = self._scheduler.producer
            wait = float(self._scheduler.tick())
        except BaseException:
            self._close()
            raise
        self._ended.wait(min(max(wait, _LEAST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS))
        if self._ended.is_set():
            self._close()

    def _close(self) -> None:
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            scheduler.close()


class _Informed:
    """Lies over a scheduler's class: last runs are read from MongoDB."""

    app: Any
    schedule: Any
    store: Any

    def setup_schedule(self) -> None:
        """Set the schedule up as ever, then let its entries have run when they ran last."""
        super().setup_schedule()  # type: ignore[misc]  # of the scheduler below
        self._seen: dict[str, datetime] = {}
        entries = dict(self.schedule.items())
        self._prepare(entries)
        for name, last in beats.read_all(self.store()).items():
            if name in entries:
                self._set_last_run(entries[name], last)

    def _prepare(self, entries: dict[str, Any]) -> None:
        """Do what has to be done before last runs are read."""

    def _set_last_run(self, entry: Any, last: beats.LastRun | None) -> None:
        if last is not None:
            self._seen[entry.name] = last.at
            entry.last_run_at = last.at.astimezone(self.app.timezone)
            entry.total_run_count = last.runs


class _Durable(_Informed):
    """And each run is taken there first, before it is sent."""

    connection: Any

    def _prepare(self, entries: dict[str, Any]) -> None:
        """Let the first interval of a new entry begin, and forget entries that are gone."""
        self._taken: set[str] = set()
        beats.forget_others(self.store(), entries.keys())
        known = beats.read_all(self.store())
        for name, entry in entries.items():
            if name not in known:
                beats.note_first(self.store(), name, _whole(entry.last_run_at or entry.default_now()))

    def reserve(self, entry: Any) -> Any:
        """Move an entry to its next run, and take the present one unless another planner has."""
        following = super().reserve(entry)  # type: ignore[misc]  # of the scheduler below
        at = _whole(following.last_run_at)
        if beats.take(self.store(), entry.name, seen=self._seen.get(entry.name), at=at):
            self._seen[entry.name] = following.last_run_at = at
            self._taken.add(entry.name)
        else:
            self._set_last_run(following, beats.read_all(self.store()).get(entry.name))
        return following

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send an entry whose run was taken."""
        if entry.name in self._taken:
            self._taken.discard(entry.name)
            super().apply_entry(entry, producer=producer)  # type: ignore[misc]  # of the scheduler below

    def _ensure_connected(self) -> Any:
        return self.connection.ensure_connection(max_retries=1, timeout=_CONNECT_SECONDS)


def _whole(when: datetime) -> datetime:
    """Return *when* in whole milliseconds, as MongoDB keeps it."""
    return when.replace(microsecond=when.microsecond // 1000 * 1000)
