"""How a person writes a document's `_id` on a command line or in a search field.

Extended JSON means what it says: `7`, `"7"`, `{"$oid": "…"}`, `null`, `[1, 2]`. Anything else is taken for what it
looks like: 24 hexadecimal digits are an ObjectId, the usual form of a UUID is one, and the rest is a string as it
stands. Nothing is ever an operator: the value is an id, whatever it contains.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

import bson
from bson import ObjectId
from bson.errors import BSONError

from celery_reactive.core.record import CODEC, id_from_text, id_to_text
from celery_reactive.errors import ConfigurationError

LONGEST = 10_000
"""Characters; an `_id` may be longer, and is not typed by anybody."""
_OBJECT_ID = re.compile(r"[0-9a-fA-F]{24}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def read_doc_id(text: str) -> Any:
    """Return the `_id` that *text* means.

    Raises:
        ConfigurationError: It is too long, extended JSON whose value cannot be read, or a value that MongoDB cannot
            store.
    """
    doc_id = _read(text)
    try:
        bson.encode({"": doc_id}, codec_options=CODEC)
    except (BSONError, ArithmeticError, ValueError, RecursionError) as error:
        problem = f"expected a value that MongoDB can store, got {text[:100]!r}"
        raise ConfigurationError("document id", [problem]) from error
    return doc_id


def _read(text: str) -> Any:
    if len(text) > LONGEST:
        raise ConfigurationError("document id", [f"expected at most {LONGEST} characters, got {len(text)}"])
    if _OBJECT_ID.fullmatch(text):
        return ObjectId(text)
    if _UUID.fullmatch(text):
        return uuid.UUID(text)
    try:
        return id_from_text(text)
    except RecursionError as error:
        raise ConfigurationError("document id", ["expected fewer levels of nesting"]) from error
    except ValueError as error:
        if text[:1] in {"{", "[", '"'}:
            problem = f'expected extended JSON, as {{"$oid": "…"}} or "a string", got {text[:100]!r}'
            raise ConfigurationError("document id", [problem]) from error
        return text


def other_reading(doc_id: object) -> str | None:
    """Return how the string is written that looks like *doc_id*, for a message that found nothing; None: none does."""
    match doc_id:
        case ObjectId() | uuid.UUID():
            return id_to_text(str(doc_id))
        case bool() | int() | float() | None:
            return id_to_text(id_to_text(doc_id))
        case _:
            return None
