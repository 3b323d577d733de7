"""Looking again at documents whose filter depends on time (B-59).

Called by `process`, in a thread of its own. No write tells that a document has begun to match because time has passed:
every document of such a task is looked at again each interval, by a reconciliation like any other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from celery_reactive.core import cron
from celery_reactive.core.task import ReactiveTask
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions
from celery_reactive.store.definitions import Controls

_LONGEST_TRUST_SECONDS = 60.0
"""In this process's clock, whose pace may differ from the server's."""
_LEAST_WAIT_SECONDS = 0.2


class Rechecker:
    """Asks for reconciliations when their time has come, for the leader of one term."""

    def __init__(
        self,
        runtime: Runtime,
        tasks: Sequence[PlannedTask],
        *,
        on_wanted: Callable[[], None],
        ended: threading.Event,
    ) -> None:
        self._runtime = runtime
        self._tasks = [task.definition for task in tasks if task.definition.recheck_interval is not None]
        self._on_wanted = on_wanted
        self._ended = ended

    @property
    def is_needed(self) -> bool:
        """Whether any task is to be looked at again."""
        return bool(self._tasks)

    def step(self) -> None:
        """Ask for what is due, then wait until something is.

        Raises:
            StoreUnavailableError: Nothing is known; it is tried again.
        """
        asked = time.monotonic()
        controls = definitions.read_all(self._runtime.connection.globals(), [task.name for task in self._tasks])
        waits = [self._look(task, controls[task.name]) for task in self._tasks]
        wait = min(waits, default=_LONGEST_TRUST_SECONDS) - (time.monotonic() - asked)
        self._ended.wait(min(max(wait, _LEAST_WAIT_SECONDS), _LONGEST_TRUST_SECONDS))

    def _look(self, task: ReactiveTask, controls: Controls) -> float:
        """Ask for *task* if its time has come; return the seconds until it has."""
        last, now = controls.reconciled_at, controls.read_at
        is_under_way = controls.reconciled_generation != controls.generation
        if last is None or now is None or is_under_way:
            # The reconciliation that is due for another reason looks at all documents, too.
            return _LEAST_WAIT_SECONDS * 5
        due = _next_time(task, last)
        if due is None:
            return _LONGEST_TRUST_SECONDS
        if due <= now:
            definitions.request_reconciliation(self._runtime.connection.globals(), task.name)
            self._on_wanted()
            return _LEAST_WAIT_SECONDS * 5
        return (due - now).total_seconds()


def _next_time(task: ReactiveTask, last: datetime) -> datetime | None:
    interval = task.recheck_interval
    if interval is None or isinstance(interval, timedelta):
        return None if interval is None else last + interval
    expression, zone = cron.read_schedule(interval, "recheck_interval")
    return cron.next_time(expression, zone, after=last)
