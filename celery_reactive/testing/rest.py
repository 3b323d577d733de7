"""Waiting until all tasks are at rest: everything written has been planned, and nothing runs or is due.

Called by tests. It goes by what is stored, so that planner and workers may be in this process or anywhere. That
nothing is pending does not say enough: a write that the planner has not seen yet has left no trace. So it marks a time
when nothing is to be done, waits until the planner has seen all changes up to it, and looks again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from bson import Timestamp
from celery import Celery

from celery_reactive.app import Reactive
from celery_reactive.core.duration import Duration
from celery_reactive.core.states import RUNNING, RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import ReactiveError
from celery_reactive.management.listing import MAX_LIMIT, TaskRecord
from celery_reactive.store import definitions, positions, queries, server, wake
from celery_reactive.testing.report import records_in_words
from celery_reactive.testing.waiting import wait_until

_UNSETTLED = [RecordState.PENDING.value, *sorted(state.value for state in RUNNING)]


def wait_until_idle(
    app: Celery,
    timeout: Duration = 30,
    stable_for: Duration = 0.2,
    only: str | Sequence[str] | None = None,
) -> None:
    """Wait until everything written so far has been planned and no run is under way, due, or waits for its debounce.

    What a handler writes is waited for too, and what follows from that. A record that backs off after a failure or was
    deferred is at rest: `make_due` ends its wait. So is one that the loop guard has paused.

    Args:
        app: The Celery app.
        timeout: Longest wait, seconds or a duration such as `"5s"`.
        stable_for: Rest must have lasted so long.
        only: Only these tasks.

    Raises:
        AssertionError: No rest within *timeout*; the message names what is still to be done, and why it is not.
        UnknownTaskError: A named task does not exist; the message lists the known ones.
        StoreUnavailableError: MongoDB does not answer.
    """
    app.loader.import_default_modules()
    app.finalize()
    registry = Reactive.of(app).runtime.registry
    names = [only] if isinstance(only, str) else only
    watched = list(registry) if names is None else [registry.get(name) for name in names]
    rest = _Rest(Reactive.of(app), watched)
    wait_until(rest.is_reached, timeout=timeout, stable_for=stable_for, explain=rest.explain)


class _Rest:
    """What was found at the last look, and the time up to which everything must have been planned."""

    def __init__(self, handle: Reactive, tasks: Sequence[ReactiveTask]) -> None:
        self._handle = handle
        self._connection = handle.runtime.connection
        self._tasks = tasks
        self._names = [task.name for task in tasks]
        self._marked: Timestamp | None = None
        self._latest: datetime | None = None
        """Start of the newest run when the time was marked: a later one may have written something."""
        self._unlooked: list[str] = []
        self._unsettled: list[TaskRecord] = []

    def is_reached(self) -> bool:
        """Look once; return whether nothing is to be done and everything up to the marked time has been planned."""
        is_planned = self._marked is not None and self._is_planned(self._marked)
        self._unlooked = self._not_looked_at()
        self._unsettled = self._still_to_do()
        latest = self._latest_start()
        if self._unlooked or self._unsettled:
            self._marked = None
            return False
        if self._marked is None or latest != self._latest:
            self._marked, self._latest = self._mark(), latest
            return False
        return is_planned

    def explain(self) -> str:
        """Say what is still to be done."""
        lines = [*self._absences()]
        if self._unlooked:
            lines.append(f"not every document has been looked at for {', '.join(self._unlooked)}")
        if self._unsettled:
            lines.append(f"{len(self._unsettled)} still to do:\n{records_in_words(self._unsettled)}")
            first = self._unsettled[0]
            with contextlib.suppress(ReactiveError):
                lines.append(f"{first.key}:\n{self._handle.explain(first.task, first.source_doc_id)}")
        return "\n".join(lines or ["the planner has not come to what was written last"])

    def _is_planned(self, marked: Timestamp) -> bool:
        for group, database in self._places():
            position = positions.read(self._connection.globals(), group, database)
            if position is None or position.at < marked:
                return False
        return True

    def _not_looked_at(self) -> list[str]:
        """Return the tasks whose documents have not all been looked at under their stored definition."""
        stored = definitions.read_all(self._connection.globals(), self._names)
        return [
            task.name
            for task in self._tasks
            if not 0 < stored[task.name].generation == stored[task.name].reconciled_generation
            or stored[task.name].handler_version < task.evolution.handler_version
        ]

    def _still_to_do(self) -> list[TaskRecord]:
        now = queries.server_time(self._connection.globals())
        return [record for record in self._records(status=_UNSETTLED) if not _waits_for_its_time(record, now)]

    def _records(self, **filters: Any) -> Iterator[TaskRecord]:
        after = None
        while True:
            page = self._handle.get_tasks(task=self._names, limit=MAX_LIMIT, after=after, **filters)
            yield from page.items
            after = page.next
            if after is None:
                return

    def _latest_start(self) -> datetime | None:
        newest = self._handle.get_tasks(task=self._names, limit=1, sort=("startedAt", -1)).items
        return newest[0].started_at if newest else None

    def _mark(self) -> Timestamp:
        """Return the present time of the cluster, and make a change that the planner sees after it."""
        with self._connection.causal_session() as session:
            marked = server.cluster_time(self._connection.database(), session)
        wake.wake(self._connection.globals())
        return marked

    def _places(self) -> set[tuple[str, str]]:
        """Return the planner groups and databases of the tasks."""
        return {(task.group, task.database or self._connection.default_database) for task in self._tasks}

    def _absences(self) -> Iterator[str]:
        for group in sorted({group for group, _ in self._places()}):
            leading = queries.leading(self._connection.globals(), group)
            if leading is None or leading.holder is None:
                yield f"no planner of the group {group!r} leads"


def _waits_for_its_time(record: TaskRecord, now: datetime) -> bool:
    """Whether *record* backs off, was deferred, or is paused by the loop guard.

    The last change of the first two was due before the time that they wait for (B-25, B-34).
    """
    if record.guarded:
        return True
    if record.status is not RecordState.PENDING or record.next_run_at is None:
        return False
    return record.next_run_at > max(now, record.due_at)
