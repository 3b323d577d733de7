"""Statements that only read, for people: counts, listings, how far a database is planned, who leads.

Called by `management`. Each is served by an index, reads a few documents, or ends at a time limit, so that asking
never burdens the system. What people ask for is data: it stands only where the server takes a value for a value.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from types import EllipsisType
from typing import Any

from bson import Timestamp
from bson.regex import Regex
from pymongo.collection import Collection

from celery_reactive.core.record import CODEC, RecordKey
from celery_reactive.core.states import FINAL, RecordState
from celery_reactive.store import indexes
from celery_reactive.store.errors import time_limit, translated, translating

Documents = Collection[dict[str, Any]]
Query = dict[str, Any]

TIME_LIMIT_MS = 10_000
"""Most that one statement of a listing may work on the server; shorter than the client waits for an answer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """Which records of one records collection are asked for; every part narrows (B-51)."""

    tasks: tuple[str, ...]
    states: frozenset[RecordState]
    doc_id: Any | EllipsisType = ...
    """Taken literally, whatever it is; `...`: any."""
    error: str | Regex[str] | None = None
    """Contained in `lastError` as it stands, or found there by a regular expression."""
    has_error: bool | None = None

    @property
    def query(self) -> Query:
        """The query that finds them."""
        named = {"task": {"$in": list(self.tasks)}, "status": {"$in": sorted(self.states)}}
        return {"$and": [named, *self._of_document(), *self._of_error()]}

    @property
    def is_counted_by_index(self) -> bool:
        """Whether only task and state are asked for: each pair is a range of `reactive_next_run`."""
        return self.doc_id is ... and self.error is None and self.has_error is None

    def _of_document(self) -> Iterator[Query]:
        if self.doc_id is not ...:
            yield {"_id": {"$in": [RecordKey(task, self.doc_id).id for task in self.tasks]}}

    def _of_error(self) -> Iterator[Query]:
        if self.has_error is not None:
            yield {"lastError": {"$ne": None} if self.has_error else None}
        match self.error:
            case None:
                pass
            case str():
                # No regular expression: nothing needs escaping, and no character is special.
                yield {"$expr": {"$gte": [{"$indexOfCP": ["$lastError", {"$literal": self.error}]}, 0]}}
            case _:
                yield {"lastError": self.error}


@dataclasses.dataclass(frozen=True, slots=True)
class Stretch:
    """A part of an `Order` that is one range of an index."""

    query: Query
    sort: list[tuple[str, int]]
    """As `find` takes it. A field that has one value in the whole part must not be named: the server then merges the
    ranges of several tasks and states in order, and would sort them otherwise."""


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """A total order over the records of one collection: by a field that every record has, then by `_id`."""

    field: str
    descending: bool

    def is_indexed(self, states: frozenset[RecordState]) -> bool:
        """Whether an index gives the records of *states* in this order, so that nothing is sorted."""
        return states <= indexes.SORTED.get(self.field, frozenset())

    def whole(self) -> Stretch:
        """Return all of it."""
        return Stretch({}, [(self.field, self._direction), ("_id", self._direction)])

    def beyond_equal(self, value: object, record_id: Mapping[str, Any]) -> Stretch:
        """Return the records with this *value* of the field that come after the one with this `_id`."""
        beyond = {"$lt" if self.descending else "$gt": record_id}
        return Stretch({self.field: value, "_id": beyond}, [("_id", self._direction)])

    def beyond_all(self, value: object) -> Stretch:
        """Return what comes after every record with this *value*, across types: null is the least."""
        return self._where("$lt" if self.descending else "$gt", value)

    def from_all(self, value: object) -> Stretch:
        """Return what does not come before every record with this *value*."""
        return self._where("$lte" if self.descending else "$gte", value)

    def _where(self, operator: str, value: object) -> Stretch:
        query = {"$expr": {operator: [f"${self.field}", {"$literal": value}]}}
        return dataclasses.replace(self.whole(), query=query)

    @property
    def _direction(self) -> int:
        return -1 if self.descending else 1


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands in an `Order`."""

    value: Any
    record_id: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Leading:
    """The leader's lock as stored, at the server's time `now`."""

    holder: str | None
    term: int
    since: datetime | None
    renewed_at: datetime | None
    now: datetime


@dataclasses.dataclass(frozen=True, slots=True)
class Planned:
    """How far a database has been planned, at the server's time `now`."""

    database: str
    at: Timestamp
    stored_at: datetime | None
    now: datetime
    idle: bool = False
    """Nothing had come after it when it was stored."""


@translated
def count_by_state(records: Documents, task: str, *, at_most: int = 0) -> dict[RecordState, int]:
    """Return how many records of *task* are in each state, each counted up to *at_most*; 0: all are counted."""
    return {state: count_in_state(records, task, state, at_most=at_most) for state in RecordState}


