"""What an observation makes of a record: when it runs again, when it is left alone, and when the document is off."""

from __future__ import annotations

import datetime as dt
import uuid
from datetime import timedelta
from typing import Any

import bson
import pytest
from bson import DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Timestamp
from bson.binary import Binary
from bson.datetime_ms import DatetimeMS

from celery_reactive.core.outcome import Skipped
from celery_reactive.core.record import CODEC, id_from_text, id_to_text
from celery_reactive.core.states import RecordState
from tests.integration.bench import TOOK, Bench
from tests.integration.conftest import MakeBench

FIRST = {"_id": 1, "on": True, "v": "first"}
SECOND = {"_id": 1, "on": True, "v": "second"}
OFF = {"_id": 1, "on": False, "v": "first"}


# --- the first time -----------------------------------------------------------------------------------


def test_a_matching_document_gets_a_whole_record(make_bench: MakeBench) -> None:
    """B-12: pending, no attempts, due after the debounce; every field of the record is there."""
    bench = make_bench("$shop.sync", filter={"on": True}, watch_projection={"v": 1}, debounce="5s")
    at = bench.put(FIRST)
    bench.observe(1, at=at)
    record = bench.record(1)
    assert record["_id"] == {"t": "$shop.sync", "d": 1}
    assert (record["task"], record["sourceDocId"]) == ("$shop.sync", 1)
    assert (record["status"], record["attempts"]) == ("pending", 0)
    assert record["lastObservedValues"] == {"v": "first"}
    assert record["nextRunAt"] == record["dueAt"] == record["createdAt"] + timedelta(seconds=5)
    assert record["createdAt"] == record["updatedAt"]
    empty = ("startedAt", "completedAt", "lastFinalizedAt", "firstErrorAt", "lastError", "lastSuccess")
    assert [record[field] for field in empty] == [None] * len(empty)
    assert record["executionHistory"] == []
    assert (record["_r"]["at"], record["_r"]["gen"], record["_r"]["sent"]) == (at, 1, False)
    assert record["_r"]["wakeAt"] == record["nextRunAt"]


def test_a_document_that_has_never_matched_has_no_record(bench: Bench) -> None:
    """B-8."""
    bench.plan(OFF)
    assert bench.records.count_documents({}) == 0


def test_a_scan_without_backfill_runs_nothing_until_the_first_event(make_bench: MakeBench) -> None:
    """B-2: `backfill=False`: completed and unrun; the first event of the document, same values or not, runs it."""
    bench = make_bench(filter={"on": True}, watch_projection={"v": 1}, backfill=False)
    start = bench.cluster_time()
    bench.put(FIRST)
    bench.observe(1, at=start, live=False)
    record = bench.record(1)
    assert (record["status"], record["nextRunAt"], record["attempts"]) == ("completed", None, 0)
    bench.observe(1, live=False)
    assert bench.state(1) is RecordState.COMPLETED
    bench.observe(1)
    (claim,) = bench.claim(1)
    assert claim.attempt == 1
    bench.complete(claim)
    bench.observe(1)
    assert bench.state(1) is RecordState.COMPLETED


def test_a_scan_without_backfill_sees_changes(make_bench: MakeBench) -> None:
    """B-2: what has changed since it was left unrun runs, whoever finds it."""
    bench = make_bench(filter={"on": True}, watch_projection={"v": 1}, backfill=False)
    bench.put(FIRST)
    bench.observe(1, live=False)
    bench.put(SECOND)
    bench.observe(1, live=False)
    assert bench.state(1) is RecordState.PENDING


def test_an_insert_without_backfill_runs(make_bench: MakeBench) -> None:
    """B-2: only scans leave documents unrun."""
    bench = make_bench(backfill=False)
    bench.plan({"_id": 1})
    assert bench.state(1) is RecordState.PENDING


# --- the same, or not -----------------------------------------------------------------------------------


@pytest.mark.parametrize("final", ["completed", "failed"])
def test_same_values_leave_a_record_at_rest_alone(bench: Bench, final: str) -> None:
    """B-13: nothing that a user reads changes, `updatedAt` included."""
    claim = bench.start(FIRST)
    bench.complete(claim) if final == "completed" else bench.exhaust(claim)
    before = bench.record(1)
    bench.plan({**FIRST, "unwatched": 2})
    after = bench.record(1)
    assert after.pop("_r")["at"] > before.pop("_r")["at"]
    assert after == before


