"""Every statement on records and documents, explained by the server among many records.

Each play calls a function of the store as the package does. What it sends is explained in the moment before it is sent,
so that the plan is that of the real statement on the real data. `make statements RECORDS=1000000` plays on a million.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import Timestamp
from bson.regex import Regex
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

import celery_reactive.store
from celery_reactive import embedded
from celery_reactive.core.declaration import declare
from celery_reactive.core.evolution import Lineage
from celery_reactive.core.outcome import Completed, Failure, GivenBack
from celery_reactive.core.policies import OnHandlerVersionChange
from celery_reactive.core.projection import compile_projection
from celery_reactive.core.record import Claim
from celery_reactive.core.states import RUNNING, RecordState
from celery_reactive.planner import process
from celery_reactive.settings import Settings
from celery_reactive.store import (
    activity,
    documents,
    examination,
    forecast,
    indexes,
    inspection,
    orphans,
    queries,
    records,
    scans,
    server,
)
from celery_reactive.store.connection import Connection
from celery_reactive.store.orphans import Criteria
from celery_reactive.store.queries import Order, Wanted
from celery_reactive.store.scans import Span
from tests.integration.bench import LEASE, TOOK, Bench, Document
from tests.integration.conftest import MakeDesk

pytestmark = pytest.mark.timeout(1800)

RECORDS = int(os.environ.get("RECORDS", "20000"))
SLACK = 20
"""Keys that a plan reads beside what it returns: ends of ranges, and the first of what follows."""
STORE = Path(celery_reactive.store.__file__).parent
SENDS = frozenset(
    {
        "aggregate",
        "command",
        "count_documents",
        "delete_many",
        "delete_one",
        "estimated_document_count",
        "find",
        "find_one",
        "find_one_and_update",
        "insert_one",
        "update_many",
        "update_one",
    },
)
"""Methods of pymongo that send a statement."""
EXPLAINABLE = frozenset({"find", "aggregate", "count", "update", "delete", "findAndModify", "distinct"})
MINUTE = timedelta(minutes=1)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FAILURE = Failure("broken", "ValueError", "traceback")


# --- the data ----------------------------------------------------------------------------------------


class House:
    """Records of two tasks in every state, in shares as a busy system has them; documents in the same number.

    Document ids are numbers. Of each span of `SPAN` ids half are completed, one is in each of the rare states, and the
    others are as planned, so that what is rare lies between what is not.
    """

    SPAN = 200

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.bench = Bench(connection, _declared("shop.sync"))
        self.other = Bench(connection, _declared("shop.other"))
        self.records = self.bench.records
        self.source = self.bench.source
        self._next = dict.fromkeys(_SHARES, 0)
        for first in range(0, RECORDS, 10_000):
            self._add(range(first, first + 10_000))

    def _add(self, numbers: range) -> None:
        self.source.insert_many([{"_id": number, "on": True, "v": number} for number in numbers], ordered=False)
        for task, some in ((self.bench.task, numbers), (self.other.task, numbers[::10])):
            observation = records.Observation(task, at=self.bench.cluster_time(), generation=1)
            records.make_records(self.source, self.records, observation, some)
        added = {"$gte": self.bench.key(numbers.start).id, "$lt": self.bench.key(numbers.stop).id}
        for number, (state, fields) in enumerate(_SHARES.items()):
            in_span = {"$mod": ["$sourceDocId", self.SPAN]}
            share = {"$lt": [in_span, 100]} if state == "completed" else {"$eq": [in_span, 100 + number]}
            self.records.update_many({"_id": added, "$expr": share}, [{"$set": fields}])

    def ids(self, state: str, number: int) -> list[int]:
        """Return *number* ids of documents whose records are in a state of `_SHARES`, others each time."""
        offset = 0 if state == "completed" else 100 + list(_SHARES).index(state)
        first = self._next[state]
        self._next[state] += number
        return [offset + self.SPAN * one for one in range(first, first + number)]

    def claims(self, number: int) -> list[Claim]:
        """Claim *number* due records together."""
        return self.bench.claim(*self.ids("due", number))


def _declared(name: str) -> Any:
    return declare(name, {"collection": "orders", "debounce": 0, "filter": {"on": True}, "watch_projection": {"v": 1}})


def _ago(milliseconds: int) -> Any:
    """Return an expression for a time that long ago and more, another for each document."""
    return {"$subtract": ["$$NOW", {"$add": ["$sourceDocId", milliseconds]}]}


def _state(status: str, *, next_run: Any = None, wake: Any = None, sent: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "status": status,
        "nextRunAt": next_run,
        "dueAt": next_run or _ago(0),
        "_r.wakeAt": next_run if wake is None else wake,
        "_r.sent": sent,
        "_r.sentAt": _ago(0),
        **more,
    }


_AHEAD = {"$add": ["$$NOW", 600_000, "$sourceDocId"]}
_RUN = {"lastFinalizedAt": _ago(0), "updatedAt": _ago(0)}
_SHARES: dict[str, dict[str, Any]] = {
    "completed": _state("completed", **_RUN),
    "failed": _state("failed", lastError="broken: no stock", **_RUN),
    "overdue": _state("pending", next_run=_ago(9000), wake=_ago(1000), sent=True),
    "in_flight": _state("pending", next_run=_ago(9000), wake=_AHEAD, sent=True),
    "deferred": _state("pending", next_run=_AHEAD),
    "dirty": _state("processing_dirty", next_run=_AHEAD, **{"_r.claim": {"token": "t", "beats": 0, "company": False}}),
    "gone": _state("completed", **{**_RUN, "_r.gone": True, "_r.changedAt": None, "updatedAt": LONG_AGO}),
    "due": _state("pending", next_run=_ago(1000)),
}
"""What records of each state hold beside what planning gave them."""


# --- what was sent -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Statement:
    """A statement as the server means to run it."""

    function: str
    """Of the store, that sent it: module and name."""
    command: Document
    stages: list[str]
    indexes: list[str]
    keys: int
    """Examined."""
    documents: int
    """Examined."""
    wanted: int
    """Returned, matched or counted; or named by `_id`."""

    def __str__(self) -> str:
        return (
            f"{self.function}: {self.stages} on {self.indexes}, {self.keys} keys and {self.documents} documents for"
            f" {self.wanted}: {str(self.command)[:600]}"
        )


class Recorder(CommandListener):
    """Explains what is sent to records and documents, before it is sent."""

    def __init__(self, explain: Callable[[str, Document], Document]) -> None:
        self.statements: list[Statement] = []
        self.senders: set[str] = set()
        self.failures: list[str] = []
        self._explain = explain

    def started(self, event: CommandStartedEvent) -> None:
        """Explain it, if the store sent it."""
        function = _sender()
        if function is None:
            return
        self.senders.add(function)
        if event.command_name in EXPLAINABLE and isinstance(event.command.get(event.command_name), str):
            command = _explainable(event.command)
            try:
                plan = self._explain(event.database_name, command)
            except PyMongoError as error:
                self.failures.append(f"{function}: {error}: {str(command)[:600]}")
            else:
                self.statements.append(_statement(function, command, plan))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Nothing."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Nothing."""


