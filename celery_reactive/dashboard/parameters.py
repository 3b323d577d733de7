"""What a request asks for: query strings, forms and JSON bodies brought to one checked form.

Called by pages and API. What is unknown, repeated or unreadable is refused with what was expected; limits are cut to
what is served at most. All that comes out are values: nothing a caller writes becomes an operator of a query.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from celery_reactive.core.doc_id import read_doc_id
from celery_reactive.core.suggest import did_you_mean, listed, shown
from celery_reactive.dashboard.access import RefusedError
from celery_reactive.errors import ConfigurationError
from celery_reactive.management.selection import read_pattern

LONGEST_TEXT = 4000
"""Characters of a text to search for, a name, a template."""
MOST_FIELDS = 500
MOST_VALUES = 200
"""Of one name."""

_TRUE, _FALSE = frozenset({"true", "1", "on", "yes"}), frozenset({"false", "0", "off", "no"})


class Parameters:
    """Named texts, each once or several times, as a query string or a form brings them."""

    def __init__(self, pairs: Iterable[tuple[str, str]], known: Sequence[str]) -> None:
        """Take the pairs of a name and a text.

        Raises:
            RefusedError: A name is none of *known*, or a text cannot be a text.
        """
        self._texts: dict[str, list[str]] = {}
        for name, text in pairs:
            if name not in known:
                raise _bad(f"unknown parameter {shown(name)}{did_you_mean(name, known)}; expected {listed(known)}")
            self._texts.setdefault(name, []).append(_text(name, text))

    @classmethod
    def of_query(cls, query: bytes, known: Sequence[str], *, drop_empty: bool = False) -> Parameters:
        """Read a query string, or a form's body; with *drop_empty* a field left empty counts as not there.

        Raises:
            RefusedError: It cannot be read.
        """
        try:
            pairs = parse_qsl(
                query.decode("ascii"), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict"
            )
        except (UnicodeError, ValueError) as error:
            raise _bad("expected a query string of names and values, percent-encoded UTF-8") from error
        return cls([(name, text) for name, text in pairs if text or not drop_empty], known)

    def text(self, name: str) -> str | None:
        """Return a text that is given once, None if it is not.

        Raises:
            RefusedError: It is given several times, or empty.
        """
        texts = self.texts(name)
        if len(texts) > 1:
            raise _bad(f"{name}: expected one value, got {len(texts)}")
        return texts[0] if texts else None

    def texts(self, name: str) -> list[str]:
        """Return all texts of one name.

        Raises:
            RefusedError: One is empty, or there are too many.
        """
        texts = self._texts.get(name, [])
        _refuse_more(name, texts)
        if "" in texts:
            raise _bad(f"{name}: expected a value, got an empty one")
        return texts

    def flag(self, name: str) -> bool | None:
        """Return yes or no, None if it is not given.

        Raises:
            RefusedError: It is neither.
        """
        text = self.text(name)
        if text is None:
            return None
        if text not in _TRUE | _FALSE:
            raise _bad(f"{name}: expected true or false, got {shown(text)}")
        return text in _TRUE

    def number(self, name: str, *, default: int, least: int, most: int) -> int:
        """Return a whole number, cut to *most*.

        Raises:
            RefusedError: It is no whole number, or less than *least*.
        """
        text = self.text(name)
        if text is None:
            return default
        if not re.fullmatch(r"[0-9]{1,40}", text) or int(text) < least:
            raise _bad(f"{name}: expected a whole number of {least} or more, got {shown(text)}")
        return min(int(text), most)


class Body:
    """A JSON object of a program's, read by the types that its fields must have."""

    def __init__(self, body: bytes, known: Sequence[str]) -> None:
        """Read the object.

        Raises:
            RefusedError: It is no JSON object, or a name is none of *known*.
        """
        try:
            fields = json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise _bad("expected a JSON object") from error
        if not isinstance(fields, dict):
            raise _bad(f"expected a JSON object, got {shown(fields)}")
        for name in fields:
            if name not in known:
                raise _bad(f"unknown field {shown(name)}{did_you_mean(name, known)}; expected {listed(known)}")
        self._fields: Mapping[str, Any] = fields

    def text(self, name: str) -> str | None:
        """Return a text, None if it is not there.

        Raises:
            RefusedError: It is none, or empty.
        """
        if name not in self._fields:
            return None
        return _nonempty(name, self._fields[name])

    def texts(self, name: str) -> list[str]:
        """Return a list of texts; one alone counts as such.

        Raises:
            RefusedError: It is none, or there are too many.
        """
        if name not in self._fields:
            return []
        value = self._fields[name]
        if isinstance(value, list) and value:
            _refuse_more(name, value)
            return [_nonempty(name, each) for each in value]
        return [_nonempty(name, value)]

    def flag(self, name: str) -> bool | None:
        """Return yes or no, None if it is not there.

        Raises:
            RefusedError: It is neither.
        """
        if name not in self._fields:
            return None
        value = self._fields[name]
        if not isinstance(value, bool):
            raise _bad(f"{name}: expected true or false, got {shown(value)}")
        return value


Fields = Parameters | Body
"""What a person's form or a program's object brings; both are asked alike."""


def required(fields: Fields, name: str) -> str:
    """Return a text that must be there.

    Raises:
        RefusedError: It is not.
    """
    text = fields.text(name)
    if text is None:
        raise _bad(f"{name}: expected a value, got none")
    return text


def doc_id_of(text: str) -> Any:
    """Return the document id that *text* stands for, as on the command line: extended JSON, or what it looks like.

    Raises:
        RefusedError: It stands for none, or for one that MongoDB cannot store.
    """
    try:
        return read_doc_id(text)
    except ConfigurationError as error:
        raise _bad(f"doc_id: {'; '.join(error.problems)}") from error


def pattern_of(text: str) -> re.Pattern[str]:
    """Return *text* as a regular expression.

    Raises:
        RefusedError: It is too long, or none.
    """
    try:
        return read_pattern(text)
    except ConfigurationError as error:
        raise _bad(str(error)) from error


def _text(name: str, value: str) -> str:
    if len(value) > LONGEST_TEXT:
        raise _bad(f"{name}: expected at most {LONGEST_TEXT} characters, got {len(value)}")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise _bad(f"{name}: expected a text that can be encoded, without NUL")
    return value


def _refuse_more(name: str, values: Sequence[object]) -> None:
    if len(values) > MOST_VALUES:
        raise _bad(f"{name}: expected at most {MOST_VALUES} values, got {len(values)}")


def _nonempty(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _bad(f"{name}: expected a text, got {shown(value)}")
    if not value:
        raise _bad(f"{name}: expected a value, got an empty one")
    return _text(name, value)


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _bad(reason: str) -> RefusedError:
    return RefusedError(400, reason.encode("utf-8", "backslashreplace").decode())
