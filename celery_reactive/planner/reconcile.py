"""Reconciliation: look at every document and every record once, beside live work (B-48).

Called by `process` for tasks never looked at under their present definition, after lost history, and
on demand. A page is read causally after a cluster time known before the read, and laid over the
records with that time: whichever of scan and live event comes later in the server's history wins.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bson import Timestamp

from celery_reactive.core.record import RecordKey
from celery_reactive.errors import StatementFailedError
from celery_reactive.events import ReconciliationFinished, ReconciliationStarted
from celery_reactive.planner.plan import PlannedTask, Planning
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, indexes, records, scans, server

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession


class Reconciler:
    """Reconciles what needs it, for the leader of one term."""

    def __init__(self, runtime: Runtime, planning: Planning, *, term: int, ended: threading.Event) -> None:
        self._runtime = runtime
        self._planning = planning
        self._term = term
        self._ended = ended

    def reconcile_needed(self) -> bool:
        """Reconcile the tasks that need it, collection by collection; return whether there were any.

        Raises:
            TermEndedError: A newer leader plans; it begins anew.
            StoreUnavailableError: MongoDB is away; the next call begins anew.
        """
        names = [task.definition.name for task in self._planning.tasks]
        stored = definitions.read_all(self._runtime.connection.globals(), names)
        needing: dict[str, list[PlannedTask]] = {}
        for task in self._planning.tasks:
            if stored[task.definition.name].reconciled_generation != task.generation:
                needing.setdefault(task.definition.collection, []).append(task)
        for collection, tasks in needing.items():
            self._reconcile(collection, tasks)
        return bool(needing)

    def _reconcile(self, collection: str, tasks: Sequence[PlannedTask]) -> None:
        named = tuple(task.definition.name for task in tasks)
        self._runtime.emit(ReconciliationStarted(collection, named))
        started = time.monotonic()
        indexes.prepare(self._runtime.connection.records(tasks[0].definition))
        documents = self._scan_documents(tasks)
        for task in tasks:
            self._scan_records(task)
        if self._ended.is_set():
            return
        for task in tasks:
            definitions.mark_reconciled(
                self._runtime.connection.globals(),
                task.definition.name,
                generation=task.generation,
                term=self._term,
            )
        seconds = time.monotonic() - started
        self._runtime.emit(ReconciliationFinished(collection, named, documents, round(seconds, 3)))

    def _scan_documents(self, tasks: Sequence[PlannedTask]) -> int:
        """Lay every document over its records; return how many there were."""
        source = self._runtime.connection.source(tasks[0].definition)
        after: Any = scans.START
        seen = 0
        with self._runtime.connection.causal_session() as session:
            start = server.cluster_time(source.database, session)
            while not self._ended.is_set():
                at = server.known_time(session)
                page = scans.next_documents(source, after, limit=self._page_size, session=session)
                if not page:
                    break
                for task in tasks:
                    # Records made without a run carry the scan's start, so that the first change after it runs (B-2).
                    time_of_read = at if task.definition.backfill else start
                    self._planning.apply(task, page, at=time_of_read, live=False, stamps=False, session=session)
                after = page[-1]
                seen += len(page)
        return seen

    def _scan_records(self, task: PlannedTask) -> None:
        """Mark every record whose document is gone or outside the filter."""
        connection = self._runtime.connection
        source, target = connection.source(task.definition), connection.records(task.definition)
        after: Any = scans.START
        with connection.causal_session() as session:
            server.cluster_time(source.database, session)
            while not self._ended.is_set():
                at = server.known_time(session)
                page = scans.next_records(target, task.definition.name, after, limit=self._page_size, session=session)
                if not page:
                    break
                off = self._find_off(task, page, session)
                if off:
                    self._leave(task, off, at, session)
                after = page[-1]

    def _find_off(self, task: PlannedTask, page: Sequence[Any], session: ClientSession) -> list[Any]:
        """Return those of *page* whose documents may be gone or outside the filter."""
        try:
            matching = records.find_matching(
                self._runtime.connection.source(task.definition), task.definition, page, session=session
            )
        except StatementFailedError:  # on some document; looked at one by one below
            return list(page)
        return _difference(page, matching)

    def _leave(self, task: PlannedTask, off: Sequence[Any], at: Timestamp, session: ClientSession) -> None:
        """Mark the records of *off* whose documents are not observed now.

        The server is asked once more by observing them: an id that it calls equal to the record's (1.0 to 1, or
        under a collation) is of a document that matches, and one that fails is left to itself.
        """
        at_fault = self._planning.apply(task, off, at=at, live=False, session=session)
        off = [doc_id for doc_id in off if RecordKey("", doc_id).exact not in at_fault]
        source = self._runtime.connection.source(task.definition)
        absent = _difference(off, scans.find_existing(source, off, session=session))
        for doc_ids, gone in ((absent, True), (_difference(off, absent), False)):
            if doc_ids:
                self._planning.leave(task, doc_ids, at=at, gone=gone, session=session)

    @property
    def _page_size(self) -> int:
        return self._runtime.settings.batch_size


def _difference(doc_ids: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Return those of *doc_ids* that are not among *others*, told apart by their exact bytes."""
    known = {RecordKey("", other).exact for other in others}
    return [doc_id for doc_id in doc_ids if RecordKey("", doc_id).exact not in known]
