"""What is sent, when, and what is held back: the dispatcher over real records, with a publisher that only notes."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from celery_reactive.core.limits import Limits, Rate
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import StoreUnavailableError
from celery_reactive.planner import dispatch
from celery_reactive.planner.dispatch import Dispatcher
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.planner.publish import (
    BrokerUnavailableError,
    Message,
    MessagesRefusedError,
    NotPublishedError,
    Publisher,
)
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, instances, limiters, records
from celery_reactive.store.instances import WorkerFacts
from tests.integration.bench import Bench
from tests.integration.conftest import MakeBench, MakeDesk

DOCUMENT = {"_id": 1, "on": True, "v": "first"}
SLOW = pytest.mark.mongod("takes minutes to plan and send thousands of documents")


class Outbox(Publisher):
    """Notes what it is given to publish."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, object]] = []
        self.sizes: list[int] = []
        """Records that each message named."""
        self.batches = 0
        self.priorities: dict[str, int] = {}
        self.failure: Callable[[Sequence[Message]], NotPublishedError] | None = None
        """Makes what is raised, from what was to be published."""

    def publish_all(self, messages: Sequence[Message]) -> None:
        """Note the records of the messages."""
        self.batches += 1
        error = self.failure(messages) if self.failure is not None else NotPublishedError("nothing")
        published = [message for message in messages if message not in error.messages]
        self.sizes += [len(message.due) for message in published]
        self.sent += [(message.task.name, one.key.doc_id) for message in published for one in message.due]
        if error.messages:
            raise error

    def prioritize(self, task: str, priority: int) -> None:
        """Note the priority."""
        self.priorities[task] = priority

    def check(self) -> None:
        """Find the broker there."""

    def has_time_limit(self, task: ReactiveTask) -> bool:
        """Return false: nobody's Celery task has one here."""
        return False

    def queue_of(self, task: ReactiveTask) -> None:
        """Return None: there is no Celery app here that knows one."""


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round in which nothing is due looks soon again: half a second is what most tests would take."""
    monkeypatch.setattr(dispatch, "_POLL_SECONDS", 0.1)


@pytest.fixture
def outbox() -> Outbox:
    """The messages that were sent."""
    return Outbox()


@pytest.fixture
def dispatcher_of(make_desk: MakeDesk, outbox: Outbox) -> Callable[..., Dispatcher]:
    """Make a dispatcher for workbenches, with a `reactive_task_filter`."""

    def make(
        *benches: Bench, task_filter: Callable[[str], object] | None = None, max_in_flight: int = 2000
    ) -> Dispatcher:
        parts = make_desk(*benches).runtime
        settings = dataclasses.replace(parts.settings, max_in_flight=max_in_flight)
        runtime = Runtime(settings, parts.registry, parts.connection, task_filter=task_filter)
        planned = [PlannedTask(bench.task, 1, collated=False) for bench in benches]
        return Dispatcher(runtime, planned, outbox, ended=threading.Event())

    return make


def test_what_is_due_is_sent_once(bench: Bench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox) -> None:
    """B-22: a message is on its way until its deadline."""
    bench.plan(DOCUMENT)
    dispatcher = dispatcher_of(bench)
    dispatcher.step()
    dispatcher.step()
    assert outbox.sent == [("shop.sync", 1)]


def test_the_users_filter_holds_a_task_back(
    make_bench: MakeBench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox
) -> None:
    """B-37: `reactive_task_filter` is asked with each task's name in each round; the others go on."""
    held, free = make_bench("held"), make_bench("free")
    held.plan(DOCUMENT)
    free.plan(DOCUMENT)
    allowed = {"free"}
    dispatcher = dispatcher_of(held, free, task_filter=allowed.__contains__)
    dispatcher.step()
    assert outbox.sent == [("free", 1)]
    allowed.add("held")
    dispatcher.step()
    assert outbox.sent == [("free", 1), ("held", 1)]


