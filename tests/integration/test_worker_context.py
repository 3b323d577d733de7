"""The handler's context on a real server: calls done twice, in another order, or with what has no meaning."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from celery_reactive.core.declaration import declare
from celery_reactive.core.message import Named
from celery_reactive.core.outcome import Completed, Deferred, Errored, Failure, GivenBack
from celery_reactive.core.record import Claim
from celery_reactive.core.registry import Registry
from celery_reactive.core.states import RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import ConfigurationError, LeaseLostError, StatementFailedError, TaskConditionFailedError
from celery_reactive.events import Event
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store import definitions, records
from celery_reactive.store.connection import Connection
from celery_reactive.store.records import Records, Settled
from celery_reactive.worker.context import TaskContext
from celery_reactive.worker.execute import confirm_completion, execute, outcome_of_return
from celery_reactive.worker.finalize import finalize
from celery_reactive.worker.run import Run
from tests.integration.bench import Bench


@pytest.fixture
def events() -> list[Event]:
    """What the run has told."""
    return []


@pytest.fixture
def run(bench: Bench, connection: Connection, settings: Settings, events: list[Event]) -> Run:
    """A run of one document."""
    bench.plan({"_id": 1, "on": True, "v": 1, "a": {"b": 1, "c": 2}, "l": [1, 2], "lines": 3})
    (claim,) = bench.claim(1)
    runtime = Runtime(settings, Registry(), connection, (events.append,))
    return Run(runtime, bench.task, claim, sent=time.monotonic(), collated=False)


@pytest.fixture
def context(run: Run) -> TaskContext:
    """Its context."""
    return TaskContext(run, None)


# --- completing ------------------------------------------------------------------------------------


def test_completing_twice_completes_once(context: TaskContext, bench: Bench) -> None:
    """B-36: one's own completion is no lost lease."""
    context.mark_completed()
    context.mark_completed()
    assert len(bench.record(1)["executionHistory"]) == 1


def test_completing_twice_in_a_transaction_does_not_end_it(context: TaskContext, bench: Bench) -> None:
    """B-36: within it, and once more after its commit."""
    with context.client.start_session() as session:
        with session.start_transaction():
            context.mark_completed(session)
            context.mark_completed(session)
        context.mark_completed(session)
        context.mark_completed()
    record = bench.record(1)
    assert (record["status"], len(record["executionHistory"])) == (RecordState.COMPLETED, 1)


def test_a_run_that_was_given_back_is_not_completed_by_itself(context: TaskContext, run: Run, bench: Bench) -> None:
    """B-36: its parent process ended it under the same token, after a transaction of its own was aborted."""
    with context.client.start_session() as session:
        session.start_transaction()
        context.mark_completed(session)
        session.abort_transaction()
        records.settle_by_token(bench.records, bench.task, run.claim.key, run.claim.token, GivenBack())
        session.start_transaction()
        with pytest.raises(LeaseLostError):
            context.mark_completed(session)
        session.abort_transaction()


