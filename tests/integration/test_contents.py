"""What brokers say of their contents: a real Valkey and a real RabbitMQ, emptied, purged, frozen, away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from kombu.entity import Queue

from celery_reactive.core.declaration import declare
from celery_reactive.core.registry import Registry
from celery_reactive.embedded import RabbitServer, ValkeyServer
from celery_reactive.planner import publish
from celery_reactive.planner.contents import Contents, ContentsUnknownError, Held, contents_of
from celery_reactive.planner.publish import Publisher
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store.connection import Connection
from tests.brokers import own_rabbit

TASK = "proj.sync"
CANARY = "celery-reactive.shop.globals.default"


def sync(ids: list[str]) -> None:
    """Do nothing: no worker runs here."""


class Desk:
    """A user's app on a broker, and what a planner finds in it."""

    def __init__(self, url: str, **conf: Any) -> None:
        self.app = Celery("proj", broker=url, set_as_current=False)
        self.app.conf.update({"task_default_queue": "work", "broker_pool_limit": None, **conf})
        self.app.task(name=TASK, shared=False)(sync)
        self.app.finalize()
        registry, settings = Registry(), Settings()
        self.task = declare(TASK, {"collection": "orders"})
        registry.add(self.task, celery_name=TASK)
        self.publisher = Publisher(self.app, Runtime(settings, registry, Connection(settings)))

    def contents(self, canary: str = CANARY) -> Contents:
        """Return the contents as another planner asks for them."""
        queue = self.publisher.queue_of(self.task)
        assert queue is not None
        contents = contents_of(self.publisher.connect, {TASK: queue}, canary)
        assert contents is not None
        return contents

    def send(self, number: int, **options: Any) -> None:
        """Publish messages for the task."""
        with self.app.connection_for_write(transport_options={"confirm_publish": True}) as connection:
            for _ in range(number):
                self.app.tasks[TASK].apply_async((["1"],), connection=connection, retry=False, **options)

    def consumer(self) -> Any:
        """Return the connection of a worker that takes one message and never acknowledges it."""
        connection: Any = self.app.connection_for_read()
        consumer = connection.Consumer([self.app.amqp.queues["work"]], callbacks=[lambda *_: None])
        consumer.qos(prefetch_count=1)
        consumer.consume()
        connection.drain_events(timeout=5)
        return connection


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey that the test may break."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def rabbit() -> Iterator[RabbitServer]:
    """A RabbitMQ that the test may break."""
    with own_rabbit() as server:
        yield server


@pytest.fixture
def desk_of() -> Iterator[Callable[..., tuple[Desk, Contents]]]:
    """Set up an app and what its planner finds; connections are closed afterwards."""
    made: list[tuple[Desk, Contents]] = []

    def make(url: str, **conf: Any) -> tuple[Desk, Contents]:
        desk = Desk(url, **conf)
        made.append((desk, desk.contents()))
        return made[-1]

    yield make
    for desk, contents in made:
        contents.close()
        desk.app.close()


MakeDesk = Callable[..., tuple[Desk, Contents]]


@pytest.mark.parametrize("conf", [{}, {"broker_transport_options": {"global_keyprefix": "proj:"}}])
def test_an_emptied_redis_is_found_once(valkey: ValkeyServer, desk_of: MakeDesk, conf: dict[str, Any]) -> None:
    """B-66: by the canary that is gone, whoever asks; another group's or app's is another one."""
    desk, contents = desk_of(valkey.url, **conf)
    assert contents.read().emptied
    assert not contents.read().emptied
    another = desk.contents()
    assert not another.read().emptied
    another.close()
    with redis.Redis.from_url(valkey.url) as client:
        assert client.exists(f"{conf.get('broker_transport_options', {}).get('global_keyprefix', '')}{CANARY}")
        client.flushall()
    assert contents.read().emptied
    assert not contents.read().emptied
    third = desk.contents("another group's")
    assert third.read().emptied
    third.close()


def test_messages_in_redis_are_counted_wherever_they_are(valkey: ValkeyServer, desk_of: MakeDesk) -> None:
    """B-66: of all priorities, and those that workers have taken; those of another queue are not."""
    desk, contents = desk_of(valkey.url)
    desk.send(2)
    desk.send(1, priority=3)
    desk.send(1, priority=9)
    desk.send(1, queue="another")
    assert contents.read().queues == {"work": Held(4, complete=True)}
    with desk.consumer():
        assert contents.read().queues == {"work": Held(4, complete=True)}
    with redis.Redis.from_url(valkey.url) as client:
        client.delete("work")
        assert contents.read().queues["work"].messages in {2, 3}


