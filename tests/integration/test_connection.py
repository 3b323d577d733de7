"""The connection: whose client it is, and how long its short-lived form may take."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo import MongoClient

from celery_reactive.settings import Settings
from celery_reactive.store.connection import Connection


def test_the_workers_parent_connects_as_the_users_own_client_does(mongodb_url: str) -> None:
    """B-28: with `reactive_mongodb_client` set, a killed child's record is looked for where the child wrote it."""
    made: list[MongoClient[Any]] = []

    def make() -> MongoClient[Any]:
        made.append(MongoClient(mongodb_url))
        return made[-1]

    nowhere = "mongodb://127.0.0.1:1/elsewhere"
    with Connection(Settings(mongodb_url=nowhere, mongodb_client=make)).brief() as connection:
        assert connection.client is made[0]
        assert connection.database().command("ping")["ok"] == 1


def test_the_workers_parent_keeps_no_client(mongodb_url: str) -> None:
    """B-28: a client left behind would be inherited by the next fork, its threads missing."""
    with Connection(Settings(mongodb_url=mongodb_url)).brief() as connection:
        client = connection.client
        client.admin.command("ping")
    with pytest.raises(Exception, match="after close"):
        client.admin.command("ping")
