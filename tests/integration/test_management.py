"""Listing, counting and changing records by hand: what a caller gives is data, and a page is what it says."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import Decimal128, Int64, MaxKey, MinKey, ObjectId
from bson.datetime_ms import DatetimeMS
from celery import Celery
from pymongo import MongoClient
from pymongo.collection import Collection

from celery_reactive import Page, Reactive, TaskRecord, signals
from celery_reactive.core.declaration import declare
from celery_reactive.core.states import RecordState
from celery_reactive.errors import ConfigurationError, ForeignRecordsError, StatementFailedError, UnknownTaskError
from celery_reactive.management import listing
from celery_reactive.store import definitions, records, unplanned
from celery_reactive.store.errors import time_limit
from tests.integration.bench import Bench
from tests.integration.shop import on, shop_app

AWKWARD_IDS: list[Any] = [
    0,
    False,
    "",
    None,
    {"in": [1, "$in"]},
    {},
    {"b": 1, "a": [1, {"c": None}]},
    "$status",
    "a.b",
    Int64(2**62),
    Decimal128("1.50"),
    float("inf"),
    uuid.UUID(int=7),
    ObjectId("5f0000000000000000000001"),
    datetime(1969, 1, 1, tzinfo=UTC),
    b"\x00\xff",
    MinKey(),
    MaxKey(),
]


@pytest.fixture
def app(mongodb_url: str) -> Iterator[Celery]:
    """An app as its module leaves it, not finalized: `sync` and `index` watch orders, and `mail` watches customers."""
    with shop_app(mongodb_url, sync="orders", index="orders", mail="customers") as app:
        yield app


@pytest.fixture
def reactive(app: Celery) -> Reactive:
    """The handle of `app`, which is finalized."""
    app.finalize()
    return Reactive.of(app)


@pytest.fixture
def sync(reactive: Reactive) -> Bench:
    """A workbench for the records of `sync`."""
    return Bench(reactive.runtime.connection, reactive.registry.get("sync"))


@pytest.fixture
def index(reactive: Reactive) -> Bench:
    """A workbench for the records of `index`, in the same collection as those of `sync`."""
    return Bench(reactive.runtime.connection, reactive.registry.get("index"))


@pytest.fixture
def mail(reactive: Reactive) -> Bench:
    """A workbench for the records of `mail`, in another collection."""
    return Bench(reactive.runtime.connection, reactive.registry.get("mail"))


def ids(page: Page) -> list[Any]:
    """Return the document ids of a page."""
    return [record.source_doc_id for record in page.items]


def keys(page: Page) -> list[tuple[str, Any]]:
    """Return task and document id of the records of a page."""
    return [(record.task, record.source_doc_id) for record in page.items]


def failed(bench: Bench, doc_id: Any, message: str = "broken") -> None:
    """Let the run of a document fail with attempts left."""
    bench.error(bench.start(on(doc_id)), message=message)


# --- what filters mean ------------------------------------------------------------------------------


@pytest.mark.parametrize("doc_id", AWKWARD_IDS, ids=repr)
def test_a_document_id_means_what_it_says(reactive: Reactive, sync: Bench, doc_id: Any) -> None:
    """B-51: an id of 0, an empty string, None or an operator finds the one record with that id."""
    sync.plan(on("another"), on(doc_id))
    page = reactive.get_tasks(doc_id=doc_id)
    assert (page.total, ids(page)) == (1, [doc_id])
    assert reactive.count_tasks(doc_id=doc_id) == 1
    assert reactive.retry_tasks(doc_id=doc_id) == 1
    assert sync.record(doc_id)["_r"]["forced"] is True
    assert "forced" not in sync.record("another")["_r"]


@pytest.mark.parametrize("doc_id", [0, "", None, [1, 2], {"$in": [1, 2]}, {"$exists": True}, re.compile(".")], ids=repr)
def test_an_id_that_no_record_has_finds_none(reactive: Reactive, sync: Bench, doc_id: Any) -> None:
    """B-51: what could be taken for a query or for "no filter" changes nothing."""
    sync.plan(on(1), on(2))
    assert reactive.count_tasks(doc_id=doc_id) == 0
    assert reactive.retry_tasks(doc_id=doc_id) == 0
    assert reactive.discard_tasks(doc_id=doc_id) == 0
    assert {sync.state(1), sync.state(2)} == {RecordState.PENDING}


def test_filters_narrow_together(reactive: Reactive, sync: Bench, index: Bench, mail: Bench) -> None:
    """B-51: by task, status, collection and has-error, one or several of each."""
    sync.plan(on(1))
    failed(sync, 2)
    index.handle(on(1))
    index.exhaust(index.start(on(3)))
    mail.plan(on(9))
    assert reactive.count_tasks() == 5
    assert reactive.count_tasks(task="sync") == 2
    assert reactive.count_tasks(task=["sync", "mail"]) == 3
    assert reactive.count_tasks(task=[]) == 0
    assert reactive.count_tasks(status="failed") == 1
    assert reactive.count_tasks(status=[RecordState.FAILED, "completed"]) == 2
    assert reactive.count_tasks(status=[]) == 0
    assert reactive.count_tasks(collection="orders") == 4
    assert reactive.count_tasks(collection=[f"{sync.source.database.name}.customers"]) == 1
    assert reactive.count_tasks(task="mail", collection="orders") == 0
    assert reactive.count_tasks(has_error=True) == 2
    assert reactive.count_tasks(has_error=False) == 3
    assert reactive.count_tasks(has_error=True, task="sync", status="pending") == 1


@pytest.mark.parametrize(
    ("error", "found"),
    [
        ("429", ["limit"]),
        ("(a+)$", ["pattern"]),
        ("a.b", ["dot"]),
        ("HTTP", ["limit"]),
        ("http", []),
        ("", ["dot", "limit", "lines", "pattern"]),
        ("two\nlines", ["lines"]),
        ("$lastError", []),
        (re.compile("http", re.IGNORECASE), ["limit"]),
        (re.compile(r"^(HTTP|two)"), ["limit", "lines"]),
        (re.compile(r"^lines", re.MULTILINE), ["lines"]),
    ],
    ids=repr,
)
def test_an_error_is_a_plain_text_or_a_pattern(reactive: Reactive, sync: Bench, error: Any, found: list[str]) -> None:
    """B-51: a string stands for itself, whatever it contains; only a compiled pattern is one."""
    messages = {"limit": "HTTP 429", "pattern": "got (a+)$ again", "dot": "a.b is missing", "lines": "two\nlines"}
    for doc_id, message in messages.items():
        failed(sync, doc_id, message)
    sync.handle(on("fine"))
    assert sorted(ids(reactive.get_tasks(error=error))) == found
    assert reactive.count_tasks(error=error) == len(found)
    assert reactive.retry_tasks(error=error) == len(found)


def test_a_source_query_goes_through_in_batches(reactive: Reactive, sync: Bench, mail: Bench) -> None:
    """B-51: any query on the watched collection, more documents than a batch holds, with every other filter."""
    sync.plan(*(on(number, group=number % 2, at=[0, number]) for number in range(20)))
    sync.source.insert_one({"_id": "unplanned", "group": 1})
    sync.delete(19)
    mail.plan(on(1, group=1))
    odd = {"group": 1}
    assert reactive.count_tasks(task="sync", source=odd) == 9
    page = reactive.get_tasks(collection="orders", source=odd, limit=4, sort=("task", 1))
    assert (page.total, ids(page)) == (9, [1, 3, 5, 7])
    page = reactive.get_tasks(collection="orders", source=odd, limit=9, after=page.next, sort=("task", 1))
    assert (ids(page), page.next) == ([9, 11, 13, 15, 17], None)
    javascript = {"$where": "this._id > 15"}
    assert reactive.count_tasks(task=["sync", "index"], source=javascript) == 3
    assert reactive.retry_tasks(task="sync", source={"_id": {"$gte": 12}}, status="pending") == 7
    assert [number for number in range(20) if "forced" in sync.record(number)["_r"]] == list(range(12, 19))


def test_a_source_query_needs_to_know_its_collection(reactive: Reactive) -> None:
    """B-51: where several collections are watched, a source query alone says nothing."""
    with pytest.raises(ConfigurationError, match=r"expected task or collection beside it"):
        reactive.retry_tasks(source={"group": 1})
    with pytest.raises(StatementFailedError, match=r"unknown operator: \$nonsense"):
        reactive.count_tasks(task="sync", source={"group": {"$nonsense": 1}})


@pytest.mark.parametrize(
    ("filters", "problem"),
    [
        ({"status": "faild"}, "did you mean 'failed'"),
        ({"status": {"$ne": "x"}}, "expected a string or a list of strings"),
        ({"task": {"$ne": "x"}}, "expected a string or a list of strings"),
        ({"task": [1]}, "expected a string or a list of strings"),
        ({"collection": "order"}, "did you mean 'orders'"),
        ({"source": [1]}, "expected a query as a dict"),
        ({"error": {"$ne": ""}}, "expected a string or a compiled pattern"),
        ({"error": re.compile(b"x")}, "expected a string or a compiled pattern"),
        ({"has_error": "no"}, "expected True or False"),
        ({"docId": 1}, "did you mean 'doc_id'"),
    ],
    ids=str,
)
def test_a_filter_without_a_meaning_is_refused(reactive: Reactive, filters: Any, problem: str) -> None:
    """B-51: an operator, a misspelling or a wrong type changes nothing and says what was expected."""
    for call in (reactive.get_tasks, reactive.count_tasks, reactive.retry_tasks, reactive.discard_tasks):
        with pytest.raises(ConfigurationError, match=re.escape(problem)):
            call(**filters)


def test_an_unknown_task_is_an_error_that_lists_the_known(reactive: Reactive) -> None:
    """B-52: every call says which tasks there are, also for an empty name."""
    calls: list[Callable[[str], object]] = [
        lambda name: reactive.get_tasks(task=name),
        lambda name: reactive.count_tasks(task=["sync", name]),
        lambda name: reactive.retry_tasks(task=name),
        lambda name: reactive.discard_tasks(task=name),
        lambda name: reactive.trigger(name, 1),
        lambda name: reactive.throttle(name, "1m"),
        reactive.pause,
        reactive.resume,
        reactive.planning_failures,
    ]
    for call in calls:
        with pytest.raises(UnknownTaskError, match="known: index, mail, sync"):
            call("snyc")
        with pytest.raises(UnknownTaskError):
            call("")


def test_tasks_are_known_before_the_app_is_finalized(app: Celery) -> None:
    """Public surface: a script that asks first thing finds every task that is declared."""
    assert Reactive.of(app).count_tasks(task=["sync", "index", "mail"]) == 0


# --- pages ------------------------------------------------------------------------------------------


@pytest.fixture
def many(sync: Bench, index: Bench, mail: Bench) -> list[tuple[str, Any]]:
    """Records of three tasks in two collections, of every id type, many with equal times: their keys."""
    for bench in (sync, index, mail):
        bench.plan(*(on(doc_id) for doc_id in AWKWARD_IDS))
        for doc_id in AWKWARD_IDS[::3]:
            bench.complete(bench.claim(doc_id)[0])
    return [(bench.task.name, doc_id) for bench in (sync, index, mail) for doc_id in AWKWARD_IDS]


SORTS = [(field, direction) for field in ("nextRunAt", "due_at", "status", "attempts") for direction in (1, -1)]


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("sort", SORTS, ids=str)
def test_pages_hold_each_record_once_in_one_order(reactive: Reactive, sort: tuple[str, int]) -> None:
    """B-51: by `skip` and by `after`, over all collections, also where the sorted field is equal or null."""
    whole = reactive.get_tasks(sort=sort, limit=1000)
    assert (len(whole.items), whole.total, whole.next) == (54, 54, None)
    assert len({str(record.key) for record in whole.items}) == 54
    values = [getattr(record, listing.SORTABLE.get(sort[0], sort[0])) for record in whole.items]
    ranks = [(value is not None, value if value is not None else 0) for value in values]
    assert ranks == sorted(ranks, key=lambda rank: rank, reverse=sort[1] < 0)

    by_skip = [key for skip in range(0, 54, 10) for key in keys(reactive.get_tasks(sort=sort, limit=10, skip=skip))]
    by_key: list[tuple[str, Any]] = []
    after: str | None = None
    while True:
        page = reactive.get_tasks(sort=sort, limit=10, after=after)
        by_key += keys(page)
        after = page.next
        if after is None:
            break
    assert by_skip == by_key == keys(whole)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("direction", [1, -1])
def test_many_tasks_are_listed_in_the_order_of_few(
    reactive: Reactive, monkeypatch: pytest.MonkeyPatch, direction: int
) -> None:
    """B-51: so many tasks that they are asked for in groups, whose pages are merged."""
    whole = keys(reactive.get_tasks(sort=("nextRunAt", direction), limit=1000))
    monkeypatch.setattr(listing, "_MAX_RANGES", 1)
    page = reactive.get_tasks(sort=("nextRunAt", direction), limit=20)
    rest = reactive.get_tasks(sort=("nextRunAt", direction), limit=1000, after=page.next)
    assert keys(page) + keys(rest) == whole
    assert {record.task for record in page.items + rest.items} == {"sync", "index", "mail"}


@pytest.mark.usefixtures("many")
def test_too_many_records_to_sort_are_refused(reactive: Reactive, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-51: what no index has in order is sorted up to a bound; the message says what can be done."""
    monkeypatch.setattr(listing, "MAX_SORTED", 10)
    with pytest.raises(ConfigurationError, match=r"at most 10 records to sort by 'attempts', got 54; narrow"):
        reactive.get_tasks(sort=("attempts", 1))
    with pytest.raises(ConfigurationError, match=r"'lastFinalizedAt'"):
        reactive.get_tasks(sort=("lastFinalizedAt", -1))
    assert len(reactive.get_tasks(sort=("lastFinalizedAt", -1), status=["completed", "failed"]).items) == 18
    assert len(reactive.get_tasks(sort=("attempts", 1), task="mail", status="completed").items) == 6
    assert len(reactive.get_tasks(sort=("attempts", 1), task="mail", source={}).items) == 18


