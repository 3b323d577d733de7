"""The records of one message that names several, while they run one after the other.

Called by `execute`. What they come to is written together, soon after and not only at the end; and nobody waits behind
a slow neighbour: what has not begun in time is given back by a thread of this module, for the handler that keeps the
others waiting holds the thread of the message.

One lock guards a company. Whoever takes a record out of it, to run it or to give it back, does so under the lock: a
record is never run and given back.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from celery_reactive.core.outcome import Completed, GivenBack
from celery_reactive.errors import ReactiveError
from celery_reactive.worker.finalize import finalize, finalize_together
from celery_reactive.worker.heartbeat import HEARTBEAT
from celery_reactive.worker.run import Run

logger = logging.getLogger(__name__)

_START_WITHIN_SECONDS = 1.0
"""Records that have not started after this are given back."""
_WRITE_WITHIN_SECONDS = 0.05
"""What a run came to waits so long for others to be written with."""


class _Ended(NamedTuple):
    run: Run
    outcome: Completed
    at: float
    """On the monotonic clock."""


class Company:
    """The runs of one message: those that wait for their turn, and those whose ends are yet to be written."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._lock = threading.Lock()
        self._waiting = deque(runs)
        self._ended: list[_Ended] = []
        self._start_until = time.monotonic() + _START_WITHIN_SECONDS

    def next(self) -> Run | None:
        """Return the run whose turn it is; None: there is none left."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def completed(self, run: Run, outcome: Completed) -> None:
        """Have it written that *run* has completed, with others that complete meanwhile."""
        with self._lock:
            self._ended.append(_Ended(run, outcome, time.monotonic()))
            is_first = len(self._ended) == 1
        if is_first:
            _CLOCK.look()

    def give_back(self) -> None:
        """Give back all that have not begun."""
        with self._lock:
            runs = list(self._waiting)
            self._waiting.clear()
            for run in runs:
                HEARTBEAT.settled(run)
            if runs:
                finalize_together(runs, [GivenBack()] * len(runs))

    def write(self) -> None:
        """Write what has ended; return when it is durable, or the leases are over."""
        with self._lock:
            for checked in (True, False):
                self._write([one for one in self._ended if one.outcome.document_checked is checked])
            self._ended.clear()

    def _write(self, ended: Sequence[_Ended]) -> None:
        owned = [one for one in ended if not one.run.lease_lost]
        try:
            if owned:
                finalize_together([one.run for one in owned], [one.outcome for one in owned])
            alone = [one for one in ended if one not in owned]
        except ReactiveError:
            # One that cannot be stored must not take the others with it.
            alone = list(ended)
            for one in owned:
                one.run.in_doubt = True
        for one in alone:
            finalize(one.run, one.outcome)
        for one in ended:
            HEARTBEAT.settled(one.run)

    def act(self, now: float) -> float:
        """Do what is due at *now*; return when to look again, on the monotonic clock."""
        with self._lock:
            start_until = self._start_until if self._waiting else math.inf
            write_at = self._ended[0].at + _WRITE_WITHIN_SECONDS if self._ended else math.inf
        if now >= start_until:
            self.give_back()
            start_until = math.inf
        if now >= write_at:
            self.write()
            write_at = math.inf
        return min(start_until, write_at)


class _Clock:
    """The thread of this process that acts for companies whose own thread is busy; started at the first of them."""

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._live: set[Company] = set()
        self._woken = threading.Event()
        self._is_started = False

    def watch(self, company: Company) -> None:
        with self._lock:
            self._live.add(company)
            starts, self._is_started = not self._is_started, True
        if starts:
            threading.Thread(target=self._run, name="reactive-company", daemon=True).start()
        self._woken.set()

    def leave(self, company: Company) -> None:
        with self._lock:
            self._live.discard(company)

    def look(self) -> None:
        self._woken.set()

    def _run(self) -> None:
        look_at = math.inf
        while True:
            self._woken.wait(None if look_at == math.inf else max(0.0, look_at - time.monotonic()))
            self._woken.clear()
            with self._lock:
                live = list(self._live)
            look_at = min((self._act(company) for company in live), default=math.inf)

    def _act(self, company: Company) -> float:
        try:
            return company.act(time.monotonic())
        except Exception:
            # Its own thread tries again at the end, and the lease covers the rest.
            logger.exception("a message's records not settled meanwhile")
            return time.monotonic() + _START_WITHIN_SECONDS


_CLOCK = _Clock()
"""This process's."""


@contextmanager
def together(runs: Sequence[Run]) -> Iterator[Company]:
    """Do what is due of *runs* while their thread is busy; at the end write what is left, and give back the rest."""
    company = Company(runs)
    _CLOCK.watch(company)
    try:
        yield company
    finally:
        _CLOCK.leave(company)
        try:
            company.write()
        finally:
            company.give_back()
