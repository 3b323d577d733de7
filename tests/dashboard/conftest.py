"""Fixtures for the dashboard: a shop with records in every state, asked directly or served at a port."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import uvicorn
from bson import ObjectId
from celery import Celery
from pymongo.database import Database
from starlette.testclient import TestClient

from celery_reactive import Reactive, reactive_task
from celery_reactive.core.outcome import Errored, Exhausted, Failure
from celery_reactive.store import unplanned
from tests.integration.bench import TOOK, Bench

FAILED_ID = ObjectId("5f0000000000000000000001")
SECRET = "hunter2-very-secret"  # noqa: S105 -- looked for in what is shown
EVIL = "<script>alert('evil')</script>"

MakeClient = Callable[..., TestClient]
Serve = Callable[..., str]


class Shop:
    """An app with two tasks, and hands to move their records."""

    def __init__(self, reactive: Reactive) -> None:
        self.reactive = reactive
        connection = reactive.runtime.connection
        self.sync = Bench(connection, reactive.registry.get("sync"))
        self.mail = Bench(connection, reactive.registry.get("mail"))

    def fill(self) -> None:
        """Make records in every state: of `sync` 2 failed, 1 retrying, 3 completed, 1 running, 4 pending."""
        sync = self.sync
        for doc_id, message in ((FAILED_ID, "order 17 refused"), (2, "order 18 refused")):
            claim = sync.start(document(doc_id, password=SECRET, note=EVIL))
            trace = f'File "tasks.py"\n  post(password="{SECRET}")'
            sync.settle(claim, Exhausted(Failure(f"{message} at https://me:{SECRET}@erp", "ErpError", trace), TOOK))
        waiting = sync.start(document("A-17"))
        sync.settle(waiting, Errored(Failure("timed out", "TimeoutError", ""), TOOK, timedelta(hours=1)))
        for doc_id in ("done-1", "done-2", "done-3"):
            sync.complete(sync.start(document(doc_id)))
        sync.start(document("running"))
        sync.plan(*(document(number) for number in range(101, 105)))
        self.mail.plan(document("anna"))

    def record(self, doc_id: Any, task: str = "sync") -> Any:
        """Return the record of a document."""
        return self.reactive.get_tasks(task=task, doc_id=doc_id).items[0]


def document(doc_id: Any, **fields: Any) -> dict[str, Any]:
    """Return a document that the tasks watch."""
    return {"_id": doc_id, "on": True, "v": {"total": 1, **fields}}


@pytest.fixture
def app(mongodb_url: str) -> Iterator[Celery]:
    """An app whose tasks `sync` and `mail` watch two collections."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.reactive_mongodb_url = mongodb_url

    def handler(ctx: Any) -> None:
        """Never called here."""

    for name, collection in (("sync", "orders"), ("mail", "customers")):
        options: dict[str, Any] = {"filter": {"on": True}, "watch_projection": {"v": 1}, "debounce": 0}
        reactive_task(collection=collection, task=name, **options)(app.task(handler, name=f"shop.{name}", shared=False))
    yield app
    Reactive.of(app).runtime.connection.close()


@pytest.fixture
def empty_shop(app: Celery) -> Shop:
    """The shop without a record."""
    app.finalize()
    return Shop(Reactive.of(app))


@pytest.fixture
def shop(empty_shop: Shop) -> Shop:
    """The shop with records in every state, and one document that could not be planned."""
    empty_shop.fill()
    key = empty_shop.sync.key("poison")
    unplanned.note(
        empty_shop.reactive.runtime.connection.globals(),
        key,
        at=empty_shop.sync.cluster_time(),
        gone=False,
        reason=unplanned.Reason.FAILED,
        error="$toInt failed",
    )
    return empty_shop


@pytest.fixture
def make_client(shop: Shop) -> Iterator[MakeClient]:
    """Make a client of a dashboard with options, as a browser or a program on this machine."""
    clients: list[TestClient] = []

    def make(
        *, base_url: str = "http://localhost", client: tuple[str, int] = ("127.0.0.1", 50000), **options: Any
    ) -> TestClient:
        made = TestClient(shop.reactive.dashboard(**options), base_url=base_url, client=client, follow_redirects=False)
        clients.append(made)
        return made

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def visitor(make_client: MakeClient) -> TestClient:
    """A client of a dashboard without options."""
    return make_client()


@pytest.fixture
def serve(shop: Shop) -> Iterator[Serve]:
    """Serve an ASGI application, or the shop's dashboard with options; return its address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(application: Any = None, **options: Any) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        served = application or shop.reactive.dashboard(**options)
        server = uvicorn.Server(uvicorn.Config(served, log_level="error", proxy_headers=False, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread))
        return f"http://localhost:{listening.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture
def stored(database: Database[dict[str, Any]]) -> Database[dict[str, Any]]:
    """What is in the database, to see whether it was changed."""
    return database
