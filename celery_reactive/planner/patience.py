"""Waiting out what is away: one loop shape for all stages, one complaint a minute for people.

Called by the stages, and by the planner before it has any. A stage's step may fail because MongoDB or the broker is
away, or for a reason nobody foresaw; neither ends the planner.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

from celery_reactive.errors import StoreUnavailableError, TermEndedError

T = TypeVar("T")

logger = logging.getLogger(__name__)

_COMPLAINT_INTERVAL_SECONDS = 60.0
_FIRST_WAIT = timedelta(milliseconds=200)
_LONGEST_WAIT = timedelta(seconds=5)
_GLANCE_SECONDS = 0.1


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


def answered(ask: Callable[[], T], subject: str, stop: threading.Event) -> T | None:
    """Ask until MongoDB answers, ever more rarely, and return what it says.

    Asking is done in a thread of its own: a frozen database can hold it for many seconds, and holds up no stop.

    Args:
        ask: Raises `StoreUnavailableError` where MongoDB does not answer; whatever else it raises is raised here.
        subject: What does not answer, for people.
        stop: Ends the wait at once, whatever is asked at the moment.

    Returns:
        What *ask* returned; None: *stop* was set first.
    """
    answer: Future[T | None] = Future()

    def settle() -> None:
        try:
            answer.set_result(_ask_again(ask, subject, stop))
        except BaseException as error:  # noqa: BLE001 -- raised where it is waited for
            answer.set_exception(error)

    threading.Thread(target=settle, name="reactive-start", daemon=True).start()
    while not stop.is_set():
        with suppress(TimeoutError):
            return answer.result(timeout=_GLANCE_SECONDS)
    return None


def _ask_again(ask: Callable[[], T], subject: str, stop: threading.Event) -> T | None:
    complaint = Complaint(subject)
    wait = _FIRST_WAIT
    while not stop.is_set():
        try:
            said = ask()
        except StoreUnavailableError as error:
            complaint.away(error)
        else:
            complaint.back()
            return said
        stop.wait(wait.total_seconds())
        wait = min(wait * 2, _LONGEST_WAIT)
    return None


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
