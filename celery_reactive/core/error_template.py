"""The form of an error message: what stays of it when ids and numbers are taken out.

Called by management to group errors, and to find the records of one group again. A template finds every message that
it was made of; nothing in a message is taken for a pattern.
"""

from __future__ import annotations

import re

LONGEST = 300
"""Characters of a message that count."""

ID = "⟨id⟩"
NUMBER = "⟨n⟩"
HIDDEN = "•••"
"""Stands in a message for what was masked in it before; a template with it finds what was masked, whatever it is."""

_ID = r"(?:[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}|0x[0-9A-Fa-f]+|[0-9A-Fa-f]{12,})"
_NUMBER = r"[0-9]+(?:[.,:][0-9]+)*"
_VARIABLE = re.compile(rf"(?<![0-9A-Za-z])(?:(?P<id>{_ID})(?![0-9A-Za-z])|(?P<number>{_NUMBER}))")
_PLACE = re.compile(f"({ID}|{NUMBER}|{HIDDEN})")
_FINDS = {ID: rf"(?:{_ID}|{ID})", NUMBER: rf"(?:{_NUMBER}|{NUMBER})", HIDDEN: r"[^\n]{0,300}?"}
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def template_of(message: str) -> str:
    """Return *message* with ids and numbers replaced; of a long one, its beginning in whole words."""
    text = message[:LONGEST]
    if len(message) >= LONGEST:
        text = text.rpartition(" ")[0] or text
    return _VARIABLE.sub(lambda found: ID if found["id"] else NUMBER, text)


def pattern_of(template: str) -> str:
    """Return the regular expression that finds the messages of *template*, for Python and for MongoDB."""
    parts = _PLACE.split(template)
    return "^" + "".join(_FINDS.get(part) or re.escape(part) for part in parts)


def template_behind(pattern: str) -> str | None:
    """Return the template that `pattern_of` made *pattern* of, to be read by people; None: it was made of none."""
    text = pattern.removeprefix("^")
    for place, finds in _FINDS.items():
        text = text.replace(finds, place)
    template = _ESCAPED.sub(r"\1", text)
    return template if pattern_of(template) == pattern else None
