"""How numbers, times and ids read on a page. No I/O: "now" is the server's, and is passed in."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from bson import ObjectId, Regex

from celery_reactive.core.error_template import template_behind
from celery_reactive.core.record import id_to_text

ENOUGH = 100_001
"""Records are counted up to so many where counting all would take too long: this number stands for more."""
_EXACT_BELOW = 100_000
_MILLION, _BILLION = 10**6, 10**9
_LONGEST_ID = 60
_FIELDS = {
    "nextRunAt": "next run",
    "dueAt": "due",
    "createdAt": "created",
    "updatedAt": "last change",
    "startedAt": "started",
    "completedAt": "completed",
    "lastFinalizedAt": "last end",
    "firstErrorAt": "first error",
}


def counted(number: int) -> str:
    """Return a number as people read it: in full while that is short, else `1.2 M`."""
    if number == ENOUGH:
        return f"over {(ENOUGH - 1) // 1000}\N{NO-BREAK SPACE}k"
    if number < _EXACT_BELOW:
        return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    if number < _MILLION:
        return f"{number // 1000}\N{NO-BREAK SPACE}k"
    size, unit = (_BILLION, "G") if number >= _BILLION else (_MILLION, "M")
    return f"{number / size:.1f}\N{NO-BREAK SPACE}{unit}"


def exact(number: int) -> str:
    """Return a number in full, its digits in groups."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def span(length: timedelta | None) -> str:
    """Return a length of time in one or two units, nothing for None."""
    if length is None:
        return ""
    seconds = length.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:  # noqa: PLR2004 -- below, a tenth is seen
        return f"{seconds:.1f} s"
    return " ".join(_units(round(seconds))[:2])


def milliseconds(number: float) -> str:
    """Return a length of time that is stored as milliseconds."""
    return span(timedelta(milliseconds=number))


def _units(seconds: int) -> list[str]:
    sizes = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts = []
    for unit, size in sizes:
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number} {unit}")
    return parts


def relative(moment: Any, now: datetime) -> str:
    """Return how long ago *moment* was, or how soon it will be."""
    if not isinstance(moment, datetime):
        # A time beyond Python's is not near.
        return "" if moment is None else "far away"
    distance = moment - now
    if abs(distance) < timedelta(seconds=1):
        return "now"
    return f"in {_coarse(distance)}" if distance > timedelta(0) else f"{_coarse(-distance)} ago"


def _coarse(length: timedelta) -> str:
    return _units(round(length.total_seconds()))[0]


def field(name: str) -> str:
    """Return what the pages call a field that records are sorted by."""
    return _FIELDS.get(name, name)


def full(moment: Any) -> str:
    """Return a time in full."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if isinstance(moment, datetime) else str(moment or "")


def doc_id(value: Any) -> str:
    """Return a document id as one reads it: without what only tells its type."""
    text = str(value) if isinstance(value, (str, ObjectId, uuid.UUID)) else id_to_text(value)
    return text if len(text) <= _LONGEST_ID else f"{text[:_LONGEST_ID]}…"


def asked_for(filters: Mapping[str, Any]) -> str:
    """Return what a bulk operation was asked for: `task: sync; status: failed; error: order ⟨n⟩ refused`."""
    return "; ".join(f"{name.replace('_', ' ')}: {_meant(value)}" for name, value in filters.items())


def _meant(value: Any) -> str:
    match value:
        case re.Pattern() | Regex():
            return template_behind(value.pattern) or f"/{value.pattern}/"
        case list():
            return ", ".join(map(_meant, value))
        case str():
            return value
        case _:
            return id_to_text(value)


def percent(part: float, whole: float) -> int:
    """Return a share in percent, 100 of nothing."""
    return round(100 * part / whole) if whole else 100


def share(ratio: float) -> str:
    """Return a share as it matters: what is next to nothing says so."""
    return "under 1 %" if 0 < ratio < 0.01 else f"{100 * ratio:.0f} %"  # noqa: PLR2004 -- one percent
