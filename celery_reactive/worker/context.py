"""What a handler gets: the facts of its run, and the ways to read, defer, throttle and complete (B-31 to B-36)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import bson
from bson.raw_bson import RawBSONDocument

from celery_reactive.core.duration import Duration, in_utc, parse_duration
from celery_reactive.core.outcome import Completed, Deferred, Overtaken
from celery_reactive.core.suggest import shown
from celery_reactive.errors import (
    ConfigurationError,
    DocumentInvalidError,
    LeaseLostError,
    ReactiveError,
    TaskConditionFailedError,
)
from celery_reactive.events import ContextMisused, TaskThrottled
from celery_reactive.store import definitions, documents, records
from celery_reactive.store.documents import Gone, Left, MovedOn, Read
from celery_reactive.store.errors import driver_errors_within
from celery_reactive.worker.run import Run

if TYPE_CHECKING:
    from pymongo import MongoClient
    from pymongo.client_session import ClientSession


class ValueChange(NamedTuple):
    """The value of one watched path, then and now; None where the document has none."""

    before: Any
    """For the last run that completed."""
    after: Any
    """For this run."""


class ContextEndedError(ReactiveError):
    """A context was used after its handler had returned. Nothing was done."""


class TaskContext:
    """One run, as its handler sees it. Usable until the handler returns, from any of its threads."""

    def __init__(self, run: Run, session: ClientSession | None) -> None:
        self._run = run
        self._session = session

    @property
    def doc_id(self) -> Any:
        """The source document's `_id`, any BSON type."""
        return self._run.claim.key.doc_id

    @property
    def watched_values(self) -> Any:
        """The values of `watch_projection` that this run is for, decoded as the client decodes."""
        options = self._run.runtime.connection.client.codec_options
        return bson.decode(self._run.claim.observed.raw, options)["v"]

    @property
    def deleted(self) -> bool:
        """Whether this run is for the deletion of the document, of which a task with `on_delete` is told (B-61).

        `watched_values` are then the last that were seen, and `get_document` raises.
        """
        return self._run.deleted

    @property
    def changes(self) -> dict[str, ValueChange]:
        """What the last run that completed was for, and what this one is for, by watched path (B-63).

        Every watched path that has a value in either is there, also where the two are equal; of a whole document, its
        fields. Before the first run that completes, each `before` is None. What a retry by hand or a new version of
        the handler runs once more may have changed in nothing.

        Raises:
            ConfigurationError: The task does not say `track_changes=True`.
        """
        task, claim = self._run.task, self._run.claim
        if not task.track_changes:
            raise ConfigurationError("changes", [f"say track_changes=True in the declaration of {task.name}"])
        options = self._run.runtime.connection.client.codec_options
        after = task.projection.values(self.watched_values)
        before = {} if claim.handled is None else task.projection.values(bson.decode(claim.handled.raw, options)["v"])
        return {path: ValueChange(before.get(path), after.get(path)) for path in {**before, **after}}

    @property
    def attempt(self) -> int:
        """Number of this attempt, 1 for the first."""
        return self._run.claim.attempt

    @property
    def fence(self) -> int:
        """Grows with each claim of the record: let what you write elsewhere refuse a smaller one (B-27)."""
        return self._run.claim.fence

    @property
    def lease_lost(self) -> bool:
        """Whether the record may belong to another run by now; stop, nothing you return is written."""
        return self._run.lease_lost

    @property
    def due_at(self) -> datetime:
        """When the run became due, server time."""
        return self._run.claim.due_at

    @property
    def deferrals(self) -> int:
        """Deferrals since the last change or success."""
        return self._run.claim.deferrals

    @property
    def task(self) -> str:
        """Name of the reactive task."""
        return self._run.task.name

    @property
    def collection(self) -> str:
        """Name of the watched collection."""
        return self._run.task.collection

    @property
    def client(self) -> MongoClient[dict[str, Any]]:
        """The package's client in this process, for transactions."""
        return self._run.runtime.connection.client

    def get_document(
        self,
        projection: Mapping[str, Any] | Sequence[str] | None = None,
        session: ClientSession | None = None,
        max_time_ms: int | None = None,
        comment: Any = None,
        hint: Any = None,
    ) -> Any:
        """Read the document from the primary, and check that it is still the one this run is for (B-32).

        Args:
            projection: A projection document, or a list of fields; None: the whole document.
            session: A session of yours; the statement goes through its client.
            max_time_ms: Server-side limit in milliseconds.
            comment: Comment of the statement, for the server's logs.
            hint: Index to use.

        Returns:
            The document as a dict, or what the task's `document_class` makes of it (B-62).

        Raises:
            TaskConditionFailedError: The document is gone, no longer matches the filter, or its watched
                values have moved on. Left uncaught it ends the run as skipped; the newer state gets its own run.
            DocumentInvalidError: The task's `document_class` does not accept the document. Left uncaught it fails the
                record without another attempt.
            ConfigurationError: *projection* is neither a dict nor a list of fields.
            StoreUnavailableError: MongoDB did not answer.
            StatementFailedError: The server refuses the projection or an option.
        """
        run = self._usable()
        is_plain = all(option is None for option in (projection, session, max_time_ms, comment, hint))
        if is_plain and run.ahead is not None and (document := run.ahead.document(run)) is not None:
            run.document_checked = True
            return _made(run, document)
        connection = run.runtime.connection
        client = session.client if session is not None else connection.client
        source = connection.documents(run.task, client=client)
        options = {"maxTimeMS": max_time_ms, "comment": comment, "hint": hint}
        if session is not None:
            session.advance_operation_time(run.claim.cluster_time)
        with driver_errors_within(session):
            result = documents.read(
                source,
                run.task,
                run.claim,
                projection=_as_mapping(projection),
                session=session if session is not None else self._session,
                collated=run.collated,
                options={name: value for name, value in options.items() if value is not None},
            )
        match result:
            case Read(document=document):
                run.document_checked = True
                return _made(run, document)
            case Gone():
                run.gone = True
                raise TaskConditionFailedError("the document was deleted")
            case Left():
                run.left = True
                raise TaskConditionFailedError("the document no longer matches the filter")
            case MovedOn(values=values):
                run.document_checked = False
                run.overtaken = RawBSONDocument(values)
                raise TaskConditionFailedError("the watched values have moved on")

    def defer_current(self, until: Duration | datetime, *, hold: bool = False) -> None:
        """Run this document again later; no failure, no attempt spent (B-34).

        Args:
            until: A duration from now, or an aware datetime (one that has passed waits a second).
            hold: Keep the time even if the data changes; otherwise a change cuts the wait short.

        Raises:
            ConfigurationError: A negative duration, a naive datetime; nothing was deferred.
        """
        run = self._usable()
        when = self._server_time_of(until)
        if run.completed:
            run.runtime.emit(ContextMisused(str(run.claim.key), "defer_current after mark_completed is ignored"))
            return
        run.deferral, run.completes, run.failure = Deferred(when, hold=hold), False, None

    def complete(self) -> None:
        """Say that this document is done, whatever becomes of the others of the call (B-60).

        It is written when the handler has ended, also where it raises then; `mark_completed` writes at once. What is
        said of a context last counts.
        """
        run = self._usable()
        run.completes, run.failure, run.deferral = True, None, None

    def fail(self, error: BaseException) -> None:
        """Say that this document's attempt has failed, whatever becomes of the others of the call (B-60).

        What follows is the retry policy's, as if a handler of its own had raised *error*.

        Raises:
            ConfigurationError: *error* is no exception; nothing was noted.
        """
        run = self._usable()
        if not isinstance(error, BaseException):
            raise ConfigurationError("fail", [f"expected an exception, got {shown(error)}"])
        run.failure, run.completes, run.deferral = error, False, None

    def throttle_all(self, until: Duration | datetime) -> None:
        """Pause all future runs of this task, cluster-wide; this run goes on (B-35).

        No claim that begins after this call has returned succeeds before the time; a longer pause
        that is in force stays.

        Args:
            until: A duration from now, or an aware datetime.

        Raises:
            ConfigurationError: A negative duration, a naive datetime; nothing was paused.
            StoreUnavailableError: The pause may be in force or not.
        """
        run = self._usable()
        when = self._server_time_of(until)
        run.throttled = True
        in_force = definitions.throttle(run.runtime.connection.globals(), run.task.name, when)
        run.runtime.emit(TaskThrottled(run.task.name, in_force))

    def mark_completed(self, session: ClientSession | None = None) -> None:
        """Complete the record now, inside the caller's transaction if one is given (B-36); once more is harmless.

        In a transaction the completion and your writes happen together or not at all; send it last, as
        the open transaction holds the record. If it is rolled back, the handler's return or raise decides.

        Args:
            session: A session of the same replica set, with a transaction in progress or not.

        Raises:
            LeaseLostError: The record belongs to another run; abort what you are writing.
            StoreUnavailableError: Unknown whether the record was completed.
        """
        run = self._usable()
        if run.completed:
            return
        transacted = session is not None and session.in_transaction
        repeated, run.completing = run.completing, run.completing or transacted
        target = run.runtime.connection.records(run.task, client=session.client if session is not None else None)
        outcome = self._completion(run)
        with driver_errors_within(session):
            try:
                run.settled = outcome, records.settle(target, run.task, run.claim, outcome, session=session)
            except LeaseLostError:
                if not (repeated and records.is_completed_by(target, run.claim.key, run.claim.token, session=session)):
                    raise
        if not transacted:
            run.completed = True

    def _completion(self, run: Run) -> Completed | Overtaken:
        """A read that found newer values sends the record round again instead: they must get their run (B-33)."""
        if run.overtaken is not None:
            return Overtaken(run.overtaken, run.generation, run.took)
        return Completed(run.took, document_checked=run.document_checked)

    def _usable(self) -> Run:
        if self._run.ended:
            raise ContextEndedError(
                f"{self._run.claim.key}: the context was used after its handler had returned; nothing was done",
            )
        return self._run

    def _server_time_of(self, until: Duration | datetime) -> datetime:
        if isinstance(until, datetime):
            if until.tzinfo is None:
                problem = f"expected an aware datetime, got {until!r}; add tzinfo=datetime.UTC"
                raise ConfigurationError("delay", [problem])
            return in_utc(until)
        delay: timedelta = parse_duration(until, name="delay")
        return self._run.server_time() + delay


def _made(run: Run, document: dict[str, Any]) -> Any:
    """Return what the task's `document_class` makes of *document*."""
    wanted = run.task.document_class
    if wanted is None:
        return document
    make = getattr(wanted, "model_validate", wanted)
    try:
        return make(document)
    except Exception as error:
        raise DocumentInvalidError(f"{run.claim.key}: {error}") from error


def _as_mapping(projection: object) -> Mapping[str, Any] | None:
    match projection:
        case None | Mapping():
            return projection
        case list() | tuple() | set() | frozenset() if all(isinstance(field, str) for field in projection):
            return dict.fromkeys(projection, 1) or {"_id": 1}
        case _:
            problem = f"expected a dict or a list of fields, got {shown(projection)}"
            raise ConfigurationError("projection", [problem])