def _sender() -> str | None:
    """Return the function of the store nearest to the driver on this thread's stack."""
    frame = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(STORE) and path.name != "errors.py":
            return f"{_module(path)}.{frame.f_code.co_qualname.split('.<locals>')[0]}"
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _module(path: Path) -> str:
    return ".".join(path.relative_to(STORE).with_suffix("").parts)


def _explainable(command: Mapping[str, Any]) -> Document:
    """Return *command* without what belongs to its sending, and without the writing end of a pipeline."""
    own = {"lsid", "$db", "$clusterTime", "txnNumber", "writeConcern", "readConcern", "$readPreference", "maxTimeMS"}
    kept = {name: value for name, value in command.items() if name not in own}
    if "pipeline" in kept:
        kept["pipeline"] = [stage for stage in kept["pipeline"] if "$merge" not in stage]
    if "aggregate" in kept:
        kept["cursor"] = {}
    return kept


def _statement(function: str, command: Document, plan: Document) -> Statement:
    winning = list(_found(plan, "winningPlan"))
    stats = list(_found(plan, "executionStats"))
    matched = [int(number) for field in ("nMatched", "nCounted", "nWouldDelete") for number in _found(stats, field)]
    matched += [one["nReturned"] for one in _dicts(stats) if one.get("stage") in ("LIMIT", "limit")]
    return Statement(
        function,
        command,
        stages=[stage for stage in _found(winning, "stage") if isinstance(stage, str)],
        indexes=sorted({index for index in _found(winning, "indexName") if isinstance(index, str)}),
        keys=sum(one["totalKeysExamined"] for one in stats),
        documents=sum(one["totalDocsExamined"] for one in stats),
        wanted=max([one["nReturned"] for one in stats] + matched) + _named_ids(command),
    )


