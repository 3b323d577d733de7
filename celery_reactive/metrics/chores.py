"""What the leader does for the metrics of all.

It counts what is completed, retires the counters of the gone, and keeps for charts what was counted in each minute.
Run by the planner beside its stages, for one term of one group.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence

from celery_reactive.core.states import RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import StoreBusyError
from celery_reactive.store import counters, flow, measures, queries
from celery_reactive.store.connection import Connection
from celery_reactive.store.counters import Counted

_COUNT_SECONDS = 60.0
_LOOK_SECONDS = 10.0
_INTERVALS = 3
"""So many of its own push intervals, and some patience, must pass without a push from a process that has not ended."""
_PATIENCE_SECONDS = 30.0


class Chores:
    """The leader's part, for one term."""

    def __init__(
        self, connection: Connection, tasks: Sequence[ReactiveTask], *, group: str, term: int, ended: threading.Event
    ) -> None:
        self._connection = connection
        self._tasks = [task for task in tasks if task.group == group]
        self._group = group
        self._term = term
        self._ended = ended
        self._counted_at: float | None = None
        self._unchanged_since: dict[tuple[str, int], float] = {}
        """By name and last push, on this process's monotonic clock: whose clocks differ is of no interest."""

    def step(self) -> None:
        """Do what is due, then wait for the next time.

        Raises:
            TermEndedError: A newer leader plans.
            StoreUnavailableError: MongoDB is away; the next step goes on.
        """
        self.retire_the_gone()
        now = time.monotonic()
        if self._counted_at is None or now - self._counted_at >= _COUNT_SECONDS:
            self._counted_at = now
            self._count_completed()
            counters.forget_tombstones(self._connection.globals())
        self.keep_the_flow()
        self._ended.wait(_LOOK_SECONDS)

    def _count_completed(self) -> None:
        """Count and store; a task that cannot be counted in time is left out."""
        numbers: dict[str, int] = {}
        for task in self._tasks:
            with contextlib.suppress(StoreBusyError):
                records = self._connection.records(task)
                numbers[task.name] = queries.count_in_state(records, task.name, RecordState.COMPLETED)
        measures.store_completed(self._connection.globals(), self._group, numbers, term=self._term)

    def keep_the_flow(self) -> None:
        """Keep what has been counted within each step that has ended."""
        globals_ = self._connection.globals()
        due = flow.due(globals_)
        if not due:
            return
        with contextlib.suppress(StoreBusyError):
            # The leader of another group does it, or the next step.
            totals = counters.read(globals_, preference="primary")
            for pace in due:
                flow.keep(globals_, pace, totals)

    def retire_the_gone(self) -> int:
        """Add up what processes have counted that have ended, or that have not pushed for long; return how many.

        One that had only nothing to push finds out and goes on under a new name.
        """
        now = time.monotonic()
        live = counters.live(self._connection.globals())
        since = {(one.name, one.seq): self._unchanged_since.get((one.name, one.seq), now) for one in live}
        self._unchanged_since = since
        gone = [one for one in live if one.ended or now - since[one.name, one.seq] >= _patience_seconds(one)]
        try:
            return counters.retire(self._connection.globals(), gone)
        except StoreBusyError:
            # The leader of another group does it.
            return 0


def _patience_seconds(one: Counted) -> float:
    return _INTERVALS * one.push_every.total_seconds() + _PATIENCE_SECONDS
