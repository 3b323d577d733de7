"""What is noted of a message: on its way, not published, or lost with the broker's contents."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from celery_reactive.store.pipelines.expressions import (
    EPOCH,
    NOW,
    Expression,
    Stage,
    milliseconds,
)

_MOST_DOUBLINGS = 10


def mark_sent(*, first_deadline: timedelta, longest_deadline: timedelta) -> list[Stage]:
    """Return the pipeline that notes that a message is about to be published, and when to send another.

    The deadline doubles with each message in a row, so that a queue nobody serves is not flooded.
    """
    doubled = {
        "$multiply": [milliseconds(first_deadline), {"$pow": [2, {"$min": ["$_r.dispatches", _MOST_DOUBLINGS]}]}]
    }
    wait = {"$toLong": {"$min": [doubled, milliseconds(longest_deadline)]}}
    return [
        {
            "$set": {
                "_r.sent": True,
                "_r.sentAt": NOW,
                "_r.dispatches": {"$add": ["$_r.dispatches", 1]},
                "_r.wakeAt": {"$add": [NOW, wait]},
            },
        },
    ]


def mark_unsent(wait: timedelta) -> list[Stage]:
    """Return the pipeline for a record whose message has come to nothing: it is due, or looked at after *wait*."""
    due = "$nextRunAt" if not wait else {"$max": ["$nextRunAt", {"$add": [NOW, milliseconds(wait)]}]}
    return [
        {
            "$set": {
                "_r.sent": False,
                "_r.wakeAt": due,
                "_r.dispatches": {"$max": [0, {"$subtract": ["$_r.dispatches", 1]}]},
            },
        },
    ]


def is_in_flight(*, sent_before: datetime | None = None, patience: timedelta = timedelta(0)) -> dict[str, Any]:
    """Return the guard that demands a message on its way, whose deadline is still to come.

    Args:
        sent_before: Only one sent by then, by the server's clock.
        patience: So much before that, for the second message in a row; three times as much for the third, and so on.
    """
    conditions: list[Expression] = [{"$gt": ["$_r.wakeAt", NOW]}]
    if sent_before is not None:
        doublings = {"$min": [{"$subtract": ["$_r.dispatches", 1]}, _MOST_DOUBLINGS]}
        wait = {"$multiply": [milliseconds(patience), {"$subtract": [{"$pow": [2, doublings]}, 1]}]}
        conditions.append({"$lte": [{"$add": ["$_r.sentAt", {"$toLong": wait}]}, sent_before]})
    return {"_r.sent": True, "_r.wakeAt": {"$gt": EPOCH}, "$expr": {"$and": conditions}}


def expire_sent() -> list[Stage]:
    """Return the pipeline for a record whose message has probably been lost: it is due, and has been sent so often."""
    return [{"$set": {"_r.sent": False, "_r.wakeAt": "$nextRunAt"}}]