@pytest.mark.parametrize("direction", [1, -1])
def test_a_time_beyond_pythons_years_hides_no_record(
    reactive: Reactive, sync: Bench, mail: Bench, direction: int
) -> None:
    """B-51: it stands in its place among the others, over all collections."""
    for bench in (sync, mail):
        bench.plan(on("soon"), on("never"), on("done"))
        bench.complete(bench.claim("done")[0])
        bench.records.update_one({"sourceDocId": "never"}, {"$set": {"nextRunAt": DatetimeMS(10**15)}})
    expected = ["done", "done", "soon", "soon", "never", "never"][::direction]
    page = reactive.get_tasks(sort=("nextRunAt", direction), limit=3)
    rest = reactive.get_tasks(sort=("nextRunAt", direction), after=page.next)
    assert ids(page) + ids(rest) == expected


@pytest.mark.usefixtures("many")
def test_a_page_says_what_was_applied(reactive: Reactive) -> None:
    """B-51: the limit is clamped, and what is no number is refused."""
    page = reactive.get_tasks(limit=10**9, skip=50)
    assert (page.limit, page.skip, len(page.items), page.total) == (listing.MAX_LIMIT, 50, 4, 54)
    for wrong in (0, -1, True, "5", 1.5, None):
        with pytest.raises(ConfigurationError, match="limit: expected a number of 1 or more"):
            reactive.get_tasks(limit=wrong)  # type: ignore[arg-type]
    for wrong in (-1, True, "5", listing.MAX_SKIP + 1):
        with pytest.raises(ConfigurationError, match="skip: expected a number from 0"):
            reactive.get_tasks(skip=wrong)  # type: ignore[arg-type]


