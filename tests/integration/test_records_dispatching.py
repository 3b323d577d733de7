"""What is due, what is on its way, and when a message is sent again."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from celery_reactive.core.record import RecordKey
from celery_reactive.store import pipelines, records
from tests.integration.bench import LEASE, Bench
from tests.integration.conftest import MakeBench

FIRST = timedelta(seconds=60)
LONGEST = timedelta(minutes=15)
MINUTE = timedelta(minutes=1)
AT_ONCE = timedelta(0)


def due(bench: Bench, limit: int = 10) -> list[RecordKey]:
    """Return the keys of what is due."""
    return [one.key for one in records.find_due(bench.records, bench.task.name, limit=limit)]


def send(bench: Bench, *doc_ids: int) -> int:
    """Mark records as sent."""
    keys = [bench.key(doc_id) for doc_id in doc_ids]
    return records.mark_sent(bench.records, keys, first_deadline=FIRST, longest_deadline=LONGEST)


def age(bench: Bench, doc_id: int, by: timedelta) -> None:
    """Let the time at which the planner must look at a record be *by* ago."""
    past = {"$subtract": ["$$NOW", round(by.total_seconds() * 1000)]}
    bench.records.update_one({"_id": bench.key(doc_id).id}, [{"$set": {"_r.wakeAt": past}}])


def next_wake(bench: Bench) -> float | None:
    """Return the seconds until the next record is due."""
    return records.seconds_until_next_wake(bench.records, bench.task.name)


def test_what_is_due_comes_oldest_first(bench: Bench) -> None:
    """B-22: pending records whose time has come, up to the limit; those of other states and tasks do not."""
    bench.plan(*({"_id": doc_id, "on": True} for doc_id in range(5)))
    for doc_id, seconds in ((3, 30), (1, 20), (4, 10)):
        age(bench, doc_id, timedelta(seconds=seconds))
    bench.claim(0)
    bench.handle({"_id": 5, "on": True})
    bench.exhaust(bench.start({"_id": 6, "on": True}))
    bench.records.insert_one({**bench.record(2), "_id": {"t": "other", "d": 2}, "task": "other"})
    assert [key.doc_id for key in due(bench)] == [3, 1, 4, 2]
    assert [key.doc_id for key in due(bench, limit=2)] == [3, 1]


def test_what_is_sent_is_not_due_until_its_deadline(bench: Bench) -> None:
    """B-22: a lost message is dispatched again."""
    bench.plan({"_id": 1, "on": True})
    assert send(bench, 1) == 1
    assert due(bench) == []
    assert records.count_in_flight(bench.records, bench.task.name) == 1
    age(bench, 1, timedelta(seconds=1))
    assert due(bench) == [bench.key(1)]
    assert records.count_in_flight(bench.records, bench.task.name) == 0


def test_what_was_never_sent_comes_before_what_is_overdue(bench: Bench) -> None:
    """B-22: a queue nobody serves must not keep the new from being sent."""
    bench.plan(*({"_id": doc_id, "on": True} for doc_id in range(4)))
    send(bench, 0, 1)
    for doc_id in (0, 1):
        age(bench, doc_id, timedelta(hours=1))
    assert [key.doc_id for key in due(bench)] == [2, 3, 0, 1]
    assert [key.doc_id for key in due(bench, limit=3)] == [2, 3, 0]


def test_the_deadline_doubles_up_to_its_limit(bench: Bench) -> None:
    """B-22: 60 s doubling to 15 min."""
    bench.plan({"_id": 1, "on": True})
    waits = []
    for _ in range(7):
        assert send(bench, 1) == 1
        waits.append(round((bench.record(1)["_r"]["wakeAt"] - bench.now()) / timedelta(seconds=1)))
        age(bench, 1, timedelta(seconds=1))
    assert waits == pytest.approx([60, 120, 240, 480, 900, 900, 900], abs=2)


def test_a_sent_record_can_be_claimed_before_its_deadline(bench: Bench) -> None:
    """B-22: the deadline is when the planner looks again; the record itself is due."""
    bench.plan({"_id": 1, "on": True})
    send(bench, 1)
    assert len(bench.claim(1)) == 1
    books = bench.record(1)["_r"]
    assert (books["sent"], books["dispatches"]) == (False, 0)


def test_what_was_not_published_is_due_again(bench: Bench) -> None:
    """B-22: known not to have been published: the mark is cleared and does not count; a claimed one stays."""
    bench.plan(*({"_id": doc_id, "on": True} for doc_id in (1, 2)))
    send(bench, 1, 2)
    (claim,) = bench.claim(2)
    records.renew(bench.records, [claim.key], claim.token, LEASE)
    before = bench.raw(2)
    assert records.mark_unsent(bench.records, [bench.key(1), bench.key(2)]) == 1
    assert bench.raw(2) == before
    record = bench.record(1)
    assert (record["_r"]["sent"], record["_r"]["dispatches"]) == (False, 0)
    assert record["_r"]["wakeAt"] == record["nextRunAt"]
    assert due(bench) == [bench.key(1)]


def expire(bench: Bench, *doc_ids: int, sent_before: datetime | None = None, patience: timedelta = AT_ONCE) -> int:
    """Take the messages of those records for lost that are found to be on their way."""
    moment = sent_before or bench.now()
    keys = [bench.key(doc_id) for doc_id in doc_ids]
    found = records.find_sent(bench.records, bench.task.name, sent_before=moment, patience=patience, limit=10)
    expired = records.expire_sent(bench.records, keys, sent_before=moment, patience=patience)
    assert expired == len([key for key in found if key in keys])
    return expired


def test_what_is_taken_for_lost_is_due_at_once(bench: Bench) -> None:
    """B-66: with the time at which it was due, and its messages still counted; done twice it does nothing more."""
    bench.plan(*({"_id": doc_id, "on": True} for doc_id in (1, 2)))
    assert expire(bench, 1, 2) == 0
    send(bench, 1, 2)
    assert expire(bench, 1) == 1
    record = bench.record(1)
    assert (record["_r"]["sent"], record["_r"]["dispatches"]) == (False, 1)
    assert record["_r"]["wakeAt"] == record["nextRunAt"]
    assert due(bench) == [bench.key(1)]
    assert expire(bench, 1) == 0
    assert send(bench, 1) == 1
    assert round((bench.record(1)["_r"]["wakeAt"] - bench.now()) / timedelta(seconds=1)) == pytest.approx(120, abs=2)


def test_only_what_is_on_its_way_is_taken_for_lost(make_bench: MakeBench) -> None:
    """B-66: not what a worker runs or has run, waits for its time, or is past its deadline and due anyway."""
    bench = make_bench()
    bench.plan(*({"_id": doc_id} for doc_id in range(5)))
    send(bench, *range(5))
    bench.claim(0)
    (claim,) = bench.claim(1)
    bench.complete(claim)
    (claim,) = bench.claim(2)
    bench.error(claim)
    age(bench, 3, timedelta(seconds=1))
    before = [bench.raw(doc_id) for doc_id in range(4)]
    assert expire(bench, *range(5)) == 1
    assert [bench.raw(doc_id) for doc_id in range(4)] == before


def test_what_was_sent_since_is_not_taken_for_lost(bench: Bench) -> None:
    """B-66: what made the planner suspicious says nothing of later messages."""
    bench.plan({"_id": 1, "on": True})
    earlier = bench.now()
    pause(bench, until=earlier + timedelta(milliseconds=2))
    send(bench, 1)
    assert records.count_in_flight(bench.records, bench.task.name) == 1
    assert records.count_in_flight(bench.records, bench.task.name, sent_before=earlier) == 0
    assert expire(bench, 1, sent_before=earlier) == 0
    assert records.count_in_flight(bench.records, bench.task.name, sent_before=bench.now()) == 1
    assert expire(bench, 1) == 1


def test_each_loss_in_a_row_is_believed_later(bench: Bench) -> None:
    """B-66: the first at once, the next ones after one, three, seven times the patience."""
    bench.plan({"_id": 1, "on": True})
    for patiences in (0, 1, 3, 7):
        send(bench, 1)
        sent_at = bench.record(1)["_r"]["sentAt"]
        believed = sent_at + patiences * MINUTE
        assert expire(bench, 1, sent_before=believed - timedelta(milliseconds=1), patience=MINUTE) == 0
        assert expire(bench, 1, sent_before=believed, patience=MINUTE) == 1


def pause(bench: Bench, *, until: datetime) -> None:
    """Wait until the server's clock is past *until*."""
    while bench.now() <= until:
        pass


