"""An app on a broker, what its planner publishes there, and what then lies in its queues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from amqp.exceptions import ChannelError
from celery import Celery
from kombu.exceptions import OperationalError

from celery_reactive.core.declaration import declare
from celery_reactive.core.record import Due, RecordKey
from celery_reactive.core.registry import Registry
from celery_reactive.core.task import ReactiveTask
from celery_reactive.planner.publish import Message, Publisher
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store.connection import Connection

TASK, OTHER = "proj.sync", "proj.other"


class Postbox:
    """A user's app with two tasks, `proj.sync` to the queue `sync` and `proj.other` to `other`; close it."""

    def __init__(
        self, url: str | Sequence[str], *, priorities: tuple[int | None, int | None] = (None, None), **conf: Any
    ) -> None:
        self.app = Celery("proj", broker=url, set_as_current=False)
        self.app.conf.update({"task_routes": {TASK: "sync", OTHER: "other"}, "broker_pool_limit": None, **conf})
        registry, settings = Registry(), Settings(database="test")
        self._tasks: dict[str, ReactiveTask] = {}
        for name, priority in zip((TASK, OTHER), priorities, strict=True):
            self.app.task(name=name, shared=False)(_handle)
            options = {} if priority is None else {"priority": priority}
            self._tasks[name] = declare(name, {"collection": "orders", **options})
            registry.add(self._tasks[name], celery_name=name)
        self.app.finalize()
        self.publisher = Publisher(self.app, Runtime(settings, registry, Connection(settings)))

    def messages(self, number: int, task: str = TASK, *, first: int = 0) -> list[Message]:
        """Return messages for the documents *first* and following, one for each."""
        due = [Due(RecordKey(task, doc_id), 0, 0, alone=False) for doc_id in range(first, first + number)]
        return [Message(self._tasks[task], [one]) for one in due]

    def publish(self, number: int, task: str = TASK) -> None:
        """Publish messages for the documents from 0 on."""
        self.publisher.publish_all(self.messages(number, task))

    def take_all(self, queue: str = "sync") -> list[Any]:
        """Take what lies in a queue, in the order in which a worker gets it."""
        with self.app.connection_for_read() as connection:
            try:
                simple = connection.SimpleQueue(self.app.amqp.queues[queue], no_ack=True)
                return list(iter(lambda: _next(simple), None))
            except (ChannelError, OperationalError):
                return []

    def doc_ids(self, queue: str = "sync") -> list[int]:
        """Take what lies in a queue, and return the ids of the documents that it names."""
        return [int(text) for message in self.take_all(queue) for text in message.payload[0][0]]

    def __enter__(self) -> Self:
        """Nothing is connected yet."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close all connections."""
        self.publisher.close()
        self.app.close()


def _handle(ids: list[str]) -> None:
    """Do nothing: no worker runs here."""


def _next(simple: Any) -> Any:
    try:
        return simple.get_nowait()
    except simple.Empty:
        return None