def test_a_field_that_cannot_be_sorted_by_is_refused_with_a_suggestion(reactive: Reactive) -> None:
    """B-51: the sortable fields are listed, and mongodash's name leads to ours."""
    with pytest.raises(ConfigurationError, match=r"'nextRunAt', 'dueAt'.*did you mean 'nextRunAt'\?"):
        reactive.get_tasks(sort=("scheduledAt", 1))
    with pytest.raises(ConfigurationError, match=r"did you mean 'attempts'\?"):
        reactive.get_tasks(sort=("atempts", 1))
    for wrong in (("nextRunAt", 2), ("nextRunAt", True), "nextRunAt", (1, 1), ("_r.claim", 1)):
        with pytest.raises(ConfigurationError, match=r"^sort: expected"):
            reactive.get_tasks(sort=wrong)  # type: ignore[arg-type]


@pytest.mark.usefixtures("many")
def test_a_key_that_no_page_gave_is_refused(reactive: Reactive) -> None:
    """B-51: `after` is checked, and belongs to one sort."""
    key = reactive.get_tasks(limit=1).next
    assert key is not None
    for wrong in ("", "x", "%%%", "ä", key[:-8], 5):
        with pytest.raises(ConfigurationError, match="expected the `next` of a page"):
            reactive.get_tasks(after=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="another sort"):
        reactive.get_tasks(after=key, sort=("nextRunAt", -1))


