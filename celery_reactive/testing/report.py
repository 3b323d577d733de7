"""What a failed test shows of records and planning failures. Called by `rest` and `errors`; reads nothing itself."""

from __future__ import annotations

from collections.abc import Sequence

from celery_reactive.core.states import RecordState
from celery_reactive.management.listing import TaskRecord
from celery_reactive.store.unplanned import Unplanned

MOST_SHOWN = 10
"""Records of a message; of further ones it has the number."""


def records_in_words(records: Sequence[TaskRecord], *, tracebacks: bool = False) -> str:
    """Return a line or more for each of the first records, and how many there are beside them."""
    lines = [_record(record, traceback=tracebacks) for record in records[:MOST_SHOWN]]
    if len(records) > MOST_SHOWN:
        lines.append(f"  and {len(records) - MOST_SHOWN} more")
    return "\n".join(lines)


def planning_failures_in_words(failures: Sequence[Unplanned]) -> str:
    """Return a line for each of the first documents that could not be planned."""
    return "\n".join(f"  {failure.key} could not be planned: {failure.error}" for failure in failures[:MOST_SHOWN])


def _record(record: TaskRecord, *, traceback: bool) -> str:
    words = f"  {record.key} is {record.status}, attempts {record.attempts}{_waits(record)}"
    if record.last_error is None:
        return words
    kind = f"{record.last_error_type}: " if record.last_error_type else ""
    trace = f"\n{record.last_error_traceback.rstrip()}" if traceback and record.last_error_traceback else ""
    return f"{words}\n    {kind}{record.last_error}{_indented(trace)}"


def _waits(record: TaskRecord) -> str:
    if record.guarded:
        return ", paused by the loop guard: its handler triggers itself"
    if record.status is RecordState.PENDING:
        return f", due {record.next_run_at:%H:%M:%S.%f} UTC"
    return ""


def _indented(text: str) -> str:
    return text.replace("\n", "\n    ")
