"""What errors have in common, ids and numbers aside; and finding them again by it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_reactive.core.error_template import HIDDEN, LONGEST, pattern_of, template_behind, template_of

MESSAGES = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.integers(0).map(str),
        st.uuids().map(str),
        st.sampled_from(["⟨n⟩", "⟨id⟩", "(.*)+", "\\", "$^[", "0x1F", "5f0000000000000000000001", "10.0.0.1:27017"]),
    ),
    max_size=60,
).map(" ".join)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("order 17 refused", "order ⟨n⟩ refused"),
        ("customer 0b7e6c1e-6f0e-4c41-9f42-6b8c1f3d2a10 not found", "customer ⟨id⟩ not found"),
        ("no 5f0000000000000000000001", "no ⟨id⟩"),
        ("at 0x7f3a", "at ⟨id⟩"),
        ("10.0.0.1:27017 timed out after 3.5s", "⟨n⟩ timed out after ⟨n⟩s"),
        ("E11000 duplicate key, HTTP2, utf8", "E11000 duplicate key, HTTP2, utf8"),
        ("", ""),
    ],
)
def test_ids_and_numbers_are_taken_out(message: str, expected: str) -> None:
    """B-57: what names a kind of error stays, also where it holds digits."""
    assert template_of(message) == expected


@given(MESSAGES)
def test_a_template_finds_the_message_it_was_made_of(message: str) -> None:
    """B-57: retrying a group finds its records; nothing in a message is a pattern."""
    template = template_of(message[:LONGEST])
    assert re.match(pattern_of(template), message)
    assert template_of(template) == template


@given(MESSAGES)
def test_a_pattern_is_read_as_its_template_again(message: str) -> None:
    """B-57: what was asked for is shown to people as what the group says."""
    template = template_of(message)
    assert template_behind(pattern_of(template)) == template


def test_another_pattern_is_no_template() -> None:
    """B-57: what a person typed as a pattern is shown as it is."""
    assert template_behind("order [0-9]+ refused") is None


def test_a_template_finds_no_other_message() -> None:
    """B-57: retrying a group leaves the others alone."""
    pattern = pattern_of(template_of("order 17 refused"))
    assert not re.match(pattern, "order x refused")
    assert not re.match(pattern, "an order 17 refused")


def test_what_was_masked_is_found_whatever_it_is() -> None:
    """B-57: a group can be retried although nobody sees the password in its messages."""
    assert re.match(pattern_of(f"refused at https://{HIDDEN}@erp"), "refused at https://me:secret@erp")


def test_a_long_message_counts_by_its_beginning_in_whole_words() -> None:
    """B-57: a number that is cut would make a group of its own."""
    first, second = (f"{'word ' * 59}{number}{'0' * 50}" for number in (1, 2))
    assert template_of(first[:LONGEST]) == template_of(second[:LONGEST])
