"""The ends of a batch's runs on a real server: each its own, written together (B-60)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from celery_reactive.core.batch import Batch
from celery_reactive.core.message import Named
from celery_reactive.core.outcome import Outcome
from celery_reactive.core.registry import Registry
from celery_reactive.core.states import RecordState
from celery_reactive.errors import ConfigurationError, StatementFailedError, TaskConditionFailedError
from celery_reactive.events import Event, RunDeferred, RunRetried
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store import definitions, documents, records
from celery_reactive.store.connection import Connection
from celery_reactive.worker.batch import outcomes_of_error
from celery_reactive.worker.context import TaskContext
from celery_reactive.worker.execute import execute, outcome_of_error, outcome_of_return
from celery_reactive.worker.run import Run
from tests.integration.bench import Bench
from tests.integration.conftest import MakeBench

Handler = Callable[[list[TaskContext]], Any]


@pytest.fixture
def batch(make_bench: MakeBench) -> Bench:
    """Records of a task with a batch handler."""
    bench = make_bench("shop.batch", batch=Batch(10))
    bench.plan(*({"_id": doc_id, "on": True, "v": doc_id} for doc_id in range(4)))
    return bench


class Caller:
    """Runs a batch with a handler, as the worker does but for Celery."""

    def __init__(self, bench: Bench, connection: Connection, settings: Settings) -> None:
        self._bench = bench
        self.events: list[Event] = []
        self._runtime = Runtime(settings, Registry(), connection, (self.events.append,))
        definitions.define(connection.globals(), bench.task, namespace="shop.orders", collated=False, term=1)

    def call(self, handler: Handler, *doc_ids: int) -> dict[int, tuple[str, int]]:
        """Call *handler* with the documents; return state and attempts of their records."""

        def body(runs: Sequence[Run], contexts: Sequence[TaskContext]) -> Sequence[Outcome]:
            try:
                handler(list(contexts))
            except Exception as error:  # noqa: BLE001 -- what the handler raises is the test's matter
                raised = error
                return outcomes_of_error(runs, raised, lambda run: outcome_of_error(run, raised))
            return [outcome_of_return(run) for run in runs]

        named = [Named(self._bench.key(doc_id), 0) for doc_id in doc_ids]
        execute(self._runtime, self._bench.task, named, body, token="t", worker="w")  # noqa: S106
        return {doc_id: (self._bench.state(doc_id), self._bench.record(doc_id)["attempts"]) for doc_id in doc_ids}

    @property
    def codes(self) -> list[str]:
        """The events that were told, sorted."""
        return sorted(event.code for event in self.events if event.code != "run_started")


@pytest.fixture
def caller(batch: Bench, connection: Connection, settings: Settings) -> Caller:
    """Calls handlers of the batch."""
    return Caller(batch, connection, settings)


def test_all_documents_are_read_and_all_runs_ended_by_one_statement_each(
    batch: Bench, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-60: one bulk read and one bulk finalize."""
    made: list[str] = []
    for module, name in ((documents, "read_together"), (documents, "read"), (records, "settle_together")):
        really = getattr(module, name)

        def noted(*args: Any, _name: str = name, _really: Any = really, **options: Any) -> Any:
            made.append(_name)
            return _really(*args, **options)

        monkeypatch.setattr(module, name, noted)
    got: list[Any] = []
    ends = caller.call(lambda contexts: got.extend(one.get_document()["v"] for one in contexts), *range(4))
    assert got == [0, 1, 2, 3]
    assert set(ends.values()) == {(RecordState.COMPLETED, 1)}
    assert made == ["read_together", "settle_together"]
    assert caller.codes == ["run_finished"] * 4
    assert all(batch.record(doc_id)["lastSuccess"]["durationMs"] > 0 for doc_id in range(4))


