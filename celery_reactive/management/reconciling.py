"""Reconciliation on demand, and how far one has come (B-48).

Called by `Reactive` and the command line. Only asks: the leader does the work, and goes on with it whoever leads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import timedelta

from celery_reactive.events import ManualAction
from celery_reactive.runtime import Runtime
from celery_reactive.store import checkpoints, definitions
from celery_reactive.store.wake import wake_reconciliation


@dataclasses.dataclass(frozen=True, slots=True)
class ReconciliationStatus:
    """How far the reconciliation of one collection had come when that was last stored, every second or two."""

    namespace: str
    """`database.collection`."""
    tasks: tuple[str, ...]
    done: int
    """Documents and records looked at."""
    total: int
    """Estimated at the start."""
    per_second: float
    """Since the start, over all leaders that took part."""
    remaining: timedelta | None
    """Estimated; None: not known yet."""


def request(runtime: Runtime, tasks: Sequence[str]) -> None:
    """Have every document of *tasks* looked at again, of all tasks if none is named.

    Raises:
        UnknownTaskError: A named task does not exist; the message lists the known ones. Nothing was asked for.
        StoreUnavailableError: It may have been asked for of some of them.
    """
    known = [runtime.registry.get(task).name for task in tasks] or [task.name for task in runtime.registry]
    globals_ = runtime.connection.globals()
    for name in known:
        definitions.request_reconciliation(globals_, name)
        runtime.emit(ManualAction("reconcile", name, 0))
    wake_reconciliation(globals_)


def under_way(runtime: Runtime, *, group: str) -> tuple[ReconciliationStatus, ...]:
    """Return the reconciliations under way in a planner group.

    Raises:
        StoreUnavailableError: MongoDB does not answer.
    """
    return tuple(_status(found) for found in checkpoints.progress(runtime.connection.globals(), group))


def waiting(runtime: Runtime, tasks: Sequence[str]) -> list[str]:
    """Return those of *tasks* whose reconciliation is not done, of all tasks if none is named."""
    names = list(tasks) or [task.name for task in runtime.registry]
    stored = definitions.read_all(runtime.connection.globals(), names)
    return [name for name in names if stored[name].reconciled_generation == 0]


def _status(found: checkpoints.Progress) -> ReconciliationStatus:
    seconds = (found.stored_at - found.started_at).total_seconds()
    rate = found.done / seconds if seconds > 0 else 0.0
    left = max(found.total - found.done, 0)
    return ReconciliationStatus(
        namespace=f"{found.database}.{found.collection}",
        tasks=found.tasks,
        done=found.done,
        total=found.total,
        per_second=round(rate, 1),
        remaining=timedelta(seconds=round(left / rate)) if rate else None,
    )
