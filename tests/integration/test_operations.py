"""Bulk work that goes on whoever began it: tracked, cancelled, taken over, and never more than was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from celery_reactive import Reactive, signals
from celery_reactive.core.states import RecordState
from celery_reactive.errors import ConfigurationError, StoreUnavailableError, UnknownTaskError
from celery_reactive.management import operations
from celery_reactive.management.operations import Action
from celery_reactive.store.operations import OperationState, take
from tests.integration.bench import Bench
from tests.integration.shop import on, shop_app

FAILED, PENDING = RecordState.FAILED, RecordState.PENDING


@pytest.fixture
def reactive(mongodb_url: str) -> Iterator[Reactive]:
    """The handle of an app whose tasks `sync` and `index` watch orders, in pages of three."""
    with shop_app(mongodb_url, sync="orders", index="orders") as app:
        app.finalize()
        yield Reactive.of(app)


@pytest.fixture
def sync(reactive: Reactive) -> Bench:
    """A workbench for the records of `sync`."""
    return Bench(reactive.runtime.connection, reactive.registry.get("sync"))


@pytest.fixture
def index(reactive: Reactive) -> Bench:
    """A workbench for the records of `index`."""
    return Bench(reactive.runtime.connection, reactive.registry.get("index"))


def fail(bench: Bench, *doc_ids: Any) -> None:
    """Let the runs of documents fail for good."""
    for doc_id in doc_ids:
        bench.exhaust(bench.start(on(doc_id)))


def run(reactive: Reactive, operation: operations.Operation, **options: Any) -> operations.Operation:
    """Run an operation in this process."""
    return operations.run(reactive.runtime, operation.id, runner="test", **options)


def in_state(bench: Bench, state: RecordState) -> list[Any]:
    """Return the ids of the documents whose records are in a state."""
    return [record["sourceDocId"] for record in bench.records.find({"status": state.value, "task": bench.task.name})]


def stand_still(reactive: Reactive, operation: operations.Operation) -> None:
    """Let an operation have stood still for a minute: whoever ran it has vanished."""
    reactive.runtime.connection.globals().update_one(
        {"_id.o": operation.id}, [{"$set": {"updatedAt": {"$subtract": ["$$NOW", 60_000]}}}]
    )


def test_an_operation_does_what_the_simple_call_does(reactive: Reactive, sync: Bench, index: Bench) -> None:
    """B-51: every record that was meant, no other, and the counts say so."""
    fail(sync, *range(7))
    fail(index, 1, 2)
    sync.handle(on("done"))
    begun = reactive.start_operation("retry", task="sync", status="failed", by="ann")
    assert (begun.state, begun.total, begun.by, begun.is_stalled) == (OperationState.RUNNING, 7, "ann", True)
    ended = run(reactive, begun)
    assert (ended.state, ended.looked, ended.changed) == (OperationState.DONE, 7, 7)
    assert ended.ended_at is not None
    assert sorted(in_state(sync, PENDING)) == list(range(7))
    assert sorted(in_state(index, FAILED)) == [1, 2]
    assert sync.state("done") is RecordState.COMPLETED


def test_an_operation_by_source_takes_all_tasks_of_a_document(reactive: Reactive, sync: Bench, index: Bench) -> None:
    """B-51: in batches of documents' ids, whatever their types."""
    for doc_id in (None, 1, "a", 2.5, [1]):
        document = on(doc_id, paid=doc_id != 1)
        if not isinstance(doc_id, list):
            sync.plan(document)
            index.plan(document)
    ended = run(reactive, reactive.start_operation("discard", task=["sync", "index"], source={"paid": True}))
    assert (ended.state, ended.total, ended.looked, ended.changed) == (OperationState.DONE, 3, 3, 6)
    assert in_state(sync, PENDING) == in_state(index, PENDING) == [1]


def test_a_purge_is_an_operation_too(reactive: Reactive, sync: Bench) -> None:
    """B-41: records of deleted documents, page by page."""
    for number in range(5):
        sync.handle(on(number))
        sync.leave(number, at=sync.delete(number), gone=True)
    sync.handle(on("stays"))
    ended = run(reactive, reactive.start_operation("purge", task="sync", gone=True))
    assert (ended.action, ended.state, ended.total, ended.changed) == (Action.PURGE, OperationState.DONE, 5, 5)
    assert sync.records.count_documents({}) == 1


