"""What of stored values is not shown: fields by their names, and credentials inside of texts.

Called wherever a value or a text of the user's is shown to people: by the dashboard, and by management for the command
line. What programs of the user's ask for is never masked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from celery_reactive.core.error_template import HIDDEN

MASK = HIDDEN
SECRET_NAMES = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "privatekey",
    "credential",
    "authorization",
    "cookie",
    "sessionid",
    "cardnumber",
    "creditcard",
    "cvv",
    "iban",
    "ssn",
)
"""Parts of field names whose values are masked; case, `_` and `-` do not count."""
_SHORT = 4
"""Names up to this length count only as a whole word of a field's name: `ssn` is no part of `lessness`."""
_USERINFO = re.compile(r"(?<=://)[^\s'\"/@]*@")
_NAMED_VALUE = re.compile(
    r"(?P<name>[A-Za-z_][\w-]{0,60})(?P<sign>[\"']?\s*[:=]\s*)(?P<value>\"[^\"]*\"|'[^']*'|[^\s,;&\"']+)"
)
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


class Redaction:
    """Masks values by the names of their fields."""

    def __init__(self, more_names: Iterable[str] = ()) -> None:
        """Mask the usual secrets and *more_names*."""
        self._names = frozenset({_letters(name) for name in (*SECRET_NAMES, *more_names)} - {""})

    def is_secret(self, name: str) -> bool:
        """Whether the value of a field called *name* is not shown."""
        letters = _letters(name)
        words = {word.lower() for word in _WORD.findall(name)}
        return any(secret in letters if len(secret) > _SHORT else secret in words for secret in self._names)

    def value(self, value: Any) -> Any:
        """Return *value* with the values of secret fields masked, at any depth."""
        match value:
            case Mapping():
                return {key: MASK if self.is_secret(str(key)) else self.value(each) for key, each in value.items()}
            case list() | tuple():
                return [self.value(each) for each in value]
            case _:
                return value

    def text(self, text: str) -> str:
        """Return *text* without credentials of URLs, and without what follows a secret name and `=` or `:`."""
        return _NAMED_VALUE.sub(self._masked, _USERINFO.sub(f"{MASK}@", text))

    def _masked(self, found: re.Match[str]) -> str:
        if not self.is_secret(found["name"]):
            return found[0]
        return f"{found['name']}{found['sign']}{MASK}"


class Unredacted(Redaction):
    """Masks nothing: for whoever has asked to see everything."""

    def is_secret(self, name: str) -> bool:
        """Return false."""
        return False

    def text(self, text: str) -> str:
        """Return *text* as it is."""
        return text


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
