"""Every statement that changes a record. One function, one guarded statement.

Called by the planner's stages, the worker and management. Nothing here decides *whether* a
transition should happen, and no comparison uses this process's clock: `$$NOW` is the server's.
The driver repeats single-document statements itself; `update_many` and `$merge` it does not, so each
of those here does the same when it is done twice (a test does so).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import bson
from bson import Timestamp
from bson.raw_bson import RawBSONDocument
from pymongo import ReturnDocument
from pymongo.client_session import ClientSession
from pymongo.collection import Collection

from celery_reactive.core.evolution import Lineage
from celery_reactive.core.outcome import Failure, Outcome
from celery_reactive.core.projection import stages_of
from celery_reactive.core.record import CODEC, Claim, Due, Lease, RecordKey, id_to_text
from celery_reactive.core.states import (
    CLAIM,
    COMPLETE,
    DISCARD,
    REPROCESS,
    REVOKE,
    RUNNING,
    RecordState,
)
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import LeaseLostError
from celery_reactive.store import pipelines
from celery_reactive.store.errors import translated
from celery_reactive.store.raw import RAW, RawReply
from celery_reactive.store.server import known_time

Records = Collection[dict[str, Any]]

_SIMPLE = {"locale": "simple"}
_BY_ID = "_id_"
_CLAIMED_FIELDS = (
    "sourceDocId",
    "attempts",
    "dueAt",
    "startedAt",
    "firstErrorAt",
    "lastObservedValues",
    "_r.gen",
    "_r.fence",
    "_r.cycle",
    "_r.deferrals",
    "_r.claim.token",
    "_r.reset",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Settled:
    """Where a run left its record."""

    state: RecordState
    next_run_at: datetime | None


# --- planning ------------------------------------------------------------------------------------


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
        collation=_SIMPLE,
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
        collation=_SIMPLE,
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
        hint=_BY_ID,
        session=session,
    )
    return result.modified_count


# --- dispatching ---------------------------------------------------------------------------------


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
        found += [_due(task, record) for record in cursor]
        if len(found) >= limit:
            break
    return found


def _due(task: str, record: Mapping[str, Any]) -> Due:
    books = record["_r"]
    key = RecordKey(task, record["sourceDocId"])
    return Due(key, int(books["cycle"]), int(record["attempts"]), bool(books.get("alone")))


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
        hint=_BY_ID,
    )
    return result.modified_count


@translated
def mark_unsent(records: Records, keys: Iterable[RecordKey]) -> int:
    """Clear the mark of records whose message is known not to have been published."""
    result = records.update_many(
        {"_id": {"$in": [key.id for key in keys]}, **pipelines.state_is(CLAIM.sources), "_r.sent": True},
        pipelines.mark_unsent(),
        hint=_BY_ID,
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
        hint=_BY_ID,
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


# --- running -------------------------------------------------------------------------------------


@translated
def claim(
    records: Records,
    keys: Sequence[RecordKey],
    *,
    token: str,
    worker: str,
    lease: timedelta,
    session: ClientSession,
) -> list[Claim]:
    """Claim those of *keys* that are pending and due (B-23).

    One statement whatever the number of keys; a record that somebody else claims meanwhile is
    simply not among the result. Whether a message is the newest for its record is not asked:
    insisting on that never ends under a backlog.

    Args:
        records: The records collection, with majority concerns.
        keys: Records of one task that a message names.
        token: Unique to this delivery of the message; whoever knows it owns what it claims.
        worker: Name of the claiming process, for people.
        lease: Visibility timeout.
        session: Causal session in which the run will read.

    Returns:
        The claims, in the order of *keys*. Empty when nothing was due.

    Raises:
        StoreUnavailableError: The outcome is unknown. Claims that were made expire like any lease.
    """
    company = len(keys) > 1
    due = {
        **pipelines.state_is(CLAIM.sources),
        **pipelines.is_past("nextRunAt"),
        "_r.wakeAt": {"$gt": pipelines.EPOCH},
        **({"_r.alone": {"$ne": True}} if company else {}),
    }
    attempt = pipelines.start_attempt(token=token, worker=worker, lease=lease, company=company)
    if company:
        named = {"_id": {"$in": [key.id for key in keys]}, **due}
        records.update_many(named, attempt, hint=_BY_ID, session=session)
        return find_claims(records, keys, token=token, session=session)
    won = _undecoded(records).find_one_and_update(
        {"_id": keys[0].id, **due},
        attempt,
        projection=list(_CLAIMED_FIELDS),
        return_document=ReturnDocument.AFTER,
        session=session,
    )
    return [] if won is None else [_claim(keys[0].task, won, session)]


@translated
def find_claims(records: Records, keys: Sequence[RecordKey], *, token: str, session: ClientSession) -> list[Claim]:
    """Return the claims of *token* among *keys*, in their order: also after a claim whose outcome is unknown.

    Raises:
        StoreUnavailableError: Still unknown.
    """
    owned = {"_id": {"$in": [key.id for key in keys]}, "_r.claim.token": token, **pipelines.state_is(RUNNING)}
    found = _undecoded(records).find(owned, projection=list(_CLAIMED_FIELDS), hint=_BY_ID, session=session)
    # Keys come from messages, whose ids tell no Int64 from an int: what the server found by one key is named by it.
    claims = {id_to_text(claim.key.doc_id): claim for claim in (_claim(keys[0].task, one, session) for one in found)}
    return [claims[name] for name in (id_to_text(key.doc_id) for key in keys) if name in claims]


def _undecoded(records: Records) -> Collection[RawReply]:
    return records.with_options(codec_options=RAW)


def _claim(task: str, record: RawBSONDocument, session: ClientSession) -> Claim:
    fields = bson.decode(record.raw, CODEC)
    books = fields["_r"]
    return Claim(
        key=RecordKey(task, fields["sourceDocId"]),
        token=books["claim"]["token"],
        attempt=int(fields["attempts"]),
        fence=int(books["fence"]),
        cycle=int(books["cycle"]),
        due_at=fields["dueAt"],
        started_at=fields["startedAt"],
        first_error_at=fields["firstErrorAt"],
        deferrals=int(books["deferrals"]),
        observed=RawBSONDocument(bson.encode({"v": record["lastObservedValues"]}, codec_options=CODEC)),
        generation=int(books["gen"]),
        cluster_time=known_time(session),
        reset_for=int(books["reset"]["version"]) if "reset" in books else 0,
        reset_at=books["reset"]["at"] if "reset" in books else None,
    )


@translated
def renew(records: Records, keys: Iterable[RecordKey], token: str, lease: timedelta) -> set[bytes]:
    """Renew the leases of *keys* in one statement; return the `exact` form of those still owned.

    Raises:
        StoreUnavailableError: Unknown whether the leases were renewed.
    """
    owned = {"_id": {"$in": [key.id for key in keys]}, "_r.claim.token": token, **pipelines.state_is(RUNNING)}
    records.update_many(owned, pipelines.renew(lease), hint=_BY_ID)
    return {
        RecordKey(record["_id"]["t"], record["_id"]["d"]).exact
        for record in records.find(owned, projection=["_id"], hint=_BY_ID)
    }


@translated
def settle(
    records: Records,
    task: ReactiveTask,
    claim: Claim,
    outcome: Outcome,
    *,
    session: ClientSession | None = None,
) -> Settled:
    """End a run with *outcome* (B-24 to B-26), or send the record round again if something newer waits.

    Args:
        records: Records collection.
        task: Definition.
        claim: The run's claim.
        outcome: What it came to.
        session: A transaction of the caller's, for `mark_completed` (B-36).

    Raises:
        LeaseLostError: The claim no longer owns the record. Nothing was written.
        StoreUnavailableError: Unknown whether it was written; doing it again is safe, and a second time says
            `LeaseLostError` where the first was.
    """
    return _settle(
        records,
        task,
        {"_id": claim.key.id, "_r.claim.token": claim.token},
        outcome,
        observed_at=claim.cluster_time,
        key=claim.key,
        session=session,
    )


@translated
def was_settled_by(records: Records, key: RecordKey, token: str) -> bool:
    """Whether the last run settled on *key* was the one with *token*: a repeated statement knows its own by it."""
    return records.find_one({"_id": key.id, "_r.done": token}, projection=["_id"]) is not None


@translated
def is_completed_by(records: Records, key: RecordKey, token: str, *, session: ClientSession | None) -> bool:
    """Whether *key* is as the run with *token* left it when it completed it, also within the transaction that did."""
    completed = {"_id": key.id, "_r.done": token, "status": RecordState.COMPLETED.value}
    return records.find_one(completed, projection=["_id"], session=session) is not None


@translated
def settle_by_token(records: Records, task: ReactiveTask, key: RecordKey, token: str, outcome: Outcome) -> Settled:
    """End a run from outside the process that runs it: the worker's parent knows only key and token.

    Raises:
        LeaseLostError: The token does not own the record. Nothing was written.
    """
    return _settle(
        records, task, {"_id": key.id, "_r.claim.token": token}, outcome, observed_at=Timestamp(0, 1), key=key
    )


@translated
def rescue(
    records: Records,
    task: ReactiveTask,
    lease: Lease,
    outcome: Outcome,
) -> Settled:
    """End a run whose worker has vanished (B-28), if its heartbeat still stands where *lease* saw it.

    Raises:
        LeaseLostError: The worker lives, or has finished. Nothing was written.
    """
    return _settle(
        records,
        task,
        {"_id": lease.key.id, "_r.claim.token": lease.token, "_r.claim.beats": lease.beats},
        outcome,
        observed_at=Timestamp(0, 1),
        key=lease.key,
    )


def _settle(
    records: Records,
    task: ReactiveTask,
    owned: Mapping[str, Any],
    outcome: Outcome,
    *,
    observed_at: Timestamp,
    key: RecordKey,
    session: ClientSession | None = None,
) -> Settled:
    settled = records.find_one_and_update(
        {**owned, **pipelines.state_is(COMPLETE.sources)},
        pipelines.settle(
            outcome,
            debounce=task.debounce,
            history_limit=task.execution_history_limit,
            reset_retries=task.retry_policy.reset_retries_on_data_change,
            observed_at=observed_at,
        ),
        projection={"status": 1, "nextRunAt": 1},
        return_document=ReturnDocument.AFTER,
        session=session,
    )
    if settled is None:
        raise LeaseLostError(key)
    return Settled(RecordState(settled["status"]), settled["nextRunAt"])


# --- rescue --------------------------------------------------------------------------------------


@translated
def running(records: Records, task: str) -> list[Lease]:
    """Return all running records of *task* with their heartbeat counters and the server's time."""
    running_ones = {"task": task, **pipelines.state_is(RUNNING), "_r.wakeAt": {"$gt": pipelines.EPOCH}}
    return _leases(records, task, running_ones)


