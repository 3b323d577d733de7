"""Failures become one message: whole, and without secrets."""

from __future__ import annotations

import pytest
from pymongo.errors import ServerSelectionTimeoutError

from celery_reactive.cli.guard import describe, redact
from celery_reactive.errors import ConfigurationError, UnknownTaskError
from celery_reactive.store.errors import translate


def test_one_problem_is_one_sentence() -> None:
    """Nobody needs a list of one."""
    assert describe(ConfigurationError("sync", ["expected a, got b"])) == "sync: expected a, got b"


def test_several_problems_are_a_list_of_all() -> None:
    """B-2: whoever reads it can mend everything at once."""
    text = describe(ConfigurationError("sync", ["expected a, got b", "expected c, got d"]))
    assert text.splitlines() == ["sync: 2 problems", "  - expected a, got b", "  - expected c, got d"]


def test_an_unknown_task_is_answered_with_the_known() -> None:
    """B-52: the message lists what there is."""
    text = describe(UnknownTaskError("synk", ["sync", "welcome"]))
    assert "did you mean 'sync'" in text
    assert "welcome" in text


def test_the_drivers_topology_is_not_part_of_the_message() -> None:
    """A person needs the address and the reason; the rest of the driver's text hides them."""
    error = ServerSelectionTimeoutError(
        "db:1: [Errno 111] Connection refused (configured timeouts: socketTimeoutMS: 20000.0ms, connectTimeoutMS: "
        "5000.0ms), Timeout: 10s, Topology Description: <TopologyDescription id: 1, servers: []>",
    )
    first = describe(translate(error)).splitlines()[0]
    assert first == "MongoDB does not answer at its address: db:1: [Errno 111] Connection refused"


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://me:hush@db:27017/shop",
        "mongodb+srv://me:hush@db/shop",
        "redis://:hush@broker:6379/0",
        "amqp://hush@broker//",
        "mongodb://me:hu/sh@hush@db/shop",
    ],
)
def test_no_url_shows_user_or_password(url: str) -> None:
    """Messages end up in tickets and logs."""
    shown = redact(f"cannot reach {url}: refused")
    assert "hush" not in shown
    assert "me:" not in shown
    assert shown.endswith(": refused")


def test_a_password_torn_apart_by_a_driver_is_not_shown() -> None:
    """An unescaped `@` or `/` makes a driver take the rest of the password for a host."""
    shown = redact("hush:27017: unknown host; p%40ss", ["mongodb://me:p@hush/word@db/shop", "redis://:p%40ss@broker"])
    assert "hush" not in shown
    assert "p%40ss" not in shown


def test_words_that_merely_contain_a_password_stay() -> None:
    """A password `on` does not mask every `connection`."""
    assert redact("the connection is gone", ["redis://:on@broker"]) == "the connection is gone"
