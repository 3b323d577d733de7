"""When a failed attempt is made again: B-38, B-39."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_reactive.core.duration import LONGEST
from celery_reactive.core.retry import Exponential, RetryPolicy
from celery_reactive.errors import ConfigurationError

NOON = datetime(2024, 6, 1, 12, 0, tzinfo=UTC)
PRAGUE = ZoneInfo("Europe/Prague")


def seconds(policy: RetryPolicy, attempt: int, *, random: float = 1.0) -> float | None:
    """Return the wait after *attempt* failures, in seconds."""
    wait = policy.next_wait(attempt, failing_for=timedelta(0), now=NOON, random=random)
    return None if wait is None else wait.total_seconds()


def waits(policy: RetryPolicy, attempts: int) -> list[float | None]:
    """Return the waits after 1, 2, … failures, in seconds."""
    return [seconds(policy, attempt) for attempt in range(1, attempts + 1)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (RetryPolicy(), [10, 20, 40, 80, None, None]),
        (RetryPolicy.fixed("5s", max_attempts=3), [5, 5, None, None]),
        (RetryPolicy.linear("5s", max_attempts=-1), [5, 10, 15, 20, 25, 30]),
        (RetryPolicy.exponential("1s", "10s", 3, max_attempts=-1), [1, 3, 9, 10, 10]),
        (RetryPolicy.series(["1s", "1m"], max_attempts=-1), [1, 60, 60, 60]),
        (RetryPolicy.fixed(0), [0, 0, 0, 0, None]),
        (RetryPolicy.fixed("1s", max_attempts=1), [None]),
    ],
)
def test_waits_follow_the_policy(policy: RetryPolicy, expected: list[float | None]) -> None:
    """B-38: n is the number of attempts so far; B-39: five attempts unless said otherwise."""
    assert waits(policy, len(expected)) == expected


@given(st.integers(1, 10**9), st.floats(1, 1e300), st.timedeltas(timedelta(0), timedelta(days=1)))
def test_exponential_never_overflows_its_bounds(attempt: int, factor: float, least: timedelta) -> None:
    """B-38: capped by max, overflow too."""
    wait = Exponential(least, timedelta(days=1), factor).wait(attempt, NOON)
    assert wait is not None
    assert least <= wait <= timedelta(days=1)


@given(st.integers(1, 10**300))
def test_linear_never_overflows(attempt: int) -> None:
    """B-38: also after very many attempts."""
    policy = RetryPolicy.linear("1d", max_attempts=-1)
    assert policy.next_wait(attempt, failing_for=timedelta(0), now=NOON, random=1) <= LONGEST  # type: ignore[operator]


def test_max_duration_makes_attempts_unlimited_and_is_strict() -> None:
    """B-39: strictly greater fails."""
    policy = RetryPolicy.fixed("1s", max_duration="1h")
    assert policy.max_attempts is None
    hour = timedelta(hours=1)
    assert policy.next_wait(999, failing_for=hour, now=NOON, random=0) == timedelta(seconds=1)
    assert policy.next_wait(1, failing_for=hour + timedelta(milliseconds=1), now=NOON, random=0) is None


def test_max_duration_and_max_attempts_both_hold() -> None:
    """B-39: given, the number counts too."""
    policy = RetryPolicy.fixed("1s", max_duration="1h", max_attempts=2)
    assert waits(policy, 2) == [1, None]


def test_jitter_is_the_share_of_the_wait_that_is_random() -> None:
    """B-38: 0.5 waits between half and all of it."""
    policy = RetryPolicy.fixed("10s", jitter=0.5)
    assert [seconds(policy, 1, random=random) for random in (0.0, 0.5, 1.0)] == [5, 7.5, 10]
    assert seconds(RetryPolicy.fixed("10s"), 1, random=0.0) == 10


def next_after(policy: RetryPolicy, now: datetime) -> datetime:
    """Return the moment of the next attempt in the policy's zone."""
    wait = policy.next_wait(1, failing_for=timedelta(0), now=now, random=1)
    assert wait is not None
    return (now.astimezone(UTC) + wait).astimezone(PRAGUE)


