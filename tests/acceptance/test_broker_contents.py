"""A broker that loses what it holds while planner and worker run: the records are sent again within seconds (B-66)."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from amqp.exceptions import ChannelError
from kombu.connection import Connection as BrokerConnection
from pymongo.database import Database

from celery_reactive.embedded import RabbitServer, ValkeyServer
from tests.acceptance.project import Project
from tests.brokers import own_rabbit

TASKS = Path(__file__).with_name("broker_tasks.py")
DOCUMENTS = 24
BEFORE_THE_DEADLINE = 40
"""Seconds, of which starting a worker takes some; the dispatch deadline is a minute."""


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey that these tests may empty."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="module")
def rabbit() -> Iterator[RabbitServer]:
    """A RabbitMQ that these tests may empty."""
    with own_rabbit() as server:
        yield server


class Shop(Project):
    """The project on one of these brokers, with a queue of its own."""

    @property
    def queue(self) -> str:
        """The name of its queue."""
        return self.environment["QUEUE"]

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """Yield a channel to the broker."""
        connection: Any = BrokerConnection(self.environment["BROKER_URL"])  # type: ignore[no-untyped-call]
        with connection:
            yield connection.default_channel

    def depth(self) -> int:
        """Return how many messages wait in the queue."""
        with self.channel() as channel:
            try:
                return int(channel.queue_declare(self.queue, passive=True).message_count)
            except ChannelError:
                return 0

    def write(self, first: int, last: int) -> None:
        """Write documents."""
        self.database.jobs.insert_many({"_id": number} for number in range(first, last))

    def sent(self) -> int:
        """Return how many documents messages are on their way for."""
        return self.database["jobs_tasks"].count_documents({"_r.sent": True})

    def completed(self) -> int:
        """Return how many documents have been handled."""
        return self.database["jobs_tasks"].count_documents({"status": "completed"})


@pytest.fixture
def shop_on(tmp_path: Path, database: Database[Any], mongodb_url: str) -> Iterator[Callable[[str], Shop]]:
    """Make the project on a broker; its processes end with the test."""
    made: list[Shop] = []

    def make(broker_url: str) -> Shop:
        environment = {"MONGODB_URL": mongodb_url, "BROKER_URL": broker_url, "QUEUE": f"q-{uuid.uuid4().hex[:8]}"}
        made.append(Shop(tmp_path, database, environment))
        (tmp_path / "proj.py").write_text(TASKS.read_text())
        return made[-1]

    yield make
    for shop in made:
        shop.stop()


MakeShop = Callable[[str], Shop]


def assert_nothing_overlapped(shop: Shop) -> None:
    """No document was handled twice at the same time."""
    runs = defaultdict(list)
    for run in shop.database.runs.find(sort=[("began", 1)]):
        runs[run["doc"]].append(run)
    assert set(runs) == {record["sourceDocId"] for record in shop.database["jobs_tasks"].find()}
    for of_one in runs.values():
        assert all(earlier["ended"] <= later["began"] for earlier, later in pairwise(of_one))


def lose_a_backlog(shop: Shop, lose: Callable[[], None]) -> None:
    """Let all messages of a backlog be lost, and then a worker come up: everything is handled long before its time."""
    planner = shop.planner("planner")
    shop.write(0, DOCUMENTS)
    shop.wait_until(lambda: shop.sent() == DOCUMENTS and shop.depth())
    lose()
    shop.worker("--concurrency", "2")
    shop.wait_until(lambda: shop.completed() == DOCUMENTS, timeout=BEFORE_THE_DEADLINE)
    assert "messages lost by the broker, sending them again" in planner.text()
    assert_nothing_overlapped(shop)


def lose_under_load(shop: Shop, lose: Callable[[], None]) -> None:
    """Let what waits be lost while workers are busy and more is written: all is handled, nothing twice at once."""
    # Of the few messages that are sent ahead, some must be left in the queue.
    shop.worker("--concurrency", "2", "--prefetch-multiplier", "1")
    planner = shop.planner("planner")
    shop.write(0, 2 * DOCUMENTS)
    shop.wait_until(lambda: shop.completed() >= 2 and shop.depth())
    lose()
    shop.write(2 * DOCUMENTS, 3 * DOCUMENTS)
    shop.wait_until(lambda: shop.completed() == 3 * DOCUMENTS, timeout=BEFORE_THE_DEADLINE)
    assert "messages lost by the broker, sending them again" in planner.text()
    assert_nothing_overlapped(shop)


@pytest.mark.parametrize("lose", ["flushed", "queue deleted", "killed and started empty"])
def test_a_backlog_lost_by_redis_is_sent_again(valkey: ValkeyServer, shop_on: MakeShop, lose: str) -> None:
    """B-66: by the canary, by the count of the queue."""
    shop = shop_on(valkey.url)
    lose_a_backlog(shop, lambda: lose_in_redis(valkey, shop.queue, lose))


@pytest.mark.parametrize("lose", ["flushed", "queue deleted"])
def test_what_redis_loses_under_load_is_sent_again(valkey: ValkeyServer, shop_on: MakeShop, lose: str) -> None:
    """B-66: what workers hold goes on, and runs once."""
    shop = shop_on(valkey.url)
    lose_under_load(shop, lambda: lose_in_redis(valkey, shop.queue, lose))


def lose_in_redis(valkey: ValkeyServer, queue: str, how: str) -> None:
    """Let messages be lost in one of the ways there are."""
    with redis.Redis.from_url(valkey.url) as client:
        match how:
            case "flushed":
                client.flushall()
            case "queue deleted":
                assert client.delete(queue) == 1
            case _:
                valkey.kill()
                valkey.start()


@pytest.mark.parametrize("lose", ["purged", "queue deleted", "killed and started empty"])
def test_a_backlog_lost_by_rabbitmq_is_sent_again(rabbit: RabbitServer, shop_on: MakeShop, lose: str) -> None:
    """B-66: by the count of a queue that no worker takes from, or that is missing."""
    shop = shop_on(rabbit.url)
    lose_a_backlog(shop, lambda: lose_in_rabbitmq(rabbit, shop, lose))


@pytest.mark.parametrize("lose", ["purged", "queue deleted"])
def test_what_rabbitmq_loses_under_load_is_sent_again(rabbit: RabbitServer, shop_on: MakeShop, lose: str) -> None:
    """B-66: once the workers run nothing any more, as RabbitMQ does not tell what they hold."""
    shop = shop_on(rabbit.url)
    lose_under_load(shop, lambda: lose_in_rabbitmq(rabbit, shop, lose))


def lose_in_rabbitmq(rabbit: RabbitServer, shop: Shop, how: str) -> None:
    """Let messages be lost in one of the ways there are."""
    match how:
        case "purged":
            with shop.channel() as channel:
                assert channel.queue_purge(shop.queue) > 0
        case "queue deleted":
            with shop.channel() as channel:
                channel.queue_delete(shop.queue)
        case _:
            rabbit.kill()
            rabbit.discard_data()
            rabbit.start()