def test_the_age_of_a_purge_is_kept_as_a_duration(
    reactive: Reactive, sync: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """B-41: a bare number would be warned of, though nobody wrote one."""
    begun = reactive.start_operation("purge", task="sync", gone=True, older_than=timedelta(days=30))
    assert begun.asked["older_than"] == "30d"
    assert run(reactive, begun).changed == sync.records.count_documents({}) == 0
    assert "bare number" not in caplog.text


def test_what_a_vanished_process_began_is_gone_on_with(reactive: Reactive, sync: Bench) -> None:
    """B-51: the leader takes it up where it stopped, and nothing is left out."""
    fail(sync, *range(8))
    begun = operations.start(reactive.runtime, "retry", {"status": "failed"}, runner="mine")
    operations.run(reactive.runtime, begun.id, runner="mine", should_stop=lambda: True)
    assert len(in_state(sync, PENDING)) == 3
    assert operations.resume_stalled(reactive.runtime, lambda: False) == 0
    stand_still(reactive, begun)
    assert operations.get(reactive.runtime, begun.id).is_stalled
    assert operations.resume_stalled(reactive.runtime, lambda: False) == 1
    ended = reactive.operation(begun.id)
    assert (ended.state, ended.looked, ended.changed) == (OperationState.DONE, 8, 8)
    assert in_state(sync, FAILED) == []


def test_by_source_it_is_gone_on_with_after_the_last_document(reactive: Reactive, sync: Bench) -> None:
    """B-51: no document twice, none left out, over all types of ids."""
    ids = [1, 2.5, 3, "a", "b", "c", "d"]
    sync.plan(*(on(doc_id) for doc_id in ids))
    begun = reactive.start_operation("discard", source={"on": True})
    run(reactive, begun, should_stop=lambda: True)
    stand_still(reactive, begun)
    operations.resume_stalled(reactive.runtime, lambda: False)
    ended = reactive.operation(begun.id)
    assert (ended.looked, ended.changed) == (7, 7)


def test_a_page_that_was_done_and_not_noted_is_done_again(
    reactive: Reactive, sync: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-51: a process dies between the two; no record is retried twice."""
    fail(sync, *range(4))
    begun = reactive.start_operation("retry", status="failed")

    def away(*_: Any, **__: Any) -> bool:
        raise StoreUnavailableError("gone")

    with monkeypatch.context() as patch:
        patch.setattr("celery_reactive.store.operations.advance", away)
        with pytest.raises(StoreUnavailableError):
            run(reactive, begun)
    cycles = [sync.record(number)["_r"]["cycle"] for number in range(4)]
    stand_still(reactive, begun)
    operations.resume_stalled(reactive.runtime, lambda: False)
    assert reactive.operation(begun.id).state is OperationState.DONE
    assert [sync.record(number)["_r"]["cycle"] for number in range(3)] == cycles[:3]
    assert in_state(sync, FAILED) == []


def test_a_cancelled_operation_stops_after_its_page(reactive: Reactive, sync: Bench) -> None:
    """B-51: what it has changed stays changed; cancelling twice is no error."""
    fail(sync, *range(7))
    begun = reactive.start_operation("retry", status="failed")
    run(reactive, begun, on_progress=lambda seen: reactive.cancel_operation(seen.id))
    ended = reactive.operation(begun.id)
    assert ended.state is OperationState.CANCELLED
    assert len(in_state(sync, PENDING)) in {3, 6}
    assert reactive.cancel_operation(begun.id) is False
    stand_still(reactive, begun)
    assert operations.resume_stalled(reactive.runtime, lambda: False) == 0


def test_what_has_ended_is_not_run_again(reactive: Reactive, sync: Bench) -> None:
    """B-51: whoever holds it, and whatever has failed since."""
    fail(sync, 1)
    begun = reactive.start_operation("retry", status="failed")
    run(reactive, begun)
    (claim,) = sync.claim(1)
    sync.exhaust(claim)
    stand_still(reactive, begun)
    assert run(reactive, begun).changed == 1
    assert in_state(sync, FAILED) == [1]


def test_what_has_ended_is_nobodys_to_take(reactive: Reactive, sync: Bench) -> None:
    """B-51: not even its own runner's."""
    fail(sync, 1)
    operation = reactive.start_operation("retry", status="failed")
    run(reactive, operation)
    stand_still(reactive, operation)
    globals_ = reactive.runtime.connection.globals()
    assert take(globals_, operation.id, "another/1") is None
    assert reactive.operation(operation.id).changed == 1


def test_what_somebody_runs_is_not_run_by_another(reactive: Reactive, sync: Bench) -> None:
    """B-51: as long as it goes on."""
    fail(sync, 1)
    begun = operations.start(reactive.runtime, "retry", {"status": "failed"}, runner="mine")
    assert run(reactive, begun).state is OperationState.RUNNING
    assert in_state(sync, FAILED) == [1]


def test_of_two_runners_the_older_one_stops(reactive: Reactive, sync: Bench) -> None:
    """B-51: a paused process wakes up when another has gone on; no record is counted twice."""
    fail(sync, *range(9))
    begun = reactive.start_operation("retry", status="failed")
    overtaken: list[int] = []

    def overtake(_: operations.Operation) -> None:
        if not overtaken:
            overtaken.append(1)
            stand_still(reactive, begun)
            operations.run(reactive.runtime, begun.id, runner="other")

    run(reactive, begun, on_progress=overtake)
    ended = reactive.operation(begun.id)
    assert (ended.state, ended.changed) == (OperationState.DONE, 9)


def test_a_limit_is_the_most_that_is_changed(reactive: Reactive, sync: Bench) -> None:
    """B-51: also across pages, and where records in between do not count."""
    fail(sync, *range(8))
    ended = run(reactive, reactive.start_operation("retry", status="failed", limit=5))
    assert (ended.state, ended.changed) == (OperationState.DONE, 5)
    assert len(in_state(sync, FAILED)) == 3


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"action": "retry"}, "all=True"),
        ({"action": "retri", "all": True}, "did you mean 'retry'"),
        ({"action": "retry", "statuss": "failed"}, "did you mean 'status'"),
        ({"action": "purge", "task": "sync"}, "expected gone or left"),
        ({"action": "purge", "gone": True}, "expected the name of a task"),
        ({"action": "purge", "task": "sync", "gonee": True}, "did you mean 'gone'"),
        ({"action": "retry", "status": "failed", "limit": 0}, "limit"),
    ],
)
def test_what_has_no_meaning_begins_nothing(reactive: Reactive, asked: dict[str, Any], problem: str) -> None:
    """B-51: with the right spelling, and nothing was written."""
    with pytest.raises(ConfigurationError, match=problem):
        reactive.start_operation(**asked)
    assert reactive.operations() == []


