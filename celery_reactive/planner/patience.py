"""Waiting out what is away: one loop shape for all stages, one complaint a minute for people.

Called by the stages. A stage's step may fail because MongoDB or the broker is away, or for a
reason nobody foresaw; neither ends the planner.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from celery_reactive.errors import StoreUnavailableError, TermEndedError

logger = logging.getLogger(__name__)

_COMPLAINT_INTERVAL_SECONDS = 60.0
_FIRST_WAIT = timedelta(milliseconds=200)
_LONGEST_WAIT = timedelta(seconds=5)


class Complaint:
    """Says that something is away at once, then once a minute, and once that it is back."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._since: float | None = None
        self._said = 0.0

    def away(self, error: Exception) -> None:
        """Note a failure."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        elif now - self._said < _COMPLAINT_INTERVAL_SECONDS:
            return
        self._said = now
        logger.warning(
            "%s does not answer, waiting: %s",
            self._subject,
            error,
            extra={"event": "waiting", "subject": self._subject, "away_seconds": round(now - self._since)},
        )

    def back(self) -> None:
        """Note a success."""
        if self._since is not None:
            away_seconds = round(time.monotonic() - self._since)
            self._since = None
            logger.warning(
                "%s answers again",
                self._subject,
                extra={"event": "waiting_over", "subject": self._subject, "away_seconds": away_seconds},
            )


def persist(
    step: Callable[[], None],
    ended: threading.Event,
    *,
    on_term_ended: Callable[[], None],
) -> None:
    """Call *step* again and again until *ended*, whatever it raises.

    Args:
        step: One round of a stage; it waits by itself when there is nothing to do.
        ended: Set when the stage must stop.
        on_term_ended: Called when a newer leader was found.
    """
    database = Complaint("MongoDB")
    wait = _FIRST_WAIT
    while not ended.is_set():
        try:
            step()
        except TermEndedError:
            on_term_ended()
            return
        except StoreUnavailableError as error:
            database.away(error)
        except Exception:
            logger.exception("a planner stage failed, trying again")
        else:
            database.back()
            wait = _FIRST_WAIT
            continue
        ended.wait(wait.total_seconds())
        wait = min(wait * 2, _LONGEST_WAIT)
