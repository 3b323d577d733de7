"""Paging through collections by `_id`, whatever its types, with only ids in memory (B-48)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bson import MaxKey, MinKey
from pymongo.client_session import ClientSession
from pymongo.collection import Collection

from celery_reactive.core.record import RecordKey
from celery_reactive.store.errors import translated

START = MinKey()
"""Where a scan begins: no `_id` sorts before it."""


@translated
def next_documents(source: Collection[Any], after: Any, *, limit: int, session: ClientSession) -> list[Any]:
    """Return up to *limit* ids of *source* that sort after *after*, over all types.

    A plain `$gt` would never leave the numbers; the expression compares across types and uses the index.
    """
    beyond: dict[str, Any] = {"$expr": {"$gt": ["$_id", {"$literal": after}]}}
    query = {"$or": [{"_id": START}, beyond]} if isinstance(after, MinKey) else beyond
    cursor = source.find(query, projection=["_id"], sort=[("_id", 1)], limit=limit, hint="_id_", session=session)
    return [document["_id"] for document in cursor]


@translated
def next_records(
    records: Collection[Any],
    task: str,
    after: Any,
    *,
    limit: int,
    session: ClientSession,
) -> list[Any]:
    """Return up to *limit* document ids of the records of *task* that sort after *after*."""
    first = isinstance(after, MinKey)
    bounds = {("$gte" if first else "$gt"): {"t": task, "d": after}, "$lte": {"t": task, "d": MaxKey()}}
    cursor = records.find(
        {"_id": bounds},
        projection=["_id"],
        sort=[("_id", 1)],
        limit=limit,
        hint="_id_",
        session=session,
    )
    return [record["_id"]["d"] for record in cursor]


@translated
def estimate(source: Collection[Any]) -> int:
    """Return about how many documents *source* has, from its metadata."""
    return source.estimated_document_count()


@translated
def count(records: Collection[Any], task: str) -> int:
    """Return how many records *task* has; a range of `reactive_next_run`."""
    return records.count_documents({"task": task})


@translated
def find_existing(source: Collection[Any], doc_ids: Sequence[Any], *, session: ClientSession) -> list[Any]:
    """Return those of *doc_ids* whose documents exist."""
    query = {"_id": {"$in": list(doc_ids)}}
    return [document["_id"] for document in source.find(query, projection=["_id"], session=session)]


@translated
def find_records(records: Collection[Any], task: str, doc_ids: Sequence[Any], *, session: ClientSession) -> list[Any]:
    """Return the document ids, as the records have them, of the records of *task* for *doc_ids*."""
    named = {"_id": {"$in": [RecordKey(task, doc_id).id for doc_id in doc_ids]}}
    cursor = records.find(named, projection=["_id"], hint="_id_", session=session)
    return [record["_id"]["d"] for record in cursor]
