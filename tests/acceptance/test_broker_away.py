"""A broker that dies or hangs while a batch is published, with the time-outs that a user has who has set none.

The planner goes on leading, waits, and every document's message arrives once the broker is back (B-66).
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pymongo.database import Database

from celery_reactive.embedded import EmbeddedServerError, RabbitServer, ValkeyServer
from celery_reactive.store import instances
from celery_reactive.store.instances import WorkerFacts
from tests.acceptance.project import Process, Project

Server = RabbitServer | ValkeyServer
DOCUMENTS = 1900
"""Below what may be in flight, so that all messages go out where there are slots for them."""
WORKER = WorkerFacts([], 500, "threads", limited=False, prefetch=0, acks_late=False, tasks={}, version="")
TASKS = """
import os

from celery import Celery

from celery_reactive import reactive_task

app = Celery("proj", broker=os.environ["BROKER_URL"])
app.conf.task_default_queue = os.environ["QUEUE"]
app.conf.reactive_mongodb_url = os.environ["MONGODB_URL"]
app.conf.reactive_leader_ttl = "3s"


@reactive_task(task="job", collection="jobs", debounce=0, chunk=1)
@app.task
def job(ctx): ...
"""


@pytest.fixture(params=[ValkeyServer, RabbitServer], ids=["valkey", "rabbitmq"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A broker that the test may break."""
    try:
        server: Server = request.param()
    except EmbeddedServerError as error:
        pytest.skip(str(error))
    with server:
        yield server


class Shop(Project):
    """The project, whose messages nobody takes but the test."""

    def __init__(self, folder: Path, database: Database[Any], mongodb_url: str, broker_url: str) -> None:
        queue = f"q-{uuid.uuid4().hex[:8]}"
        super().__init__(folder, database, {"MONGODB_URL": mongodb_url, "BROKER_URL": broker_url, "QUEUE": queue})
        (folder / "proj.py").write_text(TASKS)
        self._app = Celery("monitor", broker=broker_url, set_as_current=False)
        self._app.conf.task_default_queue = queue
        self._queue = queue
        self.seen: set[int] = set()
        """Ids of the documents whose messages the test has taken."""

    def announce_a_worker(self) -> None:
        """Let the planner know of slots enough; nobody takes a message but the test."""
        globals_ = self.database["_celery_reactive"]
        instances.announce_worker(globals_, "celery@many", dataclasses.replace(WORKER, queues=[self._queue]))
        later = {"$dateAdd": {"startDate": "$seenAt", "unit": "hour", "amount": 1}}
        globals_.update_one({"_id.n": "celery@many"}, [{"$set": {"seenAt": later}}])

    def write(self, first: int, last: int) -> None:
        """Write documents."""
        self.database.jobs.insert_many({"_id": number} for number in range(first, last))

    def sent(self) -> int:
        """Return how many records are marked as sent, or were."""
        return self.database["jobs_tasks"].count_documents({"_r.dispatches": {"$gt": 0}})

    def take(self) -> int:
        """Take the messages that are there; return for how many documents there has been one."""
        with self._app.connection_for_read() as connection:
            queue: Any = connection.SimpleQueue(self._app.amqp.queues[self._queue], no_ack=True)
            while True:
                try:
                    ((ids,), _, _) = queue.get_nowait().payload
                except queue.Empty:
                    return len(self.seen)
                self.seen.update(int(text) for text in ids)

    def stop(self) -> None:
        """End all processes and connections."""
        super().stop()
        self._app.close()


@pytest.fixture
def shop(tmp_path: Path, database: Database[Any], mongodb_url: str, server: Server) -> Iterator[Shop]:
    """The project; its planner leads."""
    shop = Shop(tmp_path, database, mongodb_url, server.url)
    yield shop
    shop.stop()


def lead(shop: Shop) -> tuple[Process, str]:
    """Start a planner that has published something; return it and whom it leads as."""
    shop.announce_a_worker()
    planner = shop.planner("planner")
    shop.write(DOCUMENTS, DOCUMENTS + 1)
    shop.wait_until(lambda: shop.take() == 1)
    leader = shop.leader()
    assert leader is not None
    return planner, leader


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", ["killed", "hung"])
def test_a_broker_that_fails_during_a_batch_costs_no_message(shop: Shop, server: Server, fault: str) -> None:
    """B-66: nothing is lost, the planner goes on leading, and goes on sending when the broker is back."""
    planner, leader = lead(shop)
    shop.write(0, DOCUMENTS)
    shop.wait_until(lambda: shop.sent() > 1)
    break_it, mend_it = ways(server)[fault]
    break_it()
    shop.wait_until(lambda: "does not answer, waiting" in planner.text(), timeout=60)
    assert shop.leader() == leader
    mend_it()
    shop.wait_until(lambda: "the broker answers again" in planner.text(), timeout=60)
    shop.wait_until(lambda: shop.take() == DOCUMENTS + 1, timeout=60)
    assert shop.leader() == leader
    assert "Traceback" not in planner.text()


def ways(server: Server) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Return how a broker fails and comes back."""
    return {"killed": (server.kill, server.start), "hung": (server.suspend, server.resume)}
