"""Waking the planner: whoever makes a record due that no change event tells of touches one small document.

The planner sees that in the stream it follows anyway. A wake-up that is lost costs the half second of
the planner's safety poll, no more.
"""

from __future__ import annotations

from typing import Any

from pymongo.collection import Collection

from celery_reactive.store.errors import translated

KIND = "wake"
RECONCILE_KIND = "wake_reconcile"


@translated
def wake(globals_: Collection[dict[str, Any]]) -> None:
    """Tell the planner that something may be due.

    Raises:
        StoreUnavailableError: It may not have been told; its safety poll finds what is due.
    """
    _touch(globals_, KIND)


@translated
def wake_reconciliation(globals_: Collection[dict[str, Any]]) -> None:
    """Tell the planner that somebody asked for a reconciliation.

    Raises:
        StoreUnavailableError: It may not have been told; the next leader sees what is needed.
    """
    _touch(globals_, RECONCILE_KIND)


def _touch(globals_: Collection[dict[str, Any]], kind: str) -> None:
    globals_.update_one({"_id": {"k": kind}}, {"$inc": {"calls": 1}}, upsert=True)
