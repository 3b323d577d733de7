"""Cron expressions in a time zone, right also where summer time begins and ends.

Called by the retry policies and for the times of the cleanup. Must never read a clock, and never hand a zone to the
cron library: its releases disagree about the hours that are skipped or occur twice.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterError, croniter

from celery_reactive.core.options import read_text
from celery_reactive.core.suggest import shown
from celery_reactive.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOME_TIME = datetime(2024, 1, 1, tzinfo=UTC)
"""Any moment serves to find out whether an expression ever comes true."""
_RANDOM = re.compile(r"(?:^|[\s,])[hr](?:$|[\s,/(])", re.IGNORECASE)
_EXPECTED = 'expected a cron expression such as "0 3 * * *"'
_PREFIX = "CRON "
_FIELDS = 5
_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)


def read_cron(value: object, name: str) -> str:
    """Return *value* if it is a cron expression that comes true some day.

    Raises:
        ConfigurationError: It is none, or asks for times by chance (`R`, `H`).
    """
    expression = read_text(value, name).strip()
    if _RANDOM.search(expression):
        raise ConfigurationError(name, [f"{_EXPECTED} without random fields, got {shown(value)}"])
    try:
        first = next(_matches(expression, _SOME_TIME), None)
    except (CroniterError, ValueError, KeyError, OverflowError) as error:
        raise ConfigurationError(name, [f"{_EXPECTED}, got {shown(value)} ({error})"]) from error
    if first is None:
        raise ConfigurationError(name, [f"{_EXPECTED}, got {shown(value)}, which never comes true"])
    return expression


def read_timezone(value: object, name: str) -> str:
    """Return *value* if it is the name of a time zone.

    Raises:
        ConfigurationError: There is no such zone.
    """
    zone = read_text(value, name)
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        problem = f'expected a time zone such as "Europe/Prague", got {shown(value)}'
        raise ConfigurationError(name, [problem]) from error
    return zone


def is_schedule(value: object) -> bool:
    """Return whether *value* is meant as a schedule such as "CRON 0 3 * * *", right or wrong."""
    return isinstance(value, str) and value.upper().startswith(_PREFIX)


def read_schedule(value: str, name: str) -> tuple[str, str]:
    """Return expression and time zone of a schedule: "CRON 0 3 * * *", or "CRON 0 3 * * * Europe/Prague" (B-42).

    Raises:
        ConfigurationError: The expression or the zone is none, or there are not five fields.
    """
    fields = value[len(_PREFIX) :].split()
    if not _FIELDS <= len(fields) <= _FIELDS + 1:
        problem = f'expected "CRON " with five fields and perhaps a time zone, got {shown(value)}'
        raise ConfigurationError(name, [problem])
    zone = fields[_FIELDS] if len(fields) > _FIELDS else "UTC"
    return read_cron(" ".join(fields[:_FIELDS]), name), read_timezone(zone, name)


def next_time(expression: str, zone: str, *, after: datetime) -> datetime | None:
    """Return the first time later than *after* at which an expression comes true, or None if there is none.

    An expression for given hours comes true once a day's hour: at the jump where that hour is skipped, and the first
    time where it occurs twice. One whose hour is `*` or `*/n` goes by the time that really passes.

    Args:
        expression: As `read_cron` returned it.
        zone: Name of the time zone the expression is meant in.
        after: An aware datetime.

    Returns:
        The time in UTC.
    """
    find = _by_passing_time if _hour_of(expression).startswith("*") else _by_the_clock
    return find(expression, ZoneInfo(zone), after.astimezone(UTC))


def _by_the_clock(expression: str, zone: ZoneInfo, after: datetime) -> datetime | None:
    shown_now = after.astimezone(zone).replace(tzinfo=UTC, fold=0)
    moments = (_first_moment(match, zone) for match in _matches(expression, shown_now))
    return next((moment for moment in moments if moment > after), None)


def _by_passing_time(expression: str, zone: ZoneInfo, after: datetime) -> datetime | None:
    """Search stretch by stretch: within one, the zone is a constant distance from UTC."""
    stretch, earlier = after, after
    while True:
        found = next(_matches(expression, earlier.astimezone(timezone(_offset(zone, stretch)))), None)
        if found is None:
            return None
        change = _first_change(zone, stretch, found)
        if change is None:
            return found.astimezone(UTC)
        stretch, earlier = change, change - _SECOND


def _matches(expression: str, after: datetime) -> Iterator[datetime]:
    """Yield the times after *after*, in its fixed distance from UTC."""
    offset = after.tzinfo
    clock = croniter(expression, after.replace(tzinfo=UTC), ret_type=datetime)
    while True:
        try:
            match: datetime = clock.get_next()
        except CroniterError:
            return
        yield match.replace(tzinfo=offset)


def _first_moment(clock_time: datetime, zone: ZoneInfo) -> datetime:
    """Return when a clock in *zone* first shows *clock_time*, or first passes it where it is skipped."""
    local = clock_time.replace(tzinfo=zone)
    moment = local.astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == clock_time.replace(tzinfo=None):
        return moment
    return _change_between(zone, local.replace(fold=1).astimezone(UTC), moment)


def _first_change(zone: ZoneInfo, low: datetime, high: datetime) -> datetime | None:
    """Return the first moment in (*low*, *high*] at which the zone's distance from UTC is another, or None."""
    while low < high:
        later = min(low + _DAY, high)
        if _offset(zone, low) != _offset(zone, later):
            return _change_between(zone, low, later)
        low = later
    return None


def _change_between(zone: ZoneInfo, low: datetime, high: datetime) -> datetime:
    """Return the whole second at which the zone's distance from UTC changes, which differs at *low* and *high*."""
    before = _offset(zone, low)
    while high - low > _SECOND:
        middle = low + (high - low) // 2
        low, high = (middle, high) if _offset(zone, middle) == before else (low, middle)
    return high.astimezone(UTC).replace(microsecond=0)


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta(0)


def _hour_of(expression: str) -> str:
    if expression.startswith("@"):
        return "*" if expression.lower() == "@hourly" else "0"
    return expression.split()[1]