def prague(*fields: int, fold: int = 0) -> datetime:
    """Return a moment by Prague's clock."""
    return datetime(*fields, tzinfo=PRAGUE, fold=fold)  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    ("expression", "now", "expected"),
    [
        ("0 3 * * *", prague(2024, 6, 1, 12), prague(2024, 6, 2, 3)),
        ("0 3 * * *", prague(2024, 6, 2, 3), prague(2024, 6, 3, 3)),
        ("0 3 * * *", prague(2024, 6, 2, 2, 59, 59, 999999), prague(2024, 6, 2, 3)),
        ("@daily", prague(2024, 6, 1, 12), prague(2024, 6, 2, 0)),
        # 2024-03-31: from 02:00 to 03:00 there is no time.
        ("30 2 * * *", prague(2024, 3, 31, 1, 50), prague(2024, 3, 31, 3)),
        ("30 2 * * *", prague(2024, 3, 31, 3), prague(2024, 4, 1, 2, 30)),
        ("0 3 * * *", prague(2024, 3, 31, 1), prague(2024, 3, 31, 3)),
        ("15 * * * *", prague(2024, 3, 31, 1, 20), prague(2024, 3, 31, 3, 15)),
        ("*/30 * * * *", prague(2024, 3, 31, 1, 30), prague(2024, 3, 31, 3)),
        # 2024-10-27: from 02:00 to 03:00 occurs twice.
        ("30 2 * * *", prague(2024, 10, 27, 1), prague(2024, 10, 27, 2, 30)),
        ("30 2 * * *", prague(2024, 10, 27, 2, 30), prague(2024, 10, 28, 2, 30)),
        ("30 2 * * *", prague(2024, 10, 27, 2, 10, fold=1), prague(2024, 10, 28, 2, 30)),
        ("*/30 * * * *", prague(2024, 10, 27, 2, 30), prague(2024, 10, 27, 2, 0, fold=1)),
        ("*/30 * * * *", prague(2024, 10, 27, 2, 0, fold=1), prague(2024, 10, 27, 2, 30, fold=1)),
        ("*/30 * * * *", prague(2024, 10, 27, 2, 30, fold=1), prague(2024, 10, 27, 3)),
        ("45 * * * *", prague(2024, 10, 27, 2, 50), prague(2024, 10, 27, 2, 45, fold=1)),
        ("0 3 * * *", prague(2024, 10, 27, 2, 10, fold=1), prague(2024, 10, 27, 3)),
        # Far away, over many changes.
        ("0 * 1 1 *", prague(2024, 1, 2), prague(2025, 1, 1, 0)),
        ("0 0 29 2 *", prague(2024, 3, 1), prague(2028, 2, 29)),
    ],
)
def test_cron_is_right_where_summer_time_begins_and_ends(expression: str, now: datetime, expected: datetime) -> None:
    """B-38: cron with a zone, also in the hour that is skipped and the one that occurs twice."""
    found = next_after(RetryPolicy.cron(expression, "Europe/Prague"), now)
    assert found == expected
    assert found.utcoffset() == expected.utcoffset()


def test_cron_is_in_utc_unless_said_otherwise() -> None:
    """B-38: also where the driver decoded the server's time without a zone."""
    policy = RetryPolicy.cron("0 3 * * *")
    for now in (NOON, NOON.replace(tzinfo=None)):
        assert policy.next_wait(1, failing_for=timedelta(0), now=now, random=1) == timedelta(hours=15)


def test_cron_that_never_comes_true_again_is_exhausted() -> None:
    """B-38: a year that is over."""
    policy = RetryPolicy.cron("0 0 1 1 * 0 2030")
    late = datetime(2031, 1, 1, tzinfo=UTC)
    assert policy.next_wait(1, failing_for=timedelta(0), now=late, random=1) is None


