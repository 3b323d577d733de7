"""A workbench for the records of one task: plays stream, planner and worker by hand, one statement at a time.

Used by the tests of store and planner through the fixtures of `conftest.py`. It never waits and starts no thread, so
that a test decides what comes before what.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import bson
from bson import Timestamp
from bson.raw_bson import RawBSONDocument
from pymongo.read_concern import ReadConcern

from celery_reactive.core.outcome import Completed, Deferred, Errored, Exhausted, Failure, Outcome, Overtaken
from celery_reactive.core.record import CODEC, Claim, RecordKey
from celery_reactive.core.registry import Registry
from celery_reactive.core.states import RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.events import Event
from celery_reactive.planner.plan import PlannedTask, Planning
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store import definitions, indexes, records, server
from celery_reactive.store.change_stream import Change, ChangeKind
from celery_reactive.store.connection import Connection
from celery_reactive.store.records import Settled
from celery_reactive.worker.context import TaskContext
from celery_reactive.worker.execute import Body
from celery_reactive.worker.run import Run

Document = dict[str, Any]

LEASE = timedelta(seconds=60)
TOOK = timedelta(milliseconds=12)


class Bench:
    """The watched collection of one task, its records, and the hands that move them."""

    def __init__(self, connection: Connection, task: ReactiveTask) -> None:
        self.connection = connection
        self.task = task
        self.source = connection.source(task)
        self.records = connection.records(task)
        self.as_written = self.records.with_options(read_concern=ReadConcern("local"))
        """Also with what a majority does not have yet."""
        self.generation = 1
        self._tokens = (f"token-{number}" for number in itertools.count(1))
        indexes.prepare(self.records)

    # --- the user ----------------------------------------------------------------------------

    def put(self, document: Document) -> Timestamp:
        """Insert or replace *document*; return a cluster time at which it is so."""
        self.source.replace_one({"_id": document["_id"]}, document, upsert=True)
        return self.cluster_time()

    def delete(self, doc_id: Any) -> Timestamp:
        """Delete a document; return a cluster time at which it is gone."""
        self.source.delete_one({"_id": doc_id})
        return self.cluster_time()

    def cluster_time(self) -> Timestamp:
        """Return a cluster time known now."""
        with self.connection.causal_session() as session:
            return server.cluster_time(self.connection.database(), session)

    def now(self) -> datetime:
        """Return the server's time."""
        found = self.connection.database().aggregate([{"$documents": [{"now": "$$NOW"}]}])
        now: datetime = next(found)["now"]
        return now

    # --- the planner -------------------------------------------------------------------------

    def key(self, doc_id: Any) -> RecordKey:
        """Return the key of the record of *doc_id*."""
        return RecordKey(self.task.name, doc_id)

    def observe(self, *doc_ids: Any, at: Timestamp | None = None, live: bool = True, collated: bool = False) -> None:
        """Lay the documents as they are now over their records."""
        at = at or self.cluster_time()
        with self.connection.causal_session() as session:
            session.advance_operation_time(at)
            observation = records.Observation(
                self.task, at=at, generation=self.generation, live=live, collated=collated, session=session
            )
            records.apply_observations(self.source, self.records, observation, doc_ids)

    def leave(self, *doc_ids: Any, at: Timestamp | None = None, gone: bool = False) -> int:
        """Mark the records of *doc_ids* whose newest observation is older than *at*."""
        return records.leave(
            self.records,
            self.task,
            doc_ids,
            at=at or self.cluster_time(),
            generation=self.generation,
            gone=gone,
        )

    def plan(self, *documents: Document) -> None:
        """Write *documents* and plan them: those that match are observed, the others have left."""
        at = self.cluster_time()
        for document in documents:
            at = self.put(document)
        ids = [document["_id"] for document in documents]
        self.observe(*ids, at=at)
        self.leave(*ids, at=at)

    # --- the worker --------------------------------------------------------------------------

    def claim(self, *doc_ids: Any) -> list[Claim]:
        """Claim what is due of *doc_ids* with a fresh token."""
        with self.connection.causal_session() as session:
            return records.claim(
                self.records,
                [self.key(doc_id) for doc_id in doc_ids],
                token=next(self._tokens),
                worker="bench",
                lease=LEASE,
                session=session,
            )

    def start(self, document: Document) -> Claim:
        """Write, plan and claim one document."""
        self.plan(document)
        (claim,) = self.claim(document["_id"])
        return claim

    def settle(self, claim: Claim, outcome: Outcome) -> Settled:
        """End a run."""
        return records.settle(self.records, self.task, claim, outcome)

    def complete(self, claim: Claim, *, document_checked: bool = False) -> Settled:
        """End a run in success."""
        return self.settle(claim, Completed(TOOK, document_checked=document_checked))

    def error(self, claim: Claim, *, retry_in: timedelta = timedelta(seconds=10), message: str = "broken") -> Settled:
        """End a run in a failure with attempts left."""
        return self.settle(claim, Errored(Failure(message, "ValueError", "traceback"), TOOK, retry_in))

    def exhaust(self, claim: Claim) -> Settled:
        """End a run in a failure without attempts left."""
        return self.settle(claim, Exhausted(Failure("broken", "ValueError", "traceback"), TOOK))

    def guard(self, document: Document) -> None:
        """Write and plan one document, and let the loop guard take its record out."""
        claim = self.start(document)
        self.settle(claim, Deferred(self.now() - timedelta(seconds=1)))
        assert records.guard(self.records, claim.key, loop_guard=0)

    def handle(self, document: Document) -> None:
        """Write, plan, claim and complete one document."""
        self.complete(self.start(document))

    # --- by hand -----------------------------------------------------------------------------

    def retry(self, *doc_ids: Any) -> int:
        """Retry records by hand."""
        return records.retry_by_hand(self.records, [self.key(doc_id).id for doc_id in doc_ids])

    def discard(self, *doc_ids: Any) -> int:
        """Discard records by hand."""
        ids = [self.key(doc_id).id for doc_id in doc_ids]
        return records.discard(self.records, ids, history_limit=self.task.execution_history_limit)

    def make_due(self, doc_id: Any) -> None:
        """Let the waiting time of a pending record have passed."""
        past = {"$subtract": ["$$NOW", 1]}
        self.records.update_one(
            {"_id": self.key(doc_id).id, "status": "pending"},
            [{"$set": {"nextRunAt": past, "dueAt": past, "_r.wakeAt": past}}],
        )

    # --- looking -----------------------------------------------------------------------------

    def record(self, doc_id: Any) -> Document:
        """Return the record of *doc_id*, which must exist."""
        found = self.as_written.find_one({"_id": self.key(doc_id).id})
        assert found is not None, f"no record of {doc_id!r}"
        return found

    def state(self, doc_id: Any) -> RecordState:
        """Return the state of the record of *doc_id*."""
        return RecordState(self.record(doc_id)["status"])

    def raw(self, doc_id: Any) -> bytes:
        """Return the record of *doc_id* to the byte."""
        raw = CODEC.with_options(document_class=RawBSONDocument)
        found = self.as_written.with_options(codec_options=raw).find_one({"_id": self.key(doc_id).id})
        assert isinstance(found, RawBSONDocument), f"no record of {doc_id!r}"
        return bytes(found.raw)