def _found(value: Any, name: str) -> Iterator[Any]:
    """Yield what stands under *name*, however deep; of plans only the one that is run."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == name:
                yield inner
            if key not in ("rejectedPlans", "allPlansExecution"):
                yield from _found(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _found(inner, name)


def _dicts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all sub-documents, however deep."""
    if isinstance(value, Mapping):
        yield value
        yield from _dicts(list(value.values()))
    elif isinstance(value, list):
        for inner in value:
            yield from _dicts(inner)


def _named_ids(command: Document) -> int:
    """Return how many `_id`s the statement names: so many keys are looked for, found or not."""
    return sum(len(named["$in"]) for named in _found(command, "_id") if isinstance(named, Mapping) and "$in" in named)


# --- the plays ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Play:
    """A call of the store as the package makes it, and what its statements are excused from, each for a reason."""

    call: Callable[[House], object]
    may_read_more: str = ""
    """Why it may examine more than it returns."""
    may_sort: str = ""
    """Why it may sort."""
    may_scan: str = ""
    """Why it may read a whole collection."""


PLAYS: dict[str, Play] = {}

_CONTENT = "what records contain has no index; states and task narrow it, and a time limit ends it"
_FEW = "so many at most, or in batches of named ids"


def play(**excuses: str) -> Callable[[Callable[[House], object]], Callable[[House], object]]:
    """Add a call to the plays under its name."""

    def add(call: Callable[[House], object]) -> Callable[[House], object]:
        PLAYS[call.__name__.removeprefix("_")] = Play(call, **excuses)
        return call

    return add


@play()
def _plan_events(house: House) -> None:
    house.bench.observe(*house.ids("completed", 500))


@play()
def _plan_a_scan(house: House) -> None:
    page = range(500)
    with house.connection.causal_session() as session:
        observation = records.Observation(
            house.bench.task,
            at=server.cluster_time(house.source.database, session),
            generation=1,
            live=False,
            stamps=False,
            session=session,
        )
        span = Span(page[0], page[-1], len(page))
        records.find_unlike(house.source, house.records, observation, span)
        records.find_unlike(house.source, house.records, observation, list(page))
        new = [-1, -2, -3]
        house.source.insert_many([{"_id": doc_id, "on": True, "v": 0} for doc_id in new])
        records.make_records(house.source, house.records, observation, new)
        records.find_absent(house.source, house.records, house.bench.task, span, session=session)
        records.exchange_records(house.source, house.records, observation, house.ids("completed", 500))
        records.apply_observations(house.source, house.records, observation, house.ids("completed", 500))


@play()
def _plan_under_a_collation(house: House) -> None:
    house.bench.observe(*house.ids("completed", 500), collated=True)


@play()
def _plan_leaving(house: House) -> None:
    house.bench.leave(*house.ids("failed", 50))


@play()
def _adopt(house: House) -> None:
    lineage = Lineage(2, frozenset({2}), ((frozenset({1}), compile_projection({"v": 1})),))
    records.adopt_snapshots(house.source, house.records, house.bench.task, house.ids("completed", 500), lineage=lineage)


@play(may_read_more="once, for a task that is defined anew, of all its records")
def _newest_generation(house: House) -> None:
    records.newest_generation(house.records, "shop.other")


@play(may_read_more="once, after a restore, of all records of a task")
def _forget_observations(house: House) -> None:
    records.forget_observations(house.records, "shop.nobody")


@play()
def _find_due(house: House) -> None:
    for limit in (1, 50, 500):
        records.find_due(house.records, "shop.sync", limit=limit)
    records.find_due(house.records, "shop.nobody", limit=500)
    lately = house.bench.now() - timedelta(seconds=5)
    records.find_due(house.records, "shop.sync", limit=500, overdue=False, after=lately)


@play()
def _mark(house: House) -> None:
    keys = [house.bench.key(doc_id) for doc_id in house.ids("due", 40)]
    records.mark_sent(house.records, keys, first_deadline=MINUTE, longest_deadline=MINUTE)
    records.mark_unsent(house.records, keys)


@play()
def _next_wake(house: House) -> None:
    records.seconds_until_next_wake(house.records, "shop.sync")


@play()
def _in_flight(house: House) -> None:
    records.count_in_flight(house.records, "shop.sync")


