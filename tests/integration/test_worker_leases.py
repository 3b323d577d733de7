"""A run's lease while its own transaction holds the record: it is kept, and its end is told apart from a loss."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from celery_reactive.core.outcome import Completed
from celery_reactive.core.record import Claim
from celery_reactive.core.registry import Registry
from celery_reactive.errors import LeaseLostError
from celery_reactive.events import Event
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store.connection import Connection
from celery_reactive.worker.context import TaskContext
from celery_reactive.worker.execute import confirm_completion
from celery_reactive.worker.finalize import finalize
from celery_reactive.worker.heartbeat import Heartbeat
from celery_reactive.worker.run import Run
from tests.integration.bench import TOOK, Bench

LONG_AGO = 1_000_000.0


@pytest.fixture
def events() -> list[Event]:
    """What the runs have told."""
    return []


@pytest.fixture
def runs(bench: Bench, connection: Connection, settings: Settings, events: list[Event]) -> list[Run]:
    """Two runs claimed by one message, neither renewed for long."""
    runtime = Runtime(settings, Registry(), connection, (events.append,))
    for doc_id in (1, 2):
        bench.plan({"_id": doc_id, "on": True, "v": "first"})
    claims: list[Claim] = bench.claim(1, 2)
    return [
        Run(runtime, bench.task, claim, sent=time.monotonic() - LONG_AGO, collated=False, outdated=False)
        for claim in claims
    ]


@pytest.fixture
def heartbeat(runs: list[Run]) -> Iterator[Heartbeat]:
    """A heartbeat over both runs, whose thread does not beat by itself within a test."""
    heartbeat = Heartbeat()
    heartbeat._live = {id(run): run for run in runs}
    yield heartbeat
    heartbeat._live = {}


def test_an_open_transaction_keeps_its_lease_and_delays_no_other(runs: list[Run], heartbeat: Heartbeat) -> None:
    """B-36: nobody else can write a record that is held; the other run is renewed as ever."""
    held, other = runs
    context = TaskContext(held, None)
    with context.client.start_session() as session, session.start_transaction():
        context.mark_completed(session=session)
        heartbeat._renew(runs)
        assert not held.lease_lost
        assert not other.lease_lost
        session.abort_transaction()


def test_after_an_abort_the_lease_is_renewed_again(runs: list[Run], heartbeat: Heartbeat, bench: Bench) -> None:
    """B-36: the record still runs, and its heartbeat goes on."""
    held = runs[0]
    context = TaskContext(held, None)
    with context.client.start_session() as session, session.start_transaction():
        context.mark_completed(session=session)
        session.abort_transaction()
    heartbeat._renew(runs)
    assert not held.lease_lost
    assert bench.record(1)["_r"]["claim"]["beats"] == 1
    confirm_completion(held)
    assert not held.completed


def test_ones_own_commit_is_no_lost_lease(runs: list[Run], heartbeat: Heartbeat, events: list[Event]) -> None:
    """B-36: also where the next run has the record by the time this one returns."""
    held = runs[0]
    context = TaskContext(held, None)
    with context.client.start_session() as session, session.start_transaction():
        context.mark_completed(session=session)
    heartbeat._renew(runs)
    assert held.completed
    assert finalize(held, Completed(TOOK)) is not None
    assert [event.code for event in events] == ["run_finished"]


def test_a_lease_that_somebody_else_has_is_lost(
    runs: list[Run], heartbeat: Heartbeat, bench: Bench, events: list[Event]
) -> None:
    """B-27: the handler is told, and its end writes nothing."""
    lost = runs[0]
    bench.records.update_one({"_id": lost.claim.key.id}, {"$set": {"_r.claim.token": "another"}})
    heartbeat._renew(runs)
    assert lost.lost
    assert not runs[1].lost
    with pytest.raises(LeaseLostError):
        TaskContext(lost, None).mark_completed()
    assert finalize(lost, Completed(TOOK)) is None
    assert {event.code for event in events} == {"lease_lost"}


def test_a_lease_is_doubted_by_the_process_own_clock(runs: list[Run], settings: Settings) -> None:
    """B-23: without an acknowledged renewal for the length of the lease, whatever the server would say."""
    assert runs[0].lease_lost
    runs[0].renewed = time.monotonic()
    assert not runs[0].lease_lost
    assert settings.heartbeat == timedelta(seconds=1)
