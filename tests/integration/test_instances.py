"""The documents of live processes: written, read, forgotten."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pymongo.database import Database

from celery_reactive.store import instances
from celery_reactive.store.instances import Kind, WorkerFacts

FACTS = WorkerFacts(
    queues=["celery", "erp"],
    slots=8,
    pool="prefork",
    limited=False,
    prefetch=32,
    acks_late=False,
    tasks={"shop.orders.sync": 2},
    version="1",
)


def test_a_worker_is_read_as_it_described_itself(database: Database[Any]) -> None:
    """B-22: names of tasks have dots; what is announced again keeps its start."""
    globals_ = database.globals
    instances.announce_worker(globals_, "celery@one", FACTS)
    (first,) = instances.read(globals_)
    instances.announce_worker(globals_, "celery@one", FACTS)
    instances.announce(globals_, Kind.PLANNER, "host-1", {"group": "default"})
    assert instances.live_workers(globals_) == {"celery@one": FACTS}
    planner, worker = instances.read(globals_)
    assert (planner.name, planner.kind, planner.facts) == ("host-1", Kind.PLANNER, {"group": "default"})
    assert worker.started_at == first.started_at
    assert worker.seen_at > first.seen_at


def test_facts_are_data(database: Database[Any]) -> None:
    """A queue may have any name."""
    globals_ = database.globals
    instances.announce(globals_, Kind.PLANNER, "$name", {"group": "$$NOW"})
    (one,) = instances.read(globals_)
    assert (one.name, one.facts["group"]) == ("$name", "$$NOW")


def test_one_that_is_seen_no_more_is_not_live_and_forgotten_after_an_hour(database: Database[Any]) -> None:
    """By the server's clock; nothing else of the globals goes."""
    globals_ = database.globals
    globals_.insert_one({"_id": {"k": "task", "t": "x"}})
    for name, age in (("late", timedelta(seconds=40)), ("gone", timedelta(minutes=61)), ("here", timedelta())):
        instances.announce_worker(globals_, name, FACTS)
        back = {"$subtract": ["$seenAt", age // timedelta(milliseconds=1)]}
        globals_.update_one({"_id.n": name}, [{"$set": {"seenAt": back}}])
    assert set(instances.live_workers(globals_)) == {"here"}
    assert instances.forget_the_gone(globals_) == 1
    assert {one.name for one in instances.read(globals_)} == {"late", "here"}
    instances.leave(globals_, Kind.WORKER, "late")
    assert {one.name for one in instances.read(globals_)} == {"here"}
    assert globals_.count_documents({"_id.k": "task"}) == 1


def test_a_worker_of_another_version_is_read_too(database: Database[Any]) -> None:
    """What it does not say is assumed as little as possible; what nobody knows is ignored."""
    instances.announce(database.globals, Kind.WORKER, "old", {"queues": ["a"], "shoe": 42})
    facts = instances.live_workers(database.globals)["old"]
    assert (facts.queues, facts.slots, facts.limited) == (["a"], 1, False)


def test_a_worker_that_says_it_in_other_words_stops_nobody_from_reading_the_rest(database: Database[Any]) -> None:
    """B-22: the planner reads these before it sends anything; one process that it does not understand is only one."""
    globals_ = database.globals
    instances.announce_worker(globals_, "celery@one", FACTS)
    said = {"queues": "celery", "slots": None, "limited": "yes", "tasks": [{"name": "x"}, 1], "more": {}}
    instances.announce(globals_, Kind.WORKER, "celery@newer", said)
    instances.announce(globals_, Kind.WORKER, "celery@odd", {"slots": -3, "tasks": 7})
    found = instances.live_workers(globals_)
    assert found["celery@one"] == FACTS
    assert {(found[name].slots, found[name].limited) for name in ("celery@newer", "celery@odd")} == {(1, False)}
    assert [dict(found[name].tasks) for name in ("celery@newer", "celery@odd")] == [{}, {}]
