"""What people and deployments do to records: retry, discard, reprocess, revoke."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from celery_reactive.core.outcome import Failure
from celery_reactive.core.record import RecordKey
from celery_reactive.core.states import DISCARD, REPROCESS, REVOKE, RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.store import pipelines
from celery_reactive.store.errors import translated
from celery_reactive.store.records.collection import BY_ID, Records


@translated
def retry_by_hand(
    records: Records,
    ids: Sequence[Mapping[str, Any]],
    *,
    only: Mapping[str, Any] | None = None,
) -> int:
    """Make the records with these `_id`s pending now, or run again at once after their run (B-52).

    Args:
        records: Records collection.
        ids: The records' `_id`s.
        only: A query that a record must still match: what led to it may have changed since it was found.

    Returns:
        Number of records changed.
    """
    result = records.update_many(
        {"$and": [{"_id": {"$in": list(ids)}}, only or {}]},
        pipelines.retry_by_hand(),
        hint=BY_ID,
    )
    return result.modified_count


@translated
def resume(records: Records, key: RecordKey) -> bool:
    """Let a record run again at once that the loop guard has taken out (B-64); return whether it was.

    Raises:
        StoreUnavailableError: Unknown whether it was; doing it again is harmless.
    """
    return records.update_one({"_id": key.id, "_r.guarded": True}, pipelines.resume()).modified_count == 1


@translated
def discard(
    records: Records,
    ids: Sequence[Mapping[str, Any]],
    *,
    history_limit: int,
    only: Mapping[str, Any] | None = None,
) -> int:
    """End these records without a run if they are pending or failed (B-52).

    Args:
        records: Records collection.
        ids: The records' `_id`s.
        history_limit: Newest entries kept.
        only: A query that a record must still match; without it a failed record that has meanwhile become
            pending for a change would lose that change's run.

    Returns:
        Number of records changed.
    """
    result = records.update_many(
        {"$and": [{"_id": {"$in": list(ids)}, **pipelines.state_is(DISCARD.sources)}, only or {}]},
        pipelines.discard(history_limit),
        hint=BY_ID,
    )
    return result.modified_count


@translated
def reprocess(
    records: Records,
    task: str,
    doc_ids: Iterable[Any],
    *,
    version: int,
    only: frozenset[RecordState] | None = None,
) -> int:
    """Let the records of *doc_ids* run for *version* of the handler, those that have not been reset for it (B-44).

    Records whose document is gone or has left the filter are passed over.

    Args:
        records: Records collection.
        task: Name of the task.
        doc_ids: Document ids.
        version: The handler's.
        only: Only records in these states; None: whatever the state.

    Returns:
        Number of records reset.

    Raises:
        StoreUnavailableError: A part of it may have been written; doing it again resets none twice.
    """
    states = REPROCESS.sources if only is None else REPROCESS.sources & only
    result = records.update_many(
        {
            "_id": {"$in": [RecordKey(task, doc_id).id for doc_id in doc_ids]},
            **pipelines.state_is(states),
            "_r.gone": {"$ne": True},
            "_r.left": {"$ne": True},
            "$or": [{"_r.reset.version": {"$lt": version}}, {"_r.reset": {"$exists": False}}],
        },
        pipelines.reprocess(version),
        hint=BY_ID,
    )
    return result.modified_count


@translated
def revoke(records: Records, task: ReactiveTask, key: RecordKey, error: Failure) -> bool:
    """Fail a pending record whose Celery task was revoked (B-40); return whether it was pending."""
    result = records.update_one(
        {"_id": key.id, **pipelines.state_is(REVOKE.sources)},
        pipelines.revoke(error, history_limit=task.execution_history_limit),
    )
    return result.modified_count == 1
