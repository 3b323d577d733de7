"""Limits on the starts of a task's runs: how many in a period, how many at a time (B-58). Values only.

Declared with the task, or set by hand while the system runs. They hold for all workers together: the store's limiter
enforces them; nothing here counts anything.
"""

from __future__ import annotations

import dataclasses
import math
import re
from datetime import timedelta
from fractions import Fraction
from typing import Literal, TypeVar

from celery_reactive.core.duration import LONGEST, format_duration
from celery_reactive.core.options import LARGEST, read_integer
from celery_reactive.core.suggest import shown
from celery_reactive.errors import ConfigurationError

T = TypeVar("T")

UNLIMITED: Literal["unlimited"] = "unlimited"
"""What one writes to lift a declared limit."""
Unlimited = Literal["unlimited"]
_UNITS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1)}
_NOTATION = re.compile(r"\s*(\d{1,12}(?:\.\d{1,9})?)\s*(?:/\s*([smh])\s*)?", re.ASCII)
_EXPECTED = 'expected a number per second, or a string such as "10/s", "100/m", "5000/h"'
_LONGEST_START = timedelta(seconds=1)
_MILLISECOND = timedelta(milliseconds=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Rate:
    """At most so many starts in any window of the period's length."""

    starts: int
    """At least 1."""
    period: timedelta
    """Whole milliseconds, the resolution of the server's clock."""

    @classmethod
    def parse(cls, value: object, name: str) -> Rate:
        """Read Celery's notation. "1.5/s" is two starts in four thirds of a second: never more at once than needed.

        Args:
            value: A number per second, or a number per second, minute or hour as a string.
            name: The option it was written for.

        Raises:
            ConfigurationError: It is no such rate, zero, or too large or small to be kept.
        """
        text = str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
        match = _NOTATION.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ConfigurationError(name, [f"{_EXPECTED}, got {shown(value)}"])
        number, unit = Fraction(match[1]), _UNITS[match[2] or "s"]
        if not number:
            problem = f"{_EXPECTED}, above zero, got {shown(value)}; to start nothing, pause the task"
            raise ConfigurationError(name, [problem])
        starts = math.ceil(number)
        milliseconds = math.ceil(starts / number * (unit // _MILLISECOND))
        if starts > LARGEST or milliseconds > LONGEST // _MILLISECOND:
            raise ConfigurationError(name, [f"{_EXPECTED}, that can be kept, got {shown(value)}"])
        return cls(starts, milliseconds * _MILLISECOND)

    @property
    def start_within(self) -> timedelta:
        """How long after a start was granted it may happen: it counts as late as that until it is known."""
        return min(_LONGEST_START, self.period / 4)

    def __str__(self) -> str:
        unit = next((name for name, length in _UNITS.items() if length == self.period), None)
        return f"{self.starts} in {format_duration(self.period)}" if unit is None else f"{self.starts}/{unit}"


def read_rate(value: object, name: str) -> Rate | None:
    """Return the option's rate; None: no limit.

    Raises:
        ConfigurationError: It is neither.
    """
    return None if value is None else Rate.parse(value, name)


def read_concurrency(value: object, name: str) -> int | None:
    """Return how many runs there may be at a time; None: no limit.

    Raises:
        ConfigurationError: It is neither None nor an integer from 1.
    """
    return None if value is None else read_integer(value, name, at_least=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The limits in force for a task."""

    rate: Rate | None = None
    concurrency: int | None = None

    @property
    def is_any(self) -> bool:
        """Whether there is a limit at all."""
        return self.rate is not None or self.concurrency is not None


@dataclasses.dataclass(frozen=True, slots=True)
class Overrides:
    """What was set by hand and counts instead of the declaration; None: what is declared."""

    rate: Rate | Unlimited | None = None
    concurrency: int | Unlimited | None = None
    priority: int | None = None

    def limits(self, rate: Rate | None, concurrency: int | None) -> Limits:
        """Return the limits in force where *rate* and *concurrency* are declared."""
        return Limits(_in_force(self.rate, rate), _in_force(self.concurrency, concurrency))


def _in_force(by_hand: T | Unlimited | None, declared: T | None) -> T | None:
    if by_hand is None:
        return declared
    return None if isinstance(by_hand, str) else by_hand