@play(may_read_more="of those in flight, whose number is bounded, while broker contents are suspected to be lost")
def _lost(house: House) -> None:
    now = house.bench.now()
    records.count_in_flight(house.records, "shop.sync", sent_before=now)
    keys = records.find_sent(house.records, "shop.sync", sent_before=now, patience=MINUTE, limit=50)
    records.expire_sent(house.records, keys, sent_before=now, patience=MINUTE)


@play()
def _run_alone(house: House) -> None:
    (claim,) = house.claims(1)
    with house.connection.causal_session() as session:
        _read(house, claim, session=session)
        _read(house, claim, session=session, collated=True)
    records.renew(house.records, [claim.key], claim.token, LEASE)
    house.bench.complete(claim)
    records.was_settled_by(house.records, claim.key, claim.token)
    records.settled_by(house.records, claim.key, claim.token)
    records.is_completed_by(house.records, claim.key, claim.token, session=None)


def _read(house: House, claim: Claim, *, session: Any, collated: bool = False) -> None:
    source, task = house.source, house.bench.task
    documents.read(source, task, claim, projection=None, session=session, collated=collated, options={})


@play()
def _run_together(house: House) -> None:
    claims = house.claims(40)
    keys, token = [claim.key for claim in claims], claims[0].token
    with house.connection.causal_session() as session:
        records.find_claims(house.records, keys, token=token, session=session)
        documents.read_together(house.source, house.bench.task, claims, session=session)
    records.renew(house.records, keys, token, LEASE)
    records.claimed_with(house.records, keys, token)
    records.settle_together(house.records, house.bench.task, claims[:20], Completed(TOOK), durations=[TOOK] * 20)
    records.settle_together(house.records, house.bench.task, claims[20:], GivenBack())
    records.states_of(house.records, keys)
    records.run_times(house.records, keys)


@play()
def _end_from_outside(house: House) -> None:
    first, second = house.claims(2)
    records.settle_by_token(house.records, house.bench.task, first.key, first.token, GivenBack())
    (lease,) = records.claimed_with(house.records, [second.key], second.token)
    records.rescue(house.records, house.bench.task, lease, GivenBack())


@play()
def _watch_leases(house: House) -> None:
    house.claims(10)
    records.is_running(house.records, "shop.sync")
    assert records.running(house.records, "shop.other") == []


@play()
def _by_hand(house: House) -> None:
    ids = [house.bench.key(doc_id).id for doc_id in house.ids("failed", 20)]
    records.retry_by_hand(house.records, ids, only={"status": "failed"})
    records.discard(house.records, ids, history_limit=5)
    records.reprocess(house.records, "shop.sync", house.ids("failed", 5), version=2)
    records.revoke(house.records, house.bench.task, house.bench.key(house.ids("due", 1)[0]), FAILURE)
    records.guard(house.records, house.bench.key(house.ids("due", 1)[0]), loop_guard=100)
    records.resume(house.records, house.bench.key(house.ids("due", 1)[0]))


@play()
def _scan_documents(house: House) -> None:
    with house.connection.causal_session() as session:
        span = scans.next_documents(house.source, scans.START, limit=500, session=session)
        assert span is not None
        span = scans.next_documents(house.source, span.until, limit=500, session=session)
        assert span is not None
        ids = scans.ids_of(house.source, span)
        scans.find_existing(house.source, ids, session=session)
        scans.find_middle(house.source, session=session)
        scans.find_records(house.records, "shop.sync", ids, session=session)
    scans.estimate(house.source)


@play()
def _scan_records(house: House) -> None:
    with house.connection.causal_session() as session:
        span = scans.next_records(house.records, "shop.other", scans.START, limit=500, session=session)
        assert span is not None
        scans.next_records(house.records, "shop.sync", span.until, limit=500, session=session)
        scans.record_ids_of(house.records, "shop.other", span, session=session)
        scans.has_more_records(house.records, "shop.other", span, 10, session=session)
    scans.count(house.records, "shop.other")


@play()
def _clean_up(house: House) -> None:
    task, criteria = house.bench.task, Criteria(gone=True, left=True, keep_for=timedelta(0))
    with house.connection.causal_session() as session:
        page = next(orphans.pages(house.records, task.name, criteria, size=500, session=session))
        orphans.find(house.source, house.records, task, page, criteria, session=session)
        gone = orphans.read(house.records, task.name, house.ids("gone", 5), criteria, session=session)
        house.source.delete_many({"_id": {"$in": [one.doc_id for one in gone]}})
        orphans.clear_page(house.source, house.records, task, gone, criteria, mark=_not, session=session)