@pytest.mark.parametrize("status", ["pending", "processing", "processing_dirty"])
def test_same_values_leave_a_record_on_its_way_alone(bench: Bench, status: str) -> None:
    """B-13."""
    bench.plan(FIRST)
    if status != "pending":
        bench.claim(1)
    if status == "processing_dirty":
        bench.plan(SECOND)
    values = bench.record(1)["lastObservedValues"]
    before = bench.record(1)
    bench.plan({**FIRST, **values, "unwatched": 2})
    after = bench.record(1)
    after.pop("_r"), before.pop("_r")
    assert after == before


@pytest.mark.parametrize("final", ["completed", "failed", "backing off"])
def test_different_values_run_again(make_bench: MakeBench, final: str) -> None:
    """B-14: also from failed and during a back-off, whose wait is cut short."""
    bench = make_bench(filter={"on": True}, watch_projection={"v": 1}, debounce="2s")
    bench.plan(FIRST)
    bench.make_due(1)
    (claim,) = bench.claim(1)
    match final:
        case "completed":
            bench.complete(claim)
        case "failed":
            bench.exhaust(claim)
        case _:
            bench.error(claim, retry_in=timedelta(hours=1))
    before = bench.record(1)
    bench.plan(SECOND)
    record = bench.record(1)
    assert record["status"] == "pending"
    assert record["updatedAt"] > before["updatedAt"]
    assert (
        record["dueAt"] == record["nextRunAt"] == record["_r"]["wakeAt"] == record["updatedAt"] + timedelta(seconds=2)
    )
    assert record["lastObservedValues"] == {"v": "second"}
    assert record["executionHistory"] == before["executionHistory"]


def test_different_values_during_a_run_make_it_dirty(bench: Bench) -> None:
    """B-14: the lease is untouched."""
    bench.start(FIRST)
    before = bench.record(1)
    bench.plan(SECOND)
    record = bench.record(1)
    assert record["status"] == "processing_dirty"
    assert record["lastObservedValues"] == {"v": "second"}
    kept = ("nextRunAt", "startedAt")
    assert [record[field] for field in kept] == [before[field] for field in kept]
    assert [record["_r"][field] for field in ("claim", "wakeAt")] == [
        before["_r"][field] for field in ("claim", "wakeAt")
    ]


def test_a_change_recalls_what_was_sent(bench: Bench) -> None:
    """B-22: the message on its way is for an older time; another is sent when the record is due."""
    bench.plan(FIRST)
    bench.records.update_one({}, {"$set": {"_r.sent": True, "_r.dispatches": 3}})
    bench.plan(SECOND)
    assert (bench.record(1)["_r"]["sent"], bench.record(1)["_r"]["dispatches"]) == (False, 0)


@pytest.mark.parametrize("resets", [True, False])
def test_a_change_starts_a_sequence_of_failures_anew_or_not(make_bench: MakeBench, resets: bool) -> None:  # noqa: FBT001 -- parametrized
    """B-15: `attempts`, `firstErrorAt` and `lastError` go or stay together."""
    policy = {"type": "fixed", "interval": "1h", "reset_retries_on_data_change": resets}
    bench = make_bench(watch_projection={"v": 1}, retry_policy=policy)
    bench.error(bench.start(FIRST))
    before = bench.record(1)
    bench.plan(SECOND)
    record = bench.record(1)
    fields = ("attempts", "firstErrorAt", "lastError")
    kept = [before[field] for field in fields]
    assert [record[field] for field in fields] == ([0, None, None] if resets else kept)
    assert ("error" in record["_r"]) is not resets
    (claim,) = bench.claim(1)
    assert claim.attempt == (1 if resets else 2)


