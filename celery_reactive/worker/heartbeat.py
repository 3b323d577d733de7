"""Renewal of leases while handlers run: one daemon thread per process, started at the first claim (B-23).

A renewal that finds the token gone tells the run; so does the monotonic clock, when no renewal has
been acknowledged for the length of the lease.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from celery_reactive.errors import ReactiveError, StoreBusyError
from celery_reactive.events import LeaseLost
from celery_reactive.store import records
from celery_reactive.store.errors import time_limit
from celery_reactive.worker.run import Run

logger = logging.getLogger(__name__)

_STATEMENT_LIMIT = timedelta(seconds=5)
_HELD_LIMIT = timedelta(seconds=1)
"""For a record that an open transaction may hold."""


class Heartbeat:
    """Renews what this process runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: dict[int, Run] = {}
        self._woken = threading.Event()
        self._started = False
        os.register_at_fork(after_in_child=self._forget)

    @contextmanager
    def renewing(self, runs: Sequence[Run]) -> Iterator[None]:
        """Renew the leases of *runs* inside the block."""
        self._start()
        with self._lock:
            self._live.update((id(run), run) for run in runs)
        self._woken.set()
        try:
            yield
        finally:
            with self._lock:
                for run in runs:
                    self._live.pop(id(run), None)

    def settled(self, run: Run) -> None:
        """Stop renewing *run*: its end has been written."""
        with self._lock:
            self._live.pop(id(run), None)

    def _start(self) -> None:
        with self._lock:
            if self._started:
                return
            self._started = True
        threading.Thread(target=self._beat_forever, name="reactive-heartbeat", daemon=True).start()

    def _forget(self) -> None:
        """In a forked process: neither the thread came along nor, for certain, a usable lock."""
        self._lock, self._live, self._woken = threading.Lock(), {}, threading.Event()
        self._started = False

    def _beat_forever(self) -> None:
        while True:
            self._woken.wait()
            with self._lock:
                live = list(self._live.values())
                if not live:
                    self._woken.clear()
                    continue
            pause = min(run.runtime.settings.heartbeat.total_seconds() for run in live)
            threading.Event().wait(pause)
            with self._lock:
                live = [run for run in self._live.values() if not run.lost]
            for token in {run.claim.token for run in live}:
                self._renew([run for run in live if run.claim.token == token])

    def _renew(self, runs: Sequence[Run]) -> None:
        """Renew runs of one token: together, but for those whose own transaction may hold their record.

        One held record would keep the renewal of all the others waiting.
        """
        alone = [run for run in runs if run.completing and not run.completed]
        together = [run for run in runs if not run.completing and not run.completed]
        if together:
            self._renew_together(together)
        for run in alone:
            self._renew_alone(run)

    def _renew_together(self, runs: Sequence[Run]) -> None:
        sent = time.monotonic()
        try:
            owned = _renewed(runs, _STATEMENT_LIMIT)
        except ReactiveError as error:
            logger.warning("lease not renewed: %s", error, extra={"event": "renewal_failed"})
            return
        for run in runs:
            if run.claim.key.exact in owned:
                run.renewed = sent
            elif not self._has_ended(run) and not run.completing:
                _lose(run)

    def _renew_alone(self, run: Run) -> None:
        """Renew a run that is completing itself in a transaction (B-36).

        While the transaction holds the record nobody else can write it, so that a lock is as good as a renewal. After
        an abort the renewal finds the token; after the commit it finds the run's own mark.
        """
        sent = time.monotonic()
        try:
            if run.claim.key.exact in _renewed([run], _HELD_LIMIT):
                run.renewed = sent
            elif _is_completed(run):
                run.completed = True
            elif not self._has_ended(run):
                _lose(run)
        except StoreBusyError:
            run.renewed = sent
        except ReactiveError as error:
            logger.warning("lease not renewed: %s", error, extra={"event": "renewal_failed"})

    def _has_ended(self, run: Run) -> bool:
        """Whether *run* ended by itself while its renewal was on the way; what ends it sees who owned it."""
        with self._lock:
            return id(run) not in self._live or run.ended or run.completed


def _renewed(runs: Sequence[Run], limit: timedelta) -> set[bytes]:
    """Renew the leases of *runs*, of one token; return the exact ids of those still owned."""
    first = runs[0]
    target = first.runtime.connection.records(first.task)
    with time_limit(limit):
        return records.renew(
            target,
            [run.claim.key for run in runs],
            first.claim.token,
            first.runtime.settings.visibility_timeout,
        )


def _is_completed(run: Run) -> bool:
    target = run.runtime.connection.records(run.task)
    return records.was_settled_by(target, run.claim.key, run.claim.token)


def _lose(run: Run) -> None:
    run.lost = True
    run.runtime.emit(LeaseLost(run.task.name, str(run.claim.key), run.claim.attempt))


HEARTBEAT = Heartbeat()
"""This process's."""
