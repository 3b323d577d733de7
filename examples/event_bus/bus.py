"""The bus: a collection of events, which any program publishes to and any number of tasks subscribe to.

Publishers import `publish`, subscribers `subscriber`; neither knows the other. An event is never changed, and goes
after a week.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo.client_session import ClientSession
from pymongo.database import Database

from celery_reactive import CleanupPolicy, reactive_task

KEPT_FOR = timedelta(days=7)
"""Longer than the longest outage: an event that is gone before a subscriber has run is lost for it."""


def publish(database: Database[Any], kind: str, data: Mapping[str, Any], session: ClientSession) -> None:
    """Publish an event together with what it tells of: in the same transaction, or not at all."""
    event = {"kind": kind, "at": datetime.now(UTC), "data": dict(data)}
    database.events.insert_one(event, session=session)


def subscriber(kind: str, where: Mapping[str, Any] | None = None, **options: Any) -> Callable[[Any], Any]:
    """Run a Celery task for each event of a kind, at least once.

    Args:
        kind: Of the events that it wants.
        where: A condition besides, as for `find`.
        options: Further ones of `@reactive_task`. `backfill=False`: events from the first deployment on, without those
            of the week before.
    """
    return reactive_task(
        collection="events",
        filter={"kind": kind, **(where or {})},
        watch_projection={"_id": 1},
        debounce=0,
        cleanup_policy=CleanupPolicy(keep_for=0),
        **options,
    )


def prepare(database: Database[Any]) -> None:
    """Let the server remove old events. Called before anything is published; once is enough, again does nothing."""
    database.events.create_index("at", expireAfterSeconds=int(KEPT_FOR.total_seconds()))
