"""What a definition would make of documents and records: read for the dry run of a deployment (B-53).

Called by `management`. Reads only, a page at a time; documents stay on the server, numbers and a few ids come back.
What counts as a change is asked in the planner's words: one comparison under the simple collation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from bson.errors import BSONError
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from celery_reactive.core.evolution import Lineage
from celery_reactive.core.policies import OnHandlerVersionChange
from celery_reactive.core.projection import stages_of
from celery_reactive.core.states import FINAL, RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.store import scans
from celery_reactive.store.errors import translated
from celery_reactive.store.scans import Span

Documents = Collection[dict[str, Any]]

SAMPLES = 5
_SIMPLE = {"locale": "simple"}


class Fate(StrEnum):
    """What a deployment would do for a document."""

    CREATE = "create"
    """It matches and has no record."""
    RERUN = "rerun"
    """Its record would become pending."""
    SKIP = "skip"
    """Its record waits to run, and would be completed without a run: the document no longer matches, or is gone."""
    UNCHANGED = "unchanged"
    """Nothing would run for it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fates:
    """How many documents of a page have which fate."""

    counts: Mapping[Fate, int]
    samples: Mapping[Fate, Sequence[Any]]
    """Ids of a few documents of each."""


@translated
def of_documents(
    source: Documents,
    records: Documents,
    task: ReactiveTask,
    whose: Span | Sequence[Any],
    *,
    lineage: Lineage,
    resets: OnHandlerVersionChange,
    collated: bool,
    session: ClientSession,
) -> Fates:
    """Return what *task* would make of those of the documents that match.

    Args:
        source: The watched collection.
        records: Its records collection, which need not exist.
        task: The definition that would be deployed.
        whose: Which documents.
        lineage: What is known of generations, seen from that definition.
        resets: Which records a new version of the handler would reset.
        collated: The watched collection compares strings under a collation of its own.
        session: Causal session.

    Raises:
        StoreUnavailableError: MongoDB does not answer.
        StatementFailedError: Filter or projection fails on one of the documents.
    """
    matching: list[dict[str, Any]] = [{"$match": scans.documents_of(whose)}, {"$match": task.filter.query}]
    if collated:
        query = {"$and": [scans.documents_of(whose), task.filter.query]}
        ids = [document["_id"] for document in source.find(query, projection=["_id"], session=session)]
        matching = [{"$match": {"_id": {"$in": ids}}}]
    earlier = {f"p{number}": projection for number, (_, projection) in enumerate(lineage.earlier)}
    generations = [(numbers, field) for field, (numbers, _) in zip(earlier, lineage.earlier, strict=True)]
    found = source.aggregate(
        [
            *matching,
            *stages_of({"w": task.projection, **earlier}, keep={"d": "$_id"}),
            {"$set": {"_id": {"t": {"$literal": task.name}, "d": "$d"}}},
            {"$lookup": {"from": records.name, "localField": "_id", "foreignField": "_id", "as": "known"}},
            {"$set": {"known": {"$first": "$known"}}},
            {"$set": {"fate": _fate(task, lineage, generations, resets)}},
            {
                "$group": {
                    "_id": "$fate",
                    "count": {"$sum": 1},
                    "ids": {"$firstN": {"input": "$d", "n": SAMPLES}},
                },
            },
        ],
        collation=_SIMPLE,
        session=session,
    )
    groups = {Fate(group["_id"]): group for group in found}
    return Fates(
        {fate: int(group["count"]) for fate, group in groups.items()},
        {fate: group["ids"] for fate, group in groups.items()},
    )


def _fate(
    task: ReactiveTask,
    lineage: Lineage,
    generations: Sequence[tuple[frozenset[int], str]],
    resets: OnHandlerVersionChange,
) -> dict[str, Any]:
    gone, left = {"$eq": ["$known._r.gone", True]}, {"$eq": ["$known._r.left", True]}
    skipped = {"$eq": ["$known._r.skipped", True]}
    returns = {"$or": [gone, {"$and": [left, skipped if task.projection.only_id else True]}]}
    same = [
        _is_same(sorted(lineage.comparable), "w"),
        *(_is_same(sorted(numbers), field) for numbers, field in generations),
    ]
    branches = [
        {"case": {"$eq": [{"$type": "$known"}, "missing"]}, "then": Fate.CREATE.value},
        {"case": {"$or": [returns, _is_reset(resets)]}, "then": Fate.RERUN.value},
        {"case": {"$or": same}, "then": Fate.UNCHANGED.value},
    ]
    return {"$switch": {"branches": branches, "default": Fate.RERUN.value}}


def _is_same(generations: Sequence[int], field: str) -> dict[str, Any]:
    """Whether the record was seen under one of *generations*, with the values that the document has under it now."""
    return {
        "$and": [
            {"$in": ["$known._r.gen", list(generations)]},
            {"$eq": ["$known.lastObservedValues", f"${field}"]},
        ],
    }


def _is_reset(resets: OnHandlerVersionChange) -> Any:
    match resets:
        case OnHandlerVersionChange.NONE:
            return False
        case OnHandlerVersionChange.REPROCESS_FAILED:
            return {"$eq": ["$known.status", RecordState.FAILED.value]}
        case OnHandlerVersionChange.REPROCESS_ALL:
            return {"$in": ["$known.status", sorted(FINAL)]}


@translated
def pending_of(records: Documents, task: str, span: Span, *, session: ClientSession) -> list[Any]:
    """Return the document ids of those records of *span* that wait to run, and would not if the document is off."""
    waiting = {"status": RecordState.PENDING.value, "_r.forced": {"$ne": True}}
    query = {"$and": [scans.records_of(task, span), waiting]}
    return [found["_id"]["d"] for found in records.find(query, projection=["_id"], hint="_id_", session=session)]


@translated
def average_size(source: Documents) -> int | None:
    """Return how many bytes a document of *source* has on average; None: unknown, or there are none."""
    try:
        stats = next(source.aggregate([{"$collStats": {"storageStats": {}}}]), {})
    except (OperationFailure, BSONError):
        # No such collection, or no right to ask.
        return None
    size = stats.get("storageStats", {}).get("avgObjSize")
    return None if not size else int(size)
