"""Waking the planner: whoever makes a record due that no change event tells of touches one small document.

The planner sees that in the stream it follows anyway. A wake-up that is lost costs the half second of
the planner's safety poll, no more.
"""

from __future__ import annotations

from typing import Any

from pymongo.collection import Collection

from celery_reactive.store.errors import translated

KIND = "wake"


@translated
def wake(globals_: Collection[dict[str, Any]]) -> None:
    """Tell the planner that something may be due.

    Raises:
        StoreUnavailableError: It may not have been told; its safety poll finds what is due.
    """
    globals_.update_one({"_id": {"k": KIND}}, {"$inc": {"calls": 1}}, upsert=True)
