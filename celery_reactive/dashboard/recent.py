"""What was found out a moment ago, kept as long as finding it out again would be a burden.

Called by pages and API for what many people look at again and again. A value that took long is kept longer, so that
however many look, the database spends a small share of its time on it.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

_LEAST_SECONDS = 1.0
_SHARE = 0.05
"""Of a core of the database, at most, for each value."""
_MOST_VALUES = 64


@dataclasses.dataclass(slots=True)
class _Kept:
    value: Any
    until: float
    """By this process's monotonic clock."""


class Recent:
    """Values by key, each made by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Hashable, _Kept] = {}
        self._making: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of *key*, made anew when it is too old."""
        kept = self._fresh(key)
        if kept is None:
            with self._maker_of(key):
                kept = self._fresh(key) or self._made(key, make)
        value: T = kept.value
        return value

    def forget(self) -> None:
        """Forget everything: something was changed by hand, and its effect must be seen at once."""
        with self._lock:
            self._kept.clear()

    def _fresh(self, key: Hashable) -> _Kept | None:
        with self._lock:
            kept = self._kept.get(key)
        return kept if kept is not None and kept.until > time.monotonic() else None

    def _maker_of(self, key: Hashable) -> threading.Lock:
        with self._lock:
            return self._making.setdefault(key, threading.Lock())

    def _made(self, key: Hashable, make: Callable[[], Any]) -> _Kept:
        started = time.monotonic()
        value = make()
        took = time.monotonic() - started
        kept = _Kept(value, time.monotonic() + max(_LEAST_SECONDS, took / _SHARE))
        with self._lock:
            if len(self._kept) >= _MOST_VALUES:
                self._kept.clear()
                self._making.clear()
            self._kept[key] = kept
        return kept