def overtaken(values: Document, *, generation: int = 1) -> Overtaken:
    """Return the outcome of a run that read newer watched *values*."""
    return Overtaken(RawBSONDocument(bson.encode({"v": values}, codec_options=CODEC)), generation)


def each(body: Callable[[Run, TaskContext], Outcome]) -> Body:
    """Return what `execute` calls, of what runs one record."""
    return lambda runs, contexts: [body(run, context) for run, context in zip(runs, contexts, strict=True)]


class Desk:
    """A planner's `Planning` over the benches of one database, with the events it emitted."""

    def __init__(self, connection: Connection, settings: Settings, *benches: Bench, collated: bool = False) -> None:
        self.events: list[Event] = []
        self.runtime = Runtime(settings, Registry(), connection, (self.events.append,))
        self._tasks = [PlannedTask(bench.task, bench.generation, collated) for bench in benches]
        self._bench = benches[0]
        self.planning = Planning(self.runtime, self._tasks)

    def succeed(self) -> None:
        """Let a new leader take over."""
        self.planning = Planning(self.runtime, self._tasks)

    def plan(self, *changes: Change) -> None:
        """Plan a batch of changes, as of now."""
        self.planning.plan_changes(changes, at=self._bench.cluster_time())

    def plan_written(self, *doc_ids: Any) -> None:
        """Plan a batch of replacements."""
        self.plan(*(self.written(doc_id) for doc_id in doc_ids))

    def written(self, doc_id: Any, *, paths: Sequence[str] | None = None, inserted: bool = False) -> Change:
        """Return what the stream tells of a write."""
        changed = None if paths is None else frozenset(paths)
        return Change(ChangeKind.WRITTEN, self._bench.task.collection, doc_id, changed, inserted=inserted)

    def deleted(self, doc_id: Any) -> Change:
        """Return what the stream tells of a deletion."""
        return Change(ChangeKind.DELETED, self._bench.task.collection, doc_id)

    def define(self, term: int = 1) -> None:
        """Store the definitions as the leader does."""
        for task in self._tasks:
            definitions.define(
                self.runtime.connection.globals(),
                task.definition,
                namespace=self.runtime.connection.namespace(task.definition),
                collated=task.collated,
                term=term,
            )
