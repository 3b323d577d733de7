"""Who leads and led, which processes there are, and how much of an absence the database's history bridges.

Called by the dashboard. Reads only; times are the server's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import timedelta

from celery_reactive.runtime import Runtime
from celery_reactive.store import instances, leadership, measures
from celery_reactive.store.instances import Instance
from celery_reactive.store.leadership import Term


@dataclasses.dataclass(frozen=True, slots=True)
class Planners:
    """The planners of one group, and every process that has announced itself."""

    terms: Sequence[Term]
    """The latest, the newest first."""
    oplog_window: timedelta | None
    """How far back the primary's oplog reaches: changes longer ago than that are found by comparing all documents.
    None: it cannot be read."""
    instances: Sequence[Instance]
    """Planners and workers of all groups, as seen within the last hour."""

    def share_of_oplog(self, lag: timedelta) -> float | None:
        """Return how much of the window a lag takes up, as a ratio; None: not known."""
        return lag / self.oplog_window if self.oplog_window else None


def read_planners(runtime: Runtime, *, group: str) -> Planners:
    """Return what is known of the planners of *group*.

    Raises:
        StoreBusyError: Not found within the time limit.
        StoreUnavailableError: MongoDB does not answer.
    """
    globals_ = runtime.connection.globals()
    return Planners(
        terms=leadership.latest_terms(globals_, group),
        oplog_window=measures.oplog_window(globals_),
        instances=instances.read(globals_),
    )
