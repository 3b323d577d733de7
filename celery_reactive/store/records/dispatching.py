"""What is due, and what is noted of the messages for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from celery_reactive.core.record import Due, RecordKey
from celery_reactive.core.states import CLAIM
from celery_reactive.store import pipelines
from celery_reactive.store.errors import translated
from celery_reactive.store.records.collection import BY_ID, Records


@translated
def find_due(records: Records, task: str, *, limit: int) -> list[Due]:
    """Return pending records that are due and not on their way, oldest first, and overdue ones.

    Args:
        records: Records collection.
        task: Name of the task.
        limit: Most records returned.
    """
    found: list[Due] = []
    for sent in (False, True):
        cursor = records.find(
            {
                "task": task,
                **pipelines.state_is(CLAIM.sources),
                "_r.sent": sent,
                **pipelines.is_past("_r.wakeAt"),
            },
            projection=["sourceDocId", "attempts", "_r.cycle", "_r.alone"],
            sort=[("_r.wakeAt", 1)],
            limit=limit - len(found),
        )
        found += [_due(task, record, again=sent) for record in cursor]
        if len(found) >= limit:
            break
    return found


def _due(task: str, record: Mapping[str, Any], *, again: bool) -> Due:
    books = record["_r"]
    key = RecordKey(task, record["sourceDocId"])
    return Due(key, int(books["cycle"]), int(record["attempts"]), bool(books.get("alone")), again=again)


@translated
def mark_sent(
    records: Records,
    keys: Iterable[RecordKey],
    *,
    first_deadline: timedelta,
    longest_deadline: timedelta,
) -> int:
    """Note, before publishing, that a message for each of *keys* is on its way.

    Returns:
        Number of records marked; one that is missing was claimed or settled meanwhile, and a message
        for it does nothing.
    """
    result = records.update_many(
        {
            "_id": {"$in": [key.id for key in keys]},
            **pipelines.state_is(CLAIM.sources),
            **pipelines.is_past("_r.wakeAt"),
        },
        pipelines.mark_sent(first_deadline=first_deadline, longest_deadline=longest_deadline),
        hint=BY_ID,
    )
    return result.modified_count


@translated
def mark_unsent(records: Records, keys: Iterable[RecordKey]) -> int:
    """Clear the mark of records whose message is known not to have been published."""
    result = records.update_many(
        {"_id": {"$in": [key.id for key in keys]}, **pipelines.state_is(CLAIM.sources), "_r.sent": True},
        pipelines.mark_unsent(),
        hint=BY_ID,
    )
    return result.modified_count


@translated
def count_in_flight(records: Records, task: str, *, sent_before: datetime | None = None) -> int:
    """Return how many records of *task* are with the broker before their dispatch deadline.

    Args:
        records: Records collection.
        task: Name of the task.
        sent_before: Only those whose message was sent by then, by the server's clock.
    """
    return records.count_documents(
        {"task": task, **pipelines.state_is(CLAIM.sources), **pipelines.is_in_flight(sent_before=sent_before)},
    )


@translated
def find_sent(
    records: Records,
    task: str,
    *,
    sent_before: datetime,
    patience: timedelta,
    limit: int,
) -> list[RecordKey]:
    """Return records with the broker that `expire_sent` would make due, with the same arguments.

    Args:
        records: Records collection.
        task: Name of the task.
        sent_before: As for `expire_sent`.
        patience: As for `expire_sent`.
        limit: Most records returned.
    """
    in_flight = pipelines.is_in_flight(sent_before=sent_before, patience=patience)
    found = records.find(
        {"task": task, **pipelines.state_is(CLAIM.sources), **in_flight}, projection=["sourceDocId"], limit=limit
    )
    return [RecordKey(task, record["sourceDocId"]) for record in found]


@translated
def expire_sent(
    records: Records,
    keys: Iterable[RecordKey],
    *,
    sent_before: datetime,
    patience: timedelta,
) -> int:
    """Let those of *keys* be sent again now whose message is taken for lost (B-66).

    A record that a worker has claimed meanwhile, or that has been sent again, is left alone; and if its message was
    not lost after all, two are on their way and one does nothing. The dispatch deadline goes on doubling.

    Args:
        records: Records collection.
        keys: Records.
        sent_before: Only messages sent by then, by the server's clock, are taken for lost.
        patience: The second message in a row must have been sent so much earlier, the third three times as much, the
            fourth seven times: what looks like a loss again and again floods nobody.

    Returns:
        Number of records made due.

    Raises:
        StoreUnavailableError: A part of it may have been written; doing it again is harmless.
    """
    result = records.update_many(
        {
            "_id": {"$in": [key.id for key in keys]},
            **pipelines.state_is(CLAIM.sources),
            **pipelines.is_in_flight(sent_before=sent_before, patience=patience),
        },
        pipelines.expire_sent(),
        hint=BY_ID,
    )
    return result.modified_count


@translated
def seconds_until_next_wake(records: Records, task: str) -> float | None:
    """Return the seconds, by the server's clock, until a pending record of *task* is due or overdue; None: never."""
    waits: list[float] = []
    for sent in (False, True):
        pipeline: list[dict[str, Any]] = [
            {
                "$match": {
                    "task": task,
                    **pipelines.state_is(CLAIM.sources),
                    "_r.sent": sent,
                    "_r.wakeAt": {"$gt": pipelines.EPOCH},
                },
            },
            {"$sort": {"_r.wakeAt": 1}},
            {"$limit": 1},
            {"$project": {"wait": {"$subtract": ["$_r.wakeAt", "$$NOW"]}}},
        ]
        waits += [record["wait"] / 1000 for record in records.aggregate(pipeline)]
    return min(waits, default=None)