def test_a_record_not_yet_due_is_not_marked(make_bench: MakeBench) -> None:
    """B-16: a change between look and mark has moved the run."""
    bench = make_bench(debounce="1h")
    bench.plan({"_id": 1})
    assert send(bench, 1) == 0
    assert bench.record(1)["_r"]["sent"] is False
    assert due(bench) == []


def test_the_planner_knows_when_it_must_look_again(make_bench: MakeBench) -> None:
    """B-22: at the earliest due time or deadline of a pending record; never for those at rest or running."""
    bench = make_bench(debounce="1h")
    assert next_wake(bench) is None
    bench.plan({"_id": 1}, {"_id": 2}, {"_id": 3})
    assert next_wake(bench) == pytest.approx(3600, abs=10)
    bench.make_due(1)
    assert next_wake(bench) == pytest.approx(0, abs=5)
    send(bench, 1)
    assert next_wake(bench) == pytest.approx(60, abs=5)
    (claim,) = bench.claim(1)
    assert next_wake(bench) == pytest.approx(3600, abs=10)
    bench.complete(claim)
    bench.records.delete_many({"sourceDocId": {"$ne": 1}})
    assert next_wake(bench) is None


@pytest.mark.mongod("sorts without an index")
def test_looking_for_what_is_due_examines_only_what_it_finds(make_bench: MakeBench) -> None:
    """B-22: the keys examined follow what is due, whatever waits, runs or rests beside it."""
    bench = make_bench()
    bench.plan(*({"_id": doc_id} for doc_id in range(60)))
    send(bench, *range(40))
    bench.records.update_many({"_id.d": {"$gte": 50}}, {"$set": {"status": "completed", "_r.wakeAt": None}})
    query = {
        "task": bench.task.name,
        "status": "pending",
        "_r.sent": False,
        **pipelines.is_past("_r.wakeAt"),
    }
    find = {"find": bench.records.name, "filter": query, "sort": {"_r.wakeAt": 1}, "limit": 500}
    stats = bench.connection.database().command("explain", find, verbosity="executionStats")["executionStats"]
    assert (stats["nReturned"], stats["totalDocsExamined"]) == (10, 10)
    assert stats["totalKeysExamined"] <= 11


