"""What is due, and what is noted of the messages for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from pymongo import ReturnDocument
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from celery_reactive.core.record import Due, RecordKey
from celery_reactive.core.states import CLAIM
from celery_reactive.store import pipelines
from celery_reactive.store.errors import translated
from celery_reactive.store.records.collection import BY_ID, Records

_NO_WAIT = timedelta(0)


@translated
def find_due(
    records: Records,
    task: str,
    *,
    limit: int,
    overdue: bool = True,
    after: datetime | None = None,
    loop_guard: int | None = None,
) -> list[Due]:
    """Return pending records that are due and not on their way, longest due first, and then overdue ones.

    Args:
        records: Records collection.
        task: Name of the task.
        limit: Most records returned.
        overdue: Also those on their way that nobody has claimed by their dispatch deadline, beside others; otherwise
            they are looked for only where no other is due.
        after: Only what became due at that time or later. The index entries of what has been sent stay behind for a
            while and are passed over one by one.
        loop_guard: Runs in a row that were a record's own doing after which it counts as looped; None: none does.
    """
    fields = _DUE_FIELDS if loop_guard is None else {**_DUE_FIELDS, "looped": pipelines.is_looped(loop_guard)}
    found: list[Due] = []
    for sent in (False, True):
        cursor = _soon(records).find(
            {
                "task": task,
                **pipelines.state_is(CLAIM.sources),
                "_r.sent": sent,
                **pipelines.is_past("_r.wakeAt", since=None if sent else after),
            },
            projection=fields,
            sort=[("_r.wakeAt", 1)],
            limit=limit - len(found),
        )
        found += [_due(task, record, again=sent) for record in cursor]
        if len(found) >= limit or (found and not overdue):
            break
    return found


_DUE_FIELDS = {
    "sourceDocId": 1,
    "attempts": 1,
    "_r.cycle": 1,
    "_r.alone": 1,
    "_r.wakeAt": 1,
    "waited": {"$subtract": ["$$NOW", "$_r.wakeAt"]},
}


def _due(task: str, record: Mapping[str, Any], *, again: bool) -> Due:
    books = record["_r"]
    return Due(
        RecordKey(task, record["sourceDocId"]),
        int(books["cycle"]),
        int(record["attempts"]),
        bool(books.get("alone")),
        again=again,
        due_at=books["wakeAt"],
        waited=timedelta(milliseconds=record["waited"]),
        looped=record.get("looped", False),
    )


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
    result = _soon(records).update_many(
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
def guard(records: Records, key: RecordKey, *, loop_guard: int) -> bool:
    """Take a looped record out (B-64): it stays pending, and nobody may claim it until somebody resumes it.

    One that is not known to be looped before it has run once more waits until its document has been quiet.

    Args:
        records: Records collection.
        key: The record.
        loop_guard: As for `find_due`.

    Returns:
        Whether it was taken out; false: it waits, is looped no longer, or has been claimed.
    """
    found = records.find_one_and_update(
        {"_id": key.id, **pipelines.state_is(CLAIM.sources), "$expr": pipelines.is_looped(loop_guard)},
        pipelines.guard(loop_guard),
        projection=["_r.guarded"],
        return_document=ReturnDocument.AFTER,
    )
    return found is not None and found["_r"].get("guarded", False)


@translated
def mark_unsent(records: Records, keys: Iterable[RecordKey], *, wait: timedelta = _NO_WAIT) -> int:
    """Clear the mark of records whose message is known not to have been published, or to have come to nothing.

    Args:
        records: Records collection.
        keys: Records.
        wait: The planner looks at them after so long; zero: as soon as they are due.
    """
    result = records.update_many(
        {"_id": {"$in": [key.id for key in keys]}, **pipelines.state_is(CLAIM.sources), "_r.sent": True},
        pipelines.mark_unsent(wait),
        hint=BY_ID,
    )
    return result.modified_count


@translated
def run_times(records: Records, keys: Iterable[RecordKey]) -> list[timedelta]:
    """Return how long the last runs of *keys* took that have ended since their message was sent."""
    found = records.find(
        {"_id": {"$in": [key.id for key in keys]}, "$expr": {"$gt": ["$lastFinalizedAt", "$_r.sentAt"]}},
        projection={"lastFinalizedAt": 1, "lastSuccess": 1, "executionHistory": {"$slice": -1}},
        hint=BY_ID,
    )
    # Of a record without a history only a success says how long it took.
    last = [[*record["executionHistory"], record["lastSuccess"] or {}][0] for record in found]
    return [timedelta(milliseconds=run["durationMs"]) for run in last if "durationMs" in run]


@translated
def count_in_flight(records: Records, task: str, *, sent_before: datetime | None = None) -> int:
    """Return how many records of *task* are with the broker before their dispatch deadline.

    Args:
        records: Records collection.
        task: Name of the task.
        sent_before: Only those whose message was sent by then, by the server's clock.
    """
    return _soon(records).count_documents(
        {"task": task, **pipelines.state_is(CLAIM.sources), **pipelines.is_in_flight(sent_before=sent_before)},
    )


def _soon(records: Records) -> Records:
    """Return *records* as the primary alone has them, also what a majority does not have yet.

    For what only says whom to wake: what a failover takes back is sent again, or wakes a worker in vain.
    """
    return records.with_options(write_concern=WriteConcern(w=1), read_concern=ReadConcern("local"))


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
    found = _soon(records).find(
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
    waiting = {
        "task": task,
        **pipelines.state_is(CLAIM.sources),
        "_r.sent": {"$in": [False, True]},
        "_r.wakeAt": {"$gt": pipelines.EPOCH},
    }
    wait = {"wait": {"$subtract": ["$_r.wakeAt", "$$NOW"]}}
    found = _soon(records).find_one(waiting, projection=wait, sort=[("_r.wakeAt", 1)])
    return None if found is None else float(found["wait"]) / 1000
