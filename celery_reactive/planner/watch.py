"""Watching one database: read the change stream, plan each batch, then store the position.

Called by `process`, in a thread of its own per database. The position advances only after the work
of a batch is durable (B-47); losing it is recovered from without a person (B-49).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta

from bson import ObjectId

from celery_reactive.errors import StatementFailedError, StoreUnavailableError
from celery_reactive.events import BatchFailed, HistoryLost, StreamFailed, StreamOpened
from celery_reactive.planner.plan import PlannedTask, Planning
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, positions, records, server
from celery_reactive.store.change_stream import Batch, Change, ChangeKind, ChangeStream, HistoryLostError
from celery_reactive.store.errors import time_limit
from celery_reactive.store.positions import Position

_READ_WAIT = timedelta(seconds=1)
_STORE_INTERVAL_SECONDS = 0.5
_IDLE_STORE_INTERVAL_SECONDS = 10.0
_FINISH_LIMIT = timedelta(seconds=5)
_UPHEAVALS = frozenset({ChangeKind.COLLECTION_GONE, ChangeKind.COLLECTION_MADE, ChangeKind.DATABASE_GONE})


class Watcher:
    """Follows one database for the leader of one term."""

    def __init__(
        self,
        runtime: Runtime,
        planning: Planning,
        database: str,
        *,
        group: str,
        term: int,
        on_planned: Callable[[Collection[str] | None], None],
        on_deleted: Callable[[Sequence[Change]], None],
        on_reconcile: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._planning = planning
        self._database = database
        self._group = group
        self._term = term
        self._on_planned = on_planned
        self._on_deleted = on_deleted
        self._on_reconcile = on_reconcile
        self._stream = ChangeStream(
            runtime.connection.database(database),
            {task.definition.collection for task in planning.tasks},
            batch_size=runtime.settings.batch_size,
            wake_collection=runtime.settings.globals_collection,
        )
        self._position: Position | None = None
        self._stored_at = 0.0
        self._stored_is_current = True
        self._is_idle = self._stored_idle = False
        """Nothing more had come by the last read; by the last stored position."""
        self._is_open = False
        self.ready = threading.Event()
        """Set once the stream is open and its position stored: scans may begin."""

    def step(self) -> None:
        """Open the stream if it is not, read a batch, plan it, store the position when it is time.

        Raises:
            TermEndedError: A newer leader plans.
            StoreUnavailableError: MongoDB is away; the next step goes on from the last planned batch.
        """
        try:
            if not self._is_open:
                self._open()
            self._follow(self._stream.read(_READ_WAIT))
        except HistoryLostError as error:
            self._is_open = False
            self._start_anew(str(error))
        except StoreUnavailableError as error:
            if self._is_open:
                self._runtime.emit(StreamFailed(self._database, str(error)))
            self._is_open = False
            raise

    def finish(self) -> None:
        """Store what has been planned and close the stream; called after the last step.

        Raises:
            TermEndedError: A newer leader plans.
            StoreUnavailableError: MongoDB is away, and an orderly stop must not wait for it (B-68); what was planned
                since the position was stored is planned again, which is harmless.
        """
        with time_limit(_FINISH_LIMIT):
            try:
                if not self._stored_is_current:
                    self._store()
            finally:
                self._stream.close()

    def _open(self) -> None:
        if self._position is None:
            self._position = self._usable_position()
        if self._position is None:
            self._start_anew("first start")
            return
        self._adopt_new_tasks(self._position)
        self._stream.open(resume_after=self._position.token)
        self._opened(resumed=True)

    def _opened(self, *, resumed: bool) -> None:
        self._is_open = True
        self._runtime.emit(StreamOpened(self._database, resumed))
        self.ready.set()

    def _usable_position(self) -> Position | None:
        """Return the stored position unless the data it speaks of is not this data."""
        stored = positions.read(self._globals, self._group, self._database)
        if stored is None:
            return None
        with self._runtime.connection.causal_session() as session:
            now = server.cluster_time(self._runtime.connection.database(self._database), session)
        if stored.replica_set != self._replica_set() or stored.at > now:
            for task in self._planning.tasks:
                records.forget_observations(self._runtime.connection.records(task.definition), task.definition.name)
            raise HistoryLostError("the data was restored from elsewhere or from an earlier time")
        return stored

    def _start_anew(self, reason: str) -> None:
        """Open a new stream, keep *its* start, and have everything looked at again."""
        if reason != "first start":
            self._runtime.emit(HistoryLost(self._database, reason))
        self._stream.open()
        first = self._stream.read(timedelta(0))
        # Between the two: a scan for an earlier reason, which may have read before the stream began, is not the one.
        self._mark_unreconciled(self._planning.tasks)
        self._position = Position(first.token, first.at, self._replica_set(), self._covers())
        self._store()
        self._opened(resumed=False)
        self._plan(first)
        self._on_reconcile()

    def _adopt_new_tasks(self, position: Position) -> None:
        """A task the position does not cover has missed what came before it (B-45)."""
        covered = {name for name, _ in position.covers}
        self._mark_unreconciled(task for task in self._planning.tasks if task.definition.name not in covered)
        if position.covers != self._covers():
            self._position = Position(position.token, position.at, position.replica_set, self._covers())
            self._store()
        self._on_reconcile()

    def _mark_unreconciled(self, tasks: Iterable[PlannedTask], *, dropped: bool = False) -> None:
        for task in tasks:
            definitions.mark_unreconciled(self._globals, task.definition.name, dropped=dropped, term=self._term)

    def _follow(self, batch: Batch) -> None:
        try:
            self._plan(batch)
            self._store_when_due()
        except (StoreUnavailableError, StatementFailedError) as error:
            self._runtime.emit(BatchFailed(self._database, str(error)))
            raise

    def _plan(self, batch: Batch) -> None:
        assert self._position is not None  # noqa: S101 -- set before the first read
        if batch.changes:
            planned = self._planning.plan_changes(batch.changes, at=batch.at)
            woken = {change.doc_id for change in batch.changes if change.kind is ChangeKind.WOKEN}
            if None in woken:
                self._on_planned(None)
            elif planned or woken:
                self._on_planned(planned | woken)
            if any(change.kind is ChangeKind.RECONCILIATION_WANTED for change in batch.changes):
                self._on_reconcile()
            self._on_deleted(batch.changes)
            self._heed_upheavals(batch.changes)
        self._position = Position(batch.token, batch.at, self._position.replica_set, self._position.covers)
        self._is_idle = not batch.changes
        self._stored_is_current = False

    def _heed_upheavals(self, changes: Iterable[Change]) -> None:
        """A dropped, renamed or replaced collection sends no event per document (B-49)."""
        upheavals = [change for change in changes if change.kind in _UPHEAVALS]
        if not upheavals:
            return
        everything = any(change.kind is ChangeKind.DATABASE_GONE for change in upheavals)
        names = {change.collection for change in upheavals}
        self._mark_unreconciled(
            (task for task in self._planning.tasks if everything or task.definition.collection in names), dropped=True
        )
        self._on_reconcile()

    def _store_when_due(self) -> None:
        """Store the position soon while there are changes, and once soon after the last of them."""
        since = time.monotonic() - self._stored_at
        nothing_new = self._is_idle and self._stored_idle
        if since >= (_IDLE_STORE_INTERVAL_SECONDS if nothing_new else _STORE_INTERVAL_SECONDS):
            self._store()

    def _store(self) -> None:
        assert self._position is not None  # noqa: S101 -- set before the first read
        positions.store(self._globals, self._group, self._database, self._position, idle=self._is_idle, term=self._term)
        self._stored_idle = self._is_idle
        self._stored_at = time.monotonic()
        self._stored_is_current = True

    def _replica_set(self) -> ObjectId | None:
        return server.replica_set_id(self._runtime.connection.database(self._database))

    def _covers(self) -> frozenset[tuple[str, int]]:
        return frozenset((task.definition.name, task.generation) for task in self._planning.tasks)

    @property
    def _globals(self) -> definitions.Globals:
        return self._runtime.connection.globals()