def test_a_record_is_shown_as_stored(reactive: Reactive, sync: Bench) -> None:
    """Public surface: the stored fields in snake_case, and what is known of the last error and the document."""
    failed(sync, 7, "no answer")
    sync.leave(7, gone=True)
    stored = sync.record(7)
    (record,) = reactive.get_tasks().items
    assert isinstance(record, TaskRecord)
    assert (record.task, record.source_doc_id, record.status) == ("sync", 7, "completed")
    assert record.collection == f"{sync.source.database.name}.orders"
    assert (record.last_error, record.last_error_type, record.attempts) == ("no answer", "ValueError", 1)
    assert (record.gone, record.left, record.next_run_at) == (True, False, None)
    assert record.last_observed_values == {"v": 1}
    assert record.created_at == stored["createdAt"]
    assert [entry["status"] for entry in record.execution_history] == ["failed", "skipped"]


# --- retry and discard ------------------------------------------------------------------------------


def test_changing_everything_must_be_said(reactive: Reactive, sync: Bench, mail: Bench) -> None:
    """B-51: without a filter only `all=True` goes through; filters that mean nothing do not count."""
    sync.plan(on(1))
    mail.plan(on(2))
    empty: list[dict[str, Any]] = [{}, {"task": None}, {"status": None, "doc_id": ...}]
    for filters in empty:
        for call in (reactive.retry_tasks, reactive.discard_tasks):
            with pytest.raises(ConfigurationError, match="all=True"):
                call(**filters)
            with pytest.raises(ConfigurationError, match="all=True"):
                call(all=False, **filters)
            with pytest.raises(ConfigurationError, match="expected True or False"):
                call(all=1, **filters)
    assert "forced" not in sync.record(1)["_r"]
    assert reactive.retry_tasks(all=True) == 2
    assert reactive.discard_tasks(all=True, task="mail") == 1
    assert (sync.state(1), mail.state(2)) == (RecordState.PENDING, RecordState.COMPLETED)


