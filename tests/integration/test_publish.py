"""Messages published together: real brokers that confirm, refuse, return, hang and die."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.signals import after_task_publish, before_task_publish
from kombu.entity import Exchange, Queue

from celery_reactive.embedded import RabbitServer, ValkeyServer
from celery_reactive.planner import publish
from celery_reactive.planner.publish import BrokerUnavailableError, MessagesRefusedError, NotPublishedError
from tests.brokers import own_rabbit
from tests.integration.postbox import OTHER, TASK, Postbox

Server = RabbitServer | ValkeyServer
FULL = {"x-max-length": 3, "x-overflow": "reject-publish"}


@pytest.fixture(scope="module")
def rabbit_server() -> Iterator[RabbitServer]:
    """A RabbitMQ for all tests here."""
    with own_rabbit() as server:
        yield server


@pytest.fixture(scope="module")
def valkey_server() -> Iterator[ValkeyServer]:
    """A Valkey for all tests here."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def rabbit(rabbit_server: RabbitServer) -> Iterator[RabbitServer]:
    """It, without the queues of other tests; alive afterwards, whatever was done to it."""
    yield rabbit_server
    rabbit_server.start()
    with Postbox(rabbit_server.url) as box, box.app.connection_for_write() as connection:
        for queue in ("sync", "other"):
            connection.channel().queue_delete(queue)


@pytest.fixture
def valkey(valkey_server: ValkeyServer) -> Iterator[ValkeyServer]:
    """It, empty; alive afterwards, whatever was done to it."""
    yield valkey_server
    valkey_server.start()
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()


@pytest.fixture(params=["valkey", "rabbit"])
def server(request: pytest.FixtureRequest) -> Server:
    """Either of them."""
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers that hang are given up sooner."""
    monkeypatch.setattr(publish, "_TIMEOUT_SECONDS", 0.5)


@pytest.mark.parametrize("number", [1, 700])
def test_messages_arrive_in_their_order(server: Server, number: int) -> None:
    """B-22: once each, as `apply_async` sends them."""
    with Postbox(server.url) as box:
        box.publish(number)
        messages = box.take_all()
        assert [message.payload[0] for message in messages] == [[[str(one)]] for one in range(number)]
        assert {message.headers["task"] for message in messages} == {TASK}


def test_a_batch_over_several_tasks_goes_where_each_is_routed(server: Server) -> None:
    """B-22: one batch for all tasks of a round."""
    with Postbox(server.url) as box:
        box.publisher.publish_all([*box.messages(3), *box.messages(2, OTHER, first=7)])
        assert (box.doc_ids("sync"), box.doc_ids("other")) == ([0, 1, 2], [7, 8])


def test_celerys_signals_and_events_are_sent_for_each_message(server: Server) -> None:
    """What users hook into `apply_async` works: a receiver may also add headers."""
    before: list[str] = []
    after: list[str] = []

    def mark(headers: dict[str, Any], **_: Any) -> None:
        headers["marked"] = "by a receiver"
        before.append(headers["id"])

    def note(headers: dict[str, Any], **_: Any) -> None:
        after.append(headers["id"])

    with Postbox(server.url, task_send_sent_event=True) as box, box.app.connection_for_read() as monitors:
        events: list[dict[str, Any]] = []
        receiver = box.app.events.Receiver(monitors, handlers={"task-sent": events.append})
        before_task_publish.connect(mark)
        after_task_publish.connect(note)
        try:
            with receiver.consumer_context(wakeup=False) as (connection, *_):
                with suppress(TimeoutError):
                    # Subscribes, on Redis.
                    connection.drain_events(timeout=0.2)
                box.publish(5)
                while len(events) < 5:
                    connection.drain_events(timeout=10)
        finally:
            before_task_publish.disconnect(mark)
            after_task_publish.disconnect(note)
        messages = box.take_all()
        assert [message.headers["marked"] for message in messages] == ["by a receiver"] * 5
        assert [message.headers["id"] for message in messages] == before == after == [one["uuid"] for one in events]


def test_events_that_nobody_receives_are_no_unroutable_messages(server: Server) -> None:
    """`task-sent` goes to an exchange without a queue while no monitor runs."""
    with Postbox(server.url, task_send_sent_event=True) as box:
        box.publish(5)
        assert box.doc_ids() == [0, 1, 2, 3, 4]


def test_a_deleted_queue_is_declared_again(rabbit: RabbitServer) -> None:
    """B-66: RabbitMQ drops what no queue takes; the planner's connection believes the queue to exist."""
    with Postbox(rabbit.url) as box:
        box.publish(2)
        with box.app.connection_for_write() as connection:
            connection.channel().queue_delete("sync")
        box.publisher.publish_all([*box.messages(3), *box.messages(2, OTHER)])
        assert (box.doc_ids("sync"), box.doc_ids("other")) == ([0, 1, 2], [0, 1])


