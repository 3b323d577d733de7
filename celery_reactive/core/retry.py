"""When a failed attempt is made again, and when no more (B-38, B-39).

Called by the declaration, by the worker when an attempt failed, and by the planner when one was lost. Must never read
a clock or draw a random number: both are given.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self, TypedDict, assert_never

from celery_reactive.core.cron import next_time, read_cron, read_timezone
from celery_reactive.core.duration import LONGEST, Duration, format_duration
from celery_reactive.core.options import Options, read_boolean, read_choice, read_number
from celery_reactive.core.suggest import listed, shown
from celery_reactive.errors import ConfigurationError

if TYPE_CHECKING:
    from typing import Unpack

DEFAULT_MAX_ATTEMPTS = 5
_UNLIMITED = -1
_DEFAULT_MIN = timedelta(seconds=10)
_DEFAULT_MAX = timedelta(days=1)
_DEFAULT_FACTOR = 2.0


class RetryType(StrEnum):
    """How the wait grows; `type` in a dict."""

    FIXED = "fixed"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"
    SERIES = "series"
    CRON = "cron"


@dataclasses.dataclass(frozen=True, slots=True)
class Fixed:
    """The same wait each time."""

    interval: timedelta

    def wait(self, attempt: int, now: datetime) -> timedelta | None:
        """Return the wait after the *attempt*-th failure."""
        return self.interval


@dataclasses.dataclass(frozen=True, slots=True)
class Linear:
    """The interval times the number of attempts so far."""

    interval: timedelta

    def wait(self, attempt: int, now: datetime) -> timedelta | None:
        """Return the wait after the *attempt*-th failure, at most a century."""
        return _within(self.interval.total_seconds() * float(attempt), LONGEST)


@dataclasses.dataclass(frozen=True, slots=True)
class Exponential:
    """`min * factor ** (attempts - 1)`, at most `max`."""

    min: timedelta = _DEFAULT_MIN
    max: timedelta = _DEFAULT_MAX
    factor: float = _DEFAULT_FACTOR

    def wait(self, attempt: int, now: datetime) -> timedelta | None:
        """Return the wait after the *attempt*-th failure; `max` also where the power exceeds every number."""
        first = self.min.total_seconds()
        if not first:
            return self.min
        try:
            return _within(first * self.factor ** (attempt - 1), self.max)
        except OverflowError:
            return self.max


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """One wait after another; the last repeats."""

    intervals: tuple[timedelta, ...]

    def wait(self, attempt: int, now: datetime) -> timedelta | None:
        """Return the wait after the *attempt*-th failure."""
        return self.intervals[min(attempt, len(self.intervals)) - 1]


@dataclasses.dataclass(frozen=True, slots=True)
class Cron:
    """The next time of a cron expression in a time zone.

    For the hours that the change of summer time skips or repeats see `cron.next_time`.
    """

    expression: str
    timezone: str = "UTC"

    def wait(self, attempt: int, now: datetime) -> timedelta | None:
        """Return the wait from *now* (aware), or None if the expression never comes true again."""
        found = next_time(self.expression, self.timezone, after=now)
        return None if found is None else found - now


Schedule = Fixed | Linear | Exponential | Series | Cron
_DEFAULT_SCHEDULE = Exponential()


class Limits(TypedDict, total=False):
    """What every policy may be given besides its schedule; see `RetryPolicy`."""

    max_attempts: int
    max_duration: Duration | None
    reset_retries_on_data_change: bool
    jitter: float


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class RetryPolicy:
    """When failed attempts are repeated. Made by one of the class methods, or `parse`; checked however it is made.

    Attributes:
        schedule: How long to wait.
        max_attempts: Attempts in all before the record is failed; None: no limit.
        max_duration: How long after the first failure of the sequence an attempt may still fail and be repeated;
            None: no limit.
        reset_retries_on_data_change: Whether a data change starts the count of attempts anew (B-15).
        jitter: The share of the wait that is random, 0 to 1: 0.2 waits 80 to 100 % of it. With a cron schedule the
            attempt may then come before its time.
    """

    schedule: Schedule
    max_attempts: int | None
    max_duration: timedelta | None
    reset_retries_on_data_change: bool
    jitter: float

    def __init__(self, schedule: Schedule = _DEFAULT_SCHEDULE, **limits: Unpack[Limits]) -> None:
        """Make a policy of a schedule, by default the exponential one.

        Raises:
            ConfigurationError: A value is wrong or unknown; all such are listed.
        """
        options = Options("retry_policy", limits, _LIMITS)
        if not _is_schedule(schedule):
            options.refuse(f'expected RetryPolicy.fixed("10s", …) or another of the methods, got {shown(schedule)}')
        self._take(schedule, options)

    @classmethod
    def fixed(cls, interval: Duration, **limits: Unpack[Limits]) -> Self:
        """Wait the same time after each failure.

        Raises:
            ConfigurationError: A value is wrong; so for each of these methods.
        """
        return cls.parse({"type": RetryType.FIXED, "interval": interval, **limits})

    @classmethod
    def linear(cls, interval: Duration, **limits: Unpack[Limits]) -> Self:
        """Wait the interval times the number of attempts so far."""
        return cls.parse({"type": RetryType.LINEAR, "interval": interval, **limits})

    @classmethod
    def exponential(
        cls,
        min: Duration = _DEFAULT_MIN,  # noqa: A002 -- named as the option is
        max: Duration = _DEFAULT_MAX,  # noqa: A002 -- named as the option is
        factor: float = _DEFAULT_FACTOR,
        **limits: Unpack[Limits],
    ) -> Self:
        """Wait `min * factor ** (attempts - 1)`, at most `max`."""
        return cls.parse({"type": RetryType.EXPONENTIAL, "min": min, "max": max, "factor": factor, **limits})

    @classmethod
    def series(cls, intervals: Sequence[Duration], **limits: Unpack[Limits]) -> Self:
        """Wait each of *intervals* in turn; the last repeats."""
        return cls.parse({"type": RetryType.SERIES, "intervals": intervals, **limits})

    @classmethod
    def cron(cls, expression: str, timezone: str = "UTC", **limits: Unpack[Limits]) -> Self:
        """Wait for the next time of a cron expression, in the IANA time zone *timezone*."""
        return cls.parse({"type": RetryType.CRON, "expression": expression, "timezone": timezone, **limits})

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Return the policy that *raw* means.

        Args:
            raw: A policy; a dict with `type`, in snake_case or mongodash's camelCase; None: the default policy.

        Raises:
            ConfigurationError: An option is unknown, missing or wrong; all such are listed.
        """
        if raw is None:
            return cls()
        if isinstance(raw, cls):
            return raw
        if not isinstance(raw, Mapping):
            problem = f'expected a RetryPolicy or a dict such as {{"type": "exponential"}}, got {shown(raw)}'
            raise ConfigurationError("retry_policy", [problem])
        return cls._from_options(raw)

    @classmethod
    def _from_options(cls, raw: Mapping[Any, Any]) -> Self:
        type_ = _type_of(raw)
        options = Options("retry_policy", raw, ("type", *_OPTIONS[type_], *_LIMITS), camel_case_allowed=True)
        policy = cls.__new__(cls)
        policy._take(_schedule(type_, options), options)  # noqa: SLF001 -- a constructor's own business
        return policy

    def _take(self, schedule: Schedule, options: Options) -> None:
        max_duration = options.read("max_duration", options.optional_duration, None)
        most = options.read("max_attempts", _read_attempts, DEFAULT_MAX_ATTEMPTS if max_duration is None else None)
        resets = options.read("reset_retries_on_data_change", read_boolean, default=True)
        jitter = options.read("jitter", functools.partial(read_number, at_least=0, at_most=1), 0.0)
        options.check()
        object.__setattr__(self, "schedule", schedule)
        object.__setattr__(self, "max_attempts", most)
        object.__setattr__(self, "max_duration", max_duration)
        object.__setattr__(self, "reset_retries_on_data_change", resets)
        object.__setattr__(self, "jitter", jitter)

    def next_wait(self, attempt: int, *, failing_for: timedelta, now: datetime, random: float) -> timedelta | None:
        """Return how long to wait for the next attempt, or None if none is left.

        Args:
            attempt: Attempts made so far in this sequence, the failed one included.
            failing_for: Time since the first failure of the sequence, by the server's clock.
            now: The server's time; without a zone it is UTC, as the driver decodes it.
            random: From 0 to 1; decides within the jitter.
        """
        if self.max_attempts is not None and attempt >= self.max_attempts:
            return None
        if self.max_duration is not None and failing_for > self.max_duration:
            return None
        wait = self.schedule.wait(max(attempt, 1), now if now.tzinfo else now.replace(tzinfo=UTC))
        return None if wait is None else wait * (1 - self.jitter * (1 - random))


