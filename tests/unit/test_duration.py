"""Durations as users write them (behaviour: "Durations")."""

from __future__ import annotations

import logging
import math
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_reactive.core.duration import LONGEST, format_duration, parse_duration
from celery_reactive.errors import ConfigurationError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (timedelta(minutes=3), timedelta(minutes=3)),
        (5, timedelta(seconds=5)),
        (0.25, timedelta(milliseconds=250)),
        (0, timedelta(0)),
        ("0s", timedelta(0)),
        ("500ms", timedelta(milliseconds=500)),
        ("5s", timedelta(seconds=5)),
        ("1m 30s", timedelta(seconds=90)),
        ("1m30s", timedelta(seconds=90)),
        (" 1 m  30 s ", timedelta(seconds=90)),
        ("1.5h", timedelta(minutes=90)),
        ("24h", timedelta(days=1)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(days=14)),
        ("1s 5ms", timedelta(milliseconds=1005)),
    ],
)
def test_a_duration_means_what_it_says(written: object, meant: timedelta) -> None:
    """Timedeltas, seconds and strings with units are read alike."""
    assert parse_duration(written, name="debounce") == meant


@pytest.mark.parametrize("written", ["", " ", "5", "s", "5x", "5sx", "5S", "five", "-5s", "5s-", "1m 1m", "1..5s"])
def test_text_that_cannot_be_read_is_refused(written: str) -> None:
    """Empty, unparsable, or with trailing junk: an error that names the option."""
    with pytest.raises(ConfigurationError, match=r"^debounce: expected a timedelta, a number of seconds"):
        parse_duration(written, name="debounce")


@pytest.mark.parametrize(
    "written",
    [
        -1,
        -0.001,
        timedelta(seconds=-1),
        math.nan,
        math.inf,
        -math.inf,
        10**400,
        pytest.param(10**5000, id="5001 digits"),
        "9" * 400 + "s",
        LONGEST + timedelta(seconds=1),
        True,
        False,
        None,
        [],
        {},
        b"5s",
        object(),
        Decimal(5),
    ],
)
def test_what_is_no_length_of_time_is_refused(written: object) -> None:
    """Negative, endless, or of another type: an error that names the option."""
    with pytest.raises(ConfigurationError, match=r"debounce: expected a (duration|timedelta)"):
        parse_duration(written, name="debounce")


@pytest.mark.parametrize("written", [5, 0, 5.0, 86400000])
def test_a_bare_number_beside_camel_case_is_refused(written: float) -> None:
    """With mongodash a number counts milliseconds: which of the two was meant cannot be known."""
    with pytest.raises(ConfigurationError, match='mongodash counts milliseconds; write for example "24h"'):
        parse_duration(written, name="keep_for", camel_case=True)


def test_a_string_beside_camel_case_is_fine() -> None:
    """A unit leaves no doubt."""
    assert parse_duration("24h", name="keep_for", camel_case=True) == timedelta(days=1)


@pytest.mark.parametrize("written", [5000, 5000.0])
def test_a_bare_thousand_warns_once_with_both_readings(written: float, caplog: pytest.LogCaptureFixture) -> None:
    """A mongodash user may have meant milliseconds."""
    with caplog.at_level(logging.WARNING):
        assert parse_duration(written, name="debounce") == timedelta(seconds=5000)
    (record,) = caplog.records
    assert "(1h 23m 20s)" in record.getMessage()
    assert 'write "5s"' in record.getMessage()


@pytest.mark.parametrize("written", [0, 60, 1500, "5000s", timedelta(seconds=5000)])
def test_no_warning_where_the_meaning_is_plain(written: object, caplog: pytest.LogCaptureFixture) -> None:
    """Only bare multiples of 1000 look like milliseconds."""
    with caplog.at_level(logging.WARNING):
        parse_duration(written, name="debounce")
    assert not caplog.records


@given(st.timedeltas(min_value=timedelta(0), max_value=LONGEST))
def test_what_is_formatted_reads_back(length: timedelta) -> None:
    """`format_duration` loses nothing."""
    assert parse_duration(format_duration(length), name="debounce") == length


@given(st.one_of(st.text(), st.floats(), st.integers(), st.binary(), st.none(), st.lists(st.text())))
def test_nothing_but_a_configuration_error_comes_out(written: object) -> None:
    """Whatever is written, it is a duration in bounds or refused."""
    try:
        length = parse_duration(written, name="debounce")
    except ConfigurationError:
        return
    assert timedelta(0) <= length <= LONGEST
