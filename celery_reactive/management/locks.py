"""A lock in MongoDB for the user's own code: one holder at a time among all processes of all machines.

Called by `Reactive.lock`. A thread renews the lock while it is held; where it cannot, `lost` turns true before anybody
else can have it, as far as this process's clock tells. What must be right also where a process was paused for longer
than that has to compare fences.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from celery_reactive.core.duration import Duration, format_duration, parse_duration
from celery_reactive.core.suggest import shown
from celery_reactive.errors import ArgumentError, LockAlreadyAcquiredError, StoreUnavailableError
from celery_reactive.runtime import Runtime
from celery_reactive.store import locks
from celery_reactive.store.errors import time_limit

logger = logging.getLogger(__name__)

_LEAST_EXPIRE = timedelta(seconds=1)
_LONGEST_KEY = 500
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.02, 0.5


class Lock:
    """A lock by name. As a context manager: held inside.

    Each `with` is an acquisition of its own, also in one thread: a lock is not entered twice.
    """

    def __init__(self, runtime: Runtime, key: str, *, wait: Duration, expire: Duration) -> None:
        """Prepare the lock; nothing is taken yet.

        Args:
            runtime: The app's parts.
            key: Its name, 1 to 500 characters.
            wait: How long to wait for it; zero: one try.
            expire: How long it outlives a holder that has vanished, at least a second; renewed every third of it.

        Raises:
            ArgumentError: An argument has no meaning.
        """
        self._runtime = runtime
        self._key = _read_key(key)
        self._wait = parse_duration(wait, name="wait")
        self._expire = parse_duration(expire, name="expire")
        if self._expire < _LEAST_EXPIRE:
            raise ArgumentError("expire", [f"expected at least 1 s, got {shown(expire)}"])
        self._owner = ""
        self._fence = 0
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._renewed = 0.0
        self._thread: threading.Thread | None = None

    @property
    def fence(self) -> int:
        """A number that grows with each acquisition of this lock: keep it with what you write, refuse a smaller one."""
        return self._fence

    @property
    def lost(self) -> bool:
        """Whether somebody else may hold the lock by now; false while it is certainly this one's."""
        return self._lost.is_set() or time.monotonic() - self._renewed >= self._expire.total_seconds()

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            LockAlreadyAcquiredError: Somebody else holds it, also after the wait.
            StoreUnavailableError: MongoDB does not answer; the lock may be taken until it expires.
        """
        self._owner = f"{self._runtime.settings.instance_id}/{secrets.token_hex(6)}"
        self._ended.clear()
        self._lost.clear()
        self._fence = self._acquire()
        self._thread = threading.Thread(target=self._renew, name=f"reactive-lock-{self._key}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the lock up. One that was lost is only logged: what was done under it is done."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        try:
            with time_limit(self._expire):
                released = locks.release(self._runtime.connection.globals(), self._key, self._owner)
        except StoreUnavailableError as away:
            logger.warning("lock not given up, it expires: %s", away, extra={"event": "lock_kept", "key": self._key})
            return
        if not released:
            logger.warning("lock was lost while it was held", extra={"event": "lock_lost", "key": self._key})

    def _acquire(self) -> int:
        deadline = time.monotonic() + self._wait.total_seconds()
        pause = _FIRST_PAUSE_SECONDS
        globals_ = self._runtime.connection.globals()
        while True:
            self._renewed = time.monotonic()
            fence = locks.acquire(globals_, self._key, self._owner, self._expire)
            if fence is not None:
                return fence
            left = deadline - time.monotonic()
            if left <= 0:
                raise LockAlreadyAcquiredError(self._refusal())
            self._ended.wait(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)

    def _refusal(self) -> str:
        holder = locks.holder(self._runtime.connection.globals(), self._key)
        whose = "somebody" if holder is None else holder.owner.rpartition("/")[0]
        waited = f" after waiting for {format_duration(self._wait)}" if self._wait else ""
        return f"lock {self._key!r} is held by {whose}{waited}; nothing was done under it"

    def _renew(self) -> None:
        pause = self._expire / 3
        while not self._ended.wait(pause.total_seconds()) and not self.lost:
            sent = time.monotonic()
            try:
                with time_limit(pause):
                    is_held = locks.renew(self._runtime.connection.globals(), self._key, self._owner, self._expire)
            except StoreUnavailableError as away:
                logger.info("lock not renewed, trying again: %s", away, extra={"event": "lock_away", "key": self._key})
                continue
            if not is_held:
                self._lost.set()
                return
            self._renewed = sent


def _read_key(key: object) -> str:
    if isinstance(key, str) and 0 < len(key) <= _LONGEST_KEY:
        return key
    raise ArgumentError("lock", [f"expected a name of 1 to {_LONGEST_KEY} characters, got {shown(key)}"])
