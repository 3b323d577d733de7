"""Servers and databases for all tests: each pytest process has its own servers, each test its own database.

`MONGODB_URL` and `BROKER_URL` name running servers to use instead of embedded ones; CELERY_REACTIVE_EMBEDDED=secantus
has SecantusDB stand in for mongod.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from pymongo import MongoClient
from pymongo.database import Database

from celery_reactive import embedded

Document = dict[str, Any]

_MEMORY = Path("/dev/shm")  # noqa: S108 -- a file system in memory, where there is one
_ROOM_BYTES = 4 * 1024**3


def _keep_data_in_memory() -> None:
    """Let the servers of the tests write to memory: they wait for the disk most of the time otherwise.

    TMPDIR decides where it is set. What is killed and started again finds its data in either.
    """
    if "TMPDIR" not in os.environ and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES:
        os.environ["TMPDIR"] = str(_MEMORY)
        tempfile.tempdir = None


_keep_data_in_memory()

FOLDER_MARKERS = {
    "unit": "unit",
    "docs": "unit",
    "integration": "integration",
    "dashboard": "integration",
    "acceptance": "acceptance",
    "matrix": "acceptance",
    "fault": "fault",
}
# Side by side, the longest first; who has but a test or two left is given the next file already, so that one of two
# long tests must not be followed by another.
LONGEST_FIRST = ("acceptance", "fault", "matrix", "dashboard", "integration", "docs", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the kind that its folder says; where several run at a time, begin with the longest files."""
    for item in items:
        marker = FOLDER_MARKERS.get(_folder(item))
        if marker is not None:
            item.add_marker(marker)
    if "PYTEST_XDIST_WORKER" in os.environ:
        sizes = Counter(item.path for item in items)
        ranks = {folder: rank for rank, folder in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: (ranks.get(_folder(item), len(ranks)), -sizes[item.path], item.path))


def _folder(item: pytest.Item) -> str:
    """Return the folder of ours that a test is in, "" for one from elsewhere."""
    here = Path(__file__).parent
    return item.path.relative_to(here).parts[0] if item.path.is_relative_to(here) else ""


@pytest.fixture(scope="session")
def mongo_server() -> Iterator[embedded.MongoServer | embedded.ExternalServer]:
    """A replica set of one member, or the one named by MONGODB_URL."""
    with embedded.mongodb() as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[embedded.ValkeyServer | embedded.ExternalServer]:
    """A Valkey, or the broker named by BROKER_URL."""
    with embedded.broker() as server:
        yield server


@pytest.fixture(autouse=True)
def _skip_what_the_stand_in_lacks(request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("mongod")
    if marker is not None and getattr(request.getfixturevalue("mongo_server"), "name", None) == "secantus":
        pytest.skip(f"SecantusDB {marker.args[0]}")


@pytest.fixture(scope="session")
def client(mongo_server: embedded.MongoServer | embedded.ExternalServer) -> Iterator[MongoClient[Document]]:
    """A client of `mongo_server`: aware dates, standard UUIDs."""
    with MongoClient[Document](mongo_server.url, tz_aware=True, uuidRepresentation="standard") as client:
        yield client


@pytest.fixture
def database(client: MongoClient[Document]) -> Iterator[Database[Document]]:
    """An empty database of the test's own, dropped afterwards."""
    name = f"t_{uuid.uuid4().hex}"
    yield client[name]
    client.drop_database(name)


@pytest.fixture
def mongodb_url(mongo_server: embedded.MongoServer | embedded.ExternalServer, database: Database[Document]) -> str:
    """The connection string whose default database is `database`."""
    return mongo_server.url_of(database.name)


@pytest.fixture
def broker_url(valkey_server: embedded.ValkeyServer | embedded.ExternalServer) -> Iterator[str]:
    """A broker of the test's own: an empty Redis database, emptied again afterwards; any other broker as it is."""
    if not valkey_server.url.startswith(("redis://", "rediss://")):
        yield valkey_server.url
        return
    number = _claim_empty_database(valkey_server)
    yield valkey_server.url_of(number)
    with redis.Redis.from_url(valkey_server.url_of(number)) as connection:
        connection.flushdb()


def _claim_empty_database(server: embedded.ValkeyServer | embedded.ExternalServer) -> int:
    """Return the number of a database that was empty, and that nobody else will take while it is claimed.

    The claim is a key in it, so that pytest processes that share an external server keep apart; what holds anything
    is somebody's and is never flushed.
    """
    with redis.Redis.from_url(server.url_of(0)) as connection:
        total = int(connection.config_get("databases")["databases"])
    for number in range(1, total):
        with redis.Redis.from_url(server.url_of(number)) as connection:
            if connection.dbsize() == 0 and connection.set("celery-reactive-test", "claimed", nx=True):
                return number
    pytest.fail(f"all {total - 1} databases of the broker hold keys; empty those that tests left behind")