@translated
def count_in_state(records: Documents, task: str, state: RecordState, *, at_most: int = 0) -> int:
    """Return how many records of *task* are in *state*, counted up to *at_most*; 0: all are counted.

    The command `count` reads the keys of a range of `reactive_next_run`; an aggregation takes three times as long.

    Raises:
        StoreBusyError: Not counted within the time limit.
        StoreUnavailableError: MongoDB does not answer.
    """
    count: dict[str, Any] = {"count": records.name, "query": {"task": task, "status": state.value}}
    if concern := records.read_concern.document:
        count["readConcern"] = concern
    limited = {**count, "limit": at_most, "maxTimeMS": TIME_LIMIT_MS}
    reply = records.database.command(limited, read_preference=records.read_preference)
    return int(reply["n"])


@translated
def count_guarded(records: Documents, task: str) -> int:
    """Return how many records of *task* the loop guard has paused: no others are pending and due at no time."""
    guarded = {"task": task, "status": RecordState.PENDING.value, "nextRunAt": None}
    return records.count_documents(guarded, maxTimeMS=TIME_LIMIT_MS)


@translated
def oldest_due(records: Documents, task: str) -> tuple[datetime, datetime] | None:
    """Return the oldest `dueAt` of the pending records of *task* and the server's time; None: nothing is pending.

    What the loop guard has paused waits for a person and does not count.
    """
    found = next(
        records.aggregate(
            [
                {"$match": {"task": task, "status": RecordState.PENDING.value, "_r.guarded": {"$ne": True}}},
                {"$sort": {"dueAt": 1}},
                {"$limit": 1},
                {"$project": {"_id": 0, "dueAt": 1, "now": "$$NOW"}},
            ],
        ),
        None,
    )
    return None if found is None else (found["dueAt"], found["now"])


@translated
def count(
    records: Documents,
    wanted: Wanted,
    *,
    among: Sequence[Mapping[str, Any]] | None = None,
    at_most: int = 0,
    within: timedelta | None = None,
) -> int:
    """Return how many records are *wanted*, of those with the `_id`s *among* if these are given.

    With *at_most* no range of the index is counted further than that; 0: all are counted.

    Raises:
        StoreBusyError: Not counted within the time limit: *within*, where no index counts them and it is given.
        StoreUnavailableError: MongoDB does not answer.
        StatementFailedError: The document id or the pattern cannot be sent, or the server refuses it.
    """
    if among is None and wanted.is_counted_by_index:
        pairs = itertools.product(wanted.tasks, wanted.states)
        return sum(count_in_state(records, *pair, at_most=at_most) for pair in pairs)
    query = _narrowed(wanted, among)
    if within is None:
        return records.count_documents(query, maxTimeMS=TIME_LIMIT_MS)
    # The statement's own limit would not hold inside of a request that has one.
    with time_limit(within), translating():
        return records.count_documents(query)


@translated
def find_places(
    records: Documents,
    wanted: Wanted,
    order: Order,
    *,
    stretch: Stretch,
    among: Sequence[Mapping[str, Any]] | None = None,
    limit: int,
) -> list[Place]:
    """Return where the first *limit* of the *wanted* records stand in *order*.

    Args:
        records: Records collection.
        wanted: Which records.
        order: In which order.
        stretch: The part of *order* that is looked at.
        among: Only records with these `_id`s.
        limit: Most places returned.

    Raises:
        StoreBusyError: Not found within the time limit.
        StoreUnavailableError: MongoDB does not answer.
        StatementFailedError: The document id or the pattern cannot be sent, or the server refuses it.
    """
    found = records.find(
        {"$and": [_narrowed(wanted, among), stretch.query]},
        projection=[order.field],
        sort=stretch.sort,
        limit=limit,
        max_time_ms=TIME_LIMIT_MS,
    )
    return [Place(record[order.field], record["_id"]) for record in found]


