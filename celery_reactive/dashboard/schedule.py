"""An entry of Celery beat's schedule, as the dashboard shows it. Made by the composition root, which knows Celery."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta


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
