"""Orphans: records whose document was deleted, or no longer matches; found in pages, removed by one statement a page.

Called by the planner's cleanup and by management, which mark the orphans that nobody has marked, each in its own way.
A page holds ids, times and flags, never what a record or a document contains. Removing a record never loses a run: it
must still be marked, and observed last, as it was read, so that a re-insertion in between keeps it; one that is told
of later makes a new record, which runs (B-8, B-41).

The time of a task's last cleanup is kept in the globals: `{_id: {k: "cleanup", g: group, t: task}, term, at}`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from bson import MaxKey, MinKey, Timestamp
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from celery_reactive.core.policies import CleanupPolicy, DeleteWhen
from celery_reactive.core.record import RecordKey
from celery_reactive.core.states import FINAL, RUNNING, RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import StatementFailedError, StoreBusyError, TermEndedError
from celery_reactive.store import pipelines, scans
from celery_reactive.store.errors import time_limit, translated
from celery_reactive.store.records import find_matching
from celery_reactive.store.server import known_time

Documents = Collection[dict[str, Any]]

LARGEST_PAGE = 1000
"""The work of a removal grows with the square of its page, and must stay far below its time limit (B-42)."""
_STATEMENT_LIMIT = timedelta(seconds=2)
_COUNT_LIMIT_MS = 10_000
_BY_ID = "_id_"
_NOT_RUNNING: dict[str, Any] = {"status": {"$nin": sorted(RUNNING)}}


@dataclasses.dataclass(frozen=True, slots=True)
class Criteria:
    """Which records are orphans."""

    gone: bool
    """Those whose document was deleted."""
    left: bool
    """Those whose document exists and does not match the filter."""
    keep_for: timedelta
    """How long they stay after their last update or run; zero: not at all."""

    @classmethod
    def of(cls, policy: CleanupPolicy) -> Criteria | None:
        """Return what *policy* means; None: nothing is ever removed."""
        if policy.delete_when is DeleteWhen.NEVER:
            return None
        left = policy.delete_when is DeleteWhen.SOURCE_DOCUMENT_DELETED_OR_NO_LONGER_MATCHING
        return cls(gone=True, left=left, keep_for=policy.keep_for)


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """A record as a page shows it."""

    doc_id: Any
    at: Timestamp
    """Cluster time of its newest observation."""
    gone: bool
    left: bool
    running: bool
    pending: bool
    settled: bool
    """In a final state, with no change that waits."""
    old: bool
    """Not updated and not run for `keep_for`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Orphans:
    """The orphans of a page, apart by what has been noted of them."""

    at: Timestamp
    """Known before their documents were looked for: the time to mark them with."""
    marked: Sequence[Seen] = ()
    unmarked_gone: Sequence[Seen] = ()
    unmarked_left: Sequence[Seen] = ()

    def __len__(self) -> int:
        return len(self.marked) + len(self.unmarked_gone) + len(self.unmarked_left)

    def as_marked(self) -> list[Seen]:
        """Return all of them as they read once each has been marked."""
        newly = (dataclasses.replace(one, at=self.at) for one in (*self.unmarked_gone, *self.unmarked_left))
        return [*self.marked, *newly]


Mark = Callable[[Sequence[Any], Timestamp, bool], object]
"""Marks the records of some documents as of a time: gone if true, else left."""


# --- reading -------------------------------------------------------------------------------------


def pages(
    records: Documents, task: str, criteria: Criteria, *, size: int, session: ClientSession, after: Sequence[Any] = ()
) -> Iterator[list[Seen]]:
    """Yield the records of *task* in pages, whatever the types of their documents' ids.

    Args:
        records: Records collection.
        task: Name of the task.
        criteria: By which a record counts as old.
        size: Most records of a page, up to `LARGEST_PAGE`; only one page is in memory.
        session: Causal session.
        after: Holds the document id to begin after; empty: from the start.

    Raises:
        StoreUnavailableError: MongoDB does not answer; the pages already yielded are good.
    """
    last: Any = after[0] if after else MinKey()
    limit = min(size, LARGEST_PAGE)
    while page := _read(records, _range(task, last), criteria, limit=limit, session=session):
        yield page
        last = page[-1].doc_id


