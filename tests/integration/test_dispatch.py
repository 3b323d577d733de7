"""What is sent, when, and what is held back: the dispatcher over real records, with a publisher that only notes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

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
from celery_reactive.store import records
from tests.integration.bench import Bench
from tests.integration.conftest import MakeBench, MakeDesk

DOCUMENT = {"_id": 1, "on": True, "v": "first"}


class Outbox(Publisher):
    """Notes what it is given to publish."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, object]] = []
        self.batches = 0
        self.failure: Callable[[Sequence[Message]], NotPublishedError] | None = None
        """Makes what is raised, from what was to be published."""

    def publish_all(self, messages: Sequence[Message]) -> None:
        """Note the records of the messages."""
        self.batches += 1
        error = self.failure(messages) if self.failure is not None else NotPublishedError("nothing")
        published = [message for message in messages if message not in error.messages]
        self.sent += [(message.task.name, one.key.doc_id) for message in published for one in message.due]
        if error.messages:
            raise error

    def check(self) -> None:
        """Find the broker there."""

    def has_time_limit(self, task: ReactiveTask) -> bool:
        """Return false: nobody's Celery task has one here."""
        return False

    def queue_of(self, task: ReactiveTask) -> None:
        """Return None: there is no Celery app here that knows one."""


@pytest.fixture
def outbox() -> Outbox:
    """The messages that were sent."""
    return Outbox()


@pytest.fixture
def dispatcher_of(make_desk: MakeDesk, outbox: Outbox) -> Callable[..., Dispatcher]:
    """Make a dispatcher for workbenches, with a `reactive_task_filter`."""

    def make(*benches: Bench, task_filter: Callable[[str], object] | None = None) -> Dispatcher:
        parts = make_desk(*benches).runtime
        runtime = Runtime(parts.settings, parts.registry, parts.connection, task_filter=task_filter)
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

    def fail_for_second(target: Any, task: str, *, limit: int) -> Any:
        if task == "second":
            raise StoreUnavailableError("it is away")
        return find_due(target, task, limit=limit)

    monkeypatch.setattr(records, "find_due", fail_for_second)
    with pytest.raises(StoreUnavailableError):
        dispatcher_of(first, second).step()
    assert outbox.sent == [("first", 1)]