@pytest.mark.parametrize("commits", [True, False])
def test_a_deferral_beside_a_completion_is_told_to_be_ignored(
    context: TaskContext,
    run: Run,
    events: list[Event],
    commits: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    """B-36: with a warning event where the transaction was committed; after an abort it counts."""
    with context.client.start_session() as session:
        session.start_transaction()
        context.mark_completed(session)
        session.commit_transaction() if commits else session.abort_transaction()
    context.defer_current("1h")
    confirm_completion(run)
    assert isinstance(outcome_of_return(run), Deferred) is not commits
    assert [event.code for event in events] == (["context_misused"] if commits else [])


def test_a_completion_tells_where_it_left_the_record(
    context: TaskContext, run: Run, bench: Bench, events: list[Event]
) -> None:
    """B-26, B-36: a newer state waits, so that the record is pending again at once, and its planner is woken."""
    bench.plan({"_id": 1, "on": True, "v": 2})
    context.mark_completed()
    settled = finalize(run, Completed(timedelta(0)))
    assert settled is not None
    assert (settled.state, settled.next_run_at) == (RecordState.PENDING, bench.record(1)["nextRunAt"])
    assert [(event.code, event.facts()["state"]) for event in events] == [("run_finished", RecordState.PENDING)]


def test_a_completion_after_an_overtaken_read_is_told_as_that(
    context: TaskContext, run: Run, bench: Bench, events: list[Event]
) -> None:
    """B-33: the newer state gets its run."""
    bench.put({"_id": 1, "on": True, "v": 2})
    with pytest.raises(TaskConditionFailedError):
        context.get_document()
    context.mark_completed()
    finalize(run, Completed(timedelta(0)))
    assert bench.state(1) is RecordState.PENDING
    assert [event.code for event in events] == ["run_deferred"]


# --- reading ---------------------------------------------------------------------------------------

WHOLE = {"_id": 1, "on": True, "v": 1, "a": {"b": 1, "c": 2}, "l": [1, 2], "lines": 3}


def without(*fields: str) -> dict[str, Any]:
    """Return the document without some fields."""
    return {field: value for field, value in WHOLE.items() if field not in fields}


@pytest.mark.parametrize(
    ("projection", "expected"),
    [
        (None, WHOLE),
        ({}, WHOLE),
        ({"a": 0}, without("a")),
        ({"a": False, "l": 0}, without("a", "l")),
        ({"a": 0, "_id": 0}, without("a", "_id")),
        ({"a": 0, "_id": 1}, without("a")),
        ({"a.b": 0}, {**WHOLE, "a": {"c": 2}}),
        ({"a": {"b": 0}}, {**WHOLE, "a": {"c": 2}}),
        ({"_id": 0}, without("_id")),
        ({"_id": 1}, {"_id": 1}),
        ({"a": {"b": 1}}, {"_id": 1, "a": {"b": 1}}),
        ({"v": 1, "_id": 0}, {"v": 1}),
        ({"first": {"$first": "$l"}}, {"_id": 1, "first": 1}),
        (["v", "a.c"], {"_id": 1, "v": 1, "a": {"c": 2}}),
        (("v",), {"_id": 1, "v": 1}),
        ([], {"_id": 1}),
    ],
    ids=str,
)
def test_a_projection_gives_what_find_would(context: TaskContext, projection: Any, expected: dict[str, Any]) -> None:
    """B-32: inclusion, exclusion, also of a single field, computed fields, and a list of fields."""
    assert context.get_document(projection) == expected


@pytest.mark.parametrize("projection", ["lines", 5, [1], b"v"], ids=str)
def test_a_projection_that_is_none_is_refused(context: TaskContext, projection: Any) -> None:
    """B-32: a string is no list of fields, though it could be taken for one of letters."""
    with pytest.raises(ConfigurationError, match=r"projection: expected a dict or a list of fields"):
        context.get_document(projection)


# --- deferring -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "until",
    [
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=5))),
    ],
    ids=str,
)
def test_a_time_beyond_the_calendar_is_refused(context: TaskContext, run: Run, until: datetime) -> None:
    """B-34, B-35: with what was expected; the farthest that there is, is a time like any other."""
    for call in (context.defer_current, context.throttle_all):
        with pytest.raises(ConfigurationError, match=r"expected a time within the years 1 to 9999 in UTC"):
            call(until)
    assert run.deferral is None
    context.defer_current(datetime.max.replace(tzinfo=UTC))
    assert run.deferral is not None


# --- what cannot be done ---------------------------------------------------------------------------


def test_a_stored_filter_that_fails_on_the_document_is_a_failed_attempt(
    bench: Bench, connection: Connection, settings: Settings
) -> None:
    """B-32: of a record observed under an older definition, without a call, and without waiting for its lease."""
    globals_ = connection.globals()
    failing = declare(
        bench.task.name,
        {"collection": "orders", "filter": {"$gt": [{"$divide": ["$v", "$w"]}, 1]}, "watch_projection": {"v": 1}},
    )
    for task in (bench.task, failing):
        definitions.define(globals_, task, namespace="shop.orders", collated=False, term=1)
    bench.plan({"_id": 1, "on": True, "v": 1, "w": 0})
    execute(
        Runtime(settings, Registry(), connection, ()),
        bench.task,
        [Named(bench.key(1), 0)],
        lambda _run, _context: pytest.fail("the handler was called"),
        token="t",  # noqa: S106
        worker="bench",
    )
    record = bench.record(1)
    assert (record["status"], record["attempts"]) == (RecordState.PENDING, 1)
    assert "$divide" in record["lastError"]


def test_a_record_with_room_for_little_more_keeps_a_little(
    bench: Bench, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-29: an outcome that does not fit is a failed attempt, told in few words."""
    really = records.settle

    def settle(target: Records, task: ReactiveTask, claim: Claim, outcome: Errored) -> Settled:
        if len(outcome.error.message) + len(outcome.error.traceback) > 300:
            raise StatementFailedError("Resulting document after update is larger than 16777216", code=17419)
        return really(target, task, claim, outcome)

    monkeypatch.setattr(records, "settle", settle)
    error = Failure("m" * 8000, "ValueError", "t" * 16000)
    assert finalize(run, Errored(error, timedelta(seconds=1), timedelta(0))) is not None
    record = bench.record(1)
    assert (record["status"], record["attempts"]) == (RecordState.PENDING, 1)
    assert record["_r"]["error"]["type"] == "StatementFailedError"
