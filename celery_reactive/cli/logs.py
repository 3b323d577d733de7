"""The planner's log: Celery's format and handlers, and no credentials in any line."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from celery import Celery

from celery_reactive.cli.guard import redact, urls_of


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
            handler.setFormatter(RedactingFormatter(handler.formatter, urls_of(app)))


class RedactingFormatter(logging.Formatter):
    """Masks credentials in the line that another formatter makes: a driver's message may quote an address."""

    def __init__(self, inner: logging.Formatter | None, urls: Iterable[str] = ()) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()
        self._urls = tuple(urls)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without credentials."""
        return redact(self._inner.format(record), self._urls)
