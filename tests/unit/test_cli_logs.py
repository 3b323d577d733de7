"""Log lines: the facts of an event stand in them, and no credentials."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from celery_reactive.cli.logs import RedactingFormatter
from celery_reactive.events import in_words


def line_of(message: str, *urls: str) -> str:
    """Return what the formatter makes of a record in an app with these addresses."""
    record = logging.LogRecord("celery_reactive", logging.INFO, __file__, 1, message, None, None)
    return RedactingFormatter(logging.Formatter("%(levelname)s %(message)s"), urls).format(record)


def test_a_line_stays_as_the_users_format_makes_it() -> None:
    """Other programs' lines are theirs."""
    assert line_of("connected") == "INFO connected"


def test_a_text_is_one_word_or_quoted_on_one_line() -> None:
    """A line stays a line, and its parts can be told apart."""
    assert in_words({"error": "boom\nand more", "record": "sync[1]"}) == 'error="boom and more" record=sync[1]'


def test_values_read_as_people_write_them() -> None:
    """Booleans, fractions, lists and times; what is unknown is left out."""
    facts = {
        "resumed": True,
        "seconds": 0.12345,
        "tasks": ("a", "b"),
        "at": datetime(2026, 1, 2, tzinfo=UTC),
        "x": None,
    }
    assert in_words(facts) == "resumed=yes seconds=0.123 tasks=a,b at=2026-01-02 00:00:00+00:00"


def test_a_password_in_a_log_line_is_masked() -> None:
    """A driver's message may quote an address."""
    assert "hush" not in line_of("broker away: redis://:hush@broker/0 refused")
    assert "hush" not in line_of("hush: name or service not known", "redis://:p@hush@broker/0")
