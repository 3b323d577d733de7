"""Cleanup: remove the records that nobody needs, once they are old enough (B-41, B-42).

Called by `process`, in a thread of its own per database. Looks at the records of deleted documents as soon as their
deletion has been planned, and at all records of a task after a reconciliation and every `reactive_cleanup_interval`.
Must never remove what may still have to run: what a record was chosen for is demanded again by the statement that
removes it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from bson import Timestamp

from celery_reactive.core import cron
from celery_reactive.core.record import RecordKey
from celery_reactive.events import CleanupFinished
from celery_reactive.planner.plan import PlannedTask, Planning
from celery_reactive.runtime import Runtime
from celery_reactive.store import orphans
from celery_reactive.store.change_stream import Change, ChangeKind
from celery_reactive.store.orphans import Criteria, Seen

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

_LOOK_SECONDS = 1.0
_LONGEST_TRUST_SECONDS = 60.0
"""The stored times are read again after so long, whenever the next cleanup is due."""
_MOST_DELETIONS = 10_000
"""So many are kept in memory; beyond, all records of the task are looked at instead."""


class _Ids:
    """Ids of documents, each once, up to a number; equal means the same type and the same bytes."""

    def __init__(self) -> None:
        self._ids: dict[bytes, Any] = {}

    def add(self, doc_ids: Iterable[Any]) -> bool:
        """Add *doc_ids*; false: there is no room for all of them."""
        for doc_id in doc_ids:
            if len(self._ids) >= _MOST_DELETIONS:
                return False
            self._ids[RecordKey("", doc_id).exact] = doc_id
        return True

    def take(self, number: int) -> list[Any]:
        """Remove and return up to *number* of them."""
        exact = list(itertools.islice(self._ids, number))
        return [self._ids.pop(one) for one in exact]


class Cleaner:
    """Removes the orphans of one database, for the leader of one term."""

    def __init__(self, runtime: Runtime, planning: Planning, *, group: str, term: int, ended: threading.Event) -> None:
        self._runtime = runtime
        self._planning = planning
        self._group = group
        self._term = term
        self._ended = ended
        policies = ((task, Criteria.of(task.definition.cleanup_policy)) for task in planning.tasks)
        self._tasks = {task.definition.name: (task, criteria) for task, criteria in policies if criteria is not None}
        self._deleted = {name: _Ids() for name in self._tasks}
        self._busy = {name: _Ids() for name in self._tasks}
        """Deleted documents whose records ran or were still to run, of tasks that keep no orphan: looked at again."""
        self._busy_looked_at = 0.0
        self._wanted: dict[str, None] = {}
        """Tasks all of whose records are to be looked at, in order."""
        self._lock = threading.Lock()
        """Held while deletions and tasks are added or taken: other stages add."""
        self._kicked = threading.Event()
        self._look_at = 0.0
        """When, on the monotonic clock, the stored times are to be read."""

    def note_deleted(self, changes: Iterable[Change]) -> None:
        """Take note of deletions that have been planned; called by the stage that follows the stream."""
        deleted = [change for change in changes if change.kind is ChangeKind.DELETED]
        for name, (task, _) in self._tasks.items():
            doc_ids = [change.doc_id for change in deleted if change.collection == task.definition.collection]
            if doc_ids:
                self._note(self._deleted, name, doc_ids)
                self._kicked.set()

    def want_all(self) -> None:
        """Have the records of all tasks looked at: a reconciliation may have marked any."""
        for name in self._tasks:
            self._want(name)
        self._kicked.set()

    def step(self) -> None:
        """Wait for something to do, a second at most; remove what deletions have told of, then what is due.

        Raises:
            TermEndedError: A newer leader plans.
            StoreUnavailableError: MongoDB is away; the next step looks at the same again.
        """
        self._kicked.wait(_LOOK_SECONDS)
        self._kicked.clear()
        self._clear_deleted()
        self._want_due()
        for name in list(self._wanted):
            if not self._ended.is_set():
                self._clear_wanted(name)

    # --- deletions ---------------------------------------------------------------------------

    def _note(self, place: dict[str, _Ids], name: str, doc_ids: Iterable[Any]) -> None:
        with self._lock:
            if not place[name].add(doc_ids):
                self._wanted[name] = None

    def _clear_deleted(self) -> None:
        self._recall_busy()
        for name in self._tasks:
            while not self._ended.is_set() and (doc_ids := self._take_deleted(name)):
                try:
                    self._clear_deleted_page(name, doc_ids)
                except BaseException:
                    self._note(self._deleted, name, doc_ids)
                    raise

    def _take_deleted(self, name: str) -> list[Any]:
        with self._lock:
            return self._deleted[name].take(self._page_size)

    def _recall_busy(self) -> None:
        """Look once a second at a page of records whose runs had not ended when their documents were deleted."""
        if time.monotonic() - self._busy_looked_at < _LOOK_SECONDS:
            return
        self._busy_looked_at = time.monotonic()
        for name, busy in self._busy.items():
            self._note(self._deleted, name, busy.take(self._page_size))

    def _clear_deleted_page(self, name: str, doc_ids: Sequence[Any]) -> None:
        task, criteria = self._tasks[name]
        with self._runtime.connection.causal_session() as session:
            page = orphans.read(self._records(task), name, doc_ids, criteria, session=session)
            removed = self._clear_page(task, criteria, page, session)
        if not criteria.keep_for:
            busy = [one.doc_id for one in page if one.gone and (one.running or one.pending)]
            self._note(self._busy, name, busy)
        if removed:
            self._runtime.emit(CleanupFinished(name, removed))

    # --- all records of a task ---------------------------------------------------------------

    def _want_due(self) -> None:
        """Want the tasks whose time has come; the first interval begins when a task is first seen."""
        if not self._tasks or time.monotonic() < self._look_at:
            return
        times = orphans.read_times(self._globals, self._group, list(self._tasks))
        wait = _LONGEST_TRUST_SECONDS
        for name in self._tasks:
            last = times.get(name)
            if last is None:
                orphans.note_time(self._globals, self._group, name, term=self._term)
                wait = 0.0
            elif (due := self._next_time(last.at)) is not None:
                wait = min(wait, (due - last.now).total_seconds())
                if due <= last.now:
                    self._want(name)
        self._look_at = time.monotonic() + max(wait, 0.0)

    def _want(self, name: str) -> None:
        with self._lock:
            self._wanted[name] = None

    def _next_time(self, last: datetime) -> datetime | None:
        interval = self._runtime.settings.cleanup_interval
        if isinstance(interval, timedelta):
            return last + interval
        expression, zone = cron.read_schedule(interval, "reactive_cleanup_interval")
        return cron.next_time(expression, zone, after=last)

    def _clear_wanted(self, name: str) -> None:
        with self._lock:
            self._wanted.pop(name, None)
        try:
            removed = self._clear_all(name)
        except BaseException:
            self._want(name)
            raise
        if removed is not None:
            self._runtime.emit(CleanupFinished(name, removed))

    def _clear_all(self, name: str) -> int | None:
        """Look at all records of a task; return how many were removed, None if the term ended before the last."""
        task, criteria = self._tasks[name]
        removed = 0
        with self._runtime.connection.causal_session() as session:
            for page in orphans.pages(self._records(task), name, criteria, size=self._page_size, session=session):
                if self._ended.is_set():
                    return None
                removed += self._clear_page(task, criteria, page, session)
                # A deletion does not wait for the end of a long walk.
                self._clear_deleted()
        orphans.note_time(self._globals, self._group, name, term=self._term)
        return removed

    # --- a page ------------------------------------------------------------------------------

    def _clear_page(self, task: PlannedTask, criteria: Criteria, page: Sequence[Seen], session: ClientSession) -> int:
        def mark(doc_ids: Sequence[Any], at: Timestamp, gone: bool) -> None:  # noqa: FBT001 -- as it is called
            self._planning.leave(task, doc_ids, at=at, gone=gone, session=session)

        source = self._runtime.connection.source(task.definition)
        return orphans.clear_page(
            source, self._records(task), task.definition, page, criteria, mark=mark, session=session
        )

    def _records(self, task: PlannedTask) -> orphans.Documents:
        return self._runtime.connection.records(task.definition)

    @property
    def _globals(self) -> orphans.Documents:
        return self._runtime.connection.globals()

    @property
    def _page_size(self) -> int:
        return min(self._runtime.settings.batch_size, orphans.LARGEST_PAGE)
