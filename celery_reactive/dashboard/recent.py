"""What was found out a moment ago, kept as long as finding it out again would be a burden.

Called by pages and API for what many people look at again and again. A value that took long is kept longer, so that
however many look, the database spends a small share of its time on it.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from celery_reactive.errors import ReactiveError

T = TypeVar("T")

_LEAST_SECONDS = 1.0
_SHARE = 0.05
"""Of a core of the database, at most, for each value."""
_MOST_VALUES = 64
_STALE_SECONDS = 60.0
_MOMENT_SECONDS = 0.25

logger = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class _Kept:
    value: Any
    until: float
    """By this process's monotonic clock."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Failed:
    error: ReactiveError
    at: float
    """By this process's monotonic clock."""


class Recent:
    """Values by key, each made by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Hashable, _Kept] = {}
        self._making: dict[Hashable, threading.Lock] = {}
        self._failed: dict[Hashable, _Failed] = {}
        self._begun: set[Hashable] = set()
        """What is being found out aside."""
        self._forgotten = 0
        """How often everything was forgotten: what was begun before is not kept after."""

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of *key*, made anew when it is too old.

        Raises:
            ReactiveError: What *make* raises, also to those who waited for it meanwhile: where the database does not
                answer, each would wait for it in turn, until no thread is left for anybody.
        """
        kept = self._fresh(key)
        if kept is None:
            asked = time.monotonic()
            with self._maker_of(key):
                self._raise_failure_since(asked, key)
                kept = self._fresh(key) or self._made(key, make)
        value: T = kept.value
        return value

    def soon(self, key: Hashable, make: Callable[[], T]) -> T | None:
        """Return the value of *key* if it is known; if not, or not any more, have it found out for the next time.

        One that is out of date is returned for a minute.
        """
        kept = self._fresh(key)
        if kept is None:
            self._begin(key, make)
            kept = self._stale(key)
        value: T | None = None if kept is None else kept.value
        return value

    def _begin(self, key: Hashable, make: Callable[[], Any]) -> None:
        with self._lock:
            if key in self._begun:
                return
            self._begun.add(key)
        threading.Thread(target=self._find_out, args=(key, make), name="reactive-dashboard", daemon=True).start()

    def _stale(self, key: Hashable) -> _Kept | None:
        with self._lock:
            kept = self._kept.get(key)
        return kept if kept is not None and kept.until + _STALE_SECONDS > time.monotonic() else None

    def _find_out(self, key: Hashable, make: Callable[[], Any]) -> None:
        # The page that asked is being made at this moment: it comes first.
        threading.Event().wait(_MOMENT_SECONDS)
        try:
            self.get(key, make)
        except ReactiveError as error:
            facts = {"what": str(key), "error": str(error)}
            logger.warning("the dashboard could not find something out", extra=facts)
        finally:
            with self._lock:
                self._begun.discard(key)

    def forget(self) -> None:
        """Forget everything: something was changed by hand, and its effect must be seen at once."""
        with self._lock:
            self._kept.clear()
            self._forgotten += 1

    def _fresh(self, key: Hashable) -> _Kept | None:
        with self._lock:
            kept = self._kept.get(key)
        return kept if kept is not None and kept.until > time.monotonic() else None

    def _raise_failure_since(self, asked: float, key: Hashable) -> None:
        with self._lock:
            failed = self._failed.get(key)
        if failed is not None and failed.at >= asked:
            raise failed.error

    def _maker_of(self, key: Hashable) -> threading.Lock:
        with self._lock:
            return self._making.setdefault(key, threading.Lock())

    def _made(self, key: Hashable, make: Callable[[], Any]) -> _Kept:
        forgotten = self._forgotten
        started = time.monotonic()
        try:
            value = make()
        except ReactiveError as error:
            with self._lock:
                if len(self._failed) >= _MOST_VALUES:
                    self._failed.clear()
                self._failed[key] = _Failed(error, time.monotonic())
            raise
        took = time.monotonic() - started
        kept = _Kept(value, time.monotonic() + max(_LEAST_SECONDS, took / _SHARE))
        with self._lock:
            if len(self._kept) >= _MOST_VALUES:
                self._kept.clear()
                self._making.clear()
            self._failed.pop(key, None)
            if forgotten == self._forgotten:
                self._kept[key] = kept
        return kept