def test_a_message_is_taken_back_once(bench: Bench) -> None:
    """B-22: `mark_unsent` done twice counts one message less, not two."""
    bench.plan({"_id": 1, "on": True})
    for _ in range(2):
        send(bench, 1)
        bench.make_due(1)
    for _ in range(2):
        records.mark_unsent(bench.records, [bench.key(1)])
    assert bench.record(1)["_r"]["dispatches"] == 1


def test_a_running_record_is_not_taken_back(bench: Bench) -> None:
    """B-22: `mark_unsent` of a message that was published after all leaves its run alone."""
    bench.start({"_id": 1, "on": True})
    bench.records.update_one({}, {"$set": {"_r.sent": True}})
    before = bench.raw(1)
    records.mark_unsent(bench.records, [bench.key(1)])
    assert bench.raw(1) == before


def test_a_running_record_has_no_message_to_lose(bench: Bench) -> None:
    """B-66: `expire_sent` leaves a run alone, whatever its books say of a message."""
    bench.start({"_id": 1, "on": True})
    bench.records.update_one({}, [{"$set": {"_r.sent": True, "_r.sentAt": "$$NOW", "_r.dispatches": 1}}])
    before = bench.raw(1)
    later = bench.now() + timedelta(seconds=1)
    assert records.expire_sent(bench.records, [bench.key(1)], sent_before=later, patience=AT_ONCE) == 0
    assert bench.raw(1) == before