@translated
def read_records(records: Documents, ids: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the stored records with these `_id`s, in no order; one that has been removed is missing."""
    return list(records.find({"_id": {"$in": list(ids)}}, hint="_id_", max_time_ms=TIME_LIMIT_MS))


def pages(
    records: Documents, wanted: Wanted, *, size: int, after: Mapping[str, Any] | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Yield the `_id`s of the *wanted* records in pages of at most *size*, each record at most once.

    In the order of the `_id`s, and anew for each page, so that records may be changed in between, and a change
    brings none of them round again.

    Args:
        records: Records collection.
        wanted: Which records.
        size: Most ids of a page.
        after: The `_id` to begin after; None: from the start.

    Raises:
        StoreBusyError: A page was not found within the time limit.
        StoreUnavailableError: MongoDB does not answer.
        StatementFailedError: The document id or the pattern cannot be sent, or the server refuses it.
    """
    page: list[dict[str, Any]] = []
    while not page or len(page) == size:
        page = _page(records, wanted, page[-1] if page else after, size)
        if not page:
            return
        yield page


@translated
def _page(records: Documents, wanted: Wanted, after: Mapping[str, Any] | None, size: int) -> list[dict[str, Any]]:
    beyond = {} if after is None else {"_id": {"$gt": after}}
    # Of final records alone, `reactive_next_run` has the order of the ids.
    final = {"nextRunAt": None} if wanted.states <= FINAL else {}
    found = records.find(
        {"$and": [wanted.query, beyond, final]},
        projection=["_id"],
        sort=[("_id", 1)],
        limit=size,
        max_time_ms=TIME_LIMIT_MS,
    )
    return [record["_id"] for record in found]


def document_ids(source: Documents, query: Mapping[str, Any], *, size: int) -> Iterator[list[Any]]:
    """Yield the ids of the documents that match *query* in batches of at most *size*; only one is in memory.

    Args:
        source: The watched collection.
        query: Any that `find` takes.
        size: Most ids in a batch.

    Raises:
        StoreUnavailableError: MongoDB does not answer; the batches already yielded are good.
        StatementFailedError: The server refuses the query.
    """
    with translating(), source.find(dict(query), projection=["_id"], batch_size=size) as cursor:
        while batch := [document["_id"] for document in itertools.islice(cursor, size)]:
            yield batch


@translated
def count_documents(source: Documents, query: Mapping[str, Any]) -> int:
    """Return how many documents match *query*.

    Raises:
        StoreBusyError: Not counted within the time limit.
        StatementFailedError: The server refuses the query.
    """
    return source.count_documents(dict(query), maxTimeMS=TIME_LIMIT_MS)


def ordered_document_ids(
    source: Documents, query: Mapping[str, Any], *, size: int, after: Sequence[Any] = ()
) -> Iterator[list[Any]]:
    """Yield the ids of the documents that match *query*, in their order over all types, in pages of at most *size*.

    Anew for each page, so that a walk can be left and gone on with; `document_ids` is quicker where it cannot.

    Args:
        source: The watched collection.
        query: Any that `find` takes with a sort.
        size: Most ids of a page.
        after: Holds the id to begin after; empty: from the start.

    Raises:
        StoreUnavailableError: MongoDB does not answer; the pages already yielded are good.
        StatementFailedError: The server refuses the query.
    """
    page = list(after)
    while page := _document_page(source, query, page[-1:], size):
        yield page


@translated
def _document_page(source: Documents, query: Mapping[str, Any], after: Sequence[Any], size: int) -> list[Any]:
    beyond = [{"$expr": {"$gt": ["$_id", {"$literal": one}]}} for one in after]
    found = source.find({"$and": [dict(query), *beyond]}, projection=["_id"], sort=[("_id", 1)], limit=size)
    return [document["_id"] for document in found]


@translated
def has_document(source: Documents, doc_id: Any) -> bool:
    """Return whether there is a document with exactly this `_id`; a pattern or an operator is one of no document."""
    same = {"$expr": {"$eq": ["$_id", {"$literal": doc_id}]}}
    return source.find_one(same, projection=["_id"], hint="_id_", max_time_ms=TIME_LIMIT_MS) is not None


@translated
def server_time(globals_: Documents) -> datetime:
    """Return the server's time."""
    now: datetime = globals_.database.command("hello", codec_options=CODEC)["localTime"]
    return now


@translated
def leading(globals_: Documents, group: str) -> Leading | None:
    """Return the lock of *group*, None if nobody ever led it."""
    found = _first(globals_, {"_id": {"k": "leader", "g": group}})
    if found is None:
        return None
    return Leading(
        holder=found["holder"],
        term=int(found["term"]),
        since=found.get("since"),
        renewed_at=found.get("renewedAt"),
        now=found["now"],
    )


@translated
def planned(globals_: Documents, group: str, database: str) -> Planned | None:
    """Return how far *group* has planned *database*, None if it never did."""
    found = _first(globals_, {"_id": {"k": "position", "g": group, "db": database}})
    if found is None:
        return None
    return Planned(database, found["at"], found.get("storedAt"), found["now"], bool(found.get("idle")))


@translated
def count_unplanned(globals_: Documents, *, task: str | None = None) -> int:
    """Return how many documents could not be planned, for *task* or for all."""
    return globals_.count_documents({"_id.k": "unplanned", **({} if task is None else {"_id.t": task})})


def _narrowed(wanted: Wanted, among: Sequence[Mapping[str, Any]] | None) -> Query:
    return wanted.query if among is None else {"$and": [{"_id": {"$in": list(among)}}, wanted.query]}


def _first(globals_: Documents, match: dict[str, Any]) -> dict[str, Any] | None:
    return next(globals_.aggregate([{"$match": match}, {"$set": {"now": "$$NOW"}}]), None)
