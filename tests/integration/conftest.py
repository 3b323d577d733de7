"""Fixtures for tests on a real server: a connection, a workbench for a task's records, and a planner's desk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from celery_reactive.core.declaration import declare
from celery_reactive.settings import Settings
from celery_reactive.store.connection import Connection
from tests.integration.bench import Bench, Desk

MakeBench = Callable[..., Bench]
MakeDesk = Callable[..., Desk]


@pytest.fixture
def settings(mongodb_url: str) -> Settings:
    """Settings for the test's database: small batches, short time-outs."""
    return Settings(
        mongodb_url=mongodb_url,
        instance_id="bench",
        batch_size=7,
        visibility_timeout=timedelta(seconds=5),
        leader_ttl=timedelta(seconds=1),
    )


@pytest.fixture
def connection(settings: Settings) -> Iterator[Connection]:
    """The package's connection to the test's database."""
    connection = Connection(settings)
    yield connection
    connection.close()


@pytest.fixture
def make_bench(connection: Connection) -> MakeBench:
    """Make a workbench for a task with the given options: by default every document, watched whole, at once."""

    def make(name: str = "shop.sync", **options: Any) -> Bench:
        return Bench(connection, declare(name, {"collection": "orders", "debounce": 0, **options}))

    return make


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    """A workbench whose task watches `v` of the documents with `on` set."""
    return make_bench(filter={"on": True}, watch_projection={"v": 1})


@pytest.fixture
def make_desk(connection: Connection, settings: Settings) -> MakeDesk:
    """Make a planner's desk for the given workbenches."""

    def make(*benches: Bench, collated: bool = False) -> Desk:
        return Desk(connection, settings, *benches, collated=collated)

    return make
