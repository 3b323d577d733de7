"""Fixtures for pytest: a MongoDB, a database per test, an app that uses it, planner and worker beside the test.

pytest loads this wherever celery-reactive is installed, so nothing is imported before a fixture is asked for, no
fixture is in force unless it is asked for, and all are called `reactive_…`. It stands beside the package because
importing any part of that imports Celery and the MongoDB driver.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from celery import Celery
    from pymongo.database import Database

    from celery_reactive import Reactive


@pytest.fixture(scope="session")
def reactive_mongodb_url() -> Iterator[str]:
    """Connection string of a replica set: `$MONGODB_URL`, else an embedded mongod that ends with the session."""
    from celery_reactive import embedded  # noqa: PLC0415 -- see above

    try:
        server = embedded.mongodb()
    except embedded.EmbeddedServerError as error:
        pytest.fail(str(error), pytrace=False)
    with server:
        yield server.url


@pytest.fixture
def reactive_database(reactive_mongodb_url: str) -> Iterator[Database[dict[str, Any]]]:
    """An empty database of the test's own, dropped afterwards; aware dates, standard UUIDs."""
    from pymongo import MongoClient  # noqa: PLC0415 -- see above

    name = f"reactive_{uuid.uuid4().hex}"
    with MongoClient[dict[str, Any]](reactive_mongodb_url, tz_aware=True, uuidRepresentation="standard") as client:
        yield client[name]
        client.drop_database(name)


@pytest.fixture
def reactive_database_url(reactive_mongodb_url: str, reactive_database: Database[dict[str, Any]]) -> str:
    """Connection string whose default database is `reactive_database`."""
    from celery_reactive.embedded.urls import with_path  # noqa: PLC0415 -- see above

    return with_path(reactive_mongodb_url, reactive_database.name)


@pytest.fixture
def reactive_app(reactive_database_url: str) -> Iterator[Callable[..., Reactive]]:
    """A function that gives an app `reactive_database` and a broker in memory until the test ends.

    Called as `reactive_app(app, **settings)`; settings are further ones of Celery or of ours. Returns the app's handle.
    """
    from celery_reactive.testing.configured import MEMORY, configured  # noqa: PLC0415 -- see above

    with contextlib.ExitStack() as until_the_end:

        def configure(app: Celery, **settings: Any) -> Reactive:
            own = {
                "reactive_mongodb_url": reactive_database_url,
                "reactive_mongodb_client": None,
                "reactive_database": None,
                "broker_url": MEMORY,
            }
            return until_the_end.enter_context(configured(app, **{**own, **settings}))

        yield configure


@pytest.fixture
def reactive_inline(reactive_app: Callable[..., Reactive]) -> Iterator[Callable[..., Reactive]]:
    """A function that runs planner and worker of an app in this process until the test ends, without debounce.

    Called as `reactive_inline(app, **settings)`, settings as for `reactive_app`. Returns the app's handle.
    """
    from celery_reactive.testing import fast, run_inline  # noqa: PLC0415 -- see above
    from celery_reactive.testing.configured import MEMORY  # noqa: PLC0415 -- see above

    with contextlib.ExitStack() as until_the_end:

        def run(app: Celery, **settings: Any) -> Reactive:
            reactive_app(app, **settings)
            until_the_end.enter_context(fast())
            return until_the_end.enter_context(run_inline(app, broker=settings.get("broker_url", MEMORY)))

        yield run


__all__ = [
    "reactive_app",
    "reactive_database",
    "reactive_database_url",
    "reactive_inline",
    "reactive_mongodb_url",
]