def test_unknown_tasks_and_operations_are_refused(reactive: Reactive) -> None:
    """B-52: an unknown task lists the known."""
    with pytest.raises(UnknownTaskError, match="index, sync"):
        reactive.start_operation("retry", task="nothing")
    with pytest.raises(ConfigurationError, match="expected the id of an operation"):
        reactive.operation("nothing")
    with pytest.raises(ConfigurationError, match="expected the id of an operation"):
        reactive.cancel_operation("nothing")


@pytest.mark.parametrize("doc_id", [None, {"$in": [1, 2]}, "$v", [1]], ids=repr)
def test_an_id_stays_an_id(reactive: Reactive, sync: Bench, doc_id: Any) -> None:
    """B-51: stored and read again, it means no more than it says."""
    sync.plan(on(1), on(2))
    assert run(reactive, reactive.start_operation("discard", doc_id=doc_id)).changed == 0


def test_a_pattern_survives_being_stored(reactive: Reactive, sync: Bench) -> None:
    """B-51: with its flags."""
    sync.exhaust(sync.start(on(1)))
    ended = run(reactive, reactive.start_operation("retry", error=re.compile("^BROK", re.IGNORECASE)))
    assert ended.changed == 1


def test_a_query_that_the_server_refuses_later_fails_the_operation(
    reactive: Reactive, sync: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-51: the error is kept, and nobody tries it for ever."""
    sync.plan(on(1))
    monkeypatch.setattr("celery_reactive.store.queries.count_documents", lambda *_: 1)
    ended = run(reactive, reactive.start_operation("retry", task="sync", source={"$expr": {"$nonsense": 1}}))
    assert ended.state is OperationState.FAILED
    assert "nonsense" in str(ended.error)


def test_what_other_code_declares_is_left_to_it(reactive: Reactive, sync: Bench) -> None:
    """B-51: a planner without the task does not fail the operation."""
    fail(sync, 1)
    begun = reactive.start_operation("retry", task="sync")
    globals_ = reactive.runtime.connection.globals()
    globals_.update_one({"_id.o": begun.id}, {"$set": {"asked": '{"task": ["theirs"]}'}})
    assert operations.resume_stalled(reactive.runtime, lambda: False) == 0
    assert reactive.operation(begun.id).state is OperationState.RUNNING


def test_operations_are_listed_the_newest_first_and_forgotten_after_a_week(reactive: Reactive, sync: Bench) -> None:
    """B-51: running ones are never forgotten."""
    sync.plan(on(1))
    ids = [reactive.start_operation("retry", task="sync").id for _ in range(3)]
    assert reactive.operations()[0].id == ids[-1]
    assert len(reactive.operations(limit=2)) == 2
    run(reactive, reactive.operation(ids[0]))
    assert {one.id for one in reactive.operations(running=True)} == set(ids[1:])
    globals_ = reactive.runtime.connection.globals()
    old = {"$subtract": ["$$NOW", 8 * 24 * 3600 * 1000]}
    globals_.update_many({"_id.k": "operation"}, [{"$set": {"endedAt": {"$cond": ["$endedAt", old, "$endedAt"]}}}])
    run(reactive, reactive.operation(ids[1]))
    globals_.insert_one({"_id": {"k": "task", "t": "sync"}})
    newest = reactive.start_operation("retry", task="sync").id
    assert {one.id for one in reactive.operations()} == {*ids[1:], newest}
    assert globals_.count_documents({"_id.k": "task"}) == 1


def test_what_an_operation_changed_is_told_as_an_event(reactive: Reactive, sync: Bench) -> None:
    """B-54: once for each task."""
    fail(sync, *range(4))
    told: list[tuple[str, str, int]] = []

    def listen(event: Any, **_: Any) -> None:
        told.append((event.action, event.task, event.records))

    signals.manual_action.connect(listen, sender=reactive.app, weak=False)
    run(reactive, reactive.start_operation("retry", status="failed"))
    assert told == [("retry", "sync", 4)]
