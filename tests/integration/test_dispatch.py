"""What is sent, when, and what is held back: the dispatcher over real records, with a publisher that only notes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from celery_reactive.core.task import ReactiveTask
from celery_reactive.planner.dispatch import Dispatcher
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.planner.publish import Message, Publisher
from celery_reactive.runtime import Runtime
from tests.integration.bench import Bench
from tests.integration.conftest import MakeBench, MakeDesk

DOCUMENT = {"_id": 1, "on": True, "v": "first"}


class Outbox(Publisher):
    """Notes what it is given to publish."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, object]] = []

    def publish_all(self, messages: Sequence[Message]) -> None:
        """Note the records of the messages."""
        self.sent += [(message.task.name, one.key.doc_id) for message in messages for one in message.due]

    def has_time_limit(self, task: ReactiveTask) -> bool:
        """Return false: nobody's Celery task has one here."""
        return False


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