def test_a_redis_that_does_not_answer_is_waited_for_in_vain_only_so_long(
    valkey: ValkeyServer, desk_of: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-66: frozen or away; asked again it connects anew."""
    monkeypatch.setattr(publish, "_TIMEOUT_SECONDS", 0.5)
    _, contents = desk_of(valkey.url)
    contents.read()
    valkey.suspend()
    assert seconds_of_refusal(contents) < 10
    valkey.resume()
    assert not contents.read().emptied
    valkey.kill()
    assert seconds_of_refusal(contents) < 10
    valkey.start()
    assert contents.read().emptied


def test_messages_in_rabbitmq_are_counted_as_far_as_it_tells(rabbit: RabbitServer, desk_of: MakeDesk) -> None:
    """B-66: all of them without a worker; with one not those that it has taken."""
    desk, contents = desk_of(rabbit.url)
    desk.send(3)
    assert contents.read().queues == {"work": Held(3, complete=True)}
    with desk.consumer():
        assert contents.read().queues == {"work": Held(2, complete=False)}
    assert not contents.read().emptied


def test_a_queue_that_is_missing_from_rabbitmq_is_declared_again(rabbit: RabbitServer, desk_of: MakeDesk) -> None:
    """B-66: what is published to a queue that does not exist is lost without a word."""
    desk, contents = desk_of(rabbit.url)
    desk.send(1)
    with desk.app.connection_for_write() as connection:
        connection.default_channel.queue_delete("work")
    assert contents.read().queues == {"work": Held(0, complete=True)}
    with desk.app.connection_for_write() as connection:
        assert connection.default_channel.queue_declare("work", passive=True).message_count == 0


def test_a_rabbitmq_that_does_not_answer_is_waited_for_in_vain_only_so_long(
    rabbit: RabbitServer, desk_of: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-66: frozen or away; asked again it connects anew."""
    monkeypatch.setattr(publish, "_TIMEOUT_SECONDS", 0.5)
    desk, contents = desk_of(rabbit.url)
    desk.send(1)
    contents.read()
    rabbit.suspend()
    assert seconds_of_refusal(contents) < 10
    rabbit.resume()
    assert contents.read().queues == {"work": Held(1, complete=True)}
    rabbit.kill()
    assert seconds_of_refusal(contents) < 10
    rabbit.discard_data()
    rabbit.start()
    assert contents.read().queues == {"work": Held(0, complete=True)}


def test_other_brokers_are_not_asked() -> None:
    """B-66: their messages have the deadline."""
    desk = Desk("memory://")
    assert contents_of(desk.publisher.connect, {TASK: Queue("work")}, CANARY) is None


@pytest.mark.parametrize(
    ("conf", "queue"),
    [
        ({}, "work"),
        ({"task_routes": {TASK: "routed"}}, "routed"),
        ({"task_routes": [lambda *_, **__: {"queue": "by a router"}]}, "by a router"),
        ({"task_routes": {TASK: {"exchange": "topics", "routing_key": "a.b"}}}, None),
        ({"task_routes": [lambda _name, args, *_, **__: args[0][0]]}, None),
    ],
    ids=["default", "routed", "router", "an exchange", "a router that needs a real message"],
)
def test_the_queue_of_a_task_is_the_one_that_it_is_sent_to(conf: dict[str, Any], queue: str | None) -> None:
    """B-66: where that cannot be known beforehand, the task is not watched."""
    desk = Desk("memory://", **conf)
    found = desk.publisher.queue_of(desk.task)
    assert (found.name if found is not None else None) == queue


def test_a_task_that_names_its_own_queue_is_sent_there() -> None:
    """B-66: `@app.task(queue=...)`; with an exchange of its own the queue is not known."""
    desk = Desk("memory://")
    desk.app.tasks[TASK].queue = "own"
    found = desk.publisher.queue_of(desk.task)
    assert found is not None
    assert found.name == "own"
    desk.app.tasks[TASK].exchange = "topics"
    assert desk.publisher.queue_of(desk.task) is None


def seconds_of_refusal(contents: Contents) -> float:
    """Ask a broker that does not answer; return how long that took."""
    started = time.monotonic()
    with pytest.raises(ContentsUnknownError):
        contents.read()
    return time.monotonic() - started
