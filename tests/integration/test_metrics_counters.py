"""Counters of many processes: each count once in the sum, whoever comes, goes, is taken for gone or asks twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from celery_reactive.core.totals import Distribution, Totals
from celery_reactive.errors import StoreUnavailableError
from celery_reactive.metrics import chores
from celery_reactive.metrics.catalogue import DURATION, RETRIES, SUCCESS
from celery_reactive.metrics.chores import Chores
from celery_reactive.metrics.counts import Counts
from celery_reactive.metrics.push import Pusher
from celery_reactive.settings import Settings
from celery_reactive.store import counters
from celery_reactive.store.connection import Connection

TASK = "shop.sync"


class Process:
    """What one process has for its counters."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.counts = Counts()
        self.pusher = Pusher(self.counts, connection, settings)

    def count(self, number: int = 1) -> Process:
        """Count *number* retries."""
        self.counts.add(RETRIES, TASK, number=number)
        return self

    def push(self, *, ended: bool = False) -> Process:
        """Push, and expect it to be durable."""
        assert self.pusher.push(ended=ended)
        return self


@pytest.fixture
def start(connection: Connection, settings: Settings) -> Callable[[], Process]:
    """Start a process."""
    return lambda: Process(connection, settings)


@pytest.fixture
def leader(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> Chores:
    """A leader that takes every process for gone that has not pushed since it looked last."""
    monkeypatch.setattr(chores, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(chores, "_INTERVALS", 0)
    return Chores(connection, (), group="default", term=1, ended=threading.Event())


def total(connection: Connection) -> float:
    """Return the retries that all processes have counted."""
    return counters.read(connection.globals(), preference="secondaryPreferred").counters.get((RETRIES.name, (TASK,)), 0)


def stored(connection: Connection, **wanted: Any) -> int:
    """Return how many documents of processes there are."""
    return connection.globals().count_documents({"_id.k": "counted", **wanted})


def test_the_sum_is_that_of_all_processes(connection: Connection, start: Callable[[], Process]) -> None:
    """B-55: any of them answers for the whole system."""
    for number in (1, 2, 3):
        start().count(number).push()
    assert total(connection) == 6


def test_a_push_that_is_repeated_changes_nothing(connection: Connection, start: Callable[[], Process]) -> None:
    """B-55: also one whose answer was lost, and what is not new is not written."""
    process = start().count().push().push()
    [live] = counters.live(connection.globals())
    assert (total(connection), live.seq) == (1, 1)
    process.count().push()
    assert total(connection) == 2


def test_the_counts_of_the_gone_stay(connection: Connection, start: Callable[[], Process], leader: Chores) -> None:
    """B-55: they are added up, and their documents go."""
    start().count(2).push()
    start().count(3).push(ended=True)
    assert leader.retire_the_gone() == 2
    assert total(connection) == 5
    assert stored(connection, retiredAt=None) == 0
    assert leader.retire_the_gone() == 0
    start().count(4).push()
    assert leader.retire_the_gone() == 1
    assert total(connection) == 9


def test_a_process_that_was_taken_for_gone_goes_on(
    connection: Connection, start: Callable[[], Process], leader: Chores
) -> None:
    """B-55: nothing is counted twice, nothing is lost, again and again."""
    process = start().count(5).push()
    for number in range(1, 4):
        leader.retire_the_gone()
        process.count().push()
        assert total(connection) == 5 + number
    assert stored(connection) == 4


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_a_push_in_doubt_when_the_process_is_retired_counts_once(
    connection: Connection,
    start: Callable[[], Process],
    leader: Chores,
    monkeypatch: pytest.MonkeyPatch,
    *,
    applied: bool,
    before: bool,
) -> None:
    """B-55: the tombstone tells whether the push that nobody answered was among what has been added up."""
    process = start()
    if before:
        process.count(10).push()
    with _unanswered(monkeypatch, applied=applied):
        assert not process.count(5).pusher.push()
    leader.retire_the_gone()
    process.count().push()
    assert total(connection) == (16 if before else 6)


@contextmanager
def _unanswered(monkeypatch: pytest.MonkeyPatch, *, applied: bool) -> Iterator[None]:
    """Let a push have no answer, applied or not."""
    push = counters.push

    def lose(*arguments: Any, **options: Any) -> bool:
        if applied:
            push(*arguments, **options)
        raise StoreUnavailableError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(counters, "push", lose)
        yield


def test_a_push_that_comes_between_reading_and_retiring_wins(
    connection: Connection, start: Callable[[], Process]
) -> None:
    """B-55: what was judged by an older state is left alone."""
    process = start().count().push()
    seen = counters.live(connection.globals())
    process.count().push()
    assert counters.retire(connection.globals(), seen) == 0
    assert total(connection) == 2


def test_two_leaders_that_retire_the_same_count_it_once(connection: Connection, start: Callable[[], Process]) -> None:
    """B-55: leaders of two groups, or an old one that woke up."""
    for number in range(1, 21):
        start().count(number).push()
    gone = counters.live(connection.globals())

    def retire(_number: int) -> int:
        try:
            return counters.retire(connection.globals(), gone)
        except StoreUnavailableError:
            return 0

    with ThreadPoolExecutor(4) as threads:
        retired = list(threads.map(retire, range(4)))
    assert sum(retired) == 20
    assert total(connection) == 210


def test_the_sum_never_goes_back_while_processes_come_and_go(
    connection: Connection, start: Callable[[], Process], leader: Chores
) -> None:
    """B-55: whoever reads in between sees every count once; Prometheus would take less for a restart."""
    ended = threading.Event()
    readings: list[float] = []

    def read() -> None:
        while not ended.is_set():
            readings.append(total(connection))

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        try:
            for _ in range(30):
                start().count().push(ended=True)
                leader.retire_the_gone()
        finally:
            ended.set()
        reading.result()
    assert readings == sorted(readings)
    assert total(connection) == 30


def test_tombstones_go_after_a_while(connection: Connection, start: Callable[[], Process], leader: Chores) -> None:
    """B-55: the globals do not grow with every process there ever was; and who comes back later counts on."""
    process = start().count(3).push()
    leader.retire_the_gone()
    start().count(10).push()
    assert counters.forget_tombstones(connection.globals()) == 0
    connection.globals().update_many(
        {"retiredAt": {"$ne": None}}, [{"$set": {"retiredAt": {"$subtract": ["$$NOW", 7 * 3600 * 1000]}}}]
    )
    assert counters.forget_tombstones(connection.globals()) == 1
    process.count().push()
    assert total(connection) == 14


def test_distributions_of_other_buckets_are_added_up(connection: Connection, settings: Settings) -> None:
    """B-55: another version of the package may have counted in others; nothing is lost."""
    series = (DURATION.name, (TASK, SUCCESS))
    old = Totals({}, {series: Distribution((0.5, 2.0, 9000.0), (1, 2, 3, 4), 100.0)})
    push_every = timedelta(seconds=60)
    counters.push(connection.globals(), "old", old, seq=1, push_every=push_every, first=True)
    process = Process(connection, settings)
    process.counts.observe(DURATION, TASK, SUCCESS, value=0.3)
    process.push()
    found = counters.read(connection.globals(), preference="primary").distributions[series].fitted(DURATION.buckets)
    assert sum(found.numbers) == 11
    assert found.sum == pytest.approx(100.3)
    assert sum(found.numbers[: DURATION.buckets.index(0.5) + 1]) == 2
    assert found.numbers[-1] == 7
