"""Rates as Celery writes them, and which limit is in force (B-58)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from celery_reactive.core.limits import UNLIMITED, Limits, Overrides, Rate
from celery_reactive.errors import ConfigurationError

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


@pytest.mark.parametrize(
    ("written", "rate", "shown"),
    [
        ("100/m", Rate(100, MINUTE), "100/m"),
        ("10/s", Rate(10, SECOND), "10/s"),
        ("5000/h", Rate(5000, HOUR), "5000/h"),
        (" 7 / m ", Rate(7, MINUTE), "7/m"),
        ("10", Rate(10, SECOND), "10/s"),
        (10, Rate(10, SECOND), "10/s"),
        (0.5, Rate(1, 2 * SECOND), "1 in 2s"),
        ("0.5/h", Rate(1, 2 * HOUR), "1 in 2h"),
        ("1.5/s", Rate(2, timedelta(milliseconds=1334)), "2 in 1s 334ms"),
    ],
)
def test_a_rate_is_read_as_celery_reads_it(written: object, rate: Rate, shown: str) -> None:
    """B-58: and never allows more than is written, nor more at once than needed."""
    assert Rate.parse(written, "rate_limit") == rate
    assert str(rate) == shown


@pytest.mark.parametrize(
    "written", ["", "m", "10/d", "10/", "-1/s", "1e3", True, None, [], 0, "0/m", "0.0", float("nan"), float("inf"),
                "9" * 5000, "9999999999/s", "0.000000001/h"],
)  # fmt: skip
def test_what_is_no_rate_is_refused(written: object) -> None:
    """B-2: with what was expected and what was got."""
    with pytest.raises(ConfigurationError, match="expected a number per second, or a string") as caught:
        Rate.parse(written, "rate_limit")
    assert caught.value.subject == "rate_limit"


def test_a_start_counts_early_enough_for_short_periods() -> None:
    """B-58: the time in which a granted start may happen is a part of the period, and a second at most."""
    assert Rate.parse("10/s", "rate").start_within == timedelta(milliseconds=250)
    assert Rate.parse("10/h", "rate").start_within == SECOND


def test_what_was_set_by_hand_is_in_force() -> None:
    """B-58: a value overrides the declaration, `unlimited` lifts it, and nothing leaves it as it is."""
    declared = Rate(10, SECOND)
    assert Overrides().limits(declared, 3) == Limits(declared, 3)
    assert Overrides(rate=Rate(1, SECOND), concurrency=5).limits(declared, 3) == Limits(Rate(1, SECOND), 5)
    assert not Overrides(rate=UNLIMITED, concurrency=UNLIMITED).limits(declared, 3).is_any
