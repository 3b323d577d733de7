"""One planner leads, the next takes over, and an old leader finds out (B-46)."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId, Timestamp
from pymongo.errors import AutoReconnect, OperationFailure

from celery_reactive.core.registry import Registry
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import StoreUnavailableError, TermEndedError
from celery_reactive.events import Event, LeadershipAwaited, LeadershipEnded, LeadershipWon
from celery_reactive.planner import elect
from celery_reactive.planner.elect import Leadership
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store import definitions, leadership, positions
from celery_reactive.store.connection import Connection
from celery_reactive.store.errors import translate
from celery_reactive.store.leadership import Lock
from celery_reactive.store.positions import Position
from tests.integration.bench import Bench

GROUP = "default"
PATIENCE_SECONDS = 20


@dataclasses.dataclass
class Planner:
    """A planner that stands by or leads, with the events it emitted."""

    runtime: Runtime
    events: list[Event]

    def campaign(self, stop: threading.Event | None = None) -> Leadership | None:
        """Stand by until the lock can be taken."""
        return elect.campaign(self.runtime, GROUP, stop or threading.Event())


MakePlanner = Callable[[str], Planner]


@pytest.fixture
def make_planner(settings: Settings, connection: Connection) -> MakePlanner:
    """Make a planner of a name; its lock lasts a second."""

    def make(name: str) -> Planner:
        events: list[Event] = []
        own = dataclasses.replace(settings, instance_id=name)
        return Planner(Runtime(own, Registry(), connection, (events.append,)), events)

    return make


@contextmanager
def suspended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no renewal reach the database."""

    def away(*_: Any) -> bool:
        raise translate(AutoReconnect("away"))

    with monkeypatch.context() as patch:
        patch.setattr(leadership, "renew", away)
        yield


def lock(connection: Connection) -> Lock:
    """Return the lock as it stands."""
    return leadership.read(connection.globals(), GROUP)


def test_the_first_planner_leads_at_once(make_planner: MakePlanner, connection: Connection) -> None:
    """B-46: nobody ever led."""
    assert lock(connection) == Lock(None, 0, 0)
    planner = make_planner("one")
    won = planner.campaign()
    assert won is not None
    with won:
        assert (won.term, won.is_held) == (1, True)
        assert lock(connection).holder == "one"
    assert planner.events == [LeadershipWon("one", 1), LeadershipEnded("one", 1, handed_over=True)]


def test_a_clean_stop_hands_over_at_once(make_planner: MakePlanner, connection: Connection) -> None:
    """B-46: the lock is freed, and the next leads in a new term without waiting for the TTL."""
    won = make_planner("one").campaign()
    assert won is not None
    with won:
        pass
    assert lock(connection).holder is None
    started = time.monotonic()
    following = make_planner("two").campaign()
    assert following is not None
    assert following.term == 2
    assert time.monotonic() - started < 1


def test_a_stand_by_waits_while_the_leader_renews(make_planner: MakePlanner) -> None:
    """B-46: for longer than the TTL, whatever else the leader does."""
    won = make_planner("one").campaign()
    assert won is not None
    waiting = make_planner("two")
    stop = threading.Event()
    outcome: list[Leadership | None] = []
    with won:
        stand_by = threading.Thread(target=lambda: outcome.append(waiting.campaign(stop)))
        stand_by.start()
        stand_by.join(2.5)
        assert stand_by.is_alive()
        assert won.is_held
        stop.set()
        stand_by.join(PATIENCE_SECONDS)
    assert outcome == [None]
    assert waiting.events == [LeadershipAwaited("two", "one", 1.0)], "told once, however often the lock is renewed"


def test_a_vanished_leader_is_replaced_within_its_ttl(make_planner: MakePlanner, connection: Connection) -> None:
    """B-46: its counter has stood still for the TTL on the stand-by's own clock; it loses what it held."""
    globals_ = connection.globals()
    term = leadership.acquire(globals_, GROUP, "gone", lock(connection))
    started = time.monotonic()
    won = make_planner("two").campaign()
    assert won is not None
    took = time.monotonic() - started
    assert 1 <= took < 4
    assert (term, won.term) == (1, 2)
    assert not leadership.renew(globals_, GROUP, "gone", 1)


