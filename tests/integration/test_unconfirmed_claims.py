"""A claim that was applied, and whose confirmation by a majority went wrong: the worker owns it and learns so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from pymongo import MongoClient

from celery_reactive import embedded
from celery_reactive.core.states import RecordState
from celery_reactive.errors import StoreUnavailableError
from celery_reactive.store import records
from celery_reactive.store.connection import Connection
from tests.integration.bench import LEASE, Bench

PRIMARY_STEPPED_DOWN, WRITE_CONCERN_FAILED = 189, 64

Unconfirmed = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def mongodb_url(mongodb_url: str) -> str:
    """The server, which the driver asks often who is primary: it waits for an answer after each pretended election."""
    return f"{mongodb_url}{'&' if '?' in mongodb_url else '?'}heartbeatFrequencyMS=500"


@pytest.fixture
def unconfirmed(
    client: MongoClient[dict[str, Any]], mongo_server: embedded.MongoServer | embedded.ExternalServer
) -> Unconfirmed:
    """Let the next claim be applied and answered with an error of the given code."""
    if not isinstance(mongo_server, embedded.MongoServer) or mongo_server.name == "secantus":
        pytest.skip("needs fail points, on a server of our own")

    @contextmanager
    def unconfirmed(code: int) -> Iterator[None]:
        error = {"code": code, "errmsg": "applied, not confirmed"}
        data = {"failCommands": ["findAndModify"], "appName": "celery-reactive", "writeConcernError": error}
        client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": data})
        try:
            yield
        finally:
            client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})

    return unconfirmed


def test_a_claim_in_the_moment_of_an_election_is_asked_for_again(bench: Bench, unconfirmed: Unconfirmed) -> None:
    """B-23: the driver sends it again, by the label that the server gives the error: one claim, one attempt."""
    bench.plan({"_id": 1, "on": True, "v": 1})
    with unconfirmed(PRIMARY_STEPPED_DOWN):
        (claim,) = bench.claim(1)
    assert claim.attempt == 1
    assert bench.record(1)["_r"]["claim"]["token"] == claim.token
    assert bench.complete(claim).state is RecordState.COMPLETED


def test_a_claim_that_no_majority_confirmed_is_found_by_its_token(
    bench: Bench, connection: Connection, unconfirmed: Unconfirmed
) -> None:
    """B-23: its outcome is unknown, and told as such; who knows the token looks it up in the same session."""
    bench.plan({"_id": 1, "on": True, "v": 1})
    keys, token = [bench.key(1)], "token"
    with connection.causal_session() as session:
        with unconfirmed(WRITE_CONCERN_FAILED), pytest.raises(StoreUnavailableError):
            records.claim(bench.records, keys, token=token, worker="w", lease=LEASE, session=session)
        (claim,) = records.find_claims(bench.records, keys, token=token, session=session)
    assert (claim.token, claim.attempt) == (token, 1)