@pytest.mark.parametrize("resets", [True, False])
def test_after_a_success_the_attempts_start_from_nothing(make_bench: MakeBench, resets: bool) -> None:  # noqa: FBT001 -- parametrized
    """B-15: whatever `reset_retries_on_data_change` says."""
    policy = {"type": "fixed", "interval": "1h", "reset_retries_on_data_change": resets}
    bench = make_bench(watch_projection={"v": 1}, retry_policy=policy)
    bench.error(bench.start(FIRST), retry_in=timedelta(0))
    (claim,) = bench.claim(1)
    bench.complete(claim)
    bench.plan(SECOND)
    assert bench.record(1)["attempts"] == 0
    (claim,) = bench.claim(1)
    assert (claim.attempt, claim.first_error_at) == (1, None)


# --- debounce -------------------------------------------------------------------------------------------


def test_each_change_moves_the_run(make_bench: MakeBench) -> None:
    """B-16: it slides."""
    bench = make_bench(debounce="10s")
    for value in range(3):
        bench.plan({"_id": 1, "v": value})
        record = bench.record(1)
        assert record["dueAt"] == record["nextRunAt"] == record["updatedAt"] + timedelta(seconds=10)
    assert bench.record(1)["dueAt"] > bench.record(1)["createdAt"] + timedelta(seconds=10)


def test_the_wait_from_the_first_unhandled_change_is_capped(make_bench: MakeBench) -> None:
    """B-16: `debounce_max_wait`, counted from the first change that no run has started on."""
    bench = make_bench(debounce="10s", debounce_max_wait="15s")
    bench.plan({"_id": 1, "v": 0})
    bench.records.update_one({}, [{"$set": {"_r.changedAt": {"$subtract": ["$$NOW", 8_000]}}}])
    first = bench.record(1)["_r"]["changedAt"]
    bench.plan({"_id": 1, "v": 1})
    assert bench.record(1)["dueAt"] == first + timedelta(seconds=15)
    bench.records.update_one({}, [{"$set": {"_r.changedAt": {"$subtract": ["$$NOW", 60_000]}}}])
    bench.plan({"_id": 1, "v": 2})
    record = bench.record(1)
    assert record["dueAt"] == record["nextRunAt"] == record["updatedAt"]
    (claim,) = bench.claim(1)
    bench.plan({"_id": 1, "v": 3})
    record = bench.record(1)
    assert record["dueAt"] == record["updatedAt"] + timedelta(seconds=10)
    bench.complete(claim)


def test_the_cap_holds_for_the_first_run_too(make_bench: MakeBench) -> None:
    """B-16: a cap below the debounce is a cap."""
    bench = make_bench(debounce="10s", debounce_max_wait="2s")
    bench.plan({"_id": 1})
    record = bench.record(1)
    assert record["dueAt"] == record["nextRunAt"] == record["createdAt"] + timedelta(seconds=2)


def test_without_debounce_a_change_is_due_at_once(bench: Bench) -> None:
    """B-16: `debounce=0`."""
    bench.plan(FIRST)
    record = bench.record(1)
    assert record["nextRunAt"] == record["createdAt"]
    assert len(bench.claim(1)) == 1


# --- gone, left, back again --------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [True, False])
def test_a_pending_record_of_a_document_that_is_off_is_skipped(bench: Bench, gone: bool) -> None:  # noqa: FBT001 -- parametrized
    """B-8: completed, without a handler call, with an entry in the history."""
    bench.plan(FIRST)
    assert bench.leave(1, at=bench.put(OFF), gone=gone) == 1
    record = bench.record(1)
    assert (record["status"], record["nextRunAt"], record["_r"]["wakeAt"]) == ("completed", None, None)
    assert record["_r"]["gone" if gone else "left"] is True
    (entry,) = record["executionHistory"]
    assert entry["status"] == "skipped"
    assert record["lastFinalizedAt"] is None
    assert bench.claim(1) == []


@pytest.mark.parametrize("status", ["completed", "failed", "processing", "processing_dirty"])
@pytest.mark.parametrize("gone", [True, False])
def test_other_records_are_only_marked(bench: Bench, status: str, gone: bool) -> None:  # noqa: FBT001 -- parametrized
    """B-8: in particular a running one keeps its claim."""
    claim = bench.start(FIRST)
    match status:
        case "completed":
            bench.complete(claim)
        case "failed":
            bench.exhaust(claim)
        case "processing_dirty":
            bench.plan(SECOND)
        case _:
            assert status == "processing"
    before = bench.record(1)
    bench.leave(1, gone=gone)
    after = bench.record(1)
    books, books_before = after.pop("_r"), before.pop("_r")
    assert after == before
    assert books.pop("at") > books_before.pop("at")
    assert books == {**books_before, ("gone" if gone else "left"): True}


