"""How people write ids of documents."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from celery_reactive.core.doc_id import LONGEST, other_reading, read_doc_id
from celery_reactive.core.record import id_to_text
from celery_reactive.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("7", 7),
        ("-1.5", -1.5),
        ('"7"', "7"),
        ("true", True),
        ("null", None),
        ("", ""),
        ("order-17", "order-17"),
        ("a b", "a b"),
        ("[1, 2]", [1, 2]),
        ('{"a": 1}', {"a": 1}),
        ("5f0000000000000000000001", ObjectId("5f0000000000000000000001")),
        ('{"$oid": "5f0000000000000000000001"}', ObjectId("5f0000000000000000000001")),
        ("00000000-0000-0000-0000-000000000007", uuid.UUID(int=7)),
        ("5f000000000000000000000z", "5f000000000000000000000z"),
    ],
)
def test_an_id_is_what_it_looks_like(text: str, meant: Any) -> None:
    """B-51: with its type."""
    read = read_doc_id(text)
    assert (type(read), read) == (type(meant), meant)


@given(st.text(max_size=200))
def test_any_text_is_an_id_or_refused(text: str) -> None:
    """Bad input: nothing that is typed raises anything else."""
    with suppress(ConfigurationError):
        id_to_text(read_doc_id(text))


@given(st.text(max_size=50))
def test_any_string_can_be_written(text: str) -> None:
    """B-51: between quotes, whatever it looks like."""
    assert read_doc_id(id_to_text(text)) == text


@pytest.mark.parametrize(
    "text", ['{"$oid": 1}', "9" * 29, "{oops", '"open', "[" * 5000, "x" * (LONGEST + 1)], ids=lambda x: x[:9]
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    """Bad input: too long, too deep, no JSON."""
    with pytest.raises(ConfigurationError, match="document id"):
        read_doc_id(text)


@pytest.mark.parametrize(
    ("doc_id", "other"),
    [(7, '"7"'), (None, '"null"'), (uuid.UUID(int=7), f'"{uuid.UUID(int=7)}"'), ("7", None), ([1], None)],
)
def test_the_string_that_looks_the_same_is_named(doc_id: Any, other: str | None) -> None:
    """B-51: a hint for what found nothing."""
    assert other_reading(doc_id) == other