def test_retry_takes_each_record_once_over_many_pages(reactive: Reactive, many: list[tuple[str, Any]]) -> None:
    """B-51: by pages of ids, whatever their types, each record counted and retried once."""
    assert reactive.retry_tasks(all=True) == len(many)
    assert {record.status for record in reactive.get_tasks(limit=1000).items} == {RecordState.PENDING}
    connection = reactive.runtime.connection
    cycles = [
        stored["_r"]["cycle"]
        for task in ("sync", "mail")
        for stored in connection.records(reactive.registry.get(task)).find()
    ]
    assert set(cycles) == {1}


def test_retry_keeps_what_is_known_and_grants_one_attempt(reactive: Reactive, sync: Bench) -> None:
    """B-52: pending now; attempts, dueAt and lastError stay; a running record runs again at once after."""
    sync.exhaust(sync.start(on(1)))
    before = sync.record(1)
    running = sync.start(on(2))
    assert reactive.retry_tasks(task="sync", status=["failed", "processing"]) == 2
    record = sync.record(1)
    assert record["status"] == "pending"
    assert all(record[field] == before[field] for field in ("attempts", "dueAt", "lastError", "firstErrorAt"))
    assert [claim.attempt for claim in sync.claim(1)] == [2]
    assert sync.state(2) is RecordState.PROCESSING_DIRTY
    assert sync.complete(running).state is RecordState.PENDING
    assert len(sync.claim(2)) == 1


def test_discard_ends_what_waits_or_has_failed(reactive: Reactive, sync: Bench) -> None:
    """B-52: pending and failed become completed with an entry `discarded`; running and completed stay."""
    sync.plan(on("pending"))
    sync.exhaust(sync.start(on("failed")))
    sync.start(on("running"))
    sync.handle(on("completed"))
    untouched = [sync.record("running"), sync.record("completed")]
    assert reactive.discard_tasks(task="sync") == 2
    for doc_id in ("pending", "failed"):
        record = sync.record(doc_id)
        assert (record["status"], record["nextRunAt"]) == ("completed", None)
        assert record["executionHistory"][-1]["status"] == "discarded"
    assert [sync.record("running"), sync.record("completed")] == untouched


