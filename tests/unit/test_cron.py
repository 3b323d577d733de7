"""Schedules of the settings: "CRON", five fields, perhaps a time zone."""

from __future__ import annotations

import pytest

from celery_reactive.core import cron
from celery_reactive.errors import ConfigurationError
from celery_reactive.settings import Settings

NAME = "reactive_cleanup_interval"


def load(value: object) -> object:
    """Load the setting."""
    return Settings.load({NAME: value}.get, [NAME], {}).cleanup_interval


@pytest.mark.parametrize(
    ("text", "expression", "zone"),
    [
        ("CRON 0 3 * * *", "0 3 * * *", "UTC"),
        ("cron  */5  * * * 1-5 ", "*/5 * * * 1-5", "UTC"),
        ("CRON 0 3 * * * Europe/Prague", "0 3 * * *", "Europe/Prague"),
    ],
)
def test_a_schedule_is_read(text: str, expression: str, zone: str) -> None:
    """B-42: UTC unless a zone follows the five fields."""
    assert load(text) == text
    assert cron.read_schedule(text, NAME) == (expression, zone)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("CRON 0 3 * *", "with five fields"),
        ("CRON 0 3 * * * Europe/Prague now", "with five fields"),
        ("CRON 0 3 * * * Europe/Praha", "expected a time zone"),
        ("CRON 61 3 * * *", "expected a cron expression"),
        ("CRON 0 0 30 2 *", "never comes true"),
        ("0 3 * * *", "expected a timedelta"),
        ("CRON", "expected a timedelta"),
        ("0.5s", "at least 1 s"),
    ],
)
def test_what_is_none_is_refused_at_the_start(value: object, problem: str) -> None:
    """B-42: by the setting's name, not when the first cleanup is due."""
    with pytest.raises(ConfigurationError, match=f"{NAME}.*{problem}"):
        load(value)