@given(st.integers(0, 3 * 365 * 24 * 3600), st.sampled_from(["*", "2", "*/3"]))
def test_the_next_time_is_later_and_shown_by_the_clock(second: int, hour: str) -> None:
    """B-38: whenever asked, the attempt is ahead, within a day and an hour, at the minute asked for."""
    now = NOON + timedelta(seconds=second)
    found = next_after(RetryPolicy.cron(f"30 {hour} * * *", "Europe/Prague"), now)
    assert now < found <= now + timedelta(hours=26)
    assert found.minute == 30 or (found.month == 3 and found.hour == 3)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, RetryPolicy()),
        (RetryPolicy.fixed("1s"), RetryPolicy.fixed("1s")),
        ({"type": "exponential"}, RetryPolicy.exponential()),
        ({"type": "exponential"}, RetryPolicy()),
        ({"type": "exponential", "max": "3d", "min": "2d"}, RetryPolicy.exponential("2d", "3d")),
        ({"type": "fixed", "interval": 10, "max_attempts": 3}, RetryPolicy.fixed("10s", max_attempts=3)),
        ({"type": "fixed", "interval": "10s", "maxAttempts": -1}, RetryPolicy.fixed("10s", max_attempts=-1)),
        (
            {"type": "linear", "interval": "1s", "maxDuration": "24h", "resetRetriesOnDataChange": False},
            RetryPolicy.linear("1s", max_duration="24h", reset_retries_on_data_change=False),
        ),
        ({"type": "series", "intervals": ["1m", "5m"]}, RetryPolicy.series(["1m", "5m"])),
        ({"type": "cron", "expression": "0 3 * * *"}, RetryPolicy.cron("0 3 * * *")),
    ],
)
def test_dicts_in_both_spellings_and_objects_mean_the_same(raw: object, expected: RetryPolicy) -> None:
    """B-38: mongodash's keys and typed objects both work."""
    assert RetryPolicy.parse(raw) == expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "type: missing; expected one of 'fixed'"),
        ({"type": "fixd", "interval": "1s"}, "did you mean 'fixed'"),
        ({"type": 1}, "type: expected one of"),
        ({"type": []}, "type: expected one of"),
        ({"type": "fixed"}, "interval: missing"),
        ({"type": "fixed", "interval": "soon"}, "interval: expected a timedelta"),
        ({"type": "fixed", "interval": "1s", "min": "1s"}, "unknown option 'min'"),
        (
            {"type": "fixed", "interval": "1s", "maxAttemps": 3},
            "unknown option 'maxAttemps'; did you mean 'max_attempts'",
        ),
        ({"type": "fixed", "interval": 5000, "maxAttempts": 3}, "interval: got the bare number"),
        ({"type": "fixed", "interval": "1s", "maxDuration": 86400000}, "max_duration: got the bare number"),
        ({"type": "fixed", "interval": "1s", "maxAttempts": 3, "max_attempts": 3}, "given twice"),
        ({"type": "fixed", "interval": "1s", "max_attempts": 0}, "max_attempts: expected a positive integer, or -1"),
        ({"type": "fixed", "interval": "1s", "max_attempts": -2}, "max_attempts: expected a positive"),
        ({"type": "fixed", "interval": "1s", "max_attempts": True}, "max_attempts: expected a positive"),
        ({"type": "fixed", "interval": "1s", "max_attempts": "5"}, "max_attempts: expected a positive"),
        ({"type": "fixed", "interval": "1s", "jitter": 1.5}, "jitter: expected a number of at least 0 and at most 1"),
        ({"type": "fixed", "interval": "1s", "jitter": math.nan}, "jitter: expected"),
        ({"type": "fixed", "interval": "1s", "reset_retries_on_data_change": 1}, "expected True or False"),
        ({"type": "exponential", "factor": 0.5}, "factor: expected a number of at least 1"),
        ({"type": "exponential", "factor": math.inf}, "factor: expected"),
        ({"type": "exponential", "factor": 10**400}, "factor: expected"),
        ({"type": "exponential", "min": "2h", "max": "1h"}, r"min: expected at most max \(1h\), got 2h"),
        ({"type": "series", "intervals": []}, "intervals: expected a list of durations"),
        ({"type": "series", "intervals": "1m"}, "intervals: expected a list of durations"),
        ({"type": "series", "intervals": ["1m", "x"]}, "intervals: expected a timedelta"),
        ({"type": "cron"}, "expression: missing"),
        ({"type": "cron", "expression": "junk"}, "expression: expected a cron expression"),
        ({"type": "cron", "expression": "60 * * * *"}, "expression: expected a cron expression"),
        ({"type": "cron", "expression": "0 0 30 2 *"}, "which never comes true"),
        ({"type": "cron", "expression": "R * * * *"}, "without random fields"),
        ({"type": "cron", "expression": 5}, "expression: expected a string"),
        ({"type": "cron", "expression": "0 3 * * *", "timezone": "Europe/Praha"}, "timezone: expected a time zone"),
        ({"type": "cron", "expression": "0 3 * * *", "timezone": "../x"}, "timezone: expected a time zone"),
        ({1: 2, "type": "fixed", "interval": "1s"}, "names of options as strings"),
        ("fixed", "expected a RetryPolicy or a dict"),
        (5, "expected a RetryPolicy or a dict"),
    ],
)
def test_a_wrong_policy_is_refused_with_what_was_expected(raw: Any, message: str) -> None:
    """B-2 and B-39: nothing is silently ignored."""
    with pytest.raises(ConfigurationError, match=message):
        RetryPolicy.parse(raw)


def test_the_class_methods_refuse_like_the_dicts() -> None:
    """B-38: typed forms of the same options."""
    with pytest.raises(ConfigurationError, match="interval: expected a timedelta"):
        RetryPolicy.fixed("soon")
    with pytest.raises(ConfigurationError, match="unknown option 'tries'"):
        RetryPolicy.fixed("1s", tries=3)  # type: ignore[call-arg]


def test_the_constructor_reads_its_limits_as_the_dicts_do() -> None:
    """B-39: the default number of attempts, and none where a duration limits them."""
    assert RetryPolicy(max_attempts=3).max_attempts == 3
    assert RetryPolicy(max_attempts=-1).max_attempts is None
    assert RetryPolicy(max_duration="24h") == RetryPolicy.exponential(max_duration=timedelta(hours=24))


@pytest.mark.parametrize(
    ("made_of", "message"),
    [
        ({"max_attempts": "3"}, "max_attempts: expected a positive"),
        ({"max_attempts": 0}, "max_attempts: expected a positive"),
        ({"max_duration": "soon"}, "max_duration: expected a timedelta"),
        ({"jitter": 2}, "jitter: expected a number"),
        ({"maxAttempts": 3}, "unknown option 'maxAttempts'; did you mean 'max_attempts'"),
        ({"schedule": "fixed"}, "expected RetryPolicy.fixed"),
    ],
)
def test_the_constructor_refuses_what_no_run_could_use(made_of: Any, message: str) -> None:
    """B-2: at the declaration; what fails when an attempt has failed would strand the record and stop the rescue."""
    with pytest.raises(ConfigurationError, match=message):
        RetryPolicy(**made_of)