def _is_schedule(value: object) -> bool:
    return isinstance(value, Schedule)


def _within(seconds: float, longest: timedelta) -> timedelta:
    return longest if seconds >= longest.total_seconds() else timedelta(seconds=seconds)


_OPTIONS: dict[RetryType, tuple[str, ...]] = {
    RetryType.FIXED: ("interval",),
    RetryType.LINEAR: ("interval",),
    RetryType.EXPONENTIAL: ("min", "max", "factor"),
    RetryType.SERIES: ("intervals",),
    RetryType.CRON: ("expression", "timezone"),
}
_LIMITS = ("max_attempts", "max_duration", "reset_retries_on_data_change", "jitter")


def _type_of(raw: Mapping[Any, Any]) -> RetryType:
    if "type" not in raw:
        raise ConfigurationError("retry_policy", [f"type: missing; expected one of {listed(RetryType)}"])
    try:
        return read_choice(raw["type"], "type", RetryType)
    except ConfigurationError as error:
        raise ConfigurationError("retry_policy", [f"type: {problem}" for problem in error.problems]) from None


def _schedule(type_: RetryType, options: Options) -> Schedule:
    match type_:
        case RetryType.FIXED:
            return Fixed(options.require("interval", options.duration, timedelta(0), expected='for example "10s"'))
        case RetryType.LINEAR:
            return Linear(options.require("interval", options.duration, timedelta(0), expected='for example "10s"'))
        case RetryType.EXPONENTIAL:
            return _exponential(options)
        case RetryType.SERIES:
            return Series(
                options.require(
                    "intervals", functools.partial(_read_intervals, options), (), expected='for example ["1m", "5m"]'
                )
            )
        case RetryType.CRON:
            expression = options.require("expression", read_cron, "", expected='for example "0 3 * * *"')
            return Cron(expression, options.read("timezone", read_timezone, "UTC"))
        case _:
            assert_never(type_)


def _exponential(options: Options) -> Exponential:
    least = options.read("min", options.duration, _DEFAULT_MIN)
    most = options.read("max", options.duration, max(least, _DEFAULT_MAX))
    if least > most:
        options.refuse(f"min: expected at most max ({format_duration(most)}), got {format_duration(least)}")
    return Exponential(least, most, options.read("factor", functools.partial(read_number, at_least=1), _DEFAULT_FACTOR))


def _read_intervals(options: Options, value: object, name: str) -> tuple[timedelta, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ConfigurationError(name, [f'expected a list of durations such as ["1m", "5m"], got {shown(value)}'])
    return tuple(options.duration(each, name) for each in value)


def _read_attempts(value: object, name: str) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and value == _UNLIMITED:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return int(value)
    raise ConfigurationError(name, [f"expected a positive integer, or -1 for no limit, got {shown(value)}"])