@pytest.mark.parametrize("gone", [True, False])
@pytest.mark.parametrize("final", ["completed", "failed", "skipped"])
def test_a_document_that_matches_again_runs(bench: Bench, gone: bool, final: str) -> None:  # noqa: FBT001 -- parametrized
    """B-8, B-18: with the same values, from wherever it was; the attempts start anew."""
    bench.plan(FIRST)
    if final != "skipped":
        (claim,) = bench.claim(1)
        bench.complete(claim) if final == "completed" else bench.exhaust(claim)
    bench.leave(1, at=bench.put(OFF), gone=gone)
    bench.plan(FIRST)
    record = bench.record(1)
    assert (record["status"], record["attempts"]) == ("pending", 0)
    assert not {"gone", "left", "skipped"} & record["_r"].keys()
    assert len(bench.claim(1)) == 1


@pytest.mark.parametrize("gone", [True, False])
def test_a_document_that_matches_again_during_a_run_makes_it_dirty(bench: Bench, gone: bool) -> None:  # noqa: FBT001 -- parametrized
    """B-8, B-14."""
    bench.start(FIRST)
    bench.leave(1, at=bench.put(OFF), gone=gone)
    bench.plan(FIRST)
    assert bench.state(1) is RecordState.PROCESSING_DIRTY


def test_an_id_alone_runs_once(make_bench: MakeBench) -> None:
    """B-17: neither a change nor re-entry runs it again; deletion and insertion do."""
    bench = make_bench(filter={"on": True}, watch_projection={"_id": 1})
    bench.handle(FIRST)
    bench.plan(SECOND)
    bench.plan(OFF)
    bench.plan(FIRST)
    assert bench.state(1) is RecordState.COMPLETED
    bench.leave(1, at=bench.delete(1), gone=True)
    bench.plan(FIRST)
    assert bench.state(1) is RecordState.PENDING


def test_an_id_alone_that_was_skipped_has_not_run(make_bench: MakeBench) -> None:
    """B-17: it left before its run, so its re-entry is its first."""
    bench = make_bench(filter={"on": True}, watch_projection={"_id": 1})
    bench.plan(FIRST)
    bench.plan(OFF)
    assert bench.state(1) is RecordState.COMPLETED
    bench.plan(FIRST)
    assert bench.state(1) is RecordState.PENDING


def test_an_id_alone_runs_again_when_cleanup_removed_its_record(make_bench: MakeBench) -> None:
    """B-17."""
    bench = make_bench(filter={"on": True}, watch_projection={"_id": 1})
    bench.handle(FIRST)
    bench.records.delete_many({})
    bench.plan(SECOND)
    assert bench.state(1) is RecordState.PENDING


def test_an_id_alone_whose_worker_found_it_absent_has_not_run(make_bench: MakeBench) -> None:
    """B-17, B-32: a run that ended as skipped was none."""
    bench = make_bench(filter={"on": True}, watch_projection={"_id": 1})
    claim = bench.start(FIRST)
    bench.put(OFF)
    bench.settle(claim, Skipped("left", TOOK, left=True))
    bench.plan(FIRST)
    assert bench.state(1) is RecordState.PENDING


# --- values are data ----------------------------------------------------------------------------------------

