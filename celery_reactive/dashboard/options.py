"""What `Reactive.dashboard(...)` may be told, checked before anything is served."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery_reactive.core.suggest import did_you_mean, listed, shown
from celery_reactive.core.task import DEFAULT_GROUP
from celery_reactive.dashboard.access import Authorize
from celery_reactive.errors import ArgumentError

_LEAST_TOKEN = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Every option of the dashboard. Field docs give meaning and default."""

    users: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    """Passwords by name, for basic authentication."""
    tokens: Mapping[str, str | None] = dataclasses.field(default_factory=dict, repr=False)
    """Bearer tokens, of 16 characters or more, for programs: as a list, or by name, which tells who did what.
    Kept as the names by token; None: it has none."""
    authorize: Authorize | None = None
    """Called with each request (Starlette's): returns `"all"`, `"read-only"`, names of actions, or None."""
    read_only: bool = False
    """Whether nobody may change anything."""
    redact: tuple[str, ...] = ()
    """Names of fields whose values are masked, besides the usual secrets; parts of names count."""
    flower_url: str | None = None
    """Where Flower is, for links to the Celery task of a record."""
    title: str = "celery-reactive"
    """Shown beside the logo: which installation this is."""
    group: str = DEFAULT_GROUP
    """The planner group whose leader is shown."""
    refresh_seconds: int = 3
    """How often a page that is looked at is brought up to date; 0: never."""
    deadline_seconds: float = 5.0
    """So long all statements of one request may take together; then it is answered with 503 and the reason."""

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> Options:
        """Return *options*, checked.

        Raises:
            ArgumentError: Lists everything that is wrong.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        problems = [
            f"unknown option {name!r}{did_you_mean(name, known)}; expected some of {listed(known)}"
            for name in options
            if name not in known
        ]
        values: dict[str, Any] = {}
        for name in known:
            if name in options:
                try:
                    values[name] = _CHECKS[name](options[name])
                except ValueError as error:
                    problems.append(f"{name}: {error}")
        if problems:
            raise ArgumentError("dashboard", problems)
        return cls(**values)


def _users(value: Any) -> dict[str, str]:
    if isinstance(value, Mapping) and all(
        isinstance(name, str) and name and ":" not in name and isinstance(password, str) and password
        for name, password in value.items()
    ):
        return dict(value)
    # The value is not shown: it holds passwords.
    raise ValueError("expected a dict of names, without a colon, and passwords, neither of them empty")


def _tokens(value: Any) -> dict[str, str | None]:
    named: list[tuple[Any, Any]]
    match value:
        case str():
            named = [(None, value)]
        case Mapping():
            named = list(value.items())
        case Iterable():
            named = [(None, token) for token in value]
        case _:
            named = [(None, None)]
    if all(
        isinstance(token, str) and len(token) >= _LEAST_TOKEN and (name is None or (isinstance(name, str) and name))
        for name, token in named
    ):
        return {token: name for name, token in named}
    # The value is not shown: it holds tokens.
    raise ValueError(f"expected strings of {_LEAST_TOKEN} characters or more, or a dict of names and such strings")


def _authorize(value: Any) -> Any:
    if value is None or callable(value):
        return value
    raise ValueError(f"expected a callable, got {shown(value)}")


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"expected True or False, got {shown(value)}")


def _names(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if isinstance(names, (list, tuple, set, frozenset)) and all(isinstance(name, str) and name for name in names):
        return tuple(names)
    raise ValueError(f"expected names of fields, got {shown(value)}")


def _url(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and re.fullmatch(r"https?://[^\s\"'<>]+", value)):
        return value.rstrip("/") if value else None
    raise ValueError(f"expected an http(s) address, got {shown(value)}")


def _text(value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    raise ValueError(f"expected a text, got {shown(value)}")


def _seconds(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 3600:  # noqa: PLR2004 -- an hour
        return value
    raise ValueError(f"expected whole seconds from 0 to 3600, got {shown(value)}")


def _above_zero(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 3600:  # noqa: PLR2004 -- an hour
        return float(value)
    raise ValueError(f"expected seconds above 0, at most 3600, got {shown(value)}")


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "users": _users,
    "tokens": _tokens,
    "authorize": _authorize,
    "read_only": _boolean,
    "redact": _names,
    "flower_url": _url,
    "title": _text,
    "group": _text,
    "refresh_seconds": _seconds,
    "deadline_seconds": _above_zero,
}