def test_a_message_that_no_queue_takes_is_not_published(rabbit: RabbitServer) -> None:
    """Never lost silently; other tasks' messages go out."""
    nowhere = {"exchange": "nowhere", "routing_key": "nothing", "exchange_type": "topic"}
    with Postbox(rabbit.url, task_routes={TASK: nowhere, OTHER: "other"}) as box:
        with box.app.connection_for_write() as connection:
            Exchange("nowhere", "topic")(connection.channel()).declare()
        refused = refusal(box, 3, 2)
        assert refused.tasks == {TASK}
        assert "no queue takes messages to exchange 'nowhere' with routing key 'nothing'" in str(refused)
        assert doc_ids_of(refused) == [0, 1, 2]
        assert box.doc_ids("other") == [0, 1]


def test_what_a_full_queue_refuses_is_not_published(rabbit: RabbitServer) -> None:
    """What it took before it was full is; the other queue takes all."""
    queues = [Queue("sync", Exchange("sync"), "sync", queue_arguments=FULL), Queue("other")]
    with Postbox(rabbit.url, task_queues=queues) as box:
        refused = refusal(box, 7, 2)
        assert refused.tasks == {TASK}
        assert "nacked" in str(refused)
        taken = box.doc_ids("sync")
        assert {0, 1, 2} <= set(taken)
        assert set(doc_ids_of(refused)) | set(taken) == set(range(7))
        assert box.doc_ids("other") == [0, 1]


def test_a_queue_declared_otherwise_holds_up_no_other(rabbit: RabbitServer) -> None:
    """Its messages are refused with RabbitMQ's reason."""
    with Postbox(rabbit.url) as box:
        with box.app.connection_for_write() as connection:
            connection.channel().queue_declare("sync", durable=False, auto_delete=False)
        refused = refusal(box, 3, 2)
        assert refused.tasks == {TASK}
        assert "PRECONDITION_FAILED" in str(refused)
        assert box.doc_ids("other") == [0, 1]


@pytest.mark.parametrize("error", [LookupError("no route"), ValueError("no route"), KeyError("no route")])
def test_a_router_that_raises_holds_up_no_other(server: Server, error: Exception) -> None:
    """Its messages are refused with its reason, also when a transport has a meaning of its own for such an error."""

    def route(name: str, *_: Any, **__: Any) -> str:
        if name == TASK:
            raise error
        return "other"

    with Postbox(server.url, task_routes=[route]) as box:
        refused = refusal(box, 3, 2)
        assert refused.tasks == {TASK}
        assert "no route" in str(refused)
        assert box.doc_ids("other") == [0, 1]


def test_a_redis_without_memory_is_away_until_it_has_some(valkey: ValkeyServer) -> None:
    """What it refused is in doubt, all of it, and goes out once it can."""
    with Postbox(valkey.url) as box, redis.Redis.from_url(valkey.url) as client:
        box.publish(1)
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(BrokerUnavailableError, match="used memory") as raised:
                box.publish(3)
            assert doc_ids_of(raised.value) == [0, 1, 2]
        finally:
            client.config_set("maxmemory", 0)
        box.publisher.publish_all(raised.value.messages)
        assert box.doc_ids() == [0, 0, 1, 2]


STRIKES: list[Callable[[dict[str, Any]], None]] = []


@before_task_publish.connect
def strike_where_asked(headers: dict[str, Any], **_: Any) -> None:
    """Stay connected: Celery 5.5 does not hear what is connected after a disconnection."""
    for strike in STRIKES:
        strike(headers)


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("fault", ["killed", "suspended"])
def test_a_broker_that_fails_during_a_batch_leaves_no_message_unnamed(server: Server, fault: str) -> None:
    """B-66: what is not named as in doubt is in the broker, which waits for nobody longer than it must."""
    with Postbox(server.url) as box:
        box.publish(1)
        messages = box.messages(2000)
        breaking = threading.Event()

        def strike(headers: dict[str, Any]) -> None:
            if headers["id"] == messages[1750].due[0].key.celery_id("test.orders", 0):
                server.kill() if fault == "killed" else server.suspend()
                breaking.set()

        STRIKES.append(strike)
        try:
            began = time.monotonic()
            for first in range(0, 1500, 500):
                box.publisher.publish_all(messages[first : first + 500])
            with pytest.raises(BrokerUnavailableError) as raised:
                box.publisher.publish_all(messages[1500:2000])
            assert time.monotonic() - began < 30
        finally:
            STRIKES.remove(strike)
        assert breaking.is_set()
        assert not_answered(box)
        server.start() if fault == "killed" else server.resume()
        in_doubt = doc_ids_of(raised.value)
        assert set(in_doubt) <= set(range(1500, 2000))
        survived = not (fault == "killed" and isinstance(server, ValkeyServer))
        box.publisher.publish_all(raised.value.messages)
        expected = set(range(2000)) if survived else set(in_doubt)
        assert set(box.doc_ids()) == expected


def refusal(box: Postbox, number: int, of_other: int) -> MessagesRefusedError:
    """Publish messages for both tasks together, and return how some of them were refused."""
    with pytest.raises(MessagesRefusedError) as raised:
        box.publisher.publish_all([*box.messages(number), *box.messages(of_other, OTHER)])
    return raised.value


