"""Which server to use: one that the environment names, else an embedded one.

Called by the demo and by tests.
"""

from __future__ import annotations

import os
from typing import Self

from celery_reactive.embedded.mongo import MongoServer
from celery_reactive.embedded.urls import with_path
from celery_reactive.embedded.valkey import ValkeyServer


class ExternalServer:
    """A server somebody else runs; only its URL is ours.

    Attributes:
        url: As given.
    """

    def __init__(self, url: str) -> None:
        """Take the URL; nothing is connected."""
        self.url = url

    def url_of(self, database: str | int) -> str:
        """Return the URL with *database* in place of its own."""
        return with_path(self.url, str(database))

    def __enter__(self) -> Self:
        """Do nothing."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Do nothing."""


def mongodb(url_env: str = "MONGODB_URL") -> MongoServer | ExternalServer:
    """Return the MongoDB to use: the one named by the environment, else an embedded one of one member, not started.

    Raises:
        EmbeddedServerError: The environment names none and there is no program to start.
    """
    url = os.environ.get(url_env)
    return ExternalServer(url) if url else MongoServer()


def broker(url_env: str = "BROKER_URL") -> ValkeyServer | ExternalServer:
    """Return the broker to use: the one named by the environment, else an embedded Valkey, not started.

    Raises:
        EmbeddedServerError: The environment names none and there is no program to start.
    """
    url = os.environ.get(url_env)
    return ExternalServer(url) if url else ValkeyServer()
