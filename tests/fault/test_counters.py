"""Counters read from secondaries: never less than before, and a member that has fallen behind holds nobody up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext

import pytest
from pymongo import MongoClient

from celery_reactive.embedded import MongoServer
from celery_reactive.metrics.catalogue import RETRIES
from celery_reactive.metrics.counts import Counts
from celery_reactive.metrics.push import Pusher
from celery_reactive.settings import Settings
from celery_reactive.store import counters
from celery_reactive.store.connection import Connection

READS = 50


@pytest.fixture(scope="module")
def server() -> Iterator[MongoServer]:
    """Three members, which can be told to stop replicating."""
    with MongoServer(3, options=["--setParameter", "enableTestCommands=1"]) as server:
        yield server


@contextmanager
def stalled(server: MongoServer) -> Iterator[None]:
    """Let one of the secondaries fall behind."""
    with MongoClient[dict[str, object]](server.url) as client:
        client.admin.command("ping")
        host, port = min(client.secondaries)
    with MongoClient[dict[str, object]](host, port, directConnection=True) as member:
        member.admin.command({"configureFailPoint": "stopReplProducer", "mode": "alwaysOn"})
        try:
            yield
        finally:
            member.admin.command({"configureFailPoint": "stopReplProducer", "mode": "off"})


@pytest.mark.parametrize("preference", ["primary", "secondaryPreferred", "nearest"])
@pytest.mark.parametrize("behind", [False, True])
def test_what_was_pushed_is_in_every_answer(server: MongoServer, preference: str, *, behind: bool) -> None:
    """B-55: whichever member is read; Prometheus would take less than before for a restart."""
    settings = Settings(mongodb_url=server.url_of(f"counters_{preference}_{behind}"), instance_id="one")
    with closing(Connection(settings)) as connection, stalled(server) if behind else nullcontext():
        push_and_read(connection, settings, preference, times=8 if behind else READS)


def push_and_read(connection: Connection, settings: Settings, preference: str, *, times: int) -> None:
    """Count, push and read again and again."""
    counts = Counts()
    pusher = Pusher(counts, connection, settings)
    for number in range(1, times + 1):
        counts.add(RETRIES, "job")
        assert pusher.push()
        began = time.monotonic()
        totals = counters.read(connection.globals(), preference=preference)
        assert totals.counters[RETRIES.name, ("job",)] == number
        assert time.monotonic() - began < 6
