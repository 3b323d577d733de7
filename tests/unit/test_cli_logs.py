"""The planner's log lines end in the facts of their events."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from celery_reactive.cli.logs import FactsFormatter, in_words


def line_of(message: str, *, facts: object = None, error: BaseException | None = None) -> str:
    """Return what the formatter makes of a record."""
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("celery_reactive", logging.INFO, __file__, 1, message, None, info)
    record.facts = facts
    return FactsFormatter(logging.Formatter("%(levelname)s %(message)s")).format(record)


def test_facts_follow_the_message() -> None:
    """A reader sees who leads, not only that somebody does."""
    assert line_of("leadership won", facts={"instance": "a", "term": 3}) == "INFO leadership won: instance=a term=3"


def test_a_line_without_facts_stays_as_it_is() -> None:
    """Other programs' lines are theirs."""
    assert line_of("connected") == "INFO connected"


def test_facts_stand_before_a_traceback() -> None:
    """One line tells the event; the traceback comes below it."""
    lines = line_of("failed", facts={"task": "sync"}, error=ValueError("no")).splitlines()
    assert lines[0] == "INFO failed: task=sync"
    assert lines[-1] == "ValueError: no"


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
    assert "hush" not in line_of("broker away", facts={"error": "redis://:hush@broker/0 refused"})