@pytest.mark.parametrize("held_by", ["pause", "throttle", "filter"])
def test_a_task_that_is_held_back_costs_little(
    bench: Bench,
    dispatcher_of: Callable[..., Dispatcher],
    outbox: Outbox,
    monkeypatch: pytest.MonkeyPatch,
    held_by: str,
) -> None:
    """B-46: whoever resumes it tells the planner; until then it is looked at as seldom as one that has nothing due."""
    monkeypatch.setattr(dispatch, "_POLL_SECONDS", 0.5)  # far from what a task that was not held back would wait
    bench.plan(DOCUMENT)
    globals_ = bench.connection.globals()
    if held_by == "pause":
        definitions.set_paused(globals_, "shop.sync", paused=True)
    elif held_by == "throttle":
        definitions.throttle(globals_, "shop.sync", bench.now() + timedelta(hours=1))
    dispatcher = dispatcher_of(bench, task_filter=lambda _task: held_by != "filter")
    looks: list[str] = []
    read_all = definitions.read_all

    def noted(target: Any, names: list[str]) -> Any:
        looks.extend(names)
        return read_all(target, names)

    monkeypatch.setattr(definitions, "read_all", noted)
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        dispatcher.step()
    assert 1 <= len(looks) <= 4
    assert outbox.sent == []


