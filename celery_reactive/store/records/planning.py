"""What the planner lays over records, and what it asks of documents for that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from bson import Timestamp
from pymongo.client_session import ClientSession
from pymongo.collection import Collection

from celery_reactive.core.evolution import Lineage
from celery_reactive.core.projection import stages_of
from celery_reactive.core.record import RecordKey
from celery_reactive.core.task import ReactiveTask
from celery_reactive.store import pipelines
from celery_reactive.store.errors import translated
from celery_reactive.store.records.collection import BY_ID, SIMPLE, Records


@translated
def apply_observations(
    source: Collection[Any],
    records: Records,
    task: ReactiveTask,
    doc_ids: Sequence[Any],
    *,
    at: Timestamp,
    generation: int,
    comparable: Iterable[int] = (),
    live: bool,
    stamps: bool = True,
    collated: bool = False,
    session: ClientSession | None = None,
) -> None:
    """Plan *doc_ids* for *task*: read them with the real filter and lay what is watched over the records.

    One aggregation on the server; documents do not pass through this process. A document that does
    not match leaves its record alone, see `leave`.

    Args:
        source: The watched collection, read concern majority, primary.
        records: Its records collection.
        task: Definition.
        doc_ids: Ids to look at.
        at: A cluster time known before this statement is sent; *session* is causally after it.
        generation: Of the stored definition.
        comparable: Further generations with the same projection; what was seen under any other has changed (B-43).
        live: An event told of the documents; false for a scan.
        stamps: Whether also an observation of nothing new moves the records' time, see `pipelines`.
        collated: The watched collection has a default collation: its filter is asked apart, under it, and what
            is watched is compared under the simple one. A document that changes in between has a later event.
        session: Causal session of the planner.

    Raises:
        StoreBusyError: Not done within the caller's `time_limit`; somebody's transaction holds a record.
        StoreUnavailableError: Nothing or a part of it was written; planning again is harmless.
        StatementFailedError: Some document of *doc_ids* cannot be planned; some may have been.
    """
    matching: Sequence[Any] = doc_ids
    asks_apart = collated and not task.filter.matches_all
    if asks_apart:
        matching = find_matching(source, task, doc_ids, session=session)
    runs = live or task.backfill
    same = {generation, *comparable}
    source.aggregate(
        [
            {"$match": {"_id": {"$in": list(matching)}}},
            *([] if asks_apart or task.filter.matches_all else [{"$match": task.filter.query}]),
            *task.projection.stages(keep={"d": "$_id"}),
            pipelines.new_record(task.name, at=at, generation=generation, debounce=_first_wait(task), runs=runs),
            *([] if stamps else pipelines.unless_known(records.name, comparable=same)),
            {
                "$merge": {
                    "into": {"db": records.database.name, "coll": records.name},
                    "on": "_id",
                    "let": {"new": "$$ROOT"},
                    "whenMatched": pipelines.apply_observation(
                        debounce=task.debounce,
                        max_wait=task.debounce_max_wait,
                        reset_retries=task.retry_policy.reset_retries_on_data_change,
                        reentry_runs=not task.projection.only_id,
                        comparable=same,
                        live=live,
                        stamps=stamps,
                    ),
                    "whenNotMatched": "insert",
                },
            },
        ],
        session=session,
        collation=SIMPLE,
    )


def _first_wait(task: ReactiveTask) -> timedelta:
    """Return how long a new record waits: the debounce, capped like any later one (B-16)."""
    return task.debounce if task.debounce_max_wait is None else min(task.debounce, task.debounce_max_wait)


@translated
def adopt_snapshots(
    source: Collection[Any],
    records: Records,
    task: ReactiveTask,
    doc_ids: Sequence[Any],
    *,
    lineage: Lineage,
    session: ClientSession | None = None,
) -> None:
    """Give records of earlier generations their snapshot under the present projection, where nothing changed (B-43).

    A document whose values under the projection of the record's own generation are what the record holds has not
    changed: a new projection alone runs nothing. Comes before `apply_observations`, for which the other records of
    earlier generations have changed.

    Args:
        source: The watched collection.
        records: Its records collection.
        task: The present definition.
        doc_ids: Ids to look at.
        lineage: The generations that are known.
        session: Causal session of the planner.

    Raises:
        StoreBusyError: Not done within the caller's `time_limit`.
        StoreUnavailableError: A part of it may have been written; doing it again is harmless.
        StatementFailedError: An earlier projection fails on some document of *doc_ids*.
    """
    fields = {f"p{number}": projection for number, (_, projection) in enumerate(lineage.earlier)}
    generations = [(numbers, field) for field, (numbers, _) in zip(fields, lineage.earlier, strict=True)]
    source.aggregate(
        [
            {"$match": {"_id": {"$in": list(doc_ids)}}},
            *stages_of({"w": task.projection, **fields}, keep={"d": "$_id"}),
            *pipelines.snapshots_to_adopt(records.name, task.name, generations),
            {
                "$merge": {
                    "into": {"db": records.database.name, "coll": records.name},
                    "on": "_id",
                    "let": {"new": "$$ROOT"},
                    "whenMatched": pipelines.adopt_snapshot(lineage.generation),
                    "whenNotMatched": "discard",
                },
            },
        ],
        session=session,
        collation=SIMPLE,
    )


@translated
def find_matching(
    source: Collection[Any],
    task: ReactiveTask,
    doc_ids: Sequence[Any],
    *,
    session: ClientSession | None = None,
) -> list[Any]:
    """Return those of *doc_ids* whose documents exist and match the filter of *task*, as `find` says."""
    query = {"$and": [{"_id": {"$in": list(doc_ids)}}, task.filter.query]}
    return [document["_id"] for document in source.find(query, projection=["_id"], session=session)]


@translated
def leave(
    records: Records,
    task: ReactiveTask,
    doc_ids: Sequence[Any],
    *,
    at: Timestamp,
    generation: int,
    gone: bool,
    session: ClientSession | None = None,
) -> int:
    """Mark the records of documents that are gone or have left the filter (B-8).

    Only records whose newest observation is older than *at* are touched: after `apply_observations`
    with the same time those are the ones whose documents did not match.

    Returns:
        Number of records marked.

    Raises:
        StoreUnavailableError: A part of it may have been written; doing it again is harmless.
    """
    result = records.update_many(
        {
            "_id": {"$in": [RecordKey(task.name, doc_id).id for doc_id in doc_ids]},
            "_r.at": {"$lt": at},
            "_r.gen": {"$lte": generation},
        },
        pipelines.leave(at=at, gone=gone, history_limit=task.execution_history_limit),
        hint=BY_ID,
        session=session,
    )
    return result.modified_count


@translated
def newest_generation(records: Records, task: str) -> int:
    """Return the newest generation that any record of *task* speaks of, 0 if there is none; it reads them all."""
    newest = {"$group": {"_id": None, "generation": {"$max": "$_r.gen"}}}
    found = next(records.aggregate([{"$match": {"task": task}}, newest]), None)
    return 0 if found is None else int(found["generation"])


@translated
def forget_observations(records: Records, task: str) -> int:
    """Make every observation of *task* older than any to come: after a restore to an earlier time (B-49).

    Without it, records would refuse what the restored cluster says until its clock has caught up.
    """
    result = records.update_many({"task": task}, [{"$set": {"_r.at": Timestamp(0, 1)}}])
    return result.modified_count
