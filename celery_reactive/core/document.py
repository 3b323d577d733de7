"""A private copy of a document that a user wrote in a declaration, such as a filter.

Called by the filters and projections. Later changes by the user must never reach the copy, and what the server could
not be sent must never be accepted.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any

import bson
from bson.binary import Binary, UuidRepresentation
from bson.errors import BSONError
from bson.regex import Regex

from celery_reactive.core.suggest import shown
from celery_reactive.errors import ConfigurationError

_DEEPEST = 100
"""The server refuses filters and expressions nested about this deep; it also ends a document that holds itself."""


def copied(raw: Mapping[Any, Any], *, name: str) -> dict[str, Any]:
    """Return *raw* as plain dicts, lists and BSON values that any client encodes alike.

    UUIDs become standard binaries and patterns BSON regular expressions, so that no codec option matters.

    Raises:
        ConfigurationError: It is nested too deeply or holds something that is no BSON value.
    """
    copy = {key: _plain(value, name, 1) for key, value in raw.items()}
    try:
        bson.encode(copy)
    except (BSONError, OverflowError, TypeError, ValueError) as error:
        raise ConfigurationError(name, [f"expected a document that BSON can hold; {error}"]) from error
    return copy


def _plain(value: Any, name: str, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ConfigurationError(name, [f"expected at most {_DEEPEST} levels, got a deeper or endless document"])
    match value:
        case Mapping():
            return {key: _plain(each, name, depth + 1) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each, name, depth + 1) for each in value]
        case re.Pattern():
            return _regex(value, name)
        case uuid.UUID():
            return Binary.from_uuid(value, UuidRepresentation.STANDARD)
        case set() | frozenset():
            raise ConfigurationError(name, [f"expected a list where {shown(value)} stands"])
        case _:
            return value


def _regex(pattern: re.Pattern[Any], name: str) -> Regex[Any]:
    try:
        return Regex.from_native(pattern)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(name, [f"expected a pattern that BSON can hold, got {shown(pattern)}"]) from error
