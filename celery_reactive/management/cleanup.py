"""Removing records by hand: a cleanup now, and purging whatever the policy says (B-4, B-41).

Called by `Reactive` and the command line. Works through whatever number of records with flat memory. A call that fails
half-way has removed a part, and doing it again is harmless; what it has removed is told as an event in any case.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bson import Timestamp

from celery_reactive.core.duration import Duration, parse_duration
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import ArgumentError, StatementFailedError, StoreBusyError, UnknownTaskError
from celery_reactive.events import CleanupFinished, ManualAction
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, orphans, records
from celery_reactive.store.errors import time_limit
from celery_reactive.store.orphans import Criteria, Seen

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

_MARK_LIMIT = timedelta(seconds=2)


@dataclasses.dataclass(frozen=True, slots=True)
class _Stored:
    """A task as the leader has defined it, or had."""

    task: ReactiveTask
    generation: int


@dataclasses.dataclass(frozen=True, slots=True)
class Purged:
    """One page of records that were looked at."""

    looked: int
    removed: int
    last: Any
    """The document id of the last of them."""


def cleanup(runtime: Runtime, *tasks: str) -> int:
    """Remove the orphans of *tasks*, of all if none is named, as the planner does from time to time (B-42).

    Args:
        runtime: The app's parts.
        tasks: Names of tasks.

    Returns:
        Number of records removed.

    Raises:
        UnknownTaskError: A task does not exist; the message lists the known ones. Nothing was removed.
        StoreUnavailableError: MongoDB does not answer; a part may have been removed.
    """
    chosen = [runtime.registry.get(name) for name in dict.fromkeys(tasks)] or list(runtime.registry)
    removed = 0
    for task in chosen:
        criteria = Criteria.of(task.cleanup_policy)
        if criteria is None:
            continue
        number = 0
        try:
            for page in _cleared(runtime, _stored(runtime, task), criteria):
                number += page.removed
        finally:
            runtime.emit(CleanupFinished(task.name, number))
        removed += number
    return removed


def purge(
    runtime: Runtime, task: str, *, gone: bool = False, left: bool = False, older_than: Duration | None = None
) -> int:
    """Remove records of *task* by hand, also where its policy is `never`, also when it is no longer declared (B-41).

    Args:
        runtime: The app's parts.
        task: Name of a task that is declared, or was.
        gone: Records whose document was deleted.
        left: Records whose document no longer matches the filter.
        older_than: Only those not updated and not run for so long; None: whatever their age. With neither *gone* nor
            *left*, all records of a task that is no longer declared, orphans or not, and with the last of them
            everything that is stored about the task.

    Returns:
        Number of records removed; a running one never is.

    Raises:
        UnknownTaskError: No task of this name is declared or was; the message lists those there are.
        ArgumentError: The task is declared, and neither *gone* nor *left* is asked for. Nothing was removed.
        ConfigurationError: *older_than* is no duration. Nothing was removed.
        StoreUnavailableError: MongoDB does not answer; a part may have been removed.
    """
    number = 0
    try:
        for page in purge_pages(runtime, task, gone=gone, left=left, older_than=older_than):
            number += page.removed
    finally:
        if number:
            runtime.emit(ManualAction("purge", task, number))
    return number


def purge_pages(
    runtime: Runtime,
    task: str,
    *,
    gone: bool = False,
    left: bool = False,
    older_than: Duration | None = None,
    after: Sequence[Any] = (),
) -> Iterator[Purged]:
    """Do what `purge` does page by page, each when the next one is asked for.

    Args:
        runtime: The app's parts.
        task: As for `purge`.
        gone: As for `purge`.
        left: As for `purge`.
        older_than: As for `purge`.
        after: Holds `last` of a page that is done with, to go on after it; empty: from the start.

    Raises:
        UnknownTaskError: As `purge`.
        ArgumentError: As `purge`.
        StoreUnavailableError: MongoDB does not answer; the pages already yielded are done.
    """
    stored, criteria = _asked_for(runtime, task, gone=gone, left=left, older_than=older_than)
    yield from (_cleared if gone or left else _emptied)(runtime, stored, criteria, after)


def count_purge(
    runtime: Runtime, task: str, *, gone: bool = False, left: bool = False, older_than: Duration | None = None
) -> int:
    """Return how many records `purge` would remove; nothing is changed.

    Raises:
        UnknownTaskError: As `purge`.
        ArgumentError: As `purge`.
        StoreUnavailableError: MongoDB does not answer, or not within its time limit.
    """
    stored, criteria = _asked_for(runtime, task, gone=gone, left=left, older_than=older_than)
    source, target = runtime.connection.source(stored.task), runtime.connection.records(stored.task)
    if not (gone or left):
        return orphans.count_all(target, task, older_than=criteria.keep_for)
    return sum(
        len(orphans.find(source, target, stored.task, page, criteria, session=session))
        for page, session in _pages(runtime, stored, criteria)
    )


def purge_sample(
    runtime: Runtime,
    task: str,
    *,
    gone: bool = False,
    left: bool = False,
    older_than: Duration | None = None,
    limit: int = 5,
) -> list[Any]:
    """Return the document ids of the first *limit* records that `purge` would remove.

    Raises:
        UnknownTaskError: As `purge`.
        ArgumentError: As `purge`.
        StoreUnavailableError: MongoDB does not answer.
    """
    stored, criteria = _asked_for(runtime, task, gone=gone, left=left, older_than=older_than)
    source, target = runtime.connection.source(stored.task), runtime.connection.records(stored.task)
    found: list[Any] = []
    for page, session in _pages(runtime, stored, criteria):
        if gone or left:
            orphaned = orphans.find(source, target, stored.task, page, criteria, session=session).as_marked()
            chosen = [one.doc_id for one in orphaned]
        else:
            chosen = [one.doc_id for one in page if one.old and not one.running]
        found += chosen[: limit - len(found)]
        if len(found) == limit:
            break
    return found


def _asked_for(
    runtime: Runtime, name: str, *, gone: bool, left: bool, older_than: Duration | None
) -> tuple[_Stored, Criteria]:
    age = timedelta(0) if older_than is None else parse_duration(older_than, name="older_than")
    if name in {task.name for task in runtime.registry}:
        if not (gone or left):
            raise ArgumentError(name, ["expected gone or left, as the task is declared: its other records are in use"])
        return _stored(runtime, runtime.registry.get(name)), Criteria(gone, left, age)
    return _formerly_declared(runtime, name), Criteria(gone, left, age)


def _stored(runtime: Runtime, task: ReactiveTask) -> _Stored:
    controls = definitions.read(runtime.connection.globals(), task.name)
    return _Stored(controls.applied_to(task), controls.generation)


def _formerly_declared(runtime: Runtime, name: str) -> _Stored:
    known = orphans.namespaces(runtime.connection.globals())
    if name not in known:
        raise UnknownTaskError(name, {*known, *(task.name for task in runtime.registry)})
    database, _, collection = known[name].partition(".")
    return _stored(runtime, ReactiveTask(name=name, database=database, collection=collection))


def _cleared(runtime: Runtime, stored: _Stored, criteria: Criteria, after: Sequence[Any] = ()) -> Iterator[Purged]:
    """Remove orphans page by page."""
    source, target = runtime.connection.source(stored.task), runtime.connection.records(stored.task)
    for page, session in _pages(runtime, stored, criteria, after):

        def mark(doc_ids: Sequence[Any], at: Timestamp, gone: bool) -> None:  # noqa: FBT001 -- as it is called
            # What somebody's transaction holds, or what cannot be written, stays.
            with suppress(StoreBusyError, StatementFailedError), time_limit(_MARK_LIMIT):
                records.leave(target, stored.task, doc_ids, at=at, generation=stored.generation, gone=gone)

        removed = orphans.clear_page(source, target, stored.task, page, criteria, mark=mark, session=session)
        yield Purged(len(page), removed, page[-1].doc_id)


def _emptied(runtime: Runtime, stored: _Stored, criteria: Criteria, after: Sequence[Any] = ()) -> Iterator[Purged]:
    """Remove all records page by page; with the last of them, what is known of the task."""
    target, name = runtime.connection.records(stored.task), stored.task.name
    for page, _ in _pages(runtime, stored, criteria, after):
        removed = orphans.remove_all(target, name, [one.doc_id for one in page], older_than=criteria.keep_for)
        yield Purged(len(page), removed, page[-1].doc_id)
    if not orphans.has_any(target, name):
        orphans.forget(runtime.connection.globals(), name)


def _pages(
    runtime: Runtime, stored: _Stored, criteria: Criteria, after: Sequence[Any] = ()
) -> Iterator[tuple[list[Seen], ClientSession]]:
    target, size = runtime.connection.records(stored.task), runtime.settings.batch_size
    with runtime.connection.causal_session() as session:
        name = stored.task.name
        for page in orphans.pages(target, name, criteria, size=size, session=session, after=after):
            yield page, session
