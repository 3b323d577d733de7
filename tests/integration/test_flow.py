"""What was run within each step of time: every run in exactly one of them, whoever leads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from celery_reactive.core.totals import DURATION, FAILED, SUCCESS, WAIT, Distribution, Totals
from celery_reactive.errors import StoreBusyError
from celery_reactive.metrics.chores import Chores
from celery_reactive.store import counters, flow
from celery_reactive.store.connection import Connection
from celery_reactive.store.flow import Pace

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def counted(**runs: int) -> Totals:
    """Return totals: runs by the name of a task, a tenth of a second each."""
    return Totals(
        {},
        {
            (DURATION, (task, status)): Distribution((0.1, 1.0), (number, 0, 0), number * 0.1)
            for task, number in runs.items()
            for status in (SUCCESS, FAILED)
        },
    )


def runs(connection: Connection, pace: Pace = Pace.MINUTE, task: str | None = None) -> list[int]:
    """Return how many runs each step has."""
    steps = flow.read(connection.globals(), pace, since=LONG_AGO, task=task)
    return [sum(one.count for one in step.totals.distributions.values()) for step in steps]


def let_pass(connection: Connection, span: timedelta) -> None:
    """Let all that is kept be so much older."""
    globals_ = connection.globals()
    for one in list(globals_.find({"_id.k": "flow_base"})):
        globals_.update_one({"_id": one["_id"]}, {"$set": {"at": one["at"] - span}})
    for one in list(globals_.find({"_id.k": "flow"})):
        globals_.delete_one({"_id": one["_id"]})
        globals_.insert_one({**one, "_id": {**one["_id"], "at": one["_id"]["at"] - span}, "since": one["since"] - span})


def test_a_step_holds_what_has_come_since_the_one_before(connection: Connection) -> None:
    """B-57: the first has nothing to compare with; one that is interrupted goes on where it was."""
    globals_ = connection.globals()
    assert not flow.keep(globals_, Pace.MINUTE, counted(sync=5))
    let_pass(connection, timedelta(minutes=1))
    assert flow.keep(globals_, Pace.MINUTE, counted(sync=7, mail=1))
    let_pass(connection, timedelta(minutes=1))
    assert flow.keep(globals_, Pace.MINUTE, counted(sync=7, mail=4))
    assert runs(connection) == [6, 6]
    assert runs(connection, task="sync") == [4, 0]
    assert runs(connection, task="mail") == [2, 6]
    assert runs(connection, task="$all") == [0, 0]
    first, second = flow.read(globals_, Pace.MINUTE, since=LONG_AGO)
    assert first.since < first.until == second.since < second.until
    assert runs(connection, Pace.TEN_MINUTES) == []


def test_counters_that_begin_anew_are_no_runs(connection: Connection) -> None:
    """B-57: after a drop of the globals nothing is below zero."""
    flow.keep(connection.globals(), Pace.MINUTE, counted(sync=5))
    assert not flow.keep(connection.globals(), Pace.MINUTE, counted(sync=2))
    assert flow.keep(connection.globals(), Pace.MINUTE, counted(sync=3))
    assert runs(connection) == [2]


def test_only_what_a_chart_reaches_back_to_is_kept(connection: Connection) -> None:
    """B-57: it does not grow."""
    for number in range(5):
        flow.keep(connection.globals(), Pace.MINUTE, counted(sync=number))
        let_pass(connection, timedelta(minutes=50))
    flow.keep(connection.globals(), Pace.MINUTE, counted(sync=9))
    assert runs(connection) == [2, 2, 10]


def test_of_two_leaders_one_keeps_each_run(connection: Connection) -> None:
    """B-57: planners of two groups do it for all, each when it finds it due."""
    flow.keep(connection.globals(), Pace.MINUTE, counted(sync=0))
    together = threading.Barrier(2)

    def keep(number: int) -> None:
        together.wait(10)
        for _ in range(20):
            try:
                flow.keep(connection.globals(), Pace.MINUTE, counted(sync=number))
            except StoreBusyError:
                continue
            return

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(keep, [3, 3]))
    assert sum(runs(connection)) == 6


def test_the_leader_keeps_a_step_when_it_is_due(connection: Connection) -> None:
    """B-57: once a minute and once in ten, from what processes have pushed."""
    globals_ = connection.globals()
    chores = Chores(connection, (), group="default", term=1, ended=threading.Event())

    def push(seq: int, totals: Totals) -> None:
        counters.push(globals_, "one", totals, seq=seq, push_every=timedelta(minutes=1), first=seq == 1)

    push(1, counted(sync=1))
    assert flow.due(globals_) == [Pace.MINUTE, Pace.TEN_MINUTES]
    chores.keep_the_flow()
    let_pass(connection, timedelta(minutes=10))
    wait: dict[Any, Any] = {(WAIT, ("sync",)): Distribution((1.0,), (7, 0), 1.0)}
    more = counted(sync=4)
    push(2, Totals({}, {**more.distributions, **wait}))
    chores.keep_the_flow()
    assert runs(connection) == runs(connection, Pace.TEN_MINUTES) == [6 + 7]
    assert Pace.TEN_MINUTES not in flow.due(globals_)
