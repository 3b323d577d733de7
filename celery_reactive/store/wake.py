"""Waking the planner: whoever makes a record due that no change event tells of touches one small document.

The planner sees that in the stream it follows anyway. A wake-up that is lost costs the time until
the planner's next safety poll, no more: half a second, with more than ten tasks longer, 5 s at most.
"""

from __future__ import annotations

import contextlib
from typing import Any

from pymongo.collection import Collection

from celery_reactive.errors import StoreUnavailableError
from celery_reactive.store.errors import translated

KIND = "wake"
RECONCILE_KIND = "wake_reconcile"


@translated
def wake(globals_: Collection[dict[str, Any]], task: str | None = None) -> None:
    """Tell the planner that something may be due.

    Args:
        globals_: The globals collection.
        task: Of this task; None: of any.

    Raises:
        StoreUnavailableError: It may not have been told; its safety poll finds what is due.
    """
    _touch(globals_, {"k": KIND} if task is None else {"k": KIND, "t": task})


def wake_if_possible(globals_: Collection[dict[str, Any]], task: str) -> None:
    """As `wake`; where MongoDB does not answer, the planner looks by itself."""
    with contextlib.suppress(StoreUnavailableError):
        wake(globals_, task)


@translated
def wake_reconciliation(globals_: Collection[dict[str, Any]]) -> None:
    """Tell the planner that somebody asked for a reconciliation.

    Raises:
        StoreUnavailableError: It may not have been told; the next leader sees what is needed.
    """
    _touch(globals_, {"k": RECONCILE_KIND})


def _touch(globals_: Collection[dict[str, Any]], own_id: dict[str, str]) -> None:
    globals_.update_one({"_id": own_id}, {"$inc": {"calls": 1}}, upsert=True)
