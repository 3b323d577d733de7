"""Durations as users write them: a timedelta, seconds, or a string such as "1m 30s".

Called for every option and setting that is a length of time. Must never guess: what cannot be read for certain is
refused, and what a mongodash user may have meant as milliseconds is pointed out.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime, timedelta

from celery_reactive.core.suggest import shown
from celery_reactive.errors import ConfigurationError

logger = logging.getLogger(__name__)

Duration = timedelta | float | str
"""What a user may write; a number is seconds."""

LONGEST = timedelta(days=36500)
"""A century: anything later than this from now could not be read back as a date by every client."""

_UNITS = {
    "w": timedelta(weeks=1),
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|[wdhms])(?![a-z])", re.ASCII)
_EXPECTED = 'expected a timedelta, a number of seconds, or a string such as "500ms", "5s", "1m 30s", "24h", "7d"'
_SUSPICIOUS_MULTIPLE = 1000


def parse_duration(value: object, *, name: str, camel_case: bool = False) -> timedelta:
    """Return the length of time that *value* means.

    Args:
        value: A timedelta, a number of seconds, or a string of numbers with units (w, d, h, m, s, ms).
        name: The option or setting it was written for.
        camel_case: Whether it stands in a dict with mongodash's keys, where a bare number would be milliseconds.

    Returns:
        Zero or more, at most a century.

    Raises:
        ConfigurationError: It is negative, empty, unreadable, too long, or a bare number beside camelCase keys.
    """
    length = _read(value, name=name, camel_case=camel_case)
    if length < timedelta(0):
        raise ConfigurationError(name, [f"expected a duration of zero or more, got {shown(value)}"])
    if length > LONGEST:
        raise _too_long(name, value)
    return length


def in_utc(moment: datetime) -> datetime:
    """Return an aware *moment* in UTC.

    Raises:
        ConfigurationError: In UTC it lies beyond the years 1 to 9999.
    """
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        problem = f"expected a time within the years 1 to 9999 in UTC, got {shown(moment)}"
        raise ConfigurationError("delay", [problem]) from None


def format_duration(length: timedelta) -> str:
    """Return *length* as `parse_duration` reads it, exact to the microsecond: "1m 30s", "0s".

    Args:
        length: Zero or more.
    """
    rest, parts = length, []
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    if rest:
        milliseconds = f"{rest.microseconds // 1000}.{rest.microseconds % 1000:03d}"
        parts.append(f"{milliseconds.rstrip('0').rstrip('.')}ms")
    return " ".join(parts) or "0s"


def _read(value: object, *, name: str, camel_case: bool) -> timedelta:
    match value:
        case timedelta():
            return value
        case bool():
            pass
        case int() | float() if camel_case:
            problem = f'got the bare number {shown(value)}: mongodash counts milliseconds; write for example "24h"'
            raise ConfigurationError(name, [problem])
        case int() | float():
            return _from_seconds(value, name)
        case str():
            return _from_text(value, name)
        case _:
            pass
    raise ConfigurationError(name, [f"{_EXPECTED}; got {shown(value)}"])


def _from_seconds(value: float, name: str) -> timedelta:
    try:
        length = timedelta(seconds=value)
    except OverflowError:
        raise _too_long(name, value) from None
    except ValueError:
        raise ConfigurationError(name, [f"{_EXPECTED}; got {shown(value)}"]) from None
    if value > 0 and value % _SUSPICIOUS_MULTIPLE == 0 and length <= LONGEST:
        _warn_of_milliseconds(value, length, name)
    return length


def _warn_of_milliseconds(value: float, length: timedelta, name: str) -> None:
    as_seconds, as_milliseconds = format_duration(length), format_duration(length / 1000)
    logger.warning(
        '%s: the bare number %s is read as seconds (%s); if milliseconds were meant, write "%s"',
        name,
        value,
        as_seconds,
        as_milliseconds,
        extra={"option": name, "as_seconds": as_seconds, "as_milliseconds": as_milliseconds},
    )


def _from_text(text: str, name: str) -> timedelta:
    length, position, units = timedelta(0), 0, set[str]()
    while part := _PART.match(text, position):
        number, unit = part.groups()
        if unit in units:
            raise ConfigurationError(name, [f"{_EXPECTED}; got {shown(text)}, which gives {unit!r} twice"])
        try:
            length += float(number) * _UNITS[unit]
        except OverflowError:
            raise _too_long(name, text) from None
        units.add(unit)
        position = part.end()
    if not units or text[position:].strip():
        raise ConfigurationError(name, [f"{_EXPECTED}; got {shown(text)}"])
    return length


def _too_long(name: str, value: object) -> ConfigurationError:
    return ConfigurationError(name, [f"expected a duration of at most {LONGEST.days}d, got {shown(value)}"])