@play()
def _clean_up_beside_equal_ids(house: House) -> None:
    task, criteria, doc_id = house.bench.task, Criteria(gone=True, left=True, keep_for=timedelta(0)), 2**40
    house.bench.put({"_id": doc_id, "on": True, "v": 0})
    house.bench.observe(doc_id)
    house.source.delete_one({"_id": doc_id})
    house.source.insert_one({"_id": float(doc_id), "on": True, "v": 0})
    with house.connection.causal_session() as session:
        page = orphans.read(house.records, task.name, [doc_id], criteria, session=session)
        orphans.find(house.source, house.records, task, page, criteria, session=session)


def _not(_doc_ids: object, _at: Timestamp, _gone: bool) -> None:  # noqa: FBT001 -- as it is called
    """Mark nothing."""


@play()
def _purge(house: House) -> None:
    orphans.has_any(house.records, "shop.sync")
    orphans.remove_all(house.records, "shop.sync", house.ids("completed", 5), older_than=MINUTE)


@play(may_read_more="of all records of a task that is no longer declared, for a person, within a time limit")
def _count_what_a_purge_removes(house: House) -> None:
    orphans.count_all(house.records, "shop.other", older_than=MINUTE)


@play()
def _status(house: House) -> None:
    queries.count_by_state(house.records, "shop.sync")
    queries.oldest_due(house.records, "shop.sync")
    queries.count_guarded(house.records, "shop.sync")


def _wanted(*states: RecordState, **more: Any) -> Wanted:
    return Wanted(("shop.other", "shop.sync"), frozenset(states or RecordState), **more)


PENDING, COMPLETED, FAILED = RecordState.PENDING, RecordState.COMPLETED, RecordState.FAILED
PAGE = 20
LISTINGS: list[tuple[Wanted, str]] = [
    (_wanted(), "nextRunAt"),
    (_wanted(COMPLETED, FAILED), "nextRunAt"),
    (_wanted(PENDING), "nextRunAt"),
    (_wanted(PENDING), "dueAt"),
    (_wanted(FAILED), "lastFinalizedAt"),
    (_wanted(COMPLETED, FAILED), "lastFinalizedAt"),
]


def _list(house: House, wanted: Wanted, order: Order) -> None:
    """Read the first page, and those after it as `management` does: in order, and a deep one like the first."""
    assert order.is_indexed(wanted.states)
    stretches = [order.whole()]
    for _ in range(3):
        page: list[queries.Place] = []
        for stretch in stretches:
            if len(page) < PAGE:
                limit = PAGE - len(page)
                page += queries.find_places(house.records, wanted, order, stretch=stretch, limit=limit)
        last = page[-1]
        stretches = [order.beyond_equal(last.value, last.record_id), order.beyond_all(last.value)]
    queries.find_places(house.records, wanted, order, stretch=order.from_all(last.value), limit=PAGE)
    queries.read_records(house.records, [place.record_id for place in page])


def _add_listings() -> None:
    for wanted, field in LISTINGS:
        for descending in (False, True):

            def call(house: House, wanted: Wanted = wanted, order: Order = Order(field, descending)) -> None:  # noqa: B008
                _list(house, wanted, order)

            states = "all" if wanted.states == frozenset(RecordState) else "_".join(sorted(wanted.states))
            PLAYS[f"list_{states}_by_{field}_{'down' if descending else 'up'}"] = Play(call)


_add_listings()


@play(may_sort=_FEW)
def _list_some(house: House) -> None:
    named = _wanted(doc_id=house.ids("failed", 1)[0])
    order = Order("attempts", descending=False)
    queries.find_places(house.records, named, order, stretch=order.whole(), limit=PAGE)
    queries.count(house.records, named)
    among = [house.bench.key(doc_id).id for doc_id in house.ids("completed", 100)]
    order = Order("updatedAt", descending=True)
    queries.find_places(house.records, _wanted(), order, stretch=order.whole(), among=among, limit=PAGE)
    queries.count(house.records, _wanted(COMPLETED), among=among)
    queries.count(house.records, _wanted())


