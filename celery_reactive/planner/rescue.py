"""Rescue: end the runs whose worker has vanished (B-28).

Called by `process`, in a thread of its own. A worker lives as long as its heartbeat counter moves.
The leader counts *readings* that found it standing still, on no clock but their spacing: a database
that was away, or a server whose clock jumped in a failover, rescues no live run. Slots of limiters that are left
without a run are freed as well (B-58).
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from celery_reactive.core.loss import after_loss
from celery_reactive.core.outcome import Failure, GivenBack
from celery_reactive.core.record import Lease
from celery_reactive.core.states import RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import LeaseLostError, StatementFailedError, StoreBusyError
from celery_reactive.events import LeaseExpired, RunFailed
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.runtime import Runtime
from celery_reactive.store import limiters, records
from celery_reactive.store.errors import time_limit
from celery_reactive.store.limiters import Slots
from celery_reactive.store.records import Records, Settled

logger = logging.getLogger(__name__)

_READINGS = 6
"""So many in a row must find the counter unchanged; spaced a fifth of the visibility timeout, 1.2 to 1.4 of it pass."""
_STATEMENT_LIMIT = timedelta(seconds=1)
_VANISHED = Failure("the worker that ran it has vanished: its heartbeat stopped", "WorkerLostError")


@dataclasses.dataclass(slots=True)
class _Watch:
    beats: int
    unchanged: int = 0


class Rescuer:
    """Watches the running records, for the leader of one term."""

    def __init__(self, runtime: Runtime, tasks: Sequence[PlannedTask]) -> None:
        self._runtime = runtime
        self._tasks = tuple(task.definition for task in tasks)
        self._watches: dict[tuple[str, str, bytes], _Watch] = {}

    def look(self) -> int:
        """Read the heartbeats once and end what has stood still for too long.

        Called every fifth of the visibility timeout.

        Returns:
            Number of runs ended.

        Raises:
            StoreUnavailableError: This reading does not count.
        """
        slots = limiters.held(self._runtime.connection.globals(), [task.name for task in self._tasks])
        leases = [(task, lease) for task in self._tasks for lease in self._running(task)]
        watches: dict[tuple[str, str, bytes], _Watch] = {}
        expired: list[tuple[ReactiveTask, Lease]] = []
        for task, lease in leases:
            name = (task.name, lease.token, lease.key.exact)
            watch = self._watches.get(name)
            if watch is None or watch.beats != lease.beats:
                watch = _Watch(lease.beats)
            else:
                watch.unchanged += 1
            if watch.unchanged >= _READINGS:
                expired.append((task, lease))
                watch = _Watch(lease.beats)
            watches[name] = watch
        self._watches = watches
        ended = [lease.token for task, lease in expired if self._rescue(task, lease)]
        self._free(slots, ended, [lease.token for _, lease in leases])
        return len(ended)

    def _free(self, slots: Sequence[Slots], ended: Sequence[str], running: Sequence[str]) -> None:
        """Free the slots of runs that are over, whoever ended them (B-58).

        Args:
            slots: As read before *running*.
            ended: Tokens of the runs that were ended now.
            running: Tokens of all runs, with those.
        """
        left = Counter(running)
        left.subtract(ended)
        for one in slots:
            if left[one.token] < one.count and (one.is_settled or one.token in ended):
                limiters.keep(self._runtime.connection.globals(), one.task, one.token, left[one.token])

    def _running(self, task: ReactiveTask) -> list[Lease]:
        return records.running(self._runtime.connection.records(task), task.name)

    def _rescue(self, task: ReactiveTask, lease: Lease) -> bool:
        target = self._runtime.connection.records(task)
        try:
            with time_limit(_STATEMENT_LIMIT):
                settled = self._end(target, task, lease)
        except (LeaseLostError, StoreBusyError):
            return False
        except StatementFailedError as error:
            logger.error(  # noqa: TRY400 -- no traceback helps
                "run not ended, its record cannot be written: %s",
                error,
                extra={"event": "unstorable", "record": str(lease.key)},
            )
            return False
        self._runtime.emit(LeaseExpired(task.name, str(lease.key), settled.state))
        if settled.state is RecordState.FAILED:
            seconds = (lease.now - lease.started_at).total_seconds()
            self._runtime.emit(RunFailed(task.name, str(lease.key), lease.attempts, _VANISHED.message, seconds))
        return True

    def _end(self, target: Records, task: ReactiveTask, lease: Lease) -> Settled:
        try:
            return records.rescue(target, task, lease, after_loss(task, lease, _VANISHED))
        except StatementFailedError:
            # No room for a word about it: the run begins anew, and its handler's own end is told in fewer.
            return records.rescue(target, task, lease, GivenBack(alone=True))