@translated
def is_running(records: Records, task: str) -> bool:
    """Whether any record of *task* is running."""
    running_one = {"task": task, **pipelines.state_is(RUNNING), "_r.wakeAt": {"$gt": pipelines.EPOCH}}
    return records.find_one(running_one, projection=["_id"]) is not None


@translated
def claimed_with(records: Records, keys: Sequence[RecordKey], token: str) -> list[Lease]:
    """Return those of *keys*, of one task, that run under *token*: what a worker's parent process needs to know."""
    ids = [key.id for key in keys]
    owned = {"_id": {"$in": ids}, "_r.claim.token": token, **pipelines.state_is(RUNNING)}
    return _leases(records, keys[0].task, owned)


def _leases(records: Records, task: str, query: Mapping[str, Any]) -> list[Lease]:
    fields = {"sourceDocId": 1, "attempts": 1, "startedAt": 1, "firstErrorAt": 1, "claim": "$_r.claim", "now": "$$NOW"}
    return [
        Lease(
            key=RecordKey(task, record["sourceDocId"]),
            token=record["claim"]["token"],
            beats=int(record["claim"]["beats"]),
            company=bool(record["claim"]["company"]),
            attempts=int(record["attempts"]),
            started_at=record["startedAt"],
            first_error_at=record["firstErrorAt"],
            now=record["now"],
        )
        for record in records.aggregate([{"$match": query}, {"$project": fields}])
    ]


# --- by hand -------------------------------------------------------------------------------------


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
        hint=_BY_ID,
    )
    return result.modified_count


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
        hint=_BY_ID,
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
        hint=_BY_ID,
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


@translated
def revoke(records: Records, task: ReactiveTask, key: RecordKey, error: Failure) -> bool:
    """Fail a pending record whose Celery task was revoked (B-40); return whether it was pending."""
    result = records.update_one(
        {"_id": key.id, **pipelines.state_is(REVOKE.sources)},
        pipelines.revoke(error, history_limit=task.execution_history_limit),
    )
    return result.modified_count == 1