SUPPORT: dict[str, tuple[Any, Any]] = {
    "a string that looks like a path": ("$v", "$on"),
    "a string that looks like a variable": ("$$NOW", "$$ROOT"),
    "keys with dots and dollars": ({"a.b": 1, "$c": {"$d.e": 2}}, {"a.b": 1, "$c": {"$d.e": 3}}),
    "something like an expression": ({"$add": [1, 2]}, {"$add": [1, 3]}),
    "Decimal128": (Decimal128("2.50"), Decimal128("2.51")),
    "decimals near doubles": (Decimal128("2.2"), 2.2),
    "UUID": (uuid.UUID(int=1), uuid.UUID(int=2)),
    "Int64": (Int64(2**53), Int64(2**53 + 1)),
    "NaN": (float("nan"), 0.0),
    "infinity": (float("inf"), float("-inf")),
    "dates before 1970": (dt.datetime(1907, 1, 1, tzinfo=dt.UTC), dt.datetime(1907, 1, 2, tzinfo=dt.UTC)),
    "dates after 9999": (DatetimeMS(2**60), DatetimeMS(2**60 + 1)),
    "DBRef": (DBRef("c", 1), DBRef("c", 2)),
    "DBRef with more": (DBRef("c", 1, "d", x=1), DBRef("c", 1, "d", x=2)),
    "order of nested keys": ({"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}),
    "missing and null": ({"a": None}, {}),
    "a boolean and a number": (True, 1),
    "a list and its element": ([1], 1),
    "nested lists": ([[1, [2]]], [[1, [3]]]),
    "letters of another case": ("paid", "PAID"),
    "strings with accents": ("é", "e"),
    "binaries": (Binary(b"\0"), Binary(b"\0", 5)),
    "object ids": (ObjectId("0" * 24), ObjectId("1" * 24)),
    "keys at the ends": (MinKey(), MaxKey()),
    "timestamps": (Timestamp(1, 1), Timestamp(1, 2)),
    "patterns": (bson.Regex("^a", "i"), bson.Regex("^a")),
    "code": (bson.Code("x"), bson.Code("x", {"y": 1})),
}


COMPARES = pytest.mark.mongod("compares some values otherwise, and stores no dates after 9999")
OTHERWISE = ("NaN", "dates after 9999", "order of nested keys", "a boolean and a number")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=COMPARES) if name in OTHERWISE else name for name in SUPPORT]
)
def test_values_of_every_type_detect_change_and_load(make_bench: MakeBench, name: str) -> None:
    """B-19: the one value is kept to the byte and is itself again; the other is a change, both ways."""
    bench = make_bench(watch_projection={"v": 1})
    one, other = SUPPORT[name]
    for value, changed in ((one, other), (other, one)):
        bench.records.delete_many({})
        bench.handle({"_id": 1, "v": value})
        observed = bench.record(1)["lastObservedValues"]
        exact = bson.encode({"v": value}, codec_options=CODEC)
        assert bson.encode({"v": observed["v"]}, codec_options=CODEC) == exact
        bench.plan({"_id": 1, "v": value})
        assert bench.state(1) is RecordState.COMPLETED
        bench.plan({"_id": 1, "v": changed})
        assert bench.state(1) is RecordState.PENDING


@COMPARES
def test_a_whole_document_is_watched_to_the_byte(make_bench: MakeBench) -> None:
    """B-11, B-19: without a projection every value of every type counts."""
    bench = make_bench()
    document = {"_id": 1, **{name.replace(" ", ".$"): values[0] for name, values in SUPPORT.items()}}
    bench.handle(document)
    exact = bson.encode(document, codec_options=CODEC)
    assert bson.encode(bench.record(1)["lastObservedValues"], codec_options=CODEC) == exact
    bench.plan(document)
    assert bench.state(1) is RecordState.COMPLETED
    for name, values in SUPPORT.items():
        bench.handle({**document, name.replace(" ", ".$"): values[1]})
        assert bench.state(1) is RecordState.COMPLETED
    assert len(bench.record(1)["executionHistory"]) == 5


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (2, Int64(2)), pytest.param(3, Decimal128("3.00"), marks=COMPARES), (0.0, -0.0)]
)
def test_numbers_of_equal_value_are_the_same(bench: Bench, one: Any, other: Any) -> None:
    """B-13: the server's own comparison."""
    bench.handle({**FIRST, "v": one})
    bench.plan({**FIRST, "v": other})
    assert bench.state(1) is RecordState.COMPLETED


def test_a_field_that_goes_missing_is_a_change(bench: Bench) -> None:
    """B-13: missing differs from null, and from nothing at all."""
    bench.handle({**FIRST, "v": None})
    bench.plan({"_id": 1, "on": True})
    assert bench.state(1) is RecordState.PENDING
    assert bench.record(1)["lastObservedValues"] == {}


