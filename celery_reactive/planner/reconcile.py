"""Reconciliation: look at every document and every record once, beside live work (B-48).

Called by `process` for tasks never looked at under their present definition, after lost history, and
on demand. A page is read causally after a cluster time known before the read, and laid over the
records with that time: whichever of scan and live event comes later in the server's history wins.
A large collection is walked in two parts at once, each in a thread of its own. A checkpoint is stored every second or
two, after the work up to it is durable; the next leader goes on from there.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

from bson import MaxKey, Timestamp

from celery_reactive.core.record import RecordKey
from celery_reactive.errors import StatementFailedError
from celery_reactive.events import ReconciliationFinished, ReconciliationProgressed, ReconciliationStarted
from celery_reactive.planner.plan import PlannedTask, Planning
from celery_reactive.runtime import Runtime
from celery_reactive.store import checkpoints, definitions, indexes, positions, records, scans, server
from celery_reactive.store.checkpoints import Checkpoint, Part, Scanned
from celery_reactive.store.definitions import Controls
from celery_reactive.store.scans import Span

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

_CHECKPOINT_SECONDS = 1.5
_TELL_SECONDS = 10.0
_PAGES_WORTH_PARTING = 20
"""From so many pages on, documents and records together, a collection is walked in parts."""
_DOCUMENTS = ""
"""The phase in which documents are scanned."""


class Reconciler:
    """Reconciles what needs it, for the leader of one term."""

    def __init__(self, runtime: Runtime, planning: Planning, *, group: str, term: int, ended: threading.Event) -> None:
        self._runtime = runtime
        self._planning = planning
        self._group = group
        self._term = term
        self._ended = ended

    def reconcile_needed(self) -> bool:
        """Reconcile the tasks that need it, collection by collection; return whether there were any.

        Raises:
            TermEndedError: A newer leader plans; it goes on from the checkpoint.
            StoreUnavailableError: MongoDB is away; the next call goes on from the checkpoint.
        """
        names = [task.definition.name for task in self._planning.tasks]
        stored = definitions.read_all(self._runtime.connection.globals(), names)
        needing: dict[str, list[PlannedTask]] = {}
        for task in self._planning.tasks:
            if stored[task.definition.name].reconciled_generation != task.generation:
                needing.setdefault(task.definition.collection, []).append(task)
        for tasks in needing.values():
            self._reconcile(tasks, stored)
        return bool(needing)

    def _reconcile(self, tasks: Sequence[PlannedTask], stored: Mapping[str, Controls]) -> None:
        scan = _Scan(self._runtime, self._planning, tasks, stored, group=self._group, term=self._term)
        named = tuple(task.definition.name for task in tasks)
        self._runtime.emit(ReconciliationStarted(scan.collection, named))
        started = time.monotonic()
        indexes.prepare(self._runtime.connection.records(tasks[0].definition))
        scan.begin()
        if not scan.run(self._ended):
            scan.pause()
            return
        for task in tasks:
            self._planning.note_reconciled(task)
            definitions.mark_reconciled(
                self._runtime.connection.globals(),
                task.definition.name,
                generation=task.generation,
                needs=stored[task.definition.name].needs,
                term=self._term,
                collection=scan.collection_id,
            )
        scan.end()
        seconds = time.monotonic() - started
        self._runtime.emit(ReconciliationFinished(scan.collection, named, scan.documents, round(seconds, 3)))


class _Scan:
    """One walk over a collection's documents, then over the records of each task."""

    def __init__(
        self,
        runtime: Runtime,
        planning: Planning,
        tasks: Sequence[PlannedTask],
        stored: Mapping[str, Controls],
        *,
        group: str,
        term: int,
    ) -> None:
        self._runtime = runtime
        self._planning = planning
        self._source = runtime.connection.source(tasks[0].definition)
        self.collection_id = server.collection_id(self._source.database, self._source.name)
        """Of the collection that is walked; another may take its name meanwhile."""
        self._tasks = {
            task.definition.name: _as_scanned(task, stored[task.definition.name], self.collection_id) for task in tasks
        }
        self._known = frozenset(name for name in self._tasks if stored[name].scanned_filter)
        """Tasks whose documents have all been looked at before, under another filter maybe."""
        self._scanned = tuple(
            Scanned(name, task.generation, stored[name].needs) for name, task in sorted(self._tasks.items())
        )
        self._group = group
        self._term = term
        self._phases = [_DOCUMENTS, *self._tasks]
        self._parts: list[Part] = []
        """What is left of the first phase, in the order of the ids."""
        self._lock = threading.Lock()
        """Held where the walks of several parts count, tell and store."""
        self._start = Timestamp(0, 1)
        self._done = self._resumed_at = 0
        self._total = 0
        self._stored_at = self._told_at = self._began = time.monotonic()
        self.documents = 0
        """Documents laid over their records so far, since this process took the scan up."""

    @property
    def collection(self) -> str:
        """Name of the collection."""
        return self._source.name

    def begin(self) -> None:
        """Go on from the checkpoint, if there is one for the same tasks and reasons; else from the start."""
        found = checkpoints.read(self._globals, self._group, *self._place)
        if found is not None and found.tasks == self._scanned:
            self._parts = list(found.parts) or [Part(found.after, scans.END)]
            self._start, self._done, self._total = found.start, found.done, found.total
            self._phases = self._phases[self._phases.index(found.phase) :]
        else:
            with self._runtime.connection.causal_session() as session:
                self._start = server.cluster_time(self._source.database, session)
            target = self._records
            self._total = scans.estimate(self._source) + sum(scans.count(target, name) for name in self._tasks)
            self._parts = self._all_parts()
            self.pause()
        self._resumed_at = self._done

    def _all_parts(self) -> list[Part]:
        """Return the parts in which a whole phase is walked."""
        middle: Any = scans.END
        if self._total >= _PAGES_WORTH_PARTING * self._page_size:
            with self._runtime.connection.causal_session() as session:
                middle = scans.find_middle(self._source, session=session)
        if isinstance(middle, MaxKey):
            return [Part(scans.START, scans.END)]
        return [Part(scans.START, middle), Part(middle, scans.END)]

    def run(self, ended: threading.Event) -> bool:
        """Walk through what is left; return whether all of it is done, false where *ended* came first."""
        while self._phases:
            self._walk_parts(ended)
            if self._parts:
                return False
            del self._phases[0]
            if self._phases:
                self._parts = self._all_parts()
        return True

    def _walk_parts(self, ended: threading.Event) -> None:
        """Walk all parts at once, the first of them in this thread; what ends one walk ends the others after a page."""
        failures: list[BaseException] = []

        def walk(part: Part) -> None:
            left: Part | None = part
            try:
                while left is not None and not failures:
                    left = self._advance(left)
                    if ended.is_set():
                        break
            except BaseException as failure:  # noqa: BLE001 -- raised below, by the thread that waits for all
                failures.append(failure)

        first, *others = self._parts
        name = threading.current_thread().name
        threads = [
            threading.Thread(target=walk, args=(part,), name=f"{name} {number}", daemon=True)
            for number, part in enumerate(others, 2)
        ]
        for thread in threads:
            thread.start()
        walk(first)
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _advance(self, part: Part) -> Part | None:
        """Do the next page of *part*, and store how far all are from time to time; return what is left of it."""
        with self._runtime.connection.causal_session() as session:
            at = server.cluster_time(self._source.database, session)
            phase = self._phases[0]
            if phase == _DOCUMENTS:
                span = self._scan_documents(part, at, session)
            else:
                span = self._scan_records(part, self._tasks[phase], at, session)
        left = None if span is None else Part(span.until, part.until)
        with self._lock:
            self._done += 0 if span is None else span.count
            place = self._parts.index(part)
            self._parts[place : place + 1] = [] if left is None else [left]
            self._tell()
        return left

    def pause(self) -> None:
        """Store how far the scan has come."""
        parts = tuple(self._parts)
        checkpoint = Checkpoint(
            self._scanned,
            self._start,
            self._phases[0],
            parts[0].after,
            self._done,
            max(self._total, self._done),
            parts if len(parts) > 1 or not isinstance(parts[0].until, MaxKey) else (),
        )
        checkpoints.store(self._globals, self._group, *self._place, checkpoint, term=self._term)
        self._stored_at = time.monotonic()

    def end(self) -> None:
        """Forget how far the scan has come: it is done."""
        checkpoints.clear(self._globals, self._group, *self._place, term=self._term)

    def _tell(self) -> None:
        now = time.monotonic()
        if self._parts and now - self._stored_at >= _CHECKPOINT_SECONDS:
            self.pause()
        if now - self._told_at >= _TELL_SECONDS:
            self._told_at = now
            rate = (self._done - self._resumed_at) / (now - self._began)
            left = max(self._total - self._done, 0)
            seconds = left / rate if rate else 0.0
            named = tuple(self._tasks)
            self._runtime.emit(
                ReconciliationProgressed(self.collection, named, self._done, self._total, round(rate), round(seconds)),
            )

    def _scan_documents(self, part: Part, at: Timestamp, session: ClientSession) -> Span | None:
        """Lay the next page of documents over their records."""
        times = {name: at if task.definition.backfill else self._start_of(name) for name, task in self._tasks.items()}
        span = scans.next_documents(self._source, part.after, until=part.until, limit=self._page_size, session=session)
        if span is not None:
            for name, task in self._tasks.items():
                self._planning.apply(task, span, at=times[name], live=False, stamps=False, session=session)
            with self._lock:
                self.documents += span.count
        return span

    def _start_of(self, task: str) -> Timestamp:
        """Return the time of records that are made without a run, so that the first change after it runs (B-2).

        That is the scan's start for a task that is new. For any other, what was inserted before the scan, while no
        planner ran, must run, too: the time up to which its changes have been planned.
        """
        if task not in self._known:
            return self._start
        position = positions.read(self._globals, self._group, self._source.database.name)
        return self._start if position is None else position.at

    def _scan_records(self, part: Part, task: PlannedTask, at: Timestamp, session: ClientSession) -> Span | None:
        """Mark every record of the next page whose document is gone or outside the filter."""
        name = task.definition.name
        span = scans.next_records(
            self._records, name, part.after, until=part.until, limit=self._page_size, session=session
        )
        off = self._find_off(task, span, session) if span is not None else []
        if off:
            self._leave(task, off, at, session)
        return span

    def _find_off(self, task: PlannedTask, span: Span, session: ClientSession) -> list[Any]:
        """Return the records of *span* whose documents are gone or outside the filter; one on which it fails is not."""
        # Documents that a filter leaves out have no records: between those of one page there may be any number.
        by_span = task.definition.filter.matches_all and not task.collated
        page = [] if by_span else scans.record_ids_of(self._records, task.definition.name, span, session=session)
        if not task.collated:
            whose = span if by_span else page
            with suppress(StatementFailedError):
                return records.find_absent(self._source, self._records, task.definition, whose, session=session)
        return self._find_off_among(task, page, session)

    def _find_off_among(self, task: PlannedTask, page: Sequence[Any], session: ClientSession) -> list[Any]:
        try:
            matching = records.find_matching(self._source, task.definition, page, session=session)
        except StatementFailedError:
            if len(page) == 1:
                return []
            middle = len(page) // 2
            return [
                *self._find_off_among(task, page[:middle], session),
                *self._find_off_among(task, page[middle:], session),
            ]
        return self._without(task, page, matching, session)

    def _leave(self, task: PlannedTask, off: Sequence[Any], at: Timestamp, session: ClientSession) -> None:
        """Mark the records of *off*, then observe their documents once more: what has come back since has entered.

        The other way round a document inserted again in between would count as the one that was handled, and its
        deletion, older than the observation, would be refused (B-18).
        """
        existing = scans.find_existing(self._source, off, session=session)
        absent = self._without(task, off, existing, session)
        if absent and task.definition.on_delete and self._is_replaced():
            task = _without_deletions(task)
        for doc_ids, gone in ((absent, True), (_difference(off, absent), False)):
            if doc_ids:
                self._planning.leave(task, doc_ids, at=at, gone=gone, session=session)
        self._planning.apply(task, off, at=at, live=False, session=session)

    def _is_replaced(self) -> bool:
        """Whether the collection has been dropped or renamed since the walk began, by a look after what was read."""
        return server.collection_id(self._source.database, self._source.name) != self.collection_id

    def _without(
        self, task: PlannedTask, page: Sequence[Any], found: Sequence[Any], session: ClientSession
    ) -> list[Any]:
        """Return those of *page*, ids of records, whose document is not among *found*.

        Whose record a document is whose id the server only calls equal (1.0 to 1), the records tell.
        """
        strangers = _difference(found, page)
        own = scans.find_records(self._records, task.definition.name, strangers, session=session) if strangers else []
        return _difference(page, [*found, *own])

    @property
    def _records(self) -> records.Records:
        return self._runtime.connection.records(next(iter(self._tasks.values())).definition)

    @property
    def _place(self) -> tuple[str, str]:
        return self._source.database.name, self._source.name

    @property
    def _globals(self) -> checkpoints.Globals:
        return self._runtime.connection.globals()

    @property
    def _page_size(self) -> int:
        return self._runtime.settings.batch_size


def _as_scanned(task: PlannedTask, stored: Controls, collection_id: UUID | None) -> PlannedTask:
    """Return *task* as documents without a record, and records without a document, are planned for it.

    Where all documents have been looked at under the same filter, those have come since: they run, also without a
    back-fill. What went with its collection was not deleted by anybody and runs nothing (B-61).
    """
    definition = task.definition
    if stored.scanned_filter == stored.filter_text:
        definition = dataclasses.replace(definition, backfill=True)
    task = dataclasses.replace(task, definition=definition)
    is_another = stored.scanned_collection not in (None, collection_id)
    return _without_deletions(task) if stored.dropped or collection_id is None or is_another else task


def _without_deletions(task: PlannedTask) -> PlannedTask:
    return dataclasses.replace(task, definition=dataclasses.replace(task.definition, on_delete=False))


def _difference(doc_ids: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Return those of *doc_ids* that are not among *others*, told apart by their exact bytes."""
    known = {RecordKey("", other).exact for other in others}
    return [doc_id for doc_id in doc_ids if RecordKey("", doc_id).exact not in known]
