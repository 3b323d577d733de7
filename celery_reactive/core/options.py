"""Reading a mapping of options: everything that is wrong with it becomes one error.

Called by the declaration and by the policies. Must never ignore an option, and never stop at the first mistake.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from celery_reactive.core.duration import parse_duration
from celery_reactive.core.suggest import did_you_mean, listed, shown
from celery_reactive.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import timedelta

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)
LARGEST = 2**31 - 1
"""Largest integer an option may be: what fits in 32 bits."""


class Options:
    """Options being read, in snake_case or, in policies, in mongodash's camelCase.

    Attributes:
        camel_case: Whether one of the known names was written in camelCase.
    """

    def __init__(self, subject: str, raw: object, known: Collection[str], *, camel_case_allowed: bool = False) -> None:
        """Take the options and note those that are unknown or given twice.

        Args:
            subject: What the options are of, for the error.
            raw: What the user wrote; anything but a mapping is a problem like any other.
            known: The names there are, in snake_case.
            camel_case_allowed: Whether `maxAttempts` may be written for `max_attempts`.
        """
        self.camel_case = False
        self._subject = subject
        self._known = known
        self._aliases = {camel(name): name for name in known} if camel_case_allowed else {}
        self._problems: list[str] = []
        self._given: dict[str, object] = {}
        if isinstance(raw, Mapping):
            for name, value in raw.items():
                self._take(name, value)
        else:
            self.refuse(f"expected a dict, got {shown(raw)}")

    def refuse(self, problem: str) -> None:
        """Note one thing that is wrong."""
        self._problems.append(problem)

    def read(self, name: str, reader: Callable[[object, str], T], default: T) -> T:
        """Return what *reader* makes of the option, or *default* if it was not given or is wrong.

        Args:
            name: The option.
            reader: Takes the value and the option's name; its ConfigurationError is noted, not raised.
            default: Stands also for a wrong value, since `check` will raise.
        """
        if name not in self._given:
            return default
        try:
            return reader(self._given[name], name)
        except ConfigurationError as error:
            self._problems.extend(f"{name}: {problem}" for problem in error.problems)
            return default

    def require(self, name: str, reader: Callable[[object, str], T], placeholder: T, *, expected: str) -> T:
        """Return what *reader* makes of the option; its absence is noted, and the placeholder returned instead."""
        if name not in self._given:
            self.refuse(f"{name}: missing; expected {expected}")
        return self.read(name, reader, placeholder)

    def duration(self, value: object, name: str) -> timedelta:
        """Read a length of time by the rule of the spelling these options are in.

        Raises:
            ConfigurationError: It is none, or a bare number beside camelCase names.
        """
        return parse_duration(value, name=name, camel_case=self.camel_case)

    def optional_duration(self, value: object, name: str) -> timedelta | None:
        """As `duration`, None standing for none.

        Raises:
            ConfigurationError: It is neither.
        """
        return None if value is None else self.duration(value, name)

    def check(self) -> None:
        """Raise everything noted.

        Raises:
            ConfigurationError: An option is unknown, missing or wrong; all such are listed.
        """
        if self._problems:
            raise ConfigurationError(self._subject, self._problems)

    def _take(self, name: object, value: object) -> None:
        if not isinstance(name, str):
            self.refuse(f"expected names of options as strings, got {shown(name)}")
            return
        canonical = name if name in self._known else self._aliases.get(name)
        if canonical is None:
            suggestion = did_you_mean(name, self._known) or f"; expected one of {listed(self._known)}"
            self.refuse(f"unknown option {name!r}{suggestion}")
            return
        if canonical in self._given:
            self.refuse(f"{canonical}: given twice, in both spellings")
        self.camel_case = self.camel_case or name != canonical
        self._given[canonical] = value


def camel(name: str) -> str:
    """Return a snake_case name in mongodash's spelling."""
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def read_boolean(value: object, name: str) -> bool:
    """Return *value* if it is True or False.

    Raises:
        ConfigurationError: It is something else, also 0 or 1.
    """
    if isinstance(value, bool):
        return value
    raise ConfigurationError(name, [f"expected True or False, got {shown(value)}"])


def read_integer(value: object, name: str, *, at_least: int, at_most: int = LARGEST) -> int:
    """Return *value* if it is a whole number within the bounds.

    Args:
        value: What the user wrote.
        name: The option's name.
        at_least: Smallest number allowed.
        at_most: Largest; by default what fits in 32 bits.

    Raises:
        ConfigurationError: It is smaller or larger, or no int.
    """
    if isinstance(value, int) and not isinstance(value, bool) and at_least <= value <= at_most:
        return int(value)
    raise ConfigurationError(name, [f"expected an integer from {at_least} to {at_most}, got {shown(value)}"])


def read_number(value: object, name: str, *, at_least: float, at_most: float = math.inf) -> float:
    """Return *value* as a float if it is a finite number within the bounds.

    Raises:
        ConfigurationError: It is outside, NaN, infinite, or no number.
    """
    bounds = f"a number of at least {at_least:g}" + ("" if at_most == math.inf else f" and at most {at_most:g}")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and at_least <= value <= at_most:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise ConfigurationError(name, [f"expected {bounds}, got {shown(value)}"])


def read_text(value: object, name: str) -> str:
    """Return *value* if it is a string that MongoDB can hold as a name: not empty, no NUL, valid Unicode.

    Raises:
        ConfigurationError: It is anything else.
    """
    if not isinstance(value, str):
        raise ConfigurationError(name, [f"expected a string, got {shown(value)}"])
    if not value.strip() or "\0" in value or not _is_unicode(value):
        raise ConfigurationError(name, [f"expected a string with text and without NUL, got {shown(value)}"])
    return str(value)


def read_choice(value: object, name: str, choices: type[E]) -> E:
    """Return the member of *choices* that *value* names, in snake_case or camelCase.

    Raises:
        ConfigurationError: It names none; the message lists them, and the one probably meant.
    """
    if isinstance(value, str):
        by_name = {spelling: choice for choice in choices for spelling in (choice.value, camel(choice.value))}
        if value in by_name:
            return by_name[value]
    meant = did_you_mean(value, choices) if isinstance(value, str) else ""
    raise ConfigurationError(name, [f"expected one of {listed(choices)}, got {shown(value)}{meant}"])


def _is_unicode(text: str) -> bool:
    return re.search("[\ud800-\udfff]", text) is None
