"""The planner's log: Celery's format and handlers, each line ending in the facts of its event.

Messages are constant and facts travel in `extra`, for machines; people want to read them in the line.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from celery import Celery

from celery_reactive.cli.guard import redact
from celery_reactive.core.suggest import shown

_LONGEST_TEXT = 300


def set_up(app: Celery, *, level: int, logfile: str | None, colored: bool) -> None:
    """Set logging up as Celery's own commands do; a project that does it itself (`setup_logging`) keeps its way.

    Args:
        app: Gives format and hooks.
        level: Least level shown, as in `logging`.
        logfile: Where to; None: stderr.
        colored: False forbids colours; true leaves it to Celery, which looks at the terminal.
    """
    theirs = app.log.setup(loglevel=level, logfile=logfile, colorize=None if colored else False)
    if not theirs:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(FactsFormatter(handler.formatter))


class FactsFormatter(logging.Formatter):
    """Adds the facts of an event to the line that another formatter makes."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without credentials."""
        line = self._inner.format(record)
        facts = getattr(record, "facts", None)
        if isinstance(facts, Mapping) and facts:
            first, newline, rest = line.partition("\n")
            line = f"{first}: {in_words(facts)}{newline}{rest}"
        return redact(line)


def in_words(facts: Mapping[str, Any]) -> str:
    """Return *facts* as `name=value` pairs."""
    return " ".join(f"{name}={_text(value)}" for name, value in facts.items() if value is not None)


def _text(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3g}"
        case str():
            text = " ".join(value.split())[:_LONGEST_TEXT]
            return f'"{text}"' if " " in text else text
        case tuple() | list() | frozenset():
            return ",".join(str(each) for each in value)
        case int():
            return str(value)
        case _:
            return str(value) if hasattr(value, "isoformat") else shown(value)
