"""Leadership: one planner of a group plans, the others stand by (B-46).

A stand-by reads one small document a second and nothing else. The leader renews its lock every
third of the TTL from a thread of its own, so that nothing else it does can delay that, and stops at
once when a renewal finds the lock gone or when the TTL has passed since the last acknowledged
renewal was *sent*, by its own monotonic clock: a paused process finds out before it does anything.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from celery_reactive.errors import StoreUnavailableError
from celery_reactive.events import LeadershipAwaited, LeadershipEnded, LeadershipWon
from celery_reactive.planner.patience import Complaint
from celery_reactive.runtime import Runtime
from celery_reactive.store import leadership
from celery_reactive.store.errors import time_limit
from celery_reactive.store.leadership import Lock

logger = logging.getLogger(__name__)

_STAND_BY_SECONDS = 1.0
_RELEASE_LIMIT = timedelta(seconds=3)


def campaign(runtime: Runtime, group: str, stop: threading.Event) -> Leadership | None:
    """Stand by until the lock of *group* can be taken.

    Returns:
        The leadership, not yet renewed; None if *stop* was set first.
    """
    complaint = Complaint("MongoDB")
    candidate = _Candidate(runtime, group)
    pause = min(_STAND_BY_SECONDS, runtime.settings.leader_ttl.total_seconds() / 3)
    while not stop.is_set():
        try:
            won = candidate.attempt()
            complaint.back()
        except StoreUnavailableError as error:
            complaint.away(error)
            won = None
        if won is not None:
            return won
        stop.wait(pause)
    return None


class _Candidate:
    """A stand-by's memory: since when, by its own clock, the lock has stood as it stands."""

    def __init__(self, runtime: Runtime, group: str) -> None:
        self._runtime = runtime
        self._group = group
        self._seen: Lock | None = None
        self._seen_since = 0.0

    def attempt(self) -> Leadership | None:
        asked = time.monotonic()
        lock = leadership.read(self._runtime.connection.globals(), self._group)
        if lock != self._seen:
            self._tell_of(lock)
            self._seen, self._seen_since = lock, time.monotonic()
        stale = asked - self._seen_since >= self._runtime.settings.leader_ttl.total_seconds()
        if lock.holder is not None and not stale:
            return None
        sent = time.monotonic()
        instance = self._runtime.settings.instance_id
        term = leadership.acquire(self._runtime.connection.globals(), self._group, instance, lock)
        return None if term is None else Leadership(self._runtime, self._group, term, sent)

    def _tell_of(self, lock: Lock) -> None:
        """Say once for each leader that it is waited for."""
        if lock.holder is None or (self._seen is not None and self._seen.holder == lock.holder):
            return
        settings = self._runtime.settings
        ttl = settings.leader_ttl.total_seconds()
        self._runtime.emit(LeadershipAwaited(settings.instance_id, lock.holder, ttl, self._group))


class Leadership:
    """A term of leadership. As a context manager: renewed inside, handed over at the end."""

    def __init__(self, runtime: Runtime, group: str, term: int, sent: float) -> None:
        self.term = term
        self.ended = threading.Event()
        """Set when the leader must stop: the lock was lost, or the term is over."""
        self._runtime = runtime
        self._group = group
        self._ttl_seconds = runtime.settings.leader_ttl.total_seconds()
        self._renewed = sent
        self._thread = threading.Thread(target=self._renew, name="reactive-leader", daemon=True)

    @property
    def is_held(self) -> bool:
        """Whether this process may still act as the leader, by its own clock."""
        return not self.ended.is_set() and time.monotonic() - self._renewed < self._ttl_seconds

    def lose(self) -> None:
        """Stop leading at once: a newer leader was found."""
        self.ended.set()

    def __enter__(self) -> Self:
        self._runtime.emit(LeadershipWon(self._runtime.settings.instance_id, self.term, self._group))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.ended.set()
        self._thread.join()
        # Also where a newer term was met: the lock may still be this planner's, and nobody has to wait for its TTL.
        handed_over = self._release()
        self._runtime.emit(LeadershipEnded(self._runtime.settings.instance_id, self.term, handed_over, self._group))

    def _release(self) -> bool:
        settings = self._runtime.settings
        try:
            with time_limit(_RELEASE_LIMIT):
                return leadership.release(
                    self._runtime.connection.globals(),
                    self._group,
                    settings.instance_id,
                    self.term,
                )
        except StoreUnavailableError:
            return False

    def _renew(self) -> None:
        pause = self._ttl_seconds / 3
        complaint = Complaint("MongoDB")
        while not self.ended.wait(pause):
            sent = time.monotonic()
            try:
                with time_limit(timedelta(seconds=pause)):
                    held = leadership.renew(
                        self._runtime.connection.globals(),
                        self._group,
                        self._runtime.settings.instance_id,
                        self.term,
                    )
            except StoreUnavailableError as error:
                complaint.away(error)
                held = self.is_held
            else:
                complaint.back()
                if held:
                    self._renewed = sent
            if not held or not self.is_held:
                self.lose()
                return
