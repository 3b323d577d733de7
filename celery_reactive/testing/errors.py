"""Saying what went wrong: a test that passes although a handler failed has tested nothing.

Called by tests. Reads only; times are the server's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime

from celery import Celery

from celery_reactive.app import Reactive
from celery_reactive.core.duration import Duration, in_utc, parse_duration
from celery_reactive.core.states import RecordState
from celery_reactive.core.suggest import shown
from celery_reactive.errors import ConfigurationError
from celery_reactive.management.listing import MAX_LIMIT, TaskRecord
from celery_reactive.store import queries
from celery_reactive.store.unplanned import Unplanned
from celery_reactive.testing.report import planning_failures_in_words, records_in_words


def assert_no_errors(
    app: Celery,
    *,
    since: datetime | Duration | None = None,
    only: str | Sequence[str] | None = None,
    exclude: Iterable[str | re.Pattern[str]] = (),
) -> None:
    """Assert that no record has an error, that no handler triggers itself, and that every document could be planned.

    A record has an error from a failed attempt on until it completes or its document changes: what a retry has mended
    is none.

    Args:
        app: The Celery app.
        since: Only errors of this time or later: an aware datetime, or a duration before now by the server's clock.
        only: Only these tasks.
        exclude: Errors that are expected: a string in the error's text or `Type: text`, or a pattern found there.

    Raises:
        AssertionError: There are errors; the message shows each with its record and its traceback.
        UnknownTaskError: A named task does not exist; the message lists the known ones.
        ConfigurationError: *since* has no meaning.
    """
    handle = Reactive.of(app)
    names = _names(only)
    failed = [record for record in _with_errors(handle, names) if not _is_excluded(record, exclude)]
    failed += _guarded(handle, names)
    unplanned = [failure for failure in _unplanned(handle, names) if not _matches(failure.error, exclude)]
    if since is not None:
        start = _start(handle, since)
        failed = [record for record in failed if (record.last_finalized_at or record.updated_at) >= start]
        unplanned = [failure for failure in unplanned if failure.since >= start]
    if failed or unplanned:
        lines = [records_in_words(failed, tracebacks=True), planning_failures_in_words(unplanned)]
        words = "\n".join(line for line in lines if line)
        raise AssertionError(f"there are errors ({len(failed) + len(unplanned)}):\n{words}")


def _names(only: str | Sequence[str] | None) -> list[str] | None:
    if only is None:
        return None
    return [only] if isinstance(only, str) else list(only)


def _with_errors(handle: Reactive, names: list[str] | None) -> Iterable[TaskRecord]:
    after = None
    while True:
        page = handle.get_tasks(task=names, has_error=True, limit=MAX_LIMIT, after=after)
        yield from page.items
        after = page.next
        if after is None:
            return


def _guarded(handle: Reactive, names: list[str] | None) -> list[TaskRecord]:
    """Return records that the loop guard has paused: of those that are pending they alone are due at no time."""
    page = handle.get_tasks(task=names, status=RecordState.PENDING.value, sort=("nextRunAt", 1), limit=MAX_LIMIT)
    return [record for record in page.items if record.guarded]


def _unplanned(handle: Reactive, names: list[str] | None) -> list[Unplanned]:
    return [failure for failure in handle.planning_failures() if names is None or failure.key.task in names]


def _is_excluded(record: TaskRecord, exclude: Iterable[str | re.Pattern[str]]) -> bool:
    return _matches(f"{record.last_error_type}: {record.last_error}", exclude)


def _matches(text: str, exclude: Iterable[str | re.Pattern[str]]) -> bool:
    return any(one in text if isinstance(one, str) else one.search(text) for one in exclude)


def _start(handle: Reactive, since: datetime | Duration) -> datetime:
    if not isinstance(since, datetime):
        return queries.server_time(handle.runtime.connection.globals()) - parse_duration(since, name="since")
    if since.tzinfo is None:
        raise ConfigurationError("since", [f"expected an aware datetime, got {shown(since)}"])
    return in_utc(since)
