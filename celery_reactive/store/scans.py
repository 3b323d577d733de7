"""Paging through collections by `_id`, whatever its types, with only ids in memory (B-48)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from bson import MaxKey, MinKey
from pymongo.client_session import ClientSession
from pymongo.collection import Collection

from celery_reactive.core.record import RecordKey
from celery_reactive.store.errors import translated

START = MinKey()
"""Where a scan begins: no `_id` sorts before it."""
END = MaxKey()
"""Where a scan ends: no `_id` sorts after it."""
_SAMPLE = 400


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """All ids that sort after one and not after another, over all types."""

    after: Any
    until: Any
    count: int
    """How many there were when it was measured; more may have come."""


def documents_of(whose: Sequence[Any] | Span) -> dict[str, Any]:
    """Return the query for the documents with those ids.

    A plain `$gt` would never leave the numbers; the expression compares across types and uses the index.
    """
    if not isinstance(whose, Span):
        return {"_id": {"$in": list(whose)}}
    last = {"$lte": ["$_id", {"$literal": whose.until}]}
    return {"$expr": last if isinstance(whose.after, MinKey) else {"$and": [_is_beyond(whose.after), last]}}


def records_of(task: str, whose: Sequence[Any] | Span) -> dict[str, Any]:
    """Return the query for the records that *task* has of those ids."""
    if not isinstance(whose, Span):
        return {"_id": {"$in": [RecordKey(task, doc_id).id for doc_id in whose]}}
    return {"_id": _between(task, whose.after, whose.until)}


def _is_beyond(after: Any) -> dict[str, Any]:
    return {"$gt": ["$_id", {"$literal": after}]}


def _between(task: str, after: Any, until: Any) -> dict[str, Any]:
    first = "$gte" if isinstance(after, MinKey) else "$gt"
    return {first: RecordKey(task, after).id, "$lte": RecordKey(task, until).id}


@translated
def next_documents(
    source: Collection[Any], after: Any, *, until: Any = END, limit: int, session: ClientSession
) -> Span | None:
    """Return the span of the next *limit* ids of *source*, in the order of its index, None if there are no more."""
    return _measured(source, documents_of(Span(after, until, 0)), "$_id", after, limit=limit, session=session)


@translated
def next_records(
    records: Collection[Any], task: str, after: Any, *, until: Any = END, limit: int, session: ClientSession
) -> Span | None:
    """Return the span of the next *limit* document ids of the records of *task*, None if there are no more."""
    return _measured(records, {"_id": _between(task, after, until)}, "$_id.d", after, limit=limit, session=session)


@translated
def find_middle(source: Collection[Any], *, session: ClientSession) -> Any:
    """Return an id of *source* with about as many before it as after it, `END` where there are none; by a sample."""
    sample = [{"$sample": {"size": _SAMPLE}}, {"$project": {"_id": 1}}, {"$sort": {"_id": 1}}]
    ids = [document["_id"] for document in source.aggregate(sample, session=session)]
    return ids[len(ids) // 2] if ids else END


def _measured(
    collection: Collection[Any], query: dict[str, Any], doc_id: str, after: Any, *, limit: int, session: ClientSession
) -> Span | None:
    """Return the span of the next *limit* ids: only the last of them leaves the server."""
    found = collection.aggregate(
        [
            {"$match": query},
            {"$sort": {"_id": 1}},
            {"$limit": limit},
            {"$group": {"_id": None, "count": {"$sum": 1}, "last": {"$last": doc_id}}},
        ],
        hint="_id_",
        session=session,
    )
    return next((Span(after, one["last"], one["count"]) for one in found), None)


@translated
def ids_of(source: Collection[Any], whose: Sequence[Any] | Span, *, session: ClientSession | None = None) -> list[Any]:
    """Return the ids of *source* within a span, in its order; ids are returned as they are."""
    if not isinstance(whose, Span):
        return list(whose)
    cursor = source.find(
        documents_of(whose),
        projection=["_id"],
        sort=[("_id", 1)],
        hint="_id_",
        batch_size=whose.count + 1,
        session=session,
    )
    return [document["_id"] for document in cursor]


@translated
def record_ids_of(records: Collection[Any], task: str, span: Span, *, session: ClientSession) -> list[Any]:
    """Return the document ids of the records of *task* within *span*, in their order."""
    cursor = records.find(
        records_of(task, span),
        projection=["_id"],
        sort=[("_id", 1)],
        hint="_id_",
        batch_size=span.count + 1,
        session=session,
    )
    return [record["_id"]["d"] for record in cursor]


@translated
def has_more_records(records: Collection[Any], task: str, span: Span, most: int, *, session: ClientSession) -> bool:
    """Return whether *task* has more than *most* records within *span*; a range of `_id`."""
    return records.count_documents(records_of(task, span), limit=most + 1, hint="_id_", session=session) > most


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
    cursor = records.find(records_of(task, doc_ids), projection=["_id"], hint="_id_", session=session)
    return [record["_id"]["d"] for record in cursor]
