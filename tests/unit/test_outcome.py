"""What is kept of an exception can be stored whatever the exception is (B-25)."""

from __future__ import annotations

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_reactive.core.outcome import Failure, shorten

KIBIBYTE = 1024


class Custom(Exception):  # noqa: N818 -- a user's name
    """A user's exception."""


class Unspeakable(Exception):  # noqa: N818 -- a user's name
    """A user's exception whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_a_message_is_kept_with_the_name_of_its_type() -> None:
    """B-25: a built-in type by its name, another by its full one."""
    assert Failure.of(ValueError("too late"), "Traceback") == Failure("too late", "ValueError", "Traceback")
    assert Failure.of(Custom("mine")).type == f"{__name__}.Custom"


def test_the_types_name_stands_in_for_a_missing_message() -> None:
    """B-25."""
    assert Failure.of(KeyError()).message == "KeyError"
    assert Failure.of(Custom()).message == "Custom"


def test_an_exception_whose_text_raises_is_described_all_the_same() -> None:
    """B-25."""
    assert Failure.of(Unspeakable()).message == "Unspeakable (its str() raised RuntimeError)"


def test_a_lone_surrogate_is_made_encodable() -> None:
    """B-25: BSON takes no lone surrogate."""
    failure = Failure.of(ValueError("bad \udce4 byte"), "in \ud800")
    assert bson.encode({"m": failure.message, "t": failure.traceback})
    assert failure.message == "bad ? byte"


def test_long_text_keeps_its_head_and_its_tail() -> None:
    """B-25: at most 8 KiB of the message, 16 KiB of the traceback."""
    failure = Failure.of(ValueError("head " + "x" * 10**6 + " tail"), "first " + "y" * 10**6 + " last")
    assert failure.message.startswith("head x")
    assert failure.message.endswith("x tail")
    assert "bytes left out" in failure.message
    assert len(failure.message.encode()) <= 8 * KIBIBYTE
    assert failure.traceback.startswith("first y")
    assert failure.traceback.endswith("y last")
    assert len(failure.traceback.encode()) <= 16 * KIBIBYTE


@pytest.mark.parametrize("length", [99, 100])
def test_text_that_fits_is_left_alone(length: int) -> None:
    """B-25: the limit itself still fits."""
    assert shorten("é" * (length // 2), 100) == "é" * (length // 2)


@given(st.text(alphabet=st.characters(), max_size=400), st.integers(min_value=80, max_value=200))
def test_shortened_text_is_within_its_limit_and_encodable(text: str, limit: int) -> None:
    """B-25: cut between characters, never inside one."""
    short = shorten(text, limit)
    assert len(short.encode()) <= limit
    assert bson.encode({"text": short})
