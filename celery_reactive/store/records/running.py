"""A run: claimed, renewed, settled, or rescued when its worker has vanished."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import bson
from bson import Timestamp
from bson.raw_bson import RawBSONDocument
from pymongo import ReturnDocument, UpdateOne
from pymongo.client_session import ClientSession
from pymongo.collection import Collection

from celery_reactive.core.outcome import Completed, GivenBack, Outcome
from celery_reactive.core.record import CODEC, Claim, Lease, RecordKey, id_to_text
from celery_reactive.core.states import CLAIM, COMPLETE, RUNNING, RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import LeaseLostError
from celery_reactive.store import pipelines
from celery_reactive.store.errors import translated
from celery_reactive.store.raw import RAW, RawReply
from celery_reactive.store.records.collection import BY_ID, Records
from celery_reactive.store.server import known_time

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
    "_r.claim.deleted",
    "_r.reset",
    "_r.handled",
    "_r.gone",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Settled:
    """Where a run left its record."""

    state: RecordState
    next_run_at: datetime | None


@translated
def claim(
    records: Records,
    keys: Sequence[RecordKey],
    *,
    token: str,
    worker: str,
    lease: timedelta,
    session: ClientSession,
    until: datetime | None = None,
    track: bool = False,
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
        until: A server time after which the statement claims nothing: its slots may be somebody else's (B-58).
        track: Whether the task tracks changes (B-63).

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
        **pipelines.is_before(until),
    }
    attempt = pipelines.start_attempt(token=token, worker=worker, lease=lease, company=company, track=track)
    if company:
        named = {"_id": {"$in": [key.id for key in keys]}, **due}
        records.update_many(named, attempt, hint=BY_ID, session=session)
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
    found = _undecoded(records).find(owned, projection=list(_CLAIMED_FIELDS), hint=BY_ID, session=session)
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
        observed=_as_values(record["lastObservedValues"]),
        generation=int(books["gen"]),
        cluster_time=known_time(session),
        reset_for=int(books["reset"]["version"]) if "reset" in books else 0,
        reset_at=books["reset"]["at"] if "reset" in books else None,
        gone=bool(books.get("gone")),
        deleted="deleted" in books["claim"],
        handled=_as_values(record["_r"]["handled"]) if "handled" in books else None,
    )


def _as_values(stored: object) -> RawBSONDocument:
    """Return `{"v": stored}`, undecoded."""
    return RawBSONDocument(bson.encode({"v": stored}, codec_options=CODEC))


@translated
def renew(records: Records, keys: Iterable[RecordKey], token: str, lease: timedelta) -> set[bytes]:
    """Renew the leases of *keys* in one statement; return the `exact` form of those still owned.

    Raises:
        StoreUnavailableError: Unknown whether the leases were renewed.
    """
    owned = {"_id": {"$in": [key.id for key in keys]}, "_r.claim.token": token, **pipelines.state_is(RUNNING)}
    records.update_many(owned, pipelines.renew(lease), hint=BY_ID)
    return {
        RecordKey(record["_id"]["t"], record["_id"]["d"]).exact
        for record in records.find(owned, projection=["_id"], hint=BY_ID)
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
def settle_together(
    records: Records,
    task: ReactiveTask,
    claims: Sequence[Claim],
    outcome: Completed | GivenBack,
    *,
    durations: Sequence[timedelta] | None = None,
) -> dict[bytes, Settled]:
    """End several runs of one message, of one token, that came to the same, in one statement.

    Args:
        records: Records collection.
        task: Definition.
        claims: The runs' claims.
        outcome: What each of them came to.
        durations: How long each took; None: what the outcome says.

    Returns:
        Where the records are, by the `exact` form of their keys. One that is missing was not owned any more. Doing it
        again is safe, and finds those that the first time has written; it finds as well what a rescuer has ended
        under this token, so that a run whose lease may be over is ended alone.

    Raises:
        StoreUnavailableError: Unknown whether they were written.
    """
    token, ids = claims[0].token, [claim.key.id for claim in claims]
    records.update_many(
        {"_id": {"$in": ids}, "_r.claim.token": token, **pipelines.state_is(COMPLETE.sources)},
        pipelines.settle(
            outcome,
            task,
            observed_at=claims[0].cluster_time,
            took=durations and pipelines.took_each([claim.key.doc_id for claim in claims], durations),
        ),
        hint=BY_ID,
    )
    return _left_by(records, claims, token)


@translated
def settle_each(
    records: Records, task: ReactiveTask, claims: Sequence[Claim], outcomes: Sequence[Outcome]
) -> dict[bytes, Settled]:
    """End several runs of one token, each with an outcome of its own, in one command.

    Args:
        records: Records collection.
        task: Definition.
        claims: The runs' claims.
        outcomes: What they came to, in the same order.

    Returns:
        As of `settle_together`.

    Raises:
        StatementFailedError: One of them cannot be stored; others may have been.
        StoreUnavailableError: Unknown whether they were written.
    """
    token = claims[0].token
    ends = [
        UpdateOne(
            {"_id": claim.key.id, "_r.claim.token": token, **pipelines.state_is(COMPLETE.sources)},
            pipelines.settle(outcome, task, observed_at=claim.cluster_time),
            hint=BY_ID,
        )
        for claim, outcome in zip(claims, outcomes, strict=True)
    ]
    records.bulk_write(ends, ordered=False)
    return _left_by(records, claims, token)


def _left_by(records: Records, claims: Sequence[Claim], token: str) -> dict[bytes, Settled]:
    """Return where the records are that the statement of *token* has settled, by the `exact` form of their keys."""
    left = {"_id": {"$in": [claim.key.id for claim in claims]}, "_r.done": token}
    return {
        RecordKey(record["_id"]["t"], record["_id"]["d"]).exact: Settled(
            RecordState(record["status"]), record["nextRunAt"]
        )
        for record in records.find(left, projection=["status", "nextRunAt"], hint=BY_ID)
    }


@translated
def was_settled_by(records: Records, key: RecordKey, token: str) -> bool:
    """Whether the last run settled on *key* was the one with *token*: a repeated statement knows its own by it."""
    return records.find_one({"_id": key.id, "_r.done": token}, projection=["_id"]) is not None


@translated
def settled_by(records: Records, key: RecordKey, token: str) -> Settled | None:
    """Return where *key* is, if the last run settled on it was the one with *token*; it may be in another by now."""
    found = records.find_one({"_id": key.id, "_r.done": token}, projection={"status": 1, "nextRunAt": 1})
    return None if found is None else Settled(RecordState(found["status"]), found["nextRunAt"])


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
            task,
            observed_at=observed_at,
            transaction=session.session_id["id"] if session is not None and session.in_transaction else None,
        ),
        projection={"status": 1, "nextRunAt": 1},
        return_document=ReturnDocument.AFTER,
        session=session,
    )
    if settled is None:
        raise LeaseLostError(key)
    return Settled(RecordState(settled["status"]), settled["nextRunAt"])


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


@translated
def states_of(records: Records, keys: Sequence[RecordKey]) -> list[tuple[RecordKey, RecordState]]:
    """Return where those of *keys*, of one task, are that exist: for monitors, not to decide by."""
    named = {"_id": {"$in": [key.id for key in keys]}}
    return [
        (RecordKey(keys[0].task, record["sourceDocId"]), RecordState(record["status"]))
        for record in records.find(named, projection=["sourceDocId", "status"], hint=BY_ID)
    ]


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
