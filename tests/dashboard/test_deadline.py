"""That a page answers in time where MongoDB does not."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from celery_reactive import embedded
from celery_reactive.errors import ConfigurationError
from tests.dashboard.conftest import MakeClient, Shop

PATHS = [
    "/",
    "/records",
    "/record?task=sync&doc_id=101",
    "/errors",
    "/planner",
    "/operations",
    "/schedule",
    "/confirm/retry?task=sync",
    "/api/v1/status",
    "/api/v1/activity",
    "/api/v1/records",
    "/api/v1/operations",
    "/api/v1/schedule",
]


@contextmanager
def frozen(server: embedded.MongoServer | embedded.ExternalServer) -> Iterator[None]:
    """Keep the server from answering; connections stay open."""
    if not isinstance(server, embedded.MongoServer):
        pytest.skip("a server of somebody else's is not to be frozen")
    server.suspend()
    try:
        yield
    finally:
        server.resume()


def test_with_mongodb_frozen_everything_is_answered_within_the_deadline(
    make_client: MakeClient, mongo_server: embedded.MongoServer | embedded.ExternalServer
) -> None:
    """B-57: one deadline for all statements of a request, then 503 with the reason, for people and programs."""
    visitor = make_client(deadline_seconds=0.5)
    assert [visitor.get(path).status_code for path in PATHS] == [200] * len(PATHS)
    visitor.post("/api/v1/pause", json={"task": "mail"})  # forgets what is known
    with frozen(mongo_server):
        for path in PATHS:
            began = time.monotonic()
            answer = visitor.get(path)
            took = time.monotonic() - began
            assert (path, answer.status_code) == (path, 503)
            assert re.search("MongoDB (has not answered within 0.5 s|does not answer)", answer.text)
            assert answer.headers["retry-after"] == "5"
            assert took < 2, f"{path} took {took:.1f} s"
        refused = visitor.post("/api/v1/resume", json={"task": "mail"})
        assert refused.status_code == 503
        assert "it may have been done" in refused.json()["reason"]
    assert visitor.get("/").status_code == 200


def test_the_deadline_is_a_number_of_seconds(empty_shop: Shop) -> None:
    """B-57: what has no meaning is refused before anything is served."""
    with pytest.raises(ConfigurationError, match="deadline_seconds: expected seconds above 0"):
        empty_shop.reactive.dashboard(deadline_seconds=0)