@play(may_sort="management sorts 20,000 at most", may_read_more="the first by an order without an index")
def _list_what_has_no_index(house: House) -> None:
    order = Order("attempts", descending=True)
    queries.find_places(house.records, _wanted(FAILED), order, stretch=order.whole(), limit=PAGE)


@play(may_read_more=_CONTENT)
def _list_by_content(house: House) -> None:
    order = Order("nextRunAt", descending=False)
    for error in ("no stock", Regex("no.stock")):
        wanted = _wanted(FAILED, error=error)
        queries.count(house.records, wanted)
        queries.find_places(house.records, wanted, order, stretch=order.whole(), limit=PAGE)
    queries.count(house.records, _wanted(FAILED, has_error=True))


def _of_sync(*states: RecordState) -> Wanted:
    return Wanted(("shop.sync",), frozenset(states))


@play()
def _page_final_by_id(house: House) -> None:
    for state in (COMPLETED, FAILED):
        pages = queries.pages(house.records, _of_sync(state), size=20)
        next(pages)
        next(pages)


@play(
    may_sort="the server sorts the ids of few, and walks all ids where it finds enough soon", may_read_more="so does it"
)
def _page_any_by_id(house: House) -> None:
    next(queries.pages(house.records, _of_sync(PENDING), size=100))
    next(queries.pages(house.records, _of_sync(*RUNNING), size=100))


@play()
def _source_of_a_listing(house: House) -> None:
    next(queries.document_ids(house.source, {"_id": {"$in": [1, 2, 3]}}, size=10))
    next(queries.ordered_document_ids(house.source, {"on": True}, size=10, after=[7]))
    queries.has_document(house.source, 7)
    queries.count_documents(house.source, {"_id": {"$in": [1, 2, 3]}})


@play()
def _explain_a_record(house: House) -> None:
    inspection.see_document(house.source, house.records, house.bench.task, 7)
    inspection.read_record(house.records, house.bench.key(7))


@play()
def _try_a_deployment(house: House) -> None:
    task, lineage = house.bench.task, Lineage(1, frozenset({1}))
    with house.connection.causal_session() as session:
        span = scans.next_documents(house.source, scans.START, limit=200, session=session)
        assert span is not None
        for collated in (False, True):
            forecast.of_documents(
                house.source,
                house.records,
                task,
                span,
                lineage=lineage,
                resets=OnHandlerVersionChange.REPROCESS_ALL,
                collated=collated,
                session=session,
            )
        forecast.pending_of(house.records, task.name, span, session=session)
    forecast.average_size(house.source)


@play()
def _gauges(house: House) -> None:
    for state in RecordState:
        queries.count_in_state(house.records, "shop.sync", state)


@play()
def _latest_activity(house: House) -> None:
    tasks = ["shop.other", "shop.sync"]
    activity.last_runs(house.records, tasks, since=LONG_AGO, limit=100)
    for state in (PENDING, FAILED):
        activity.errors_of(house.records, tasks, state, characters=100, limit=30)
    activity.watched_values(house.source, house.bench.task.projection, 7)
    activity.estimated(house.records)


@play(may_scan="what is in a collection that carries none of our indexes yet is looked at once")
def _prepare(house: House) -> None:
    new = house.records.database["new_tasks"]
    new.insert_one(house.bench.record(0))
    indexes.prepare(new)
    indexes.drop_former(new)
    server.check_definition(house.source, house.bench.task)


@play(may_scan="of the first thousand documents, for a person")
def _examine(house: House) -> None:
    examination.foreign_record(house.records)
    examination.sent_in_vain(house.records, "shop.sync")


# --- the tests ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Played:
    """All plays, as the server explained them."""

    statements: dict[str, list[Statement]]
    """By play."""
    failures: list[str]
    senders: set[str]


@pytest.fixture(scope="module")
def played(mongo_server: embedded.MongoServer | embedded.ExternalServer) -> Iterator[Played]:
    """Play everything once."""
    database = f"t_{uuid.uuid4().hex}"
    with MongoClient[Document](mongo_server.url, uuidRepresentation="standard") as other:

        def explain(name: str, command: Document) -> Document:
            found: Document = other[name].command("explain", command, verbosity="executionStats")
            return found

        recorder = Recorder(explain)

        def recorded() -> MongoClient[Document]:
            return MongoClient(mongo_server.url_of(database), event_listeners=[recorder])

        quiet = Connection(Settings(mongodb_url=mongo_server.url_of(database)))
        house = House(quiet)
        house.connection = watched = Connection(
            Settings(mongodb_url=mongo_server.url_of(database), mongodb_client=recorded)
        )
        house.bench.connection = watched
        house.records = house.bench.records = watched.records(house.bench.task)
        house.source = house.bench.source = watched.source(house.bench.task)
        statements: dict[str, list[Statement]] = {}
        for name, one in PLAYS.items():
            recorder.statements = statements[name] = []
            try:
                one.call(house)
            except Exception as error:  # noqa: BLE001 -- the test of this play tells
                recorder.failures.append(f"{name}: {error!r}")
        yield Played(statements, recorder.failures, recorder.senders)
        watched.close()
        quiet.close()
        other.drop_database(database)


