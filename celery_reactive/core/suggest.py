"""Words for error messages: "did you mean", and a value shown briefly.

Called wherever something a person wrote is refused. Must never raise, whatever the value.
"""

from __future__ import annotations

import difflib
import reprlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_brief = reprlib.Repr()
_brief.maxdict = _brief.maxlist = _brief.maxtuple = 8
_brief.maxstring = _brief.maxother = 80


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the one of *known* that *name* most likely stands for, or None.

    Upper and lower case and underscores do not count, so that mongodash's `watchProjection` finds `watch_projection`.
    """
    by_letters = {_letters(each): str(each) for each in known}
    matches = difflib.get_close_matches(_letters(name), by_letters, n=1, cutoff=0.7)
    return by_letters[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the suggestion as the tail of a sentence, or an empty string."""
    match = closest(name, known)
    return "" if match is None else f"; did you mean {match!r}?"


def shown(value: object) -> str:
    """Return *value* as a person would recognise it: shortened, with its type where the text does not tell it."""
    try:
        text = _brief.repr(value)
    except Exception:  # noqa: BLE001 -- a value's own repr may raise anything, also an int of thousands of digits
        return f"a value of type {type(value).__name__}"
    return text if value is None or isinstance(value, (str, dict, list, bool)) else f"{text} ({type(value).__name__})"


def listed(names: Iterable[str]) -> str:
    """Return the names quoted, for "expected one of …"."""
    return ", ".join(repr(str(name)) for name in names)


def _letters(name: str) -> str:
    return name.replace("_", "").lower()
