"""One run of one record: what its context, its heartbeat and its end share.

The context and the heartbeat write what they learn here; `execute` reads it when the handler has ended.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from bson.raw_bson import RawBSONDocument

from celery_reactive.core.outcome import Completed, Deferred, Overtaken
from celery_reactive.core.record import Claim
from celery_reactive.core.task import ReactiveTask
from celery_reactive.runtime import Runtime
from celery_reactive.store.records import Settled

if TYPE_CHECKING:
    from celery_reactive.worker.permits import Permit
    from celery_reactive.worker.read_ahead import ReadAhead


class Run:
    """The state of one run in the process that executes it."""

    def __init__(
        self,
        runtime: Runtime,
        task: ReactiveTask,
        claim: Claim,
        *,
        sent: float,
        collated: bool,
        outdated: bool = False,
        generation: int | None = None,
        permit: Permit | None = None,
        knows_deletions: bool | None = None,
    ) -> None:
        self.runtime = runtime
        self.task = task
        self.claim = claim
        self.collated = collated
        """The watched collection compares strings under a collation of its own."""
        self.outdated = outdated
        """The record was observed under an older definition than the stored one."""
        self.knows_deletions = task.on_delete if knows_deletions is None else knows_deletions
        """The task says `on_delete` in this process's code."""
        self.deleted = self.knows_deletions and claim.gone
        """It is for the deletion of its document (B-61)."""
        self.generation = claim.generation if generation is None else generation
        """Of the definition in `task`, whose projection this run is checked with."""
        self.permit = permit
        """Of its message, where the task has limits."""
        self.started = time.monotonic()
        self.began: float | None = None
        """When its handler was called, on the monotonic clock; None: it waits for those before it in its message."""
        self.ahead: ReadAhead | None = None
        """Documents of the records of its message."""
        self.renewed = sent
        """When, on the monotonic clock, the last acknowledged claim or renewal was sent."""
        self.lost = False
        """The record belongs to somebody else now."""
        self.ended = False
        """The handler has returned; its context is of no use any more."""
        self.deferral: Deferred | None = None
        self.overtaken: RawBSONDocument | None = None
        """`{"v": values}` that a read found moved on."""
        self.document_checked = False
        self.throttled = False
        """The handler has asked for all runs of its task to wait."""
        self.completes = False
        """The handler has said that this one is done, whatever becomes of others of its call."""
        self.failure: BaseException | None = None
        """What the handler has said this one failed with."""
        self.gone = False
        self.left = False
        self.completed = False
        """`mark_completed` is known to be durable."""
        self.settled: tuple[Completed | Overtaken, Settled] | None = None
        """What `mark_completed` wrote, durable or not."""
        self.completing = False
        """`mark_completed` was sent in a transaction whose end this package does not see."""
        self.in_doubt = False
        """Its end may have been written already: the process was interrupted after the statement was sent."""
        self.given_up = False
        """Celery's own `retry` was called with a `max_retries` that is spent."""

    @property
    def elapsed(self) -> timedelta:
        """Time since the claim, by the monotonic clock."""
        return timedelta(seconds=time.monotonic() - self.started)

    @property
    def took(self) -> timedelta:
        """Time since the handler was called; zero where it was not."""
        return timedelta(seconds=0.0 if self.began is None else time.monotonic() - self.began)

    @property
    def lease_lost(self) -> bool:
        """Whether the record may belong to somebody else: told by the server, or by this process's own clock."""
        lease_seconds = self.runtime.settings.visibility_timeout.total_seconds()
        return self.lost or time.monotonic() - self.renewed >= lease_seconds

    def server_time(self) -> datetime:
        """The server's time now, counted on from the claim."""
        return self.claim.now(self.elapsed)