@pytest.mark.parametrize("name", PLAYS)
def test_a_statement_reads_what_it_returns(played: Played, name: str) -> None:
    """It scans nothing, sorts nothing, and examines no more than twice what it names or returns; or is excused."""
    statements, excused = played.statements[name], PLAYS[name]
    for one in statements:
        assert excused.may_scan or "COLLSCAN" not in one.stages, str(one)
        assert excused.may_sort or "SORT" not in one.stages, str(one)
        most = 2 * one.wanted + SLACK
        assert excused.may_read_more or excused.may_scan or max(one.keys, one.documents) <= most, str(one)


def test_counts_by_state_read_keys_alone(played: Played) -> None:
    """However many there are, none of them is looked at."""
    counts = [one for one in played.statements["gauges"] if "count" in one.command]
    assert len(counts) == len(RecordState)
    assert {(tuple(one.stages), one.documents) for one in counts} == {(("COUNT", "COUNT_SCAN"), 0)}


def test_no_excuse_is_in_vain(played: Played) -> None:
    """A play that is excused needs it, so that no excuse outlives its reason."""
    for name, one in PLAYS.items():
        stages = [stage for statement in played.statements[name] for stage in statement.stages]
        assert not one.may_scan or "COLLSCAN" in stages, name
        assert not one.may_sort or "SORT" in stages, name


def test_every_statement_is_explained(played: Played) -> None:
    """A function of the store that sends a statement about records or documents is played: a new one is to be added."""
    assert played.failures == []
    missing = sorted(set(_sending_functions()) - played.senders)
    assert not missing, f"add a play for {missing}"


def test_a_function_that_sends_is_recognised() -> None:
    """The list of those functions is made from the source: it holds what is known to send, and nothing that is not."""
    found = set(_sending_functions())
    assert {"records.dispatching.find_due", "records.running.claim", "queries._page", "orphans._read"} <= found
    assert not {name for name in found if re.search(r"definitions|positions|leadership|pipelines", name)}


def _sending_functions() -> Iterator[str]:
    """Yield the functions of the store that take `records` or a `source` and call a sending method of pymongo."""
    for path in sorted(STORE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and _takes_records(node) and _sends(node):
                yield f"{_module(path)}.{node.name}"


def _takes_records(function: ast.FunctionDef) -> bool:
    arguments = function.args
    return bool({"records", "source"} & {one.arg for one in (*arguments.args, *arguments.kwonlyargs)})


def _sends(function: ast.FunctionDef) -> bool:
    calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return any(isinstance(called, ast.Attribute) and called.attr in SENDS for called in calls)


def test_indexes_of_an_earlier_release_are_dropped(mongodb_url: str) -> None:
    """A changed index has a new name; the leader drops the old one, and nothing of the user's."""
    connection = Connection(Settings(mongodb_url=mongodb_url))
    bench = Bench(connection, _declared("shop.sync"))
    bench.records.create_index([("task", 1), ("status", 1), ("dueAt", 1)], name="reactive_due")
    bench.records.create_index("lastError", name="mine")
    for _ in range(2):
        indexes.prepare(bench.records)
        indexes.drop_former(bench.records)
        assert bench.records.index_information().keys() == {
            "_id_",
            "reactive_wake",
            "reactive_next_run",
            "reactive_oldest_due",
            "reactive_last_run",
            "mine",
        }
    connection.close()


def test_the_leader_drops_them(bench: Bench, make_desk: MakeDesk) -> None:
    """Once a term, with its definitions; a stand-by or a worker drops nothing."""
    bench.records.create_index([("task", 1), ("status", 1), ("dueAt", 1)], name="reactive_due")
    process._define(make_desk(bench).runtime, [bench.task], term=1)
    assert "reactive_due" not in bench.records.index_information()
