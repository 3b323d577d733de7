"""What a message may start of a limited task: taken before its records are claimed, given back after (B-58).

Called by `execute`. A start that is granted counts as late as it may happen: so a handler is called only while this
process's monotonic clock says that it still may, and once all have been called the limiter is told, soon where they
take their time. A process that vanishes tells nothing: the limiter counts its starts as late as possible, and the
planner frees its slots.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

from celery_reactive.core.limits import Limits
from celery_reactive.core.record import RecordKey
from celery_reactive.errors import ReactiveError, StoreUnavailableError
from celery_reactive.runtime import Runtime
from celery_reactive.store import limiters
from celery_reactive.store.limiters import Grant
from celery_reactive.store.wake import wake

logger = logging.getLogger(__name__)

_LEAST_WAIT = timedelta(milliseconds=100)
_FOR_CELERY = 0.2
"""Of the time in which a start may happen, so much is left for what Celery does before it calls the handler."""


class Permit:
    """The starts, and the slots, that one message was granted."""

    def __init__(
        self, runtime: Runtime, limits: Limits, task: str, token: str, grant: Grant, *, wanted: int, sent: float
    ) -> None:
        self._runtime = runtime
        self._limits = limits
        self._task = task
        self._token = token
        self._grant = grant
        self._wanted = wanted
        self._claimed: int | None = None
        self._started = 0
        self._is_told = limits.rate is None
        within = math.inf if limits.rate is None else limits.rate.start_within.total_seconds()
        self._start_until = sent + within * (1 - _FOR_CELERY)
        self._tells_after_seconds = within * _FOR_CELERY
        self._timer: threading.Timer | None = None

    @property
    def starts(self) -> int:
        """How many records may be claimed."""
        return self._grant.starts

    @property
    def claim_until(self) -> datetime:
        """A claim after this, by the server's clock, is not covered."""
        return self._grant.claim_until

    @property
    def wait(self) -> timedelta:
        """After which a record that was not granted a start may expect one; zero: all that were wanted were granted."""
        return max(self._grant.wait, _LEAST_WAIT) if self._grant.starts < self._wanted else timedelta(0)

    def claimed(self, count: int) -> None:
        """Give back what the claim did not use."""
        self._claimed = count
        if count < self._grant.starts:
            try:
                limiters.keep(self._runtime.connection.globals(), self._task, self._token, count)
            except StoreUnavailableError as error:
                self._not_told(error)

    def start(self) -> bool:
        """Count a start, if it may still happen now."""
        if time.monotonic() > self._start_until:
            return False
        self._started += 1
        if self._started == self._claimed and not self._is_told:
            self._timer = threading.Timer(self._tells_after_seconds, self._tell, kwargs={"frees": False})
            self._timer.daemon = True
            self._timer.start()
        return True

    def close(self) -> None:
        """Give back what was not started, and the slots.

        Where it is not known what was claimed nothing is given back: a claim without a slot must not be.
        """
        if self._timer is not None:
            self._timer.cancel()
        if self._claimed and not (self._is_told and self._limits.concurrency is None):
            self._tell(frees=True)

    def _tell(self, *, frees: bool) -> None:
        try:
            is_awaited = limiters.settle(
                self._runtime.connection.globals(),
                self._task,
                self._token,
                self._limits,
                started=self._started,
                frees=frees,
            )
            self._is_told = True
            if is_awaited:
                wake(self._runtime.connection.globals(), self._task)
        except ReactiveError as error:
            self._not_told(error)

    def _not_told(self, error: ReactiveError) -> None:
        facts = {"event": "limiter_not_told", "task": self._task}
        logger.warning("the limiter was not told, starts and slots are free later: %s", error, extra=facts)


@contextmanager
def permitted(
    runtime: Runtime, limits: Limits, keys: Sequence[RecordKey], *, token: str, wanted: int
) -> Iterator[Permit | None]:
    """Take up to *wanted* starts for the block; None: the task has no limit.

    Raises:
        StoreUnavailableError: Unknown whether any were granted. Claim nothing.
    """
    if not limits.is_any:
        yield None
        return
    sent = time.monotonic()
    grant = limiters.take(runtime.connection.globals(), token, keys, limits, wanted=wanted)
    permit = Permit(runtime, limits, keys[0].task, token, grant, wanted=wanted, sent=sent)
    try:
        yield permit
    finally:
        permit.close()
