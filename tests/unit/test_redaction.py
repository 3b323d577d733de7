"""What is not shown: by the names of fields, and inside of texts."""

from __future__ import annotations

import pytest

from celery_reactive.core.redaction import MASK, Redaction


@pytest.mark.parametrize(
    "name", ["password", "Password", "userPassword", "api_key", "apiKey", "X-Auth-Token", "IBAN", "client-secret"]
)
def test_a_secret_name_is_known_in_any_spelling(name: str) -> None:
    """B-57: case, `_` and `-` do not count."""
    assert Redaction().value({name: "x"}) == {name: MASK}


@pytest.mark.parametrize("name", ["lessness", "total", "author", "cvvless"])
def test_other_names_are_shown(name: str) -> None:
    """B-57: a short name counts only as a word of its own."""
    assert Redaction().value({name: "x"}) == {name: "x"}


def test_values_are_masked_at_any_depth() -> None:
    """B-57: in lists and sub-documents, whole sub-documents too."""
    value = {"a": [{"token": 1}, {"b": {"secrets": {"x": 1}}}], "c": 2}
    assert Redaction().value(value) == {"a": [{"token": MASK}, {"b": {"secrets": MASK}}], "c": 2}


def test_more_names_are_added() -> None:
    """B-57: the usual ones stay."""
    redaction = Redaction(["email"])
    assert redaction.value({"eMail": 1, "password": 2}) == {"eMail": MASK, "password": MASK}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at mongodb://me:pw@db/x", f"at mongodb://{MASK}@db/x"),
        ("post(order, password='hunter2', n=1)", f"post(order, password={MASK}, n=1)"),
        ('{"token": "abc def", "total": 3}', f'{{"token": {MASK}, "total": 3}}'),
        ("api_key=abc&x=1", f"api_key={MASK}&x=1"),
        ("nothing here: 5", "nothing here: 5"),
    ],
)
def test_texts_lose_their_credentials(text: str, expected: str) -> None:
    """B-57: messages and tracebacks quote what was called with what."""
    assert Redaction().text(text) == expected