@COMPARES
def test_a_claim_hands_out_the_values_as_stored(bench: Bench) -> None:
    """B-19: undecoded, so that what is compared is what is stored."""
    value = {"b": Int64(1), "a.c": DatetimeMS(2**60), "$d": [Decimal128("1.0"), DBRef("c", 1)]}
    claim = bench.start({**FIRST, "v": value})
    assert claim.observed.raw == bson.encode({"v": {"v": value}}, codec_options=CODEC)


# --- ids of every type --------------------------------------------------------------------------------------

IDS: list[Any] = [
    1,
    Int64(1),
    Int64(2**40),
    1.5,
    float("nan"),
    Decimal128("1.25"),
    "text",
    "$text",
    "a.b",
    "",
    None,
    True,
    ObjectId("65a000000000000000000001"),
    uuid.UUID(int=5),
    Binary(b"bytes"),
    dt.datetime(1960, 1, 1, tzinfo=dt.UTC),
    DatetimeMS(2**60),
    Timestamp(1, 2),
    {"x": 1, "y": "$z"},
    {"items": [1, [2, {"k": None}]]},
    MinKey(),
    MaxKey(),
]


@pytest.mark.parametrize(
    "doc_id",
    [
        pytest.param(doc_id, marks=COMPARES) if repr(doc_id) in ("nan", repr(DatetimeMS(2**60))) else doc_id
        for doc_id in IDS
    ],
    ids=lambda doc_id: f"{type(doc_id).__name__} {doc_id!r}",
)
def test_documents_with_ids_of_every_type_live_a_whole_life(bench: Bench, doc_id: Any) -> None:
    """B-19, B-31: planned, changed, left; claimed by the id that a message carries, alone and in company."""
    bench.plan({**FIRST, "_id": doc_id}, {**FIRST, "_id": "companion"})
    as_sent = id_from_text(id_to_text(doc_id))
    (claim,) = bench.claim(as_sent)
    assert claim.key.exact == bench.key(doc_id).exact
    bench.complete(claim)
    bench.plan({**SECOND, "_id": doc_id})
    claims = bench.claim("companion", as_sent)
    assert [each.key.exact for each in claims] == [bench.key("companion").exact, bench.key(doc_id).exact]
    for claim in claims:
        bench.complete(claim)
    assert bench.records.count_documents({}) == 2
    bench.plan({**OFF, "_id": doc_id})
    assert bench.record(doc_id)["_r"]["left"] is True


# --- collections with a collation of their own ------------------------------------------------------------------


@pytest.mark.mongod("knows no default collation of a collection")
def test_a_collation_decides_the_filter_and_not_the_change(make_bench: MakeBench) -> None:
    """B-13, B-5: `find` calls 'paid' and 'PAID' equal there; the watched values are compared exactly."""
    bench = make_bench(filter={"v": "PAID"}, watch_projection={"v": 1})
    bench.connection.database().create_collection("orders", collation={"locale": "en", "strength": 2})
    bench.put({"_id": 1, "v": "paid"})
    bench.observe(1, collated=True)
    (claim,) = bench.claim(1)
    bench.complete(claim)
    bench.put({"_id": 1, "v": "PAID"})
    bench.observe(1, collated=True)
    record = bench.record(1)
    assert (record["status"], record["lastObservedValues"]) == ("pending", {"v": "PAID"})
    at = bench.put({"_id": 1, "v": "unpaid"})
    bench.observe(1, at=at, collated=True)
    assert bench.leave(1, at=at) == 1


def test_records_keep_apart_ids_that_a_collation_calls_equal(make_bench: MakeBench) -> None:
    """B-19: the id of the record is the document's own."""
    bench = make_bench()
    bench.connection.database().create_collection("orders", collation={"locale": "en", "strength": 2})
    bench.put({"_id": "a"})
    bench.observe("a", collated=True)
    bench.leave("a", at=bench.delete("a"), gone=True)
    bench.put({"_id": "A"})
    bench.observe("A", collated=True)
    assert bench.record("a")["_r"]["gone"] is True
    assert bench.state("A") is RecordState.PENDING