def read(
    records: Documents, task: str, doc_ids: Sequence[Any], criteria: Criteria, *, session: ClientSession
) -> list[Seen]:
    """Return the records of *task* for *doc_ids*, those that there are.

    Raises:
        StoreUnavailableError: MongoDB does not answer.
    """
    return _read(records, _named(task, doc_ids), criteria, limit=len(doc_ids), session=session)


def _range(task: str, after: Any) -> dict[str, Any]:
    beyond = "$gte" if isinstance(after, MinKey) else "$gt"
    return {"_id": {beyond: {"t": task, "d": after}, "$lte": {"t": task, "d": MaxKey()}}}


def _named(task: str, doc_ids: Sequence[Any]) -> dict[str, Any]:
    return {"_id": {"$in": [RecordKey(task, doc_id).id for doc_id in doc_ids]}}


@translated
def _read(
    records: Documents, query: Mapping[str, Any], criteria: Criteria, *, limit: int, session: ClientSession
) -> list[Seen]:
    fields = {
        "at": "$_r.at",
        "gone": {"$eq": ["$_r.gone", True]},
        "left": {"$eq": ["$_r.left", True]},
        "status": 1,
        "unhandled": {"$gt": [{"$ifNull": ["$_r.changedAt", "$_r.deleted", None]}, None]},
        "old": _is_old(criteria.keep_for),
    }
    stages: list[dict[str, Any]] = [{"$match": query}, {"$sort": {"_id": 1}}, {"$limit": limit}, {"$project": fields}]
    return [_seen(record) for record in records.aggregate(stages, hint=_BY_ID, session=session)]


def _seen(record: Mapping[str, Any]) -> Seen:
    state = RecordState(record["status"])
    return Seen(
        doc_id=record["_id"]["d"],
        at=record["at"],
        gone=record["gone"],
        left=record["left"],
        running=state in RUNNING,
        pending=state is RecordState.PENDING,
        settled=state in FINAL and not record["unhandled"],
        old=record["old"],
    )


def _is_old(keep_for: timedelta) -> Any:
    """Return the expression for a last update and a last run that are longer ago than *keep_for* (B-41)."""
    if not keep_for:
        return {"$literal": True}
    update, run = ({"$ifNull": [f"${field}", "$createdAt"]} for field in ("updatedAt", "lastFinalizedAt"))
    return {"$lt": [{"$max": [update, run]}, {"$subtract": ["$$NOW", pipelines.milliseconds(keep_for)]}]}


# --- finding orphans -----------------------------------------------------------------------------


def find(
    source: Documents,
    records: Documents,
    task: ReactiveTask,
    page: Sequence[Seen],
    criteria: Criteria,
    *,
    session: ClientSession,
) -> Orphans:
    """Return those of *page* that are orphans and old enough to go, marked or not.

    A record marked gone is an orphan, whatever has taken its document's place: that is a new document (B-18). One
    marked left is not while its document matches, though nobody may have noticed the return (B-9).

    Args:
        source: The watched collection.
        records: Its records collection.
        task: The stored definition.
        page: Records of that task.
        criteria: Which records are orphans.
        session: Causal session.

    Raises:
        StoreUnavailableError: MongoDB does not answer.
    """
    at = known_time(session)
    marked = [one for one in page if one.gone and one.old and one.settled] if criteria.gone else []
    unsure = [one for one in page if not one.gone and one.old and not one.running]
    if criteria.left and unsure:
        matching = _matching(source, task, [one.doc_id for one in unsure], session)
        unsure = _without(records, task.name, unsure, matching, session)
    if not unsure:
        return Orphans(at, marked)
    existing = scans.find_existing(source, [one.doc_id for one in unsure], session=session)
    absent = _without(records, task.name, unsure, existing, session)
    # A deletion that is a run of its own is for the planner to find: it is the one to know of a dropped collection.
    vanished = [] if task.on_delete else absent
    if not criteria.left:
        return Orphans(at, marked, vanished)
    known = {id(one) for one in absent}
    outside = [one for one in unsure if id(one) not in known]
    marked += [one for one in outside if one.left and one.settled]
    return Orphans(at, marked, vanished if criteria.gone else (), [one for one in outside if not one.left])


