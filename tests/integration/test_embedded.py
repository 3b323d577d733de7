"""The embedded servers are real ones: they answer, crash, freeze and leave nothing behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import amqp
import pytest
import redis
from kombu import Connection as BrokerConnection
from kombu.exceptions import OperationalError
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from celery_reactive.embedded import (
    EmbeddedServerError,
    ExternalServer,
    MongoServer,
    RabbitServer,
    ValkeyServer,
    broker,
    mongodb,
)
from celery_reactive.embedded.process import free_port
from tests.brokers import own_rabbit

STARTER = """
import sys
from celery_reactive.embedded import MongoServer, ValkeyServer
mongo, valkey = MongoServer().start(), ValkeyServer().start()
for process in (mongo.members[0], valkey.process):
    print(process.pid, process._watchdog.pid, process._folder, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def mongo() -> Iterator[MongoServer]:
    """A replica set that the test may break."""
    with MongoServer() as server:
        yield server


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey that the test may break."""
    with ValkeyServer() as server:
        yield server


def impatient(server: MongoServer) -> MongoClient[dict[str, Any]]:
    """Return a client that gives up after a second."""
    return MongoClient(server.url, serverSelectionTimeoutMS=1000, socketTimeoutMS=1000, retryReads=False)


def test_a_replica_set_takes_majority_writes_and_streams_them(database: Database[dict[str, Any]]) -> None:
    """What the package builds on is there: majority writes, change streams, causal sessions."""
    orders = database.get_collection("orders", None, None, WriteConcern("majority"), ReadConcern("majority"))
    orders.insert_one({"_id": 0})
    with orders.watch(max_await_time_ms=1000) as stream:
        orders.insert_one({"_id": 1})
        event = next(stream)
    with database.client.start_session(causal_consistency=True) as session:
        assert orders.count_documents({}, session=session) == 2
    assert event["documentKey"] == {"_id": 1}


@pytest.mark.parametrize("turn", ["first", "second"])
def test_no_test_finds_what_another_left(database: Database[dict[str, Any]], broker_url: str, turn: str) -> None:
    """Database and broker are a test's own; what it leaves is gone when the next one starts."""
    with redis.Redis.from_url(broker_url) as queue:
        assert queue.lrange("celery", 0, -1) == []
        queue.lpush("celery", turn)
    assert database.list_collection_names() == []
    database.orders.insert_one({"turn": turn})


def test_one_member_is_ready_within_three_seconds() -> None:
    """The demo and each pytest process start one; that must not be what they wait for."""
    started = time.monotonic()
    with MongoServer():
        assert time.monotonic() - started < 3


def test_a_failing_primary_is_replaced() -> None:
    """A set of three elects another primary, and what was written with majority is there."""
    with MongoServer(members=3) as server, MongoClient[dict[str, Any]](server.url) as client:
        numbers = client.get_database("shop", write_concern=WriteConcern("majority")).numbers
        numbers.insert_one({"_id": 1})
        failed = server.wait_for_primary()
        failed.kill()
        assert server.wait_for_primary() is not failed
        assert numbers.find_one({"_id": 1}) is not None


def test_fail_points_can_be_set(mongo: MongoServer) -> None:
    """Fault tests make single commands fail."""
    with impatient(mongo) as client:
        point = {"mode": {"times": 1}, "data": {"failCommands": ["ping"], "errorCode": 6}}
        client.admin.command({"configureFailPoint": "failCommand", **point})
        with pytest.raises(PyMongoError):
            client.admin.command("ping")


def test_a_killed_mongod_comes_back_with_its_data_on_its_port(mongo: MongoServer) -> None:
    """A crash loses no acknowledged majority write, and clients find the server again."""
    url = mongo.url
    with MongoClient[dict[str, Any]](url) as client:
        numbers = client.get_database("shop", write_concern=WriteConcern("majority", j=True)).numbers
        numbers.insert_one({"_id": 1})
        mongo.kill()
        assert mongo.members[0].pid is None
        mongo.start()
        assert mongo.url == url
        assert numbers.find_one({"_id": 1}) is not None


def test_a_suspended_mongod_does_not_answer_until_resumed(mongo: MongoServer) -> None:
    """The connection stays open; only time tells that nobody answers."""
    with impatient(mongo) as client:
        client.admin.command("ping")
        mongo.suspend()
        with pytest.raises(PyMongoError):
            client.admin.command("ping")
        mongo.resume()
    with MongoClient[dict[str, Any]](mongo.url) as client:
        assert client.admin.command("ping")["ok"] == 1


def test_a_killed_valkey_comes_back_empty(valkey: ValkeyServer) -> None:
    """This is how tests lose a broker's messages."""
    url = valkey.url
    with redis.Redis.from_url(url) as connection:
        connection.set("key", "value")
        valkey.kill()
        with pytest.raises(redis.ConnectionError):
            connection.get("key")
        valkey.start()
        assert valkey.url == url
        assert connection.get("key") is None


def test_a_suspended_valkey_does_not_answer_until_resumed(valkey: ValkeyServer) -> None:
    """This is how tests hang a broker."""
    with redis.Redis.from_url(valkey.url, socket_timeout=0.3, retry=None) as connection:
        connection.ping()
        valkey.suspend()
        with pytest.raises(redis.TimeoutError):
            connection.ping()
        valkey.resume()
    with redis.Redis.from_url(valkey.url) as connection:
        assert connection.ping()


@pytest.fixture
def rabbit() -> Iterator[RabbitServer]:
    """A RabbitMQ that the test may break."""
    with own_rabbit() as server:
        yield server


def test_a_rabbitmq_lives_through_everything(rabbit: RabbitServer) -> None:
    """Frozen it is silent; killed it comes back on its port with its queues, or empty if its data were discarded."""
    url, folder = rabbit.url, rabbit.process.folder
    assert depth_of_queue(url, declare=True) == 0
    send_to_queue(url)
    rabbit.suspend()
    with pytest.raises(OperationalError, match="timed out"):
        depth_of_queue(url)
    rabbit.resume()
    assert depth_of_queue(url) == 1
    rabbit.kill()
    with pytest.raises(OperationalError, match="refused"):
        depth_of_queue(url)
    rabbit.start()
    assert rabbit.url == url
    assert depth_of_queue(url) == 1
    with pytest.raises(EmbeddedServerError, match="kill it before"):
        rabbit.discard_data()
    rabbit.kill()
    rabbit.discard_data()
    rabbit.start()
    with pytest.raises(amqp.NotFound):
        depth_of_queue(url)
    rabbit.stop()
    assert not folder.exists()


def depth_of_queue(url: str, *, declare: bool = False) -> int:
    """Return how many messages wait in the queue, made first if asked for."""
    with BrokerConnection(url, connect_timeout=2) as connection:
        channel = connection.default_channel
        return int(channel.queue_declare("q", passive=not declare, durable=True, auto_delete=False).message_count)


def send_to_queue(url: str) -> None:
    """Put a persistent message into the queue, and have that confirmed."""
    with BrokerConnection(url, transport_options={"confirm_publish": True}) as connection:
        connection.Producer().publish({}, routing_key="q", delivery_mode=2)


def test_without_a_rabbitmq_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever has none learns how to get one."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("RABBITMQ_SERVER", raising=False)
    monkeypatch.setattr("celery_reactive.embedded.rabbit._DEBIAN", tmp_path / "none")
    with pytest.raises(EmbeddedServerError, match=r"set RABBITMQ_SERVER.*apt-get install"):
        RabbitServer()


def test_stopping_removes_the_data_and_forgets_the_port() -> None:
    """A stopped server leaves nothing, and saying its port would be a lie."""
    server = MongoServer().start()
    folder = server.members[0]._folder
    assert folder is not None
    assert folder.is_dir()
    server.stop()
    assert not folder.exists()
    with pytest.raises(EmbeddedServerError, match="was not started"):
        _ = server.url


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits on process descriptors, which are Linux's")
def test_servers_die_with_their_starter_even_when_it_is_killed() -> None:
    """No exit handler runs after SIGKILL; the watchdogs end the servers and remove their data."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        lines = [starter.stdout.readline().split() for _ in range(2)]
        descriptors = [os.pidfd_open(int(number)) for line in lines for number in line[:2]]
        starter.send_signal(signal.SIGKILL)
    ended = [select.select([descriptor], [], [], 20)[0] for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    assert all(ended)
    assert not any(Path(folder).exists() for _, _, folder in lines)


def test_a_server_that_cannot_start_says_why_and_leaves_nothing() -> None:
    """The message holds the end of the server's log."""
    server = MongoServer(options=["--setParameter=noSuchParameter=1"])
    with pytest.raises(EmbeddedServerError, match="noSuchParameter"):
        server.start()
    assert server.members[0].pid is None
    assert server.members[0]._folder is None


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wrong MONGOD is the user's to mend, so the message holds its path."""
    monkeypatch.setenv("MONGOD", str(tmp_path / "mongod"))
    server = MongoServer()
    with pytest.raises(EmbeddedServerError, match=f"{tmp_path / 'mongod'} cannot be run: No such file"):
        server.start()
    assert server.members[0]._folder is None


def test_a_port_taken_meanwhile_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch, valkey: ValkeyServer) -> None:
    """Between choice and use anybody may take a port; the neighbour's server is not mistaken for ours."""
    ports = iter([valkey.process.port])
    monkeypatch.setattr("celery_reactive.embedded.process.free_port", lambda: next(ports, None) or free_port())
    with ValkeyServer() as other:
        assert other.process.port != valkey.process.port


def test_servers_named_by_the_environment_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """MONGODB_URL and BROKER_URL are somebody's servers: used as they are, never started or stopped."""
    monkeypatch.setenv("MONGODB_URL", "mongodb://one:1,two:2/shop?replicaSet=rs9")
    monkeypatch.setenv("BROKER_URL", "redis://broker:6379/5")
    database, queue = mongodb(), broker()
    assert isinstance(database, ExternalServer)
    assert isinstance(queue, ExternalServer)
    assert database.url_of("test") == "mongodb://one:1,two:2/test?replicaSet=rs9"
    assert queue.url == "redis://broker:6379/5"


def test_without_any_program_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has no mongod learns the three ways to get one."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("MONGOD", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EmbeddedServerError, match=r"set MONGOD.*PATH.*pip install"):
        MongoServer()