def test_a_paused_leader_that_wakes_up_stops(make_planner: MakePlanner, connection: Connection) -> None:
    """B-46: its next renewal finds another term; it does not free the other's lock."""
    planner = make_planner("one")
    won = planner.campaign()
    assert won is not None
    with won:
        assert leadership.acquire(connection.globals(), GROUP, "two", lock(connection)) == 2
        assert won.ended.wait(PATIENCE_SECONDS)
        assert not won.is_held
    assert lock(connection).holder == "two"
    assert planner.events[-1] == LeadershipEnded("one", 1, handed_over=False)


def test_a_leader_that_cannot_renew_stops_by_its_own_clock(
    make_planner: MakePlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-46: when the TTL since the last acknowledged renewal was sent has passed, whatever the database says."""
    won = make_planner("one").campaign()
    assert won is not None
    with suspended(monkeypatch), won:
        started = time.monotonic()
        assert won.ended.wait(PATIENCE_SECONDS)
        assert time.monotonic() - started < 3


def test_a_leader_survives_a_short_absence_of_the_database(
    make_planner: MakePlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-46: one renewal that fails ends no term while the TTL lasts."""
    won = make_planner("one").campaign()
    assert won is not None
    with won:
        with suspended(monkeypatch):
            assert not won.ended.wait(0.4)
        assert not won.ended.wait(1.5)
        assert won.is_held


def test_two_candidates_that_saw_the_lock_free(connection: Connection) -> None:
    """B-46: one is elected."""
    globals_ = connection.globals()
    seen = lock(connection)
    terms = [leadership.acquire(globals_, GROUP, name, seen) for name in ("one", "two")]
    assert terms == [1, None]


def test_groups_have_locks_of_their_own(connection: Connection) -> None:
    """B-65: each group has its leader."""
    globals_ = connection.globals()
    for group in ("a", "b"):
        assert leadership.acquire(globals_, group, f"of {group}", leadership.read(globals_, group)) == 1
    assert leadership.read(globals_, "a").holder == "of a"


def test_the_lock_tells_people_who_led_before(connection: Connection) -> None:
    """B-46, B-57: the latest terms, how each began and ended; no more of them than a person looks at."""
    globals_ = connection.globals()
    assert leadership.latest_terms(globals_, GROUP) == []
    assert leadership.acquire(globals_, GROUP, "$one", lock(connection)) == 1
    leadership.release(globals_, GROUP, "$one", 1)
    assert leadership.acquire(globals_, GROUP, "two", lock(connection)) == 2
    assert leadership.acquire(globals_, GROUP, "three", lock(connection)) == 3  # two has vanished
    third, second, first = leadership.latest_terms(globals_, GROUP)
    assert (first.term, first.holder, first.was_handed_over) == (1, "$one", True)
    assert first.since <= (first.ended_at or first.since) <= second.since
    assert (second.holder, second.was_handed_over, second.ended_at) == ("two", False, third.since)
    assert (third.holder, third.was_handed_over, third.ended_at) == ("three", False, None)
    for number in range(4, 30):
        assert leadership.acquire(globals_, GROUP, "again", lock(connection)) == number
    terms = [term.term for term in leadership.latest_terms(globals_, GROUP)]
    assert terms == list(range(29, 29 - leadership.MOST_TERMS, -1))


def test_the_lock_tells_people_since_when(connection: Connection) -> None:
    """B-46: `status` shows holder, term and times by the server's clock."""
    globals_ = connection.globals()
    assert leadership.describe(globals_, GROUP) == {}
    leadership.acquire(globals_, GROUP, "$one", lock(connection))
    described = leadership.describe(globals_, GROUP)
    assert (described["holder"], described["term"]) == ("$one", 1)
    assert timedelta(0) <= described["now"] - described["since"] < timedelta(seconds=10)


# --- what an old leader writes to the globals ------------------------------------------------------------


@pytest.fixture
def position() -> Position:
    """A position in the stream; its token looks like expressions."""
    return Position({"_data": "$$NOW"}, Timestamp(5, 1), ObjectId(), frozenset({("$a.b", 3), ("c", 1)}))


def test_a_position_is_read_as_it_was_stored(connection: Connection, position: Position) -> None:
    """B-45, B-47: token, time, replica set, and the tasks and generations it covers; one for each database."""
    globals_ = connection.globals()
    assert positions.read(globals_, GROUP, "shop") is None
    positions.store(globals_, GROUP, "shop", position, term=1)
    assert positions.read(globals_, GROUP, "shop") == position
    assert positions.read(globals_, GROUP, "other") is None
    assert positions.read(globals_, "other", "shop") is None


def test_a_position_of_an_old_term_is_refused(connection: Connection, position: Position) -> None:
    """B-46: it would move the stream back, or over what the new leader has not planned."""
    globals_ = connection.globals()
    positions.store(globals_, GROUP, "shop", position, term=2)
    older = dataclasses.replace(position, at=Timestamp(4, 1))
    with pytest.raises(TermEndedError):
        positions.store(globals_, GROUP, "shop", older, term=1)
    assert positions.read(globals_, GROUP, "shop") == position
    positions.store(globals_, GROUP, "shop", older, term=3)
    assert positions.read(globals_, GROUP, "shop") == older


def test_a_lock_that_was_dropped_leads_in_a_term_after_all_others(connection: Connection, position: Position) -> None:
    """B-46, B-49: what its last holder wrote after the drop refuses nothing."""
    globals_ = connection.globals()
    positions.store(globals_, GROUP, "shop", position, term=7)
    term = leadership.acquire(globals_, GROUP, "one", lock(connection))
    assert term == 8
    positions.store(globals_, GROUP, "shop", position, term=term)


Write = Callable[[Any, ReactiveTask, int], object]

WRITES: dict[str, Write] = {
    "define": lambda globals_, task, term: definitions.define(
        globals_, task, namespace="db.orders", collated=False, term=term
    ),
    "mark reconciled": lambda globals_, task, term: definitions.mark_reconciled(
        globals_, task.name, generation=1, needs=0, term=term
    ),
    "mark unreconciled": lambda globals_, task, term: definitions.mark_unreconciled(globals_, task.name, term=term),
}


@pytest.mark.parametrize("name", list(WRITES))
def test_a_definition_of_an_old_term_is_refused(bench: Bench, name: str) -> None:
    """B-43, B-46: the leader's definition rules."""
    globals_ = bench.connection.globals()
    WRITES["define"](globals_, bench.task, 2)
    before = globals_.find_one({"_id.k": "task"})
    with pytest.raises(TermEndedError):
        WRITES[name](globals_, bench.task, 1)
    assert globals_.find_one({"_id.k": "task"}) == before
    WRITES[name](globals_, bench.task, 2)


def test_a_stand_by_waits_out_a_database_that_is_away(
    make_planner: MakePlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-46: and leads when it is back."""
    read, answers = leadership.read, iter([StoreUnavailableError("away"), StoreUnavailableError("away")])

    def read_at_last(*args: Any) -> Lock:
        for error in answers:
            raise error
        return read(*args)

    monkeypatch.setattr(leadership, "read", read_at_last)
    won = make_planner("one").campaign()
    assert won is not None
    assert won.term == 1


def test_a_database_that_is_being_dropped_is_waited_out() -> None:
    """B-49: what is made in it meanwhile is refused (DatabaseDropPending); that ends no planner."""
    assert (
        type(translate(OperationFailure("database is in the process of being dropped", 215))) is StoreUnavailableError
    )
