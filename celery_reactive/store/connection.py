"""The connection to MongoDB: one lazy client per process, and the collections with the concerns they need.

A client must not cross a fork, so each process makes its own at its first statement. Every
collection handed out reads from the primary with majority concern and writes with majority,
whatever the connection string says: with less, an acknowledged write can vanish.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from pymongo import MongoClient, ReadPreference
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import InvalidURI
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from celery_reactive.core.record import CODEC
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import ConfigurationError
from celery_reactive.settings import Settings
from celery_reactive.store.errors import time_limit, translating

_TIMEOUTS_MS: dict[str, Any] = {
    "serverSelectionTimeoutMS": 10_000,
    "connectTimeoutMS": 5_000,
    "socketTimeoutMS": 20_000,
}
"""Without these a frozen primary holds a statement for a minute and more."""

Document = dict[str, Any]


class Connection:
    """Hands out collections. Safe to share between threads; after a fork it connects anew."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._client: MongoClient[Document] | None = None
        self._pid = 0
        self._default_database: str | None = None
        self._collections: dict[tuple[str | None, str], Collection[Document]] = {}
        """Of this process's client; making one takes longer than sending a statement's bytes."""

    @property
    def client(self) -> MongoClient[Document]:
        """This process's client."""
        if self._client is None or self._pid != os.getpid():
            with self._lock:
                if self._client is None or self._pid != os.getpid():
                    self._collections = {}
                    self._client, self._pid = self._connect(), os.getpid()
        return self._client

    @property
    def is_open(self) -> bool:
        """Whether this process has a client."""
        return self._client is not None and self._pid == os.getpid()

    def close(self) -> None:
        """Close this process's client, if there is one."""
        if self._client is not None and self._pid == os.getpid():
            self._client.close()
        self._client = None

    @contextmanager
    def brief(self, limit: timedelta = timedelta(seconds=4)) -> Iterator[Connection]:
        """Yield a connection of its own, closed at the end: for the worker's parent process.

        The parent must not keep a client, whose threads a later fork would break.

        Args:
            limit: What all statements of the block together may take.
        """
        brief = Connection(self._settings)
        try:
            with time_limit(limit):
                yield brief
        finally:
            brief.close()

    def _connect(self) -> MongoClient[Document]:
        make: Callable[[], MongoClient[Document]] | None = self._settings.mongodb_client
        if make is not None:
            return make()
        with translating():
            try:
                return MongoClient(
                    self._settings.mongodb_url,
                    appname="celery-reactive",
                    tz_aware=CODEC.tz_aware,
                    uuidRepresentation="standard",
                    datetime_conversion="DATETIME_AUTO",
                    retryWrites=True,
                    **_TIMEOUTS_MS,
                )
            except (InvalidURI, ValueError) as error:
                # What the driver quotes may be a part of the password.
                reason = re.sub(r'"[^"]*"', '"…"', str(error))
                problem = f"expected a connection string, got {self._settings.shown_url}: {reason}"
                raise ConfigurationError("reactive_mongodb_url", [problem]) from error

    def database(self, name: str | None = None) -> Database[Document]:
        """Return a database by name, the default one for None."""
        return self._database_of(self.client, name)

    def _database_of(self, client: MongoClient[Document], name: str | None) -> Database[Document]:
        return client.get_database(
            name or self.default_database,
            codec_options=CODEC,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern(w="majority"),
        )

    @property
    def default_database(self) -> str:
        """Name of the default database: the setting's, the connection string's, else `test`."""
        if self._default_database is None:
            named = self._settings.database
            self._default_database = named or self.client.get_default_database(default="test").name
        return self._default_database

    def source(self, task: ReactiveTask) -> Collection[Document]:
        """Return the collection that *task* watches."""
        return self._collection(task.database, task.collection)

    def documents(self, task: ReactiveTask, *, client: MongoClient[Document] | None = None) -> Collection[Document]:
        """Return the watched collection, of *client* if one is given, decoding as that client says (B-31)."""
        own = client or self.client
        return own.get_database(
            task.database or self.default_database,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("majority"),
        )[task.collection]

    def records(self, task: ReactiveTask, *, client: MongoClient[Document] | None = None) -> Collection[Document]:
        """Return the records collection of *task* (B-4), of *client* if one is given."""
        name = f"{task.collection}{self._settings.records_suffix}"
        if client is None:
            return self._collection(task.database, name)
        return self._database_of(client, task.database)[name]

    def globals(self) -> Collection[Document]:
        """Return the collection of leadership, positions, definitions and controls."""
        return self._collection(None, self._settings.globals_collection)

    def _collection(self, database: str | None, name: str) -> Collection[Document]:
        client, collections = self.client, self._collections
        known = collections.get((database, name))
        if known is None:
            known = collections[database, name] = self._database_of(client, database)[name]
        return known

    def namespace(self, task: ReactiveTask) -> str:
        """Return `database.collection` of what *task* watches."""
        return f"{task.database or self.default_database}.{task.collection}"

    @contextmanager
    def causal_session(self) -> Iterator[ClientSession]:
        """Yield a causally consistent session."""
        with translating(), self.client.start_session(causal_consistency=True) as session:
            yield session