def test_discarding_failures_spares_one_that_a_change_revives(
    reactive: Reactive,
    sync: Bench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B-10, B-52: a failed record whose document changes between being found and discarded gets its run."""
    sync.exhaust(sync.start(on(1)))
    discard = records.discard

    def change_first(*args: Any, **kwargs: Any) -> int:
        sync.plan(on(1, v=2))
        return discard(*args, **kwargs)

    monkeypatch.setattr("celery_reactive.store.records.discard", change_first)
    assert reactive.discard_tasks(status="failed") == 0
    assert sync.state(1) is RecordState.PENDING


def test_manual_actions_are_told(reactive: Reactive, sync: Bench, index: Bench) -> None:
    """B-54: one event per task and call, with the number of records changed; none where nothing was."""
    sync.plan(on(1), on(2))
    index.plan(on(1))
    told: list[tuple[str, str, int]] = []

    def listen(action: str, task: str, records: int, **_: Any) -> None:
        told.append((action, task, records))

    signals.manual_action.connect(listen, sender=reactive.app)
    reactive.retry_tasks(collection="orders")
    reactive.discard_tasks(task="index")
    reactive.discard_tasks(task="mail")
    reactive.trigger("sync", 1)
    assert told == [("retry", "index", 1), ("retry", "sync", 2), ("discard", "index", 1), ("trigger", "sync", 1)]


# --- trigger ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("doc_id", AWKWARD_IDS, ids=repr)
def test_trigger_makes_the_record_of_a_document_that_matches(reactive: Reactive, sync: Bench, doc_id: Any) -> None:
    """B-52: before any planner has seen the document, and due at once."""
    sync.put(on(doc_id))
    assert reactive.trigger("sync", doc_id) is True
    assert sync.record(doc_id)["lastObservedValues"] == {"v": 1}
    assert len(sync.claim(doc_id)) == 1
    assert reactive.count_tasks() == 1


def test_trigger_makes_no_record_of_what_does_not_match(reactive: Reactive, sync: Bench) -> None:
    """B-52: neither for a document outside the filter nor for none."""
    sync.put({"_id": 1, "on": False})
    sync.put(on("another"))
    for doc_id in (1, 2, {"$exists": True}, re.compile("."), ["another"]):
        assert reactive.trigger("sync", doc_id) is False
    assert reactive.count_tasks() == 0


def test_trigger_retries_a_record_that_there_is(reactive: Reactive, sync: Bench) -> None:
    """B-52, B-8: as a manual retry, also of a record whose document has left the filter."""
    sync.handle(on(1))
    sync.plan({"_id": 1, "on": False})
    assert reactive.trigger("sync", 1) is True
    assert len(sync.claim(1)) == 1


def test_trigger_goes_by_the_stored_definition(reactive: Reactive, sync: Bench) -> None:
    """B-43: while two versions of the code are deployed, the leader's filter and projection decide."""
    other = declare("sync", {"collection": "orders", "filter": {"w": {"$exists": True}}, "watch_projection": {"w": 1}})
    connection = reactive.runtime.connection
    namespace = connection.namespace(other)
    definitions.define(connection.globals(), other, namespace=namespace, collated=False, term=1)
    sync.put({"_id": 1, "on": False, "w": 5})
    assert reactive.trigger("sync", 1) is True
    assert sync.record(1)["lastObservedValues"] == {"w": 5}
    assert sync.record(1)["_r"]["gen"] == 1


def test_trigger_leaves_a_foreign_collection_untouched(reactive: Reactive) -> None:
    """B-4: nothing is written into documents that are not ours."""
    task = reactive.registry.get("mail")
    foreign: Collection[Any] = reactive.runtime.connection.records(task)
    foreign.insert_one({"_id": 1, "mine": True})
    reactive.runtime.connection.source(task).insert_one(on(1))
    with pytest.raises(ForeignRecordsError):
        reactive.trigger("mail", 1)
    assert list(foreign.find()) == [{"_id": 1, "mine": True}]


# --- controls and status ----------------------------------------------------------------------------


def test_pause_and_resume(reactive: Reactive) -> None:
    """B-53: seen in the status, told as an event, and resuming ends a throttle too."""
    told: list[bool] = []

    def listen(paused: bool, **_: Any) -> None:  # noqa: FBT001 -- the event's fact
        told.append(paused)

    signals.task_paused.connect(listen, sender=reactive.app)
    reactive.pause("sync")
    assert {task.task: task.paused for task in reactive.status().tasks} == {"sync": True, "index": False, "mail": False}
    reactive.throttle("sync", "1h")
    reactive.resume("sync")
    stored = definitions.read(reactive.runtime.connection.globals(), "sync")
    assert not stored.holds_back
    assert told == [True, False]


def test_a_throttle_is_never_shortened(reactive: Reactive, sync: Bench) -> None:
    """B-35: a duration counts from the server's now, and the longer pause stays."""
    until = reactive.throttle("sync", "1h")
    assert timedelta(minutes=59) < until - sync.now() <= timedelta(hours=1)
    assert reactive.throttle("sync", 5) == until
    later = (until + timedelta(hours=1)).replace(microsecond=0)
    assert reactive.throttle("sync", later) == later
    assert definitions.read(reactive.runtime.connection.globals(), "sync").is_throttled
    for wrong in ("-1s", "soon", datetime(2040, 1, 1)):  # noqa: DTZ001 -- what is refused
        with pytest.raises(ConfigurationError, match="delay: expected"):
            reactive.throttle("mail", wrong)
    assert not definitions.read(reactive.runtime.connection.globals(), "mail").holds_back


def test_planning_failures_are_listed(reactive: Reactive, sync: Bench, index: Bench) -> None:
    """B-20: all, or those of one task."""
    globals_ = reactive.runtime.connection.globals()
    at = sync.cluster_time()
    for bench in (sync, index):
        unplanned.note(globals_, bench.key(0), at=at, reason=unplanned.Reason.FAILED, error="too large", gone=False)
    assert [failure.key for failure in reactive.planning_failures("sync")] == [sync.key(0)]
    assert len(reactive.planning_failures()) == 2
    assert len(reactive.planning_failures(limit=1)) == 1
    assert reactive.status().planning_failures == 2


def test_the_guides_page_does_what_it_says(app: Celery, reactive: Reactive, sync: Bench) -> None:
    """B-51 to B-53: the functions of the page, called on a real server."""
    page = Path(__file__).parents[2] / "docs" / "guide" / "managing.md"
    names: dict[str, Any] = {"app": app, "Reactive": Reactive}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(block, names)  # noqa: S102 -- the repository's own page
    failed(sync, 1, "connection refused")
    sync.plan(on(2, test=True), on(3))
    names["repair"](3)
    assert sync.record(1)["nextRunAt"] <= sync.now()
    assert sync.record(2)["executionHistory"][-1]["status"] == "discarded"
    assert sync.record(3)["_r"]["forced"]
    sync.exhaust(sync.claim(1)[0])
    assert names["show_failures"]() is None
    names["maintenance"]()
    assert not definitions.read(reactive.runtime.connection.globals(), "sync").holds_back
    names["report"]()


def test_a_record_that_the_loop_guard_has_paused_is_resumed(reactive: Reactive, sync: Bench) -> None:
    """B-64: alone, and only if it is; the task's own pause is another matter."""
    sync.guard(on(1))
    sync.plan(on(2))
    assert [one.guarded for one in reactive.get_tasks(task=sync.task.name).items] == [True, False]
    assert reactive.resume(sync.task.name) is True
    assert not reactive.resume(sync.task.name, 2)
    assert not reactive.resume(sync.task.name, "nobody")
    assert sync.claim(1) == []
    assert reactive.resume(sync.task.name, 1)
    assert not reactive.resume(sync.task.name, 1)
    assert sync.claim(1)
    with pytest.raises(UnknownTaskError, match="known"):
        reactive.resume("nothing", 1)


def test_a_count_that_takes_more_than_moments_is_given_up_also_in_a_limited_request(
    reactive: Reactive, client: MongoClient[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-51: a page does not wait for a number, however long it may take altogether."""
    monkeypatch.setattr(listing, "_MOMENTS", timedelta(milliseconds=50))
    reactive.get_tasks(error="refused")
    slow = {"failCommands": ["aggregate"], "blockConnection": True, "blockTimeMS": 1500}
    client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": slow})
    try:
        with time_limit(timedelta(seconds=20)):
            page = listing.get_tasks(reactive.runtime, {"error": "refused"}, enough=1000)
    finally:
        client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
    assert page.total == 1000
    assert page.items == []