def test_different_ends_are_written_together_too(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-60: those that failed or were deferred are one command."""
    commands: list[int] = []
    really = records.settle_each

    def noted(target: Any, task: Any, claims: Sequence[Any], outcomes: Sequence[Any]) -> Any:
        commands.append(len(claims))
        return really(target, task, claims, outcomes)

    monkeypatch.setattr(records, "settle_each", noted)

    def handler(contexts: list[TaskContext]) -> None:
        contexts[0].fail(ValueError("zero"))
        contexts[1].defer_current("1h")
        contexts[2].fail(ValueError("two"))

    assert caller.call(handler, *range(4)) == {
        0: (RecordState.PENDING, 1),
        1: (RecordState.PENDING, 0),
        2: (RecordState.PENDING, 1),
        3: (RecordState.COMPLETED, 1),
    }
    assert commands == [3]
    assert caller.codes == ["run_deferred", "run_finished", "run_retried", "run_retried"]


def test_what_is_told_last_counts(batch: Bench, caller: Caller) -> None:
    """B-60: complete, fail and defer take each other's place."""

    def handler(contexts: list[TaskContext]) -> None:
        contexts[0].fail(ValueError("no"))
        contexts[0].complete()
        contexts[1].complete()
        contexts[1].defer_current("1h")
        contexts[2].defer_current("1h")
        contexts[2].fail(ValueError("yes"))

    ends = caller.call(handler, 0, 1, 2)
    assert [state for state, _ in ends.values()] == ["completed", "pending", "pending"]
    assert [batch.record(doc_id)["lastError"] for doc_id in (0, 1, 2)] == [None, None, "yes"]


def test_a_document_that_is_not_what_its_run_is_for_fails_no_other(batch: Bench, caller: Caller) -> None:
    """B-32, B-60: left uncaught it ends its own run as skipped; the others go back without an attempt spent."""
    batch.delete(1)

    def handler(contexts: list[TaskContext]) -> None:
        for context in contexts:
            context.get_document()

    assert caller.call(handler, 0, 1, 2) == {
        0: (RecordState.PENDING, 0),
        1: (RecordState.COMPLETED, 1),
        2: (RecordState.PENDING, 0),
    }
    assert batch.record(1)["executionHistory"][-1]["status"] == "skipped"


def test_a_document_that_moved_on_gets_its_run_though_the_handler_swallows_it(batch: Bench, caller: Caller) -> None:
    """B-33: never completed over an unhandled state."""
    batch.put({"_id": 1, "on": True, "v": "newer"})

    def handler(contexts: list[TaskContext]) -> None:
        for context in contexts:
            try:
                context.get_document()
            except TaskConditionFailedError:
                continue

    ends = caller.call(handler, 0, 1)
    assert (ends[0][0], ends[1][0]) == (RecordState.COMPLETED, RecordState.PENDING)


def test_a_completed_one_stays_so_when_the_handler_raises(caller: Caller) -> None:
    """B-36, B-60: told by the context, or written by itself before."""

    def handler(contexts: list[TaskContext]) -> None:
        contexts[0].mark_completed()
        contexts[1].complete()
        raise ValueError("late")

    assert caller.call(handler, 0, 1, 2) == {
        0: (RecordState.COMPLETED, 1),
        1: (RecordState.COMPLETED, 1),
        2: (RecordState.PENDING, 1),
    }


def test_one_end_that_cannot_be_stored_takes_no_other_with_it(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-29: it is a failed attempt of its own."""

    def refuse(*_args: Any, **_options: Any) -> Any:
        raise StatementFailedError("too large", code=None)

    monkeypatch.setattr(records, "settle_together", refuse)
    assert set(caller.call(len, 0, 1).values()) == {(RecordState.COMPLETED, 1)}


def test_what_was_written_before_one_could_not_be_is_told_as_it_is(
    batch: Bench, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-29, B-54: a failed record is told of as failed, and the planner learns of one that is due again."""
    settle_each = records.settle_each

    def refuse(*args: Any, **options: Any) -> Any:
        settle_each(*args, **options)
        raise StatementFailedError("another was too large", code=None)

    def handler(contexts: list[TaskContext]) -> None:
        contexts[0].fail(ValueError("broken"))
        contexts[1].fail(ValueError("broken"))
        contexts[2].defer_current(timedelta(seconds=1))

    batch.records.update_one({"_id": batch.key(0).id}, {"$set": {"attempts": 4}})
    monkeypatch.setattr(records, "settle_each", refuse)
    caller.call(handler, 0, 1, 2)
    assert sorted(caller.codes) == ["run_deferred", "run_failed", "run_retried"]
    assert all(event.next_run_at for event in caller.events if isinstance(event, (RunDeferred, RunRetried)))


def test_what_another_owns_by_now_is_not_touched(batch: Bench, caller: Caller) -> None:
    """B-27: the others are written all the same."""

    def handler(contexts: list[TaskContext]) -> None:
        batch.records.update_one({"_id": batch.key(1).id}, {"$set": {"_r.claim.token": "another's"}})
        for context in contexts:
            context.fail(ValueError("broken"))

    assert caller.call(handler, 0, 1, 2)[1] == (RecordState.PROCESSING, 1)
    assert caller.codes == ["lease_lost", "run_retried", "run_retried"]


def test_only_an_exception_can_be_failed_with(caller: Caller) -> None:
    """B-60: anything else is refused, and is then the handler's own error."""
    seen: list[str] = []

    def handler(contexts: list[TaskContext]) -> None:
        with pytest.raises(ConfigurationError) as refused:
            contexts[0].fail("broken")  # type: ignore[arg-type]
        seen.append(str(refused.value))

    assert caller.call(handler, 0) == {0: (RecordState.COMPLETED, 1)}
    assert seen == ["fail: expected an exception, got 'broken'"]
