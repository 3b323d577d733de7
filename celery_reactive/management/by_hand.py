"""Changing records by hand: retry, discard, trigger (B-51, B-52).

Called by `Reactive`. Works through whatever number of records with flat memory, a page of ids at a time; each
statement demands again what the record was chosen for. A call that fails half-way has changed a part, and doing it
again is harmless; what it has changed is told as an event in any case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from celery_reactive.core.record import RecordKey
from celery_reactive.core.suggest import shown
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import ArgumentError
from celery_reactive.events import ManualAction
from celery_reactive.management.pages import Batch, pages
from celery_reactive.management.selection import Selection, TaskFilters, select
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, indexes, queries, records, server
from celery_reactive.store.wake import wake_if_possible

Change = Callable[[Batch], int]
"""Changes those of the records that still are what they were chosen for; returns how many."""


def retry_tasks(runtime: Runtime, filters: TaskFilters, *, everything: bool = False) -> int:
    """Make the records that *filters* select pending now; a running one runs again at once after (B-52).

    `attempts`, `dueAt` and `lastError` are kept, so that a record out of attempts gets one more.

    Args:
        runtime: The app's parts.
        filters: Which records.
        everything: Must be true where no filter narrows the selection; nothing else depends on it.

    Returns:
        Number of records changed.

    Raises:
        UnknownTaskError: A named task does not exist; the message lists the known ones. Nothing was changed.
        ArgumentError: A filter has no meaning, or there is none. Nothing was changed.
        StoreBusyError: A page was not found within the time limit; a part may have been changed.
        StoreUnavailableError: MongoDB does not answer; a part may have been changed.
        StatementFailedError: The server refuses `source` or the pattern, or a value cannot be sent to it.
    """
    return _change_all(runtime, "retry", chosen(runtime, filters, everything=everything), retry)


def discard_tasks(runtime: Runtime, filters: TaskFilters, *, everything: bool = False) -> int:
    """End those of the records that *filters* select which are pending or failed, without a run (B-52).

    They become `completed`, with a history entry `discarded`.

    Args:
        runtime: The app's parts.
        filters: Which records.
        everything: Must be true where no filter narrows the selection; nothing else depends on it.

    Returns:
        Number of records changed.

    Raises:
        UnknownTaskError: A named task does not exist; the message lists the known ones. Nothing was changed.
        ArgumentError: A filter has no meaning, or there is none. Nothing was changed.
        StoreBusyError: A page was not found within the time limit; a part may have been changed.
        StoreUnavailableError: MongoDB does not answer; a part may have been changed.
        StatementFailedError: The server refuses `source` or the pattern, or a value cannot be sent to it.
    """
    return _change_all(runtime, "discard", chosen(runtime, filters, everything=everything), discard)


def trigger(runtime: Runtime, task: str, doc_id: Any) -> bool:
    """Run *task* for one document now: make its record if the document matches, then as `retry_tasks` (B-52).

    Args:
        runtime: The app's parts.
        task: The task's name.
        doc_id: The document's `_id`, taken literally.

    Returns:
        Whether there is anything to run: false where there is no record, and no document that matches.

    Raises:
        UnknownTaskError: There is no such task; the message lists the known ones. Nothing was changed.
        ForeignRecordsError: What would be the records collection holds other documents; it was left untouched.
        StoreBusyError: A transaction holds the record. Nothing was changed.
        StoreUnavailableError: MongoDB does not answer; the record may have been made or retried.
        StatementFailedError: The document cannot be planned, or its id cannot be sent to the server.
    """
    definition = runtime.registry.get(task)
    target = runtime.connection.records(definition)
    ids = [RecordKey(definition.name, doc_id).id]
    retried = records.retry_by_hand(target, ids)
    if not retried and queries.has_document(runtime.connection.source(definition), doc_id):
        _make_record(runtime, definition, doc_id)
        retried = records.retry_by_hand(target, ids)
    if retried:
        runtime.emit(ManualAction("trigger", definition.name, retried))
        wake_if_possible(runtime.connection.globals(), definition.name)
    return retried > 0


def _make_record(runtime: Runtime, task: ReactiveTask, doc_id: Any) -> None:
    """Observe one document as the leader would, under the stored definition."""
    connection = runtime.connection
    source, target = connection.source(task), connection.records(task)
    indexes.prepare(target)
    stored = definitions.read(connection.globals(), task.name)
    with connection.causal_session() as session:
        observation = records.Observation(
            stored.applied_to(task),
            at=server.cluster_time(source.database, session),
            generation=stored.generation,
            comparable=stored.lineage.comparable,
            collated=server.has_collation(source.database, source.name),
            session=session,
        )
        records.apply_observations(source, target, observation, [doc_id])


def chosen(runtime: Runtime, filters: TaskFilters, *, everything: object) -> Selection:
    """Return what *filters* select; every record of every task only where that is said.

    Raises:
        UnknownTaskError: A named task does not exist; the message lists the known ones.
        ArgumentError: A filter has no meaning, or there is none.
    """
    if not isinstance(everything, bool):
        raise ArgumentError("all", [f"expected True or False, got {shown(everything)}"])
    selection = select(runtime, filters)
    if selection.is_everything and not everything:
        raise ArgumentError("all", ["expected a filter, got none; for every record of every task say all=True"])
    return selection


def _change_all(runtime: Runtime, action: str, selection: Selection, change: Change) -> int:
    changed: Counter[str] = Counter()
    try:
        for page in pages(runtime, selection):
            for batch in page.batches:
                changed[batch.task.name] += change(batch)
    finally:
        for name, number in changed.items():
            if number:
                runtime.emit(ManualAction(action, name, number))
                wake_if_possible(runtime.connection.globals(), name)
    return changed.total()


def retry(batch: Batch) -> int:
    """Retry the records of *batch* that still are what they were chosen for; return how many."""
    return records.retry_by_hand(batch.records, batch.ids, only=batch.only)


def discard(batch: Batch) -> int:
    """Discard the records of *batch* that still are what they were chosen for; return how many."""
    limit = batch.task.execution_history_limit
    return records.discard(batch.records, batch.ids, history_limit=limit, only=batch.only)
