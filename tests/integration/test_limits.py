"""Limits on starts: exact for the whole cluster, whoever takes, confirms, vanishes or changes them (B-58)."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from celery import Celery
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pymongo import ReturnDocument
from pymongo.collection import Collection

from celery_reactive import Reactive, reactive_task, signals
from celery_reactive.core.limits import Limits, Rate
from celery_reactive.errors import ConfigurationError, UnknownTaskError
from celery_reactive.store import definitions
from celery_reactive.store.connection import Connection
from celery_reactive.store.pipelines import limiters as pipelines

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
PERIOD = timedelta(seconds=1)


@pytest.fixture
def globals_(connection: Connection) -> Collection[dict[str, Any]]:
    """The globals collection."""
    return connection.globals()


class Delivery(NamedTuple):
    """What one message does to a limiter, in milliseconds and shares."""

    after: int
    """The one before."""
    wanted: int
    rate: int
    """Starts a second, as set at that time."""
    given_back: int
    """Of what was granted, so much is not claimed."""
    begins: float
    """When its runs start, as a share of the time in which they may."""
    told: int | None
    """How long after that it is noted; None: never."""


deliveries = st.builds(
    Delivery,
    after=st.integers(0, 400),
    wanted=st.integers(1, 6),
    rate=st.sampled_from([5, 5, 5, 2, 9]),
    given_back=st.integers(0, 2),
    begins=st.floats(0, 1),
    told=st.none() | st.integers(0, 900),
)


class Clockwork:
    """A limiter under a clock of the test's."""

    def __init__(self, globals_: Collection[dict[str, Any]]) -> None:
        self._globals = globals_
        globals_.delete_many({})

    def update(self, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
        """Apply a pipeline."""
        found: Any = self._globals.find_one_and_update(
            {"_id": 1}, pipeline, upsert=True, return_document=ReturnDocument.AFTER
        )
        return dict(found)

    def play(self, script: list[Delivery]) -> list[tuple[datetime, int]]:
        """Return the starts that come of it, in the order of their grants, each with the rate it was granted under."""
        starts: list[tuple[datetime, int]] = []
        ends: list[tuple[datetime, str, int, Limits]] = []
        now = BEGINNING
        for number, one in enumerate(script):
            now += timedelta(milliseconds=one.after)
            while ends and ends[0][0] <= now:
                at, token, count, under = heapq.heappop(ends)
                self.update(pipelines.settle(token, under, started=count, frees=True, now=at))
            limits = Limits(Rate(one.rate, PERIOD))
            token = f"delivery {number}"
            granted = self.update(pipelines.take(token, [number], one.wanted, limits, now=now))["last"]["n"]
            claimed = max(0, granted - one.given_back)
            self.update(pipelines.keep(token, claimed))
            begun = now + timedelta(milliseconds=int(one.begins * PERIOD.total_seconds() * 250))
            starts += [(begun, one.rate)] * claimed
            if one.told is not None:
                heapq.heappush(ends, (begun + timedelta(milliseconds=one.told), token, claimed, limits))
        return starts


def fullest(starts: list[tuple[datetime, int]]) -> int:
    """Return by how many starts a window exceeds the rate that its last granted start was granted under; at most 0."""
    windows = [[rate for at, rate in starts if first <= at < first + PERIOD] for first in {at for at, _ in starts}]
    return max((len(window) - window[-1] for window in windows), default=0)


@given(script=st.lists(deliveries, min_size=5, max_size=30))
@examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_window_holds_more_than_the_rate(globals_: Collection[dict[str, Any]], script: list[Delivery]) -> None:
    """B-58: whenever runs start within their time, are told of or not, and however the rate changes."""
    assert fullest(Clockwork(globals_).play(script)) <= 0


def test_a_limiter_stays_small(globals_: Collection[dict[str, Any]]) -> None:
    """B-58: what is kept does not grow with the rate, and the rate is used up."""
    clock, limits = Clockwork(globals_), Limits(Rate(5000, PERIOD))
    granted, sizes = 0, []
    for number in range(600):
        now = BEGINNING + timedelta(milliseconds=5 * number)
        granted += clock.update(pipelines.take(str(number), [1], 40, limits, now=now))["last"]["n"]
        limiter = clock.update(pipelines.settle(str(number), limits, started=None, frees=True, now=now))
        sizes.append(len(limiter["starts"]))
    assert max(sizes) <= 100
    assert granted >= 3 * 5000 * 0.9


def test_a_backlog_uses_the_rate_up(globals_: Collection[dict[str, Any]]) -> None:
    """B-58: starts that are known free their place a period later, not earlier and hardly later."""
    clock, limits = Clockwork(globals_), Limits(Rate(10, PERIOD))
    granted = 0
    for number in range(1000):
        now = BEGINNING + timedelta(milliseconds=10 * number)
        token = str(number)
        granted += clock.update(pipelines.take(token, [1], 1, limits, now=now))["last"]["n"]
        clock.update(pipelines.settle(token, limits, started=None, frees=True, now=now))
    assert 95 <= granted <= 100


def test_a_clock_set_back_holds_up_for_a_period_at_most(globals_: Collection[dict[str, Any]]) -> None:
    """B-58: after a failover to a server whose clock is behind, what seems to lie ahead counts as just happened."""
    clock, limits = Clockwork(globals_), Limits(Rate(3, PERIOD))
    clock.update(pipelines.take("before", [1], 3, limits, now=BEGINNING))
    clock.update(pipelines.settle("before", limits, started=None, frees=True, now=BEGINNING))
    back = BEGINNING - timedelta(minutes=5)
    at = [back + timedelta(milliseconds=100 * step) for step in range(15)]
    granted = [
        clock.update(pipelines.take(str(step), [1], 1, limits, now=now))["last"]["n"] for step, now in enumerate(at)
    ]
    assert list(itertools.accumulate(granted))[9] == 0
    assert sum(granted) == 3


# --- set by hand --------------------------------------------------------------------------------


@pytest.fixture
def reactive(mongodb_url: str) -> Iterator[Reactive]:
    """The handle of an app with the task `sync`, of which 10 may start a second, three at a time."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.reactive_mongodb_url = mongodb_url

    def handler(ctx: Any) -> None:
        """Never called here."""

    limits = {"rate_limit": "10/s", "max_concurrency": 3}
    reactive_task(collection="orders", task="sync", **limits)(app.task(handler, name="shop.sync", shared=False))
    app.finalize()
    yield Reactive.of(app)
    Reactive.of(app).runtime.connection.close()


def in_force(reactive: Reactive) -> tuple[Any, ...]:
    """Return rate, concurrency and priority as the status shows them, and which of them are set by hand."""
    [task] = reactive.status().tasks
    return task.rate_limit, task.max_concurrency, task.priority, task.set_by_hand


def test_limits_set_by_hand_are_in_force_until_set_again(reactive: Reactive) -> None:
    """B-58: a value, `unlimited`, and None for what is declared; what is not named stays."""
    assert in_force(reactive) == ("10/s", 3, 4, ())
    reactive.limit("sync", rate="90/m", priority=9)
    assert in_force(reactive) == ("90/m", 3, 9, ("priority", "rate_limit"))
    reactive.limit("sync", rate="unlimited", concurrency=7)
    assert in_force(reactive) == (None, 7, 9, ("priority", "rate_limit", "max_concurrency"))
    reactive.limit("sync", rate=None, concurrency="unlimited", priority=None)
    assert in_force(reactive) == ("10/s", None, 4, ("max_concurrency",))
    reactive.limit("sync", concurrency=None)
    assert in_force(reactive) == ("10/s", 3, 4, ())


def test_wrong_limits_change_nothing(reactive: Reactive) -> None:
    """B-58: all that is wrong is told; an unknown task is an error that lists the known."""
    with pytest.raises(UnknownTaskError, match="'sync'"):
        reactive.limit("synk", rate="10/s")
    with pytest.raises(ConfigurationError) as caught:
        reactive.limit("sync", rate="10/d", concurrency=0, priority=10)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["rate", "concurrency", "priority"]
    with pytest.raises(ConfigurationError, match="expected one of 'rate', 'concurrency', 'priority' at least"):
        reactive.limit("sync")
    assert in_force(reactive) == ("10/s", 3, 4, ())


def test_limits_set_by_hand_are_told_and_leave_the_other_controls(reactive: Reactive) -> None:
    """B-54: an event says what is in force by hand now."""
    told: list[Any] = []

    def listen(event: Any, **_: Any) -> None:
        told.append(event.facts())

    signals.task_limited.connect(listen, sender=reactive.app)
    reactive.pause("sync")
    reactive.limit("sync", rate=0.5)
    assert told == [{"task": "sync", "rate": "1 in 2s", "concurrency": None, "priority": None}]
    assert definitions.read(reactive.runtime.connection.globals(), "sync").paused
