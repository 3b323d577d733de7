"""The slim change stream of one database: ids and names of changed paths, never documents.

Speaks the two commands itself (`aggregate` with `$changeStream`, `getMore`) because one reply then is
one batch, whatever has arrived since the last, together with the token that resumes after it.
There is no task's filter in the pipeline: evaluated there, `$$NOW` would freeze when the stream
opens, and an expression that fails on one document would end the stream for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from bson import Binary, Timestamp
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError

from celery_reactive.core.record import CODEC
from celery_reactive.errors import StatementFailedError
from celery_reactive.store import wake
from celery_reactive.store.errors import translate, translated

_LOST_HISTORY = frozenset({9, 15, 136, 260, 280, 286, 40647, 50810, 50811})
"""Codes that say the position is unusable: history gone, damaged token, resumed after invalidation (B-49)."""
_UNAUTHORIZED = 13


class HistoryLostError(Exception):
    """The stream cannot go on from its position; what happened since must be found by reconciliation."""


class ChangeKind(StrEnum):
    """What a change event says."""

    WRITTEN = "written"
    """Inserted, updated or replaced."""
    DELETED = "deleted"
    COLLECTION_GONE = "collection_gone"
    """Dropped, or renamed away."""
    COLLECTION_MADE = "collection_made"
    """Renamed to the watched name: its documents sent no events."""
    DATABASE_GONE = "database_gone"
    WOKEN = "woken"
    """Somebody made a record due that no change tells of."""
    RECONCILIATION_WANTED = "reconciliation_wanted"
    """Somebody asked for a reconciliation."""


_KINDS = {
    "insert": ChangeKind.WRITTEN,
    "update": ChangeKind.WRITTEN,
    "replace": ChangeKind.WRITTEN,
    "delete": ChangeKind.DELETED,
    "drop": ChangeKind.COLLECTION_GONE,
    "rename": ChangeKind.COLLECTION_GONE,
    "dropDatabase": ChangeKind.DATABASE_GONE,
    "invalidate": ChangeKind.DATABASE_GONE,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A hint that a document may have changed."""

    kind: ChangeKind
    collection: str
    doc_id: Any = None
    paths: frozenset[str] | None = None
    """Dotted paths an update changed; None: anything may have."""
    inserted: bool = False
    at: datetime | None = dataclasses.field(default=None, compare=False)
    """The server's wall clock when it logged the change of a document."""
    session: Binary | None = dataclasses.field(default=None, compare=False)
    """Id of the session whose transaction it was part of."""


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Whatever has arrived since the last batch was read."""

    changes: Sequence[Change]
    token: dict[str, Any]
    """Resumes after this batch."""
    at: Timestamp
    """Cluster time up to which this batch tells everything."""


class ChangeStream:
    """An open change stream of one database."""

    def __init__(
        self,
        database: Database[Any],
        collections: Iterable[str],
        *,
        batch_size: int,
        wake_collection: str = "",
    ) -> None:
        self._database = database
        self._wake_collection = wake_collection
        self._collections = sorted(collections)
        self._batch_size = batch_size
        self._session: ClientSession | None = None
        self._cursor = 0
        self._first: dict[str, Any] | None = None

    @translated
    def open(self, *, resume_after: Mapping[str, Any] | None = None) -> None:
        """Open the stream, after a token or from now.

        Raises:
            HistoryLostError: The token cannot be resumed from.
            StoreUnavailableError: Nothing was opened.
        """
        self.close()
        options: dict[str, Any] = {"startAfter": resume_after} if resume_after else {}
        self._session = self._database.client.start_session(causal_consistency=False)
        try:
            self._first = self._command(
                {
                    "aggregate": 1,
                    "pipeline": [{"$changeStream": options}, *self._pipeline()],
                    "cursor": {"batchSize": self._batch_size},
                    "readConcern": {"level": "majority"},
                },
            )
        except OperationFailure as error:
            if resume_after and _is_refused(error):
                raise HistoryLostError(str(error)) from error
            raise

    @translated
    def read(self, wait: timedelta) -> Batch:
        """Return what has arrived; waits up to *wait* for the first change, and is empty if none came.

        Raises:
            HistoryLostError: The stream cannot go on.
            StoreUnavailableError: Open it again after the last batch's token.
        """
        if self._first is not None:
            reply, self._first = self._first, None
            return self._batch(reply, "firstBatch")
        if not self._cursor:
            raise HistoryLostError("the stream has ended")
        reply = self._command(
            {
                "getMore": self._cursor,
                "collection": "$cmd.aggregate",
                "batchSize": self._batch_size,
                "maxTimeMS": max(1, round(wait.total_seconds() * 1000)),
            },
        )
        return self._batch(reply, "nextBatch")

    def close(self) -> None:
        """Close the stream; the server forgets it."""
        session, self._session = self._session, None
        cursor, self._cursor, self._first = self._cursor, 0, None
        if session is None:
            return
        if cursor:
            with suppress(PyMongoError):  # what is gone already needs no closing
                self._database.command({"killCursors": "$cmd.aggregate", "cursors": [cursor]}, session=session)
        session.end_session()

    def _pipeline(self) -> list[dict[str, Any]]:
        keys = {"$objectToArray": {"$ifNull": ["$updateDescription.updatedFields", {}]}}
        truncated = {"$ifNull": ["$updateDescription.truncatedArrays", []]}
        paths = {
            "$concatArrays": [
                {"$map": {"input": keys, "in": "$$this.k"}},
                {"$ifNull": ["$updateDescription.removedFields", []]},
                {"$map": {"input": truncated, "in": "$$this.field"}},
            ],
        }
        named = {"$in": self._collections}
        return [
            {
                "$match": {
                    "operationType": {"$in": sorted(_KINDS)},
                    "$or": [
                        {"ns.coll": named},
                        {"to.coll": named},
                        {
                            "ns.coll": self._wake_collection,
                            "documentKey._id.k": {"$in": [wake.KIND, wake.RECONCILE_KIND]},
                        },
                        {"operationType": {"$in": ["dropDatabase", "invalidate"]}},
                    ],
                },
            },
            {
                "$project": {
                    "operationType": 1,
                    "ns.coll": 1,
                    "to.coll": 1,
                    "documentKey._id": 1,
                    "clusterTime": 1,
                    "wallTime": 1,
                    "lsid.id": 1,
                    "paths": {"$cond": [{"$eq": ["$operationType", "update"]}, paths, None]},
                },
            },
        ]

    def _command(self, command: dict[str, Any]) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = self._database.command(command, session=self._session, codec_options=CODEC)
        except OperationFailure as error:
            if error.code in _LOST_HISTORY or error.has_error_label("NonResumableChangeStreamError"):
                raise HistoryLostError(str(error)) from error
            raise
        self._cursor = reply["cursor"]["id"]
        return reply

    def _batch(self, reply: dict[str, Any], name: str) -> Batch:
        events = reply["cursor"][name]
        token = reply["cursor"].get("postBatchResumeToken") or (events[-1]["_id"] if events else {})
        # What a reply covers ends at its last event while there are more; an empty one tells of all up to its own time.
        at = events[-1]["clusterTime"] if events else reply["operationTime"]
        watched = frozenset(self._collections)
        return Batch([change for event in events for change in _changes_of(event, watched)], token, at)


def _is_refused(error: OperationFailure) -> bool:
    """Whether the server will never resume from the token: a damaged one has many codes."""
    return isinstance(translate(error), StatementFailedError) and error.code != _UNAUTHORIZED


def _changes_of(event: Mapping[str, Any], watched: frozenset[str]) -> list[Change]:
    kind = _KINDS[event["operationType"]]
    name = event.get("ns", {}).get("coll", "")
    if kind in (ChangeKind.WRITTEN, ChangeKind.DELETED):
        if name not in watched:
            own_id = event["documentKey"]["_id"]
            if own_id["k"] == wake.RECONCILE_KIND:
                return [Change(ChangeKind.RECONCILIATION_WANTED, name)]
            return [Change(ChangeKind.WOKEN, name, own_id.get("t"))]
        paths = event.get("paths")
        return [
            Change(
                kind,
                name,
                event["documentKey"]["_id"],
                None if paths is None else frozenset(paths),
                inserted=event["operationType"] == "insert",
                at=event["wallTime"],
                session=event.get("lsid", {}).get("id"),
            ),
        ]
    if kind is ChangeKind.DATABASE_GONE:
        return [Change(kind, name)]
    made = event.get("to", {}).get("coll")
    return [
        *([Change(kind, name)] if name in watched else []),
        *([Change(ChangeKind.COLLECTION_MADE, made)] if made in watched else []),
    ]
