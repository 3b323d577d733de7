"""What the planner lays over records, and what it asks of documents for that.

`apply_observations` alone does it for any documents, at 0.2 ms each. For many at once three statements that the server
goes through faster do most of it: `find_unlike` tells for which there is anything to write, `make_records` and
`exchange_records` write it. Those two may refuse or leave out whatever has moved meanwhile: what is still unlike
afterwards is for `apply_observations`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from bson import Timestamp
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from celery_reactive.core.changes import Wrote
from celery_reactive.core.evolution import Lineage
from celery_reactive.core.projection import stages_of
from celery_reactive.core.record import RecordKey
from celery_reactive.core.task import ReactiveTask
from celery_reactive.store import pipelines, scans
from celery_reactive.store.errors import translated
from celery_reactive.store.records.collection import BY_ID, SIMPLE, Records
from celery_reactive.store.scans import Span


@dataclasses.dataclass(frozen=True, slots=True)
class Observation:
    """How documents are looked at for a task, whichever they are.

    Attributes:
        task: Definition.
        at: A cluster time known before the statement is sent; *session* is causally after it.
        generation: Of the stored definition.
        comparable: Further generations with the same projection; what was seen under any other has changed (B-43).
        live: An event told of the documents; false for a scan.
        stamps: Whether also an observation of nothing new moves the records' time, see `pipelines`.
        wrote: When a batch of the stream says that the documents were changed last.
        collated: The watched collection has a default collation: its filter is asked apart, under it, and what
            is watched is compared under the simple one. A document that changes in between has a later event.
        session: Causal session of the planner.
    """

    task: ReactiveTask
    at: Timestamp
    generation: int
    comparable: frozenset[int] = frozenset()
    live: bool = True
    stamps: bool = True
    wrote: Sequence[Wrote] = ()
    collated: bool = False
    session: ClientSession | None = None

    def stages(self, source: Collection[Any], whose: Sequence[Any] | Span) -> list[dict[str, Any]]:
        """Return the stages that give `{d: document id, w: watched values}` of the documents that match.

        Raises:
            StoreUnavailableError: Where the filter is asked apart.
            StatementFailedError: Likewise.
        """
        if not self.collated or self.task.filter.matches_all:
            query = [] if self.task.filter.matches_all else [{"$match": self.task.filter.query}]
        else:
            whose, query = find_matching(source, self.task, scans.ids_of(source, whose), session=self.session), []
        return [{"$match": scans.documents_of(whose)}, *query, *self.task.projection.stages(keep={"d": "$_id"})]

    def new_record(self) -> dict[str, Any]:
        """Return the stage that turns what `stages` gives into whole new records."""
        return pipelines.new_record(
            self.task.name,
            at=self.at,
            generation=self.generation,
            debounce=_first_wait(self.task),
            runs=self.live or self.task.backfill,
            wrote=self.wrote,
        )

    def apply(self, **where: str) -> list[dict[str, Any]]:
        """Return the pipeline that lays a new record over the existing one."""
        return pipelines.apply_observation(
            debounce=self.task.debounce,
            max_wait=self.task.debounce_max_wait,
            reset_retries=self.task.retry_policy.reset_retries_on_data_change,
            reentry_runs=not self.task.projection.only_id,
            comparable={self.generation, *self.comparable},
            live=self.live,
            stamps=self.stamps,
            **where,
        )


def _first_wait(task: ReactiveTask) -> timedelta:
    """Return how long a new record waits: the debounce, capped like any later one (B-16)."""
    return task.debounce if task.debounce_max_wait is None else min(task.debounce, task.debounce_max_wait)


@translated
def apply_observations(
    source: Collection[Any], records: Records, observation: Observation, doc_ids: Sequence[Any]
) -> None:
    """Plan *doc_ids*: read them with the real filter and lay what is watched over the records.

    One aggregation on the server; documents do not pass through this process. A document that does
    not match leaves its record alone, see `leave`.

    Args:
        source: The watched collection, read concern majority, primary.
        records: Its records collection.
        observation: For which task, and when.
        doc_ids: Ids to look at.

    Raises:
        StoreBusyError: Not done within the caller's `time_limit`; somebody's transaction holds a record.
        StoreUnavailableError: Nothing or a part of it was written; planning again is harmless.
        StatementFailedError: Some document of *doc_ids* cannot be planned; some may have been.
    """
    source.aggregate(
        [
            *observation.stages(source, doc_ids),
            observation.new_record(),
            _merge(records, when_matched=observation.apply(), when_not_matched="insert"),
        ],
        session=observation.session,
        collation=SIMPLE,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Unlike:
    """Ids of documents for which there is something to write."""

    new: list[Any]
    """Those without a record."""
    changed: list[Any]

    def __len__(self) -> int:
        return len(self.new) + len(self.changed)


@translated
def find_unlike(
    source: Collection[Any], records: Records, observation: Observation, whose: Sequence[Any] | Span
) -> Unlike:
    """Return which documents are not what their records say, as `apply_observations` would find; it writes nothing.

    Args:
        source: The watched collection, read concern majority, primary.
        records: Its records collection.
        observation: For which task, and when.
        whose: Ids to look at, or all within a span; the latter not where the collection has a collation of its own,
            in whose order its ids stand.

    Raises:
        StoreUnavailableError: The server did not answer.
        StatementFailedError: The filter or the projection fails on some document.
    """
    found = source.aggregate(
        [
            *observation.stages(source, whose),
            {"$replaceWith": {"d": "$d", "o": {"w": "$w"}}},
            *pipelines.beside_known(records.name, scans.records_of(observation.task.name, whose), pipelines.TO_COMPARE),
            *pipelines.unlike(at=observation.at, generation=observation.generation, stamps=observation.stamps),
        ],
        session=observation.session,
        collation=SIMPLE,
    )
    unlike = Unlike([], [])
    for one in found:
        (unlike.new if one["new"] else unlike.changed).append(one["_id"])
    return unlike


@translated
def make_records(source: Collection[Any], records: Records, observation: Observation, doc_ids: Sequence[Any]) -> bool:
    """Make whole records of those of *doc_ids* that match, none of which should have one.

    Returns:
        Whether none had; false: some records were made, and it is not known which.

    Raises:
        StoreUnavailableError: Nothing or a part of it was written; planning again is harmless.
        StatementFailedError: Some document of *doc_ids* cannot be planned; some may have been.
    """
    try:
        source.aggregate(
            [
                *observation.stages(source, doc_ids),
                observation.new_record(),
                _merge(records, when_matched="fail", when_not_matched="insert"),
            ],
            session=observation.session,
            collation=SIMPLE,
        )
    except DuplicateKeyError:
        return False
    return True


@translated
def exchange_records(
    source: Collection[Any], records: Records, observation: Observation, doc_ids: Sequence[Any]
) -> None:
    """Lay the documents over their records as `apply_observations` does, and leave out what is touched meanwhile.

    The records are read and worked out by the aggregation, and each is put in place of the one that was read, if that
    still stands as it was. Documents without a record are left out, too.

    Raises:
        StoreBusyError: Not done within the caller's `time_limit`; somebody's transaction holds a record.
        StoreUnavailableError: Nothing or a part of it was written; planning again is harmless.
        StatementFailedError: Some document of *doc_ids* cannot be planned, or a record is more than half as large as
            one may be; some may have been planned.
    """
    apply = observation.apply(new=pipelines.OBSERVED)
    source.aggregate(
        [
            *observation.stages(source, doc_ids),
            observation.new_record(),
            {"$replaceWith": {"d": "$_id.d", "o": "$$ROOT"}},
            *pipelines.beside_known(records.name, scans.records_of(observation.task.name, doc_ids), "$$ROOT"),
            *pipelines.as_observed(apply),
            _merge(records, when_matched=pipelines.unless_touched(), when_not_matched="discard"),
        ],
        session=observation.session,
        collation=SIMPLE,
    )


def _merge(records: Records, *, when_matched: str | list[dict[str, Any]], when_not_matched: str) -> dict[str, Any]:
    """Return the stage that lays documents, as `$$new`, over the records of the same `_id`."""
    merge = {
        "into": {"db": records.database.name, "coll": records.name},
        "on": "_id",
        "whenMatched": when_matched,
        "whenNotMatched": when_not_matched,
    }
    return {"$merge": merge if isinstance(when_matched, str) else {**merge, "let": {"new": "$$ROOT"}}}


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
            _merge(records, when_matched=pipelines.adopt_snapshot(lineage.generation), when_not_matched="discard"),
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
def find_absent(
    source: Collection[Any],
    records: Records,
    task: ReactiveTask,
    whose: Sequence[Any] | Span,
    *,
    session: ClientSession | None = None,
) -> list[Any]:
    """Return the document ids of those records whose documents do not exist or do not match.

    Not where the watched collection has a collation of its own.

    Raises:
        StoreUnavailableError: The server did not answer.
        StatementFailedError: The filter fails on some document.
    """
    found = source.aggregate(
        [
            {"$match": scans.documents_of(whose)},
            *([] if task.filter.matches_all else [{"$match": task.filter.query}]),
            {"$replaceWith": {"d": "$_id", "o": {"d": "$_id"}}},
            *pipelines.beside_known(records.name, scans.records_of(task.name, whose), {"d": "$_id.d"}),
            {"$match": {"o": None}},
        ],
        session=session,
        collation=SIMPLE,
    )
    return [one["k"]["d"] for one in found]


@translated
def leave(
    records: Records,
    task: ReactiveTask,
    doc_ids: Sequence[Any],
    *,
    at: Timestamp,
    generation: int,
    gone: bool,
    wrote: Sequence[Wrote] = (),
    session: ClientSession | None = None,
) -> int:
    """Mark the records of documents that are gone or have left the filter (B-8), or have deletions run (B-61).

    Only records whose newest observation is older than *at* are touched: after `apply_observations`
    with the same time those are the ones whose documents did not match. *wrote* tells when a batch of the stream says
    that documents were deleted.

    Returns:
        Number of records marked.

    Raises:
        StoreUnavailableError: A part of it may have been written; doing it again is harmless.
    """
    if gone and task.on_delete:
        pipeline = pipelines.delete(
            at=at,
            debounce=task.debounce,
            max_wait=task.debounce_max_wait,
            reset_retries=task.retry_policy.reset_retries_on_data_change,
            wrote=wrote,
        )
    else:
        pipeline = pipelines.leave(at=at, gone=gone, history_limit=task.execution_history_limit)
    result = records.update_many(
        {
            "_id": {"$in": [RecordKey(task.name, doc_id).id for doc_id in doc_ids]},
            "_r.at": {"$lt": at},
            "_r.gen": {"$lte": generation},
        },
        pipeline,
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