def _matching(source: Documents, task: ReactiveTask, doc_ids: Sequence[Any], session: ClientSession) -> list[Any]:
    """Return the ids of documents that match; one on which the filter fails counts as matching and is left alone."""
    try:
        return find_matching(source, task, doc_ids, session=session)
    except StatementFailedError:
        if len(doc_ids) == 1:
            return list(doc_ids)
    middle = len(doc_ids) // 2
    halves = (doc_ids[:middle], doc_ids[middle:])
    return [doc_id for half in halves for doc_id in _matching(source, task, half, session)]


@translated
def _without(
    records: Documents, task: str, page: Sequence[Seen], doc_ids: Sequence[Any], session: ClientSession
) -> list[Seen]:
    """Return those of *page* whose document is not among *doc_ids*, found by the ids of the page.

    What a query by `1` found may be the document `1.0`, and under a collation the document `A` by `a`. Whose record
    it is, the server tells by the records' own ids.
    """
    known = {RecordKey(task, doc_id).exact for doc_id in doc_ids}
    strangers = known - {RecordKey(task, one.doc_id).exact for one in page}
    if strangers:
        named = _named(task, [doc_id for doc_id in doc_ids if RecordKey(task, doc_id).exact in strangers])
        equal = records.find(named, projection=["_id"], hint=_BY_ID, session=session)
        known |= {RecordKey(task, record["_id"]["d"]).exact for record in equal}
    return [one for one in page if RecordKey(task, one.doc_id).exact not in known]


# --- removing ------------------------------------------------------------------------------------


def clear_page(
    source: Documents,
    records: Documents,
    task: ReactiveTask,
    page: Sequence[Seen],
    criteria: Criteria,
    *,
    mark: Mark,
    session: ClientSession,
) -> int:
    """Mark the orphans of *page* that nobody has marked, and remove all that are old enough.

    Args:
        source: The watched collection.
        records: Its records collection.
        task: The stored definition.
        page: Records of that task.
        criteria: Which records are orphans.
        mark: Marks them.
        session: Causal session.

    Returns:
        Number of records removed.

    Raises:
        StoreUnavailableError: A part may have been marked or removed; doing it again is harmless.
    """
    orphans = find(source, records, task, page, criteria, session=session)
    for unmarked, gone in ((orphans.unmarked_gone, True), (orphans.unmarked_left, False)):
        if unmarked:
            mark([one.doc_id for one in unmarked], orphans.at, gone)
    return remove(records, task.name, orphans.as_marked(), criteria) if orphans else 0


def remove(records: Documents, task: str, orphans: Sequence[Seen], criteria: Criteria) -> int:
    """Remove those of *orphans* that still are what they were read as, in one statement.

    Returns:
        Number of records removed; 0 if a lock stopped the statement, which may have removed a part: what is left is
        the next cleanup's.

    Raises:
        StoreUnavailableError: A part may have been removed; doing it again is harmless.
    """
    try:
        with time_limit(_STATEMENT_LIMIT):
            return _remove(records, task, orphans, criteria)
    except StoreBusyError:
        return 0


