"""What a handler learns of the values that the last completed run was for (B-63)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from celery_reactive import ConfigurationError
from celery_reactive.core.message import Named
from celery_reactive.core.outcome import Outcome
from celery_reactive.core.registry import Registry
from celery_reactive.core.states import RecordState
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store import definitions
from celery_reactive.store.connection import Connection
from celery_reactive.worker.context import TaskContext
from celery_reactive.worker.execute import execute, outcome_of_error, outcome_of_return
from celery_reactive.worker.run import Run
from tests.integration.bench import Bench, Document, each
from tests.integration.conftest import MakeBench

Meanwhile = Callable[[TaskContext], object]
RunAll = Callable[..., list[Any]]


@pytest.fixture
def run_all(connection: Connection, settings: Settings) -> RunAll:
    """Run records as one message; return the changes that each handler was told."""

    def run(bench: Bench, *doc_ids: int, meanwhile: Meanwhile = lambda _ctx: None) -> list[Any]:
        definitions.define(connection.globals(), bench.task, namespace="shop.orders", collated=False, term=1)
        told: list[Any] = []

        def body(run: Run, context: TaskContext) -> Outcome:
            told.append(context.changes)
            try:
                meanwhile(context)
            except ValueError as error:
                return outcome_of_error(run, error)
            return outcome_of_return(run)

        named = [Named(bench.key(doc_id), 0) for doc_id in doc_ids]
        execute(Runtime(settings, Registry(), connection), bench.task, named, each(body), token="t", worker="w")  # noqa: S106
        return told

    return run


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    """A task that watches two paths and tracks them."""
    return make_bench(watch_projection={"v": 1, "a.b": 1}, track_changes=True)


def document(v: object, *, b: object = "same", doc_id: int = 1) -> Document:
    """Return an order."""
    return {"_id": doc_id, "v": v, "a": {"b": b, "unwatched": 1}}


def test_each_watched_path_tells_then_and_now(bench: Bench, run_all: RunAll) -> None:
    """B-63: those that are equal, too; before the first run there is nothing."""
    bench.plan(document(1))
    assert run_all(bench, 1) == [{"v": (None, 1), "a.b": (None, "same")}]
    bench.plan(document(2))
    (changes,) = run_all(bench, 1)
    assert changes == {"v": (1, 2), "a.b": ("same", "same")}
    assert (changes["v"].before, changes["v"].after) == (1, 2)


def test_what_comes_or_goes_has_no_value(bench: Bench, run_all: RunAll) -> None:
    """B-63: a path that only one of the two documents has is told."""
    bench.plan(document(1))
    run_all(bench, 1)
    bench.plan({"_id": 1, "a": {"b": "other"}})
    assert run_all(bench, 1) == [{"v": (1, None), "a.b": ("same", "other")}]


def test_a_whole_document_is_told_by_its_fields(make_bench: MakeBench, run_all: RunAll) -> None:
    """B-63: without a projection."""
    bench = make_bench(track_changes=True)
    bench.plan({"_id": 1, "v": 1})
    run_all(bench, 1)
    bench.plan({"_id": 1, "w": 2})
    assert run_all(bench, 1) == [{"_id": (1, 1), "v": (1, None), "w": (None, 2)}]


def test_a_run_that_failed_has_handled_nothing(bench: Bench, run_all: RunAll) -> None:
    """B-63: its next attempt is told the same, and so is the run for a newer state."""

    def fail(_ctx: TaskContext) -> None:
        raise ValueError

    bench.plan(document(1))
    run_all(bench, 1)
    bench.plan(document(2))
    assert run_all(bench, 1, meanwhile=fail)[0]["v"] == (1, 2)
    bench.make_due(1)
    assert run_all(bench, 1, meanwhile=fail)[0]["v"] == (1, 2)
    bench.plan(document(3))
    assert run_all(bench, 1)[0]["v"] == (1, 3)


def test_a_change_during_the_run_is_told_to_the_next(bench: Bench, run_all: RunAll) -> None:
    """B-63: what a run has handled is what it began with, not what was seen meanwhile."""
    bench.plan(document(1))
    run_all(bench, 1, meanwhile=lambda _ctx: bench.plan(document(2)))
    assert bench.state(1) is RecordState.PENDING
    assert run_all(bench, 1)[0]["v"] == (1, 2)


def test_in_company_and_marked_by_the_handler(bench: Bench, run_all: RunAll) -> None:
    """B-63: however runs end."""
    bench.plan(document(1), document(10, doc_id=2), document(20, doc_id=3))
    run_all(bench, 1, 2, 3, meanwhile=lambda ctx: ctx.mark_completed() if ctx.doc_id == 2 else None)
    bench.plan(document(2), document(11, doc_id=2), document(21, doc_id=3))
    assert [changes["v"] for changes in run_all(bench, 1, 2, 3)] == [(1, 2), (10, 11), (20, 21)]


def test_what_a_record_has_no_room_for_is_not_kept(bench: Bench, run_all: RunAll) -> None:
    """B-20, B-63: a third copy of large values would keep the record, and its company, from being claimed at all."""
    large = "x" * 6_000_000
    told = []
    for number in range(3):
        bench.plan(document(large + str(number)), document(number, doc_id=2))
        told.append([changes["v"] for changes in run_all(bench, 1, 2)])
        assert bench.state(1) is bench.state(2) is RecordState.COMPLETED
    assert [small for _, small in told] == [(None, 0), (0, 1), (1, 2)]
    assert [before and before[-1] for (before, _), _ in told] == [None, "0", None]


def test_values_from_before_the_option_was_switched_off_are_not_told(bench: Bench, run_all: RunAll) -> None:
    """B-63: the last completed run was for others."""
    bench.plan(document(1))
    run_all(bench, 1)
    tracks, bench.task = bench.task, dataclasses.replace(bench.task, track_changes=False)
    bench.handle(document(2))
    bench.task = tracks
    bench.plan(document(3))
    assert run_all(bench, 1)[0]["v"] == (None, 3)


def test_a_task_must_say_so(make_bench: MakeBench, run_all: RunAll) -> None:
    """B-63: nothing is kept otherwise, and asking says what to do."""
    bench = make_bench(watch_projection={"v": 1})
    bench.plan(document(1))
    with pytest.raises(ConfigurationError, match="say track_changes=True in the declaration"):
        run_all(bench, 1)
    bench.make_due(1)
    bench.complete(*bench.claim(1))
    assert "handled" not in bench.record(1)["_r"]
