"""Pushing: a process writes its counters where every planner can read them (`cluster` mode).

A daemon thread per process, started at the first count, writes every `reactive_metrics_push_interval` if there is
anything new. The worker's parent process must have no thread of ours, as its pool forks: Celery's timer calls `push`
there. What a process has counted since its last push is lost when it is killed.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import secrets
import threading
import weakref
from datetime import timedelta

from celery_reactive.core.totals import Totals
from celery_reactive.errors import ReactiveError
from celery_reactive.metrics.counts import Counts
from celery_reactive.settings import Settings
from celery_reactive.store import counters
from celery_reactive.store.connection import Connection
from celery_reactive.store.errors import time_limit

logger = logging.getLogger(__name__)

_LIMIT = timedelta(seconds=5)
_FINISH_LIMIT = timedelta(seconds=1)


@dataclasses.dataclass(slots=True)
class _Sent:
    """A push: what was written, or may have been."""

    seq: int
    totals: Totals
    ended: bool = False


class Pusher:
    """Writes what one process counts for one app."""

    def __init__(self, counts: Counts, connection: Connection, settings: Settings) -> None:
        self._counts = counts
        self._connection = connection
        self._settings = settings
        self.reset()
        os.register_at_fork(after_in_child=functools.partial(_reset, weakref.ref(self)))

    def reset(self) -> None:
        """In a forked process: it has counted nothing, and neither thread nor lock came along."""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._is_started = False
        self.has_thread = True
        """False in a process that pushes by itself."""
        self._moved = Totals()
        """What has been added to the retired, under names that this process had before."""
        self._begin()

    def _begin(self) -> None:
        """Take a new name, under which nothing has been written."""
        self._name = f"{self._settings.instance_id}.{os.getpid()}.{secrets.token_hex(4)}"
        self._acknowledged = _Sent(0, Totals())
        self._in_doubt: _Sent | None = None

    def on_counted(self) -> None:
        """Make sure that what was counted will be pushed."""
        if self._is_started or not self.has_thread:
            return
        with self._lock:
            starts, self._is_started = not self._is_started, True
        if starts:
            threading.Thread(target=self._push_forever, name="reactive-metrics", daemon=True).start()

    def _push_forever(self) -> None:
        ended = self._ended
        while not ended.wait(self._settings.metrics_push_interval.total_seconds()):
            self.push()

    @property
    def has_news(self) -> bool:
        """Whether anything has been counted that is not durable."""
        with self._lock:
            return self._in_doubt is not None or self._next(ended=False) is not None

    def push(self, connection: Connection | None = None, *, ended: bool = False) -> bool:
        """Write what is new.

        Args:
            connection: Another than the process's own, for a process that keeps none.
            ended: Nothing more will be counted here.

        Returns:
            Whether everything counted before this call is durable.
        """
        with self._lock:
            try:
                with time_limit(_LIMIT):
                    while self._push_once(connection or self._connection, ended=ended):
                        pass
            except ReactiveError as error:
                logger.info("counters not written, later: %s", error, extra={"event": "counters_not_written"})
                return False
        return True

    def finish(self) -> None:
        """Write the last of it, briefly: the process ends."""
        self._ended.set()
        if not self.has_news and not self._acknowledged.seq:
            return
        try:
            if self._connection.is_open:
                with time_limit(_FINISH_LIMIT):
                    self.push(ended=True)
                return
            with self._connection.brief(_FINISH_LIMIT) as connection:
                self.push(connection, ended=True)
        except ReactiveError as error:
            logger.info("counters not written at the end: %s", error, extra={"event": "counters_not_written"})

    def _push_once(self, connection: Connection, *, ended: bool) -> bool:
        """Write once, what is in doubt before anything newer; return whether there may be more."""
        sent = self._in_doubt or self._next(ended=ended)
        if sent is None:
            return False
        self._in_doubt = sent
        globals_ = connection.globals()
        written = counters.push(
            globals_,
            self._name,
            sent.totals,
            seq=sent.seq,
            push_every=self._settings.metrics_push_interval,
            first=self._acknowledged.seq == 0,
            ended=sent.ended,
        )
        if written:
            self._acknowledged, self._in_doubt = sent, None
        else:
            self._move(counters.retired_seq(globals_, self._name), sent)
        return True

    def _next(self, *, ended: bool) -> _Sent | None:
        """Return what is to be written; None: everything is."""
        totals = self._counts.totals().minus(self._moved)
        last = self._acknowledged
        is_told = totals == last.totals if last.seq else totals.is_nothing
        if is_told and (ended <= last.ended or not last.seq):
            return None
        return _Sent(last.seq + 1, totals, ended)

    def _move(self, seq: int | None, refused: _Sent) -> None:
        """Go on under a new name: this process was taken for gone, and what it had written has been added up."""
        moved = refused if seq == refused.seq else self._acknowledged
        self._moved = self._moved.plus(moved.totals)
        self._begin()


def _reset(alive: weakref.ref[Pusher]) -> None:
    pusher = alive()
    if pusher is not None:
        pusher.reset()