@translated
def _remove(records: Documents, task: str, orphans: Sequence[Seen], criteria: Criteria) -> int:
    as_read = [{"i": RecordKey(task, one.doc_id).id, "at": one.at} for one in orphans]
    guard = {
        "status": {"$in": sorted(FINAL)},
        "_r.changedAt": None,
        "$or": _marks(criteria),
        "$expr": {
            "$and": [
                _is_old(criteria.keep_for),
                # A re-insertion that was planned meanwhile has moved the record's time (B-18).
                {"$in": [{"i": "$_id", "at": "$_r.at"}, pipelines.literal(as_read)]},
            ]
        },
    }
    return records.delete_many({**_named(task, [one.doc_id for one in orphans]), **guard}, hint=_BY_ID).deleted_count


def _marks(criteria: Criteria) -> list[dict[str, Any]]:
    wanted = {"_r.gone": criteria.gone, "_r.left": criteria.left}
    return [{flag: True} for flag, is_wanted in wanted.items() if is_wanted]


# --- tasks that are no longer declared -----------------------------------------------------------


@translated
def remove_all(records: Documents, task: str, doc_ids: Sequence[Any], *, older_than: timedelta) -> int:
    """Remove the records of *task* for *doc_ids*, orphans or not, but none that runs.

    Args:
        records: Records collection.
        task: Name of a task that is no longer declared: nothing waits for these records to run.
        doc_ids: Document ids.
        older_than: Only what has not been updated or run for so long; zero: all.

    Returns:
        Number of records removed.
    """
    old = {"$expr": _is_old(older_than)}
    return records.delete_many({**_named(task, doc_ids), **_NOT_RUNNING, **old}, hint=_BY_ID).deleted_count


@translated
def count_all(records: Documents, task: str, *, older_than: timedelta) -> int:
    """Return how many records `remove_all` would remove of *task*.

    Raises:
        StoreBusyError: Not counted within 10 s.
    """
    query = {"task": task, **_NOT_RUNNING, "$expr": _is_old(older_than)}
    return records.count_documents(query, maxTimeMS=_COUNT_LIMIT_MS)


@translated
def has_any(records: Documents, task: str) -> bool:
    """Return whether there is any record of *task*."""
    return records.find_one({"task": task}, projection=["_id"]) is not None


@translated
def namespaces(globals_: Documents) -> dict[str, str]:
    """Return `database.collection` of every task that a planner has ever defined, by the task's name."""
    known = globals_.find({"_id.k": "task", "namespace": {"$type": "string"}}, projection=["task", "namespace"])
    return {stored["task"]: stored["namespace"] for stored in known}


@translated
def forget(globals_: Documents, task: str) -> None:
    """Forget definition, controls, planning failures and cleanups of a task: all that names it.

    Declared again, it begins like a new one.
    """
    globals_.delete_many({"_id.t": task})


# --- when ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Cleaned:
    """When a task was last cleaned up, at the server's time `now`."""

    at: datetime
    now: datetime


@translated
def read_times(globals_: Documents, group: str, tasks: Sequence[str]) -> dict[str, Cleaned]:
    """Return when *group* last cleaned up *tasks*, by their names; one for which nothing is noted is missing."""
    named = {"_id": {"$in": [_id(group, task) for task in tasks]}}
    found = globals_.aggregate([{"$match": named}, {"$set": {"now": "$$NOW"}}])
    return {stored["_id"]["t"]: Cleaned(stored["at"], stored["now"]) for stored in found}


@translated
def note_time(globals_: Documents, group: str, task: str, *, term: int) -> None:
    """Note that *group* has cleaned up *task* now.

    Raises:
        TermEndedError: A newer leader plans. Nothing was written.
    """
    mine = {"_id": _id(group, task), "$or": [{"term": {"$lte": term}}, {"term": {"$exists": False}}]}
    try:
        globals_.update_one(mine, [{"$set": {"term": term, "at": "$$NOW"}}], upsert=True)
    except DuplicateKeyError:
        raise TermEndedError(term) from None


def _id(group: str, task: str) -> dict[str, str]:
    return {"k": "cleanup", "g": group, "t": task}