def doc_ids_of(error: NotPublishedError) -> list[Any]:
    """Return the ids of the documents whose messages are in doubt."""
    return [one.key.doc_id for message in error.messages for one in message.due]


def not_answered(box: Postbox) -> bool:
    """Whether the broker is found to be away."""
    with pytest.raises(BrokerUnavailableError, match="does not answer"):
        box.publisher.check()
    return True


# --- priority ------------------------------------------------------------------------------------

SHARED = {TASK: "shared", OTHER: "shared"}
ORDERED = [Queue("shared", Exchange("shared"), "shared", queue_arguments={"x-max-priority": 9})]


@pytest.fixture
def shared_queue(rabbit: RabbitServer) -> Iterator[None]:
    """The queue that both tasks share is deleted afterwards."""
    yield
    with Postbox(rabbit.url) as box, box.app.connection_for_write() as connection:
        connection.channel().queue_delete("shared")


def ordered(server: Server, **options: Any) -> Postbox:
    """Return an app whose tasks share a queue that keeps an order."""
    queues = {"task_queues": ORDERED} if isinstance(server, RabbitServer) else {}
    return Postbox(server.url, task_routes=SHARED, **queues, **options)


@pytest.mark.usefixtures("shared_queue")
def test_a_nine_overtakes_a_backlog_of_zeros(server: Server) -> None:
    """B-58: 9 is the most urgent on every broker."""
    with ordered(server, priorities=(9, 0)) as box:
        box.publish(20, OTHER)
        box.publish(3, TASK)
        taken = [message.headers["task"] for message in box.take_all("shared")]
        assert taken == [TASK] * 3 + [OTHER] * 20


@pytest.mark.usefixtures("shared_queue")
@pytest.mark.parametrize(("priority", "first"), [(9, TASK), (0, OTHER)])
def test_a_priority_stands_above_or_below_the_default(server: Server, priority: int, first: str) -> None:
    """B-58: 4 where nothing is said."""
    with ordered(server, priorities=(priority, None)) as box:
        box.publish(1, TASK if first == OTHER else OTHER)
        box.publish(1, first)
        assert box.take_all("shared")[0].headers["task"] == first


@pytest.mark.usefixtures("shared_queue")
def test_a_priority_of_the_users_own_is_sent_as_it_is(server: Server) -> None:
    """B-58: on the task or in a route."""
    with ordered(server, priorities=(9, 9)) as box:
        box.app.conf.task_routes = {TASK: "shared", OTHER: {"queue": "shared", "priority": 7}}
        box.app.tasks[TASK].priority = 6
        box.publish(1)
        assert sent_priorities(box) == [6]
        box.publish(1, OTHER)
        assert sent_priorities(box) == [7]


@pytest.mark.usefixtures("shared_queue")
def test_without_any_declared_priority_messages_are_as_in_plain_celery(server: Server) -> None:
    """B-58: on Redis they all stay in one list."""
    with ordered(server) as box:
        box.app.tasks[TASK].apply_async((["0"],))
        box.publish(1)
        plain, ours = sent_priorities(box)
        assert plain == ours


def sent_priorities(box: Postbox) -> list[int | None]:
    """Take all messages and return what priority each was sent with."""
    return [message.properties.get("priority") for message in box.take_all("shared")]


# --- other transports ----------------------------------------------------------------------------


# Of kombu with SQLAlchemy 2.1.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
@pytest.mark.parametrize("url", ["memory://", "filesystem://", "sqla+sqlite:///{folder}/broker.sqlite"])
def test_a_transport_that_knows_no_time_limits_is_not_given_any(url: str, tmp_path: Path) -> None:
    """B-22: some refuse options that they do not know."""
    options: dict[str, Any] = {}
    if url.startswith("sqla"):
        pytest.importorskip("sqlalchemy")
    if url.startswith("filesystem"):
        folders = {name: str(tmp_path / name) for name in ("messages", "control")}
        for folder in folders.values():
            Path(folder).mkdir()
        options = {
            "data_folder_in": folders["messages"],
            "data_folder_out": folders["messages"],
            "control_folder": folders["control"],
        }
    with Postbox(url.format(folder=tmp_path), broker_transport_options=options) as box:
        box.publisher.check()
        box.publish(3)
        assert sorted(box.doc_ids()) == [0, 1, 2]


def test_time_limits_of_the_users_own_are_kept() -> None:
    """None stands for none: it would let the planner wait for ever."""
    limits = {"socket_timeout": 77, "socket_connect_timeout": None, "retry_on_timeout": False}
    with Postbox("redis://127.0.0.1:1", broker_transport_options=limits) as box:
        options = box.publisher.connect().transport_options
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (77, 5.0)


def test_a_user_who_lets_redis_repeat_gets_no_batches(valkey: ValkeyServer) -> None:
    """Kombu refuses to repeat a pipeline; the messages go out one by one."""
    with Postbox(valkey.url, broker_transport_options={"retry_on_timeout": True}) as box:
        box.publish(3)
        assert box.doc_ids() == [0, 1, 2]
