"""Waiting for a condition: what tests do instead of sleeping.

Called by tests and by `rest` and `inline`. Measures by this process's monotonic clock; no time of a record is compared.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from celery_reactive.core.duration import Duration, parse_duration
from celery_reactive.core.suggest import shown

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    timeout: Duration = 10,
    interval: Duration = 0.05,
    stable_for: Duration = 0,
    *,
    explain: Callable[[], str] | None = None,
) -> T:
    """Wait until *condition* returns something true, and return that.

    A condition may also assert: an `AssertionError` in it means "not yet", and its text is in the failure.

    Args:
        condition: Asked at once, then every *interval*.
        timeout: Longest wait, seconds or a duration such as `"5s"`; the condition is asked once more at its end.
        interval: Between two questions.
        stable_for: The condition must have held so long without a break.
        explain: Called for further words when the wait fails.

    Raises:
        AssertionError: It did not hold within *timeout*; the message tells what it returned last.
        ConfigurationError: A duration has no meaning.
    """
    wait = parse_duration(timeout, name="timeout").total_seconds()
    pause = parse_duration(interval, name="interval").total_seconds()
    steady = parse_duration(stable_for, name="stable_for").total_seconds()
    started = time.monotonic()
    held_since: float | None = None
    while True:
        asked = time.monotonic()
        value, said = _ask(condition)
        if value:
            held_since = asked if held_since is None else held_since
            if asked - held_since >= steady:
                return value
        else:
            held_since = None
        if asked - started >= wait:
            break
        _pause(min(pause, max(wait - (asked - started), 0.001)))
    what = "held, but not steadily" if value else f"does not hold, it returned {said}"
    words = f"\n{explain()}" if explain is not None else ""
    raise AssertionError(f"not within {wait:g} s: the condition {what}{words}")


def _ask(condition: Callable[[], T]) -> tuple[T | None, str]:
    """Return what *condition* returns, and that in words; None where it asserts."""
    try:
        value = condition()
    except AssertionError as error:
        return None, f"an assertion: {error}"
    return value, shown(value)


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)