def test_a_filter_that_raises_holds_back_and_is_told_of(
    bench: Bench,
    dispatcher_of: Callable[..., Dispatcher],
    outbox: Outbox,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """B-37: nothing is lost by it, and nobody's error ends the planner."""
    bench.plan(DOCUMENT)

    def refuse(task: str) -> bool:
        raise LookupError(f"no such flag for {task}")

    dispatcher_of(bench, task_filter=refuse).step()
    assert outbox.sent == []
    assert "no such flag for shop.sync" in caplog.text


def test_urgent_tasks_come_first_in_a_round(
    make_bench: MakeBench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox
) -> None:
    """B-58: in one batch for all tasks, within a task the oldest first."""
    benches = {name: make_bench(name, priority=priority) for name, priority in (("low", 0), ("high", 9), ("mid", 4))}
    for doc_id in (1, 2):
        for bench in benches.values():
            bench.plan({"_id": doc_id})
    dispatcher_of(*benches.values()).step()
    assert outbox.sent == [("high", 1), ("high", 2), ("mid", 1), ("mid", 2), ("low", 1), ("low", 2)]
    assert outbox.batches == 1


def test_what_a_failed_batch_left_in_doubt_is_sent_again(
    make_bench: MakeBench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox
) -> None:
    """B-66: once the broker answers, without waiting for a deadline; what was confirmed is not."""
    first, second = make_bench("first"), make_bench("second")
    first.plan(DOCUMENT)
    second.plan(DOCUMENT)
    dispatcher = dispatcher_of(first, second)
    outbox.failure = lambda messages: BrokerUnavailableError("away", messages[1:])
    dispatcher.step()
    assert (first.record(1)["_r"]["dispatches"], second.record(1)["_r"]["dispatches"]) == (1, 1)
    outbox.failure = None
    dispatcher.step()
    assert outbox.sent == [("first", 1), ("second", 1)]
    assert (first.record(1)["_r"]["dispatches"], second.record(1)["_r"]["dispatches"]) == (1, 1)


def test_a_task_whose_messages_are_refused_waits_and_no_other_does(
    make_bench: MakeBench,
    dispatcher_of: Callable[..., Dispatcher],
    outbox: Outbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B-66: the reason is told; its records are sent when the wait is over."""
    refused, free = make_bench("refused"), make_bench("free")
    refused.plan(DOCUMENT)
    free.plan(DOCUMENT)
    dispatcher = dispatcher_of(refused, free)
    outbox.failure = lambda messages: MessagesRefusedError({"refused": "the queue is full"}, messages[:1])
    dispatcher.step()
    outbox.failure = None
    free.plan({**DOCUMENT, "_id": 2})
    dispatcher.step()
    assert outbox.sent == [("free", 1), ("free", 2)]
    monkeypatch.setattr(dispatch, "_REFUSED_WAIT_SECONDS", 0.0)
    dispatcher.step()
    assert outbox.sent == [("free", 1), ("free", 2), ("refused", 1)]


def test_what_is_marked_before_the_database_goes_away_is_published(
    make_bench: MakeBench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-22: it counts as sent."""
    first, second = make_bench("first"), make_bench("second")
    first.plan(DOCUMENT)
    second.plan(DOCUMENT)
    find_due = records.find_due

    def fail_for_second(target: Any, task: str, **options: Any) -> Any:
        if task == "second":
            raise StoreUnavailableError("it is away")
        return find_due(target, task, **options)

    monkeypatch.setattr(records, "find_due", fail_for_second)
    with pytest.raises(StoreUnavailableError):
        dispatcher_of(first, second).step()
    assert outbox.sent == [("first", 1)]


def documents(number: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Return documents that concern a task."""
    return [{"_id": doc_id, "on": True} for doc_id in range(first, first + number)]


def test_a_priority_set_by_hand_orders_the_next_round(
    make_bench: MakeBench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox
) -> None:
    """B-58: and goes with the messages."""
    low, high = make_bench("low", priority=0), make_bench("high", priority=9)
    for bench in (low, high):
        bench.plan(DOCUMENT)
    definitions.set_limits(low.connection.globals(), "high", {"priority": 3})
    definitions.set_limits(low.connection.globals(), "low", {"priority": 5})
    dispatcher_of(low, high).step()
    assert outbox.sent == [("low", 1), ("high", 1)]
    assert outbox.priorities == {"low": 5, "high": 3}


def test_no_more_is_sent_than_the_limiter_leaves(
    make_bench: MakeBench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox
) -> None:
    """B-58: what is with the broker counts, and a lifted limit is seen in the next round."""
    bench, free = make_bench("limited", rate_limit="3/h"), make_bench("free")
    for one in (bench, free):
        one.plan(*({"_id": doc_id} for doc_id in range(6)))
    globals_, limits = bench.connection.globals(), Limits(Rate(3, timedelta(hours=1)))
    limiters.take(globals_, "t", [bench.key(99)], limits, wanted=1)
    dispatcher = dispatcher_of(bench, free)
    announce(bench, dispatcher, slots=10)
    dispatcher.step()
    dispatcher.step()
    assert [doc_id for task, doc_id in outbox.sent if task == "limited"] == [0, 1]
    assert len(outbox.sent) == 8
    definitions.set_limits(globals_, "limited", {"rate": "unlimited"})
    dispatcher.kick()
    dispatcher.step()
    assert len(outbox.sent) == 12


def test_records_that_take_turns_travel_alone(
    make_bench: MakeBench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox
) -> None:
    """B-58: the records of a message run one after the other, so a chunk would keep slots that it cannot use."""
    bench = make_bench("turns", max_concurrency=4)
    chunked = make_bench("chunked", max_concurrency=4, chunk=9)
    for one in (bench, chunked):
        one.plan(*({"_id": doc_id} for doc_id in range(30)))
    dispatcher_of(bench, chunked).step()
    assert outbox.sizes == [1] * 8
    assert limiters.await_room(bench.connection.globals(), "turns", Limits(concurrency=4)).records == 4


def announce(bench: Bench, dispatcher: Dispatcher, *, slots: int, limited: bool = False) -> None:
    """Let a worker be there."""
    facts = WorkerFacts(["any"], slots, "prefork", limited, 0, acks_late=False, tasks={}, version="")
    globals_ = dispatcher._runtime.connection.globals()
    instances.announce_worker(globals_, f"celery@{bench.task.name}", facts)


def finish_all(bench: Bench, *, milliseconds: float) -> None:
    """Let all that was sent have run for so long."""
    run = {"at": "$$NOW", "status": "completed", "durationMs": milliseconds}
    done = {"status": "completed", "lastFinalizedAt": {"$add": ["$_r.sentAt", 1]}, "executionHistory": [run]}
    bench.records.update_many(
        {"task": bench.task.name, "_r.sent": True}, [{"$set": {**done, "_r.sent": False, "_r.wakeAt": None}}]
    )


def test_one_record_a_message_while_workers_keep_up(
    bench: Bench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox
) -> None:
    """B-22: as many messages as there are slots for."""
    dispatcher = dispatcher_of(bench)
    announce(bench, dispatcher, slots=6)
    bench.plan(*documents(6))
    dispatcher.step()
    assert outbox.sizes == [1] * 6


def test_messages_grow_with_the_backlog_by_the_observed_run_time(
    bench: Bench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-22: few at first; then so many that a message holds about 200 ms of work. Two messages a slot, no more."""
    monkeypatch.setattr(dispatch, "_FIRST_SAMPLE_SECONDS", 0.0)
    dispatcher = dispatcher_of(bench)
    announce(bench, dispatcher, slots=2)
    bench.plan(*documents(64))
    dispatcher.step()
    assert outbox.sizes == [8] * 4
    outbox.sizes.clear()
    finish_all(bench, milliseconds=9)
    bench.plan(*documents(100, first=100))
    dispatcher.kick()
    dispatcher.step()
    assert outbox.sizes == [20] * 4


def test_a_limit_on_a_workers_command_line_has_records_travel_alone(
    bench: Bench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox
) -> None:
    """B-30: each run gets the whole of it."""
    dispatcher = dispatcher_of(bench)
    announce(bench, dispatcher, slots=1, limited=True)
    bench.plan(*documents(4))
    dispatcher.step()
    assert outbox.sizes == [1] * 4


def test_the_backlog_stays_in_the_database(
    bench: Bench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox
) -> None:
    """B-22: no more than the setting allows is with the broker, and what is finished makes room."""
    dispatcher = dispatcher_of(bench, max_in_flight=5)
    bench.plan(*documents(12))
    dispatcher.step()
    dispatcher.step()
    assert len(outbox.sent) == 5
    finish_all(bench, milliseconds=1)
    dispatcher.kick()
    dispatcher.step()
    assert [doc_id for _, doc_id in outbox.sent] == list(range(10))


def test_a_task_with_a_backlog_leaves_room_to_others_of_its_queue(
    make_bench: MakeBench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox
) -> None:
    """B-58: each keeps its part, also where one came first."""
    many, few = make_bench("many", priority=9), make_bench("few")
    dispatcher = dispatcher_of(many, few, max_in_flight=10)
    many.plan(*documents(30))
    few.plan(*documents(3))
    dispatcher.step()
    assert sorted(outbox.sent) == [("few", one) for one in range(3)] + [("many", one) for one in range(7)]


@pytest.mark.parametrize("options", [{"chunk": 1}, {}, {"batch": 3}])
def test_what_nobody_takes_keeps_no_other_task_out(
    make_bench: MakeBench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox, options: Any
) -> None:
    """B-58: one task's messages are for workers that do not know it, and fill the queue's window until the deadline."""
    stuck, other = make_bench("stuck"), make_bench("other", **options)
    dispatcher = dispatcher_of(stuck, other, max_in_flight=10)
    stuck.plan(*documents(30))
    dispatcher.step()
    dispatcher.step()
    sent = len(outbox.sent)
    other.plan(*documents(3))
    dispatcher.kick()
    for _ in range(10):
        dispatcher.step()
        finish_all(other, milliseconds=1)
    assert outbox.sent[sent:] == [("other", doc_id) for doc_id in range(3)]


def test_all_of_a_backlog_is_sent_in_the_order_in_which_it_became_due(
    make_bench: MakeBench,
    dispatcher_of: Callable[..., Dispatcher],
    outbox: Outbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B-22: in rounds, each beginning where the last one ended; what is due again in the past is found as well."""
    monkeypatch.setattr(dispatch, "_ROUND_SIZE", 5)
    monkeypatch.setattr(dispatch, "_LEAST_ROUND_SIZE", 5)
    bench = make_bench("shop.sync", chunk=5)
    dispatcher = dispatcher_of(bench)
    for doc_id in range(23):
        bench.plan(*documents(1, first=doc_id))
    for _ in range(3):
        dispatcher.step()
    assert [doc_id for _, doc_id in outbox.sent] == list(range(15))
    records.mark_unsent(bench.records, [bench.key(2)])
    for _ in range(4):
        dispatcher.step()
    assert Counter(doc_id for _, doc_id in outbox.sent) == Counter([*range(23), 2])


def test_a_batch_waits_in_the_database_for_company(
    make_bench: MakeBench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox
) -> None:
    """B-60: full ones go at once, what is left when it has waited long enough."""
    bench = make_bench("gathered", batch=(4, "300ms"))
    dispatcher = dispatcher_of(bench)
    bench.plan(*documents(10))
    dispatcher.step()
    assert outbox.sizes == [4, 4]
    assert bench.records.count_documents({"_r.sent": True}) == 8
    for _ in range(20):
        dispatcher.step()
        if len(outbox.sizes) > 2:
            break
    assert outbox.sizes == [4, 4, 2]


def test_a_batch_that_fills_without_anybody_telling_goes_at_once(
    make_bench: MakeBench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox
) -> None:
    """B-60: the wait is for company; a record whose own waiting time ends meanwhile is company."""
    bench = make_bench("gathered", batch=(2, "1h"))
    dispatcher = dispatcher_of(bench)
    bench.plan(*documents(2))
    soon = {"$add": ["$$NOW", 300]}
    bench.records.update_one({"_id": bench.key(1).id}, [{"$set": {"nextRunAt": soon, "_r.wakeAt": soon}}])

    def step_on() -> None:
        for _ in range(5):
            dispatcher.step()

    steps = threading.Thread(target=step_on, daemon=True)
    steps.start()
    steps.join(10)
    assert outbox.sizes == [2]


@pytest.mark.parametrize("size", [30, *(pytest.param(size, marks=SLOW) for size in (300, 1000))])
def test_a_backlog_goes_in_full_batches(
    make_bench: MakeBench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox, size: int
) -> None:
    """B-60: neither the end of a round nor that of the room there is cuts one, also where it is more than the room."""
    bench = make_bench("gathered", batch=(size, "1h"))
    dispatcher = dispatcher_of(bench, max_in_flight=100)
    announce(bench, dispatcher, slots=1)
    bench.plan(*documents(size * 4))
    for _ in range(4):
        dispatcher.kick()
        dispatcher.step()
        finish_all(bench, milliseconds=1)
    assert outbox.sizes == [size] * 4


def test_what_travels_alone_does_not_wait_for_a_batch(
    make_bench: MakeBench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox
) -> None:
    """B-28, B-60: it gets no company, and is none."""
    bench = make_bench("gathered", batch=(4, "1h"))
    bench.plan(*documents(5))
    bench.records.update_one({"_id": bench.key(2).id}, {"$set": {"_r.alone": True}})
    dispatcher_of(bench).step()
    assert sorted(outbox.sizes) == [1, 4]


def test_a_batch_without_a_wait_takes_what_is_due(
    make_bench: MakeBench, dispatcher_of: Callable[..., Dispatcher], outbox: Outbox
) -> None:
    """B-60: up to its size."""
    bench = make_bench("gathered", batch=4)
    bench.plan(*documents(6))
    dispatcher_of(bench).step()
    assert outbox.sizes == [4, 2]


def test_only_tasks_that_something_happened_to_are_looked_at(
    make_bench: MakeBench,
    dispatcher_of: Callable[..., Dispatcher],
    outbox: Outbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B-22: what a change of one task's document costs does not grow with the number of tasks."""
    benches = [make_bench(f"task {number}") for number in range(5)]
    dispatcher = dispatcher_of(*benches)
    dispatcher.step()
    looked: list[str] = []
    find_due = records.find_due

    def noted(target: Any, task: str, **options: Any) -> Any:
        looked.append(task)
        return find_due(target, task, **options)

    monkeypatch.setattr(records, "find_due", noted)
    benches[3].plan(DOCUMENT)
    dispatcher.kick({"task 3", "another planner's"})
    dispatcher.step()
    assert outbox.sent == [("task 3", 1)]
    assert set(looked) == {"task 3"}
