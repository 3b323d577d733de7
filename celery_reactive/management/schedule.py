"""The entries of Celery beat's schedule, for people: when each is due and has run.

Called by the command line and the composition root, which know Celery and hand its entries over. No I/O.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class ScheduleEntry:
    """An entry of Celery beat's schedule."""

    name: str
    task: str
    schedule: str
    """As Celery shows it."""
    last_run_at: datetime | None
    """None: it has not run yet."""
    runs: int
    due_in: timedelta
    """Until it is due; zero: it is, and waits for a leading planner with `--beat`."""


def entries_of(schedule: Mapping[str, Any]) -> list[ScheduleEntry]:
    """Return the entries of a scheduler's schedule by their names."""
    return [_entry(entry) for _, entry in sorted(schedule.items())]


def _entry(entry: Any) -> ScheduleEntry:
    is_due, seconds = entry.is_due()
    return ScheduleEntry(
        name=entry.name,
        task=entry.task,
        schedule=str(entry.schedule).strip("<>"),
        last_run_at=entry.last_run_at if entry.total_run_count else None,
        runs=entry.total_run_count,
        due_in=timedelta(0) if is_due else timedelta(seconds=round(seconds)),
    )
