"""A deletion that is a run of its own (B-61)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from celery_reactive import TaskConditionFailedError
from celery_reactive.core.filters import compile_filter
from celery_reactive.core.message import Named
from celery_reactive.core.outcome import Completed, Errored, Exhausted, Failure, GivenBack, Outcome, Skipped
from celery_reactive.core.policies import CleanupPolicy, DeleteWhen
from celery_reactive.core.record import Claim, RecordKey
from celery_reactive.core.registry import Registry
from celery_reactive.core.states import RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store import definitions, orphans
from celery_reactive.store.connection import Connection
from celery_reactive.store.orphans import Criteria
from celery_reactive.worker.context import TaskContext
from celery_reactive.worker.execute import execute, outcome_of_return
from celery_reactive.worker.run import Run
from tests.integration.bench import TOOK, Bench, Document, each, overtaken
from tests.integration.conftest import MakeBench, MakeDesk
from tests.integration.test_reconcile import reconcile

PENDING, PROCESSING, DIRTY, COMPLETED, FAILED = RecordState
BROKEN = Failure("broken", "ValueError")


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    """A task that is told of deletions, and watches `v` of the documents with `on` set."""
    return make_bench(filter={"on": True}, watch_projection={"v": 1}, on_delete=True)


def document(v: object = 1, **fields: Any) -> Document:
    """Return a document that matches."""
    return {"_id": 1, "on": True, "v": v, **fields}


def delete(bench: Bench) -> None:
    """Delete the document, and plan that."""
    bench.delete(1)
    bench.leave(1, gone=True)


def deletion(bench: Bench) -> Claim:
    """Claim the record, which must be for the deletion."""
    (claim,) = bench.claim(1)
    assert claim.gone
    return claim


def handled(bench: Bench) -> bool:
    """Whether nothing is left to be done, and the cleanup may have the record."""
    return bench.state(1) is COMPLETED and bench.record(1)["_r"].get("deleted") is None and is_orphan(bench)


def is_orphan(bench: Bench) -> bool:
    """Whether the cleanup would remove the record."""
    criteria = Criteria.of(CleanupPolicy(delete_when=DeleteWhen.SOURCE_DOCUMENT_DELETED, keep_for="0s"))
    assert criteria is not None
    with bench.connection.causal_session() as session:
        page = orphans.read(bench.records, bench.task.name, [1], criteria, session=session)
        found = orphans.find(bench.source, bench.records, bench.task, page, criteria, session=session)
    return bool(found)


def test_a_handled_document_that_is_deleted_runs_once(bench: Bench) -> None:
    """B-61: with the last watched values, and once."""
    bench.handle(document("last"))
    delete(bench)
    assert bench.state(1) is PENDING
    assert not is_orphan(bench)
    claim = deletion(bench)
    assert dict(claim.observed["v"]) == {"v": "last"}
    assert bench.complete(claim).state is COMPLETED
    assert handled(bench)


def test_a_deletion_seen_twice_runs_once(bench: Bench) -> None:
    """B-61: a batch that is planned again, and a scan that comes by later, tell of nothing new."""
    bench.handle(document())
    bench.delete(1)
    at = bench.cluster_time()
    bench.leave(1, at=at, gone=True)
    waiting = bench.raw(1)
    bench.leave(1, at=at, gone=True)
    assert bench.raw(1) == waiting
    bench.complete(deletion(bench))
    bench.leave(1, gone=True)
    assert handled(bench)


def test_a_document_without_a_record_has_none(bench: Bench) -> None:
    """B-61: nobody was told of it."""
    delete(bench)
    assert bench.records.count_documents({}) == 0


def test_a_change_and_a_deletion_are_one_run(bench: Bench) -> None:
    """B-61: the document is gone when it begins."""
    bench.plan(document())
    delete(bench)
    bench.complete(deletion(bench))
    assert handled(bench)


@pytest.mark.parametrize(
    "outcome",
    [
        Completed(TOOK, document_checked=True),
        Skipped("the document was deleted", gone=True),
        Errored(BROKEN, TOOK, timedelta(hours=1)),
        Exhausted(BROKEN, TOOK),
        GivenBack(),
    ],
    ids=lambda outcome: type(outcome).__name__,
)
def test_a_deletion_during_a_run_follows_it(bench: Bench, outcome: Outcome) -> None:
    """B-61: whatever the run came to, and whether it saw that the document is gone."""
    claim = bench.start(document())
    assert not claim.gone
    delete(bench)
    assert bench.state(1) is DIRTY
    assert bench.settle(claim, outcome).state is PENDING
    bench.complete(deletion(bench))
    assert handled(bench)


def test_a_deletion_that_a_run_saw_before_the_planner(bench: Bench) -> None:
    """B-61: the run is skipped, and the deletion still has its own."""
    claim = bench.start(document())
    bench.delete(1)
    assert bench.settle(claim, Skipped("the document was deleted", gone=True)).state is COMPLETED
    bench.leave(1, gone=True)
    bench.complete(deletion(bench))
    assert handled(bench)


def test_a_failed_deletion_is_tried_again(bench: Bench) -> None:
    """B-61: its attempts are those of the policy, and each knows what it is for."""
    bench.handle(document())
    delete(bench)
    assert bench.error(deletion(bench)).state is PENDING
    assert not is_orphan(bench)
    bench.make_due(1)
    claim = deletion(bench)
    assert claim.attempt == 2
    bench.exhaust(claim)
    assert bench.state(1) is FAILED
    assert not is_orphan(bench)
    bench.retry(1)
    bench.complete(deletion(bench))
    assert handled(bench)


def test_a_discarded_deletion_is_an_orphan_like_any(bench: Bench) -> None:
    """B-61: nobody wants it any more."""
    bench.handle(document())
    delete(bench)
    bench.discard(1)
    assert handled(bench)


def test_inserted_again_before_it_ran_only_the_insert_runs(bench: Bench) -> None:
    """B-61: one run, and the document is there."""
    bench.handle(document())
    delete(bench)
    (claim,) = [bench.start(document())]
    assert not claim.gone
    assert bench.complete(claim).state is COMPLETED
    assert "deleted" not in bench.record(1)["_r"]


def test_inserted_again_while_it_runs_both_run(bench: Bench) -> None:
    """B-61: the insert runs after the deletion."""
    bench.handle(document())
    delete(bench)
    claim = deletion(bench)
    bench.plan(document(2))
    assert bench.complete(claim).state is PENDING
    (claim,) = bench.claim(1)
    assert not claim.gone
    assert bench.complete(claim).state is COMPLETED


def test_inserted_and_deleted_again_while_it_runs(bench: Bench) -> None:
    """B-61: the second deletion is not taken for the one that ran."""
    bench.handle(document())
    delete(bench)
    claim = deletion(bench)
    bench.plan(document(2))
    delete(bench)
    assert bench.complete(claim).state is PENDING
    assert bench.settle(deletion(bench), GivenBack()).state is PENDING
    bench.complete(deletion(bench))
    assert handled(bench)


def test_inserted_again_outside_the_filter_it_still_runs(bench: Bench) -> None:
    """B-61: nothing else tells the handler that what it knew is gone."""
    bench.handle(document())
    delete(bench)
    bench.plan({"_id": 1, "on": False})
    assert bench.state(1) is PENDING
    bench.complete(deletion(bench))


def test_a_document_that_had_left_runs_when_it_is_deleted(bench: Bench) -> None:
    """B-61: it has a record; leaving the filter alone runs nothing."""
    bench.handle(document())
    bench.plan({"_id": 1, "on": False})
    assert bench.state(1) is COMPLETED
    delete(bench)
    bench.complete(deletion(bench))
    assert handled(bench)


def test_it_is_a_change_like_any_other(make_bench: MakeBench) -> None:
    """B-15, B-16: it begins the attempts anew, and waits for the debounce."""
    slow = make_bench("slow", debounce="1h", on_delete=True)
    slow.plan({"_id": 1})
    slow.make_due(1)
    slow.exhaust(*slow.claim(1))
    slow.delete(1)
    slow.leave(1, gone=True)
    record = slow.record(1)
    assert (record["status"], record["attempts"], record["lastError"]) == ("pending", 0, None)
    assert record["nextRunAt"] > slow.now() + timedelta(minutes=50)
    assert not slow.claim(1)


def test_another_task_is_told_of_nothing(make_bench: MakeBench) -> None:
    """B-8: without the option a deletion runs nothing, and a retry by hand is none."""
    bench = make_bench(watch_projection={"v": 1})
    bench.plan(document())
    delete(bench)
    assert bench.state(1) is COMPLETED
    assert "deleted" not in bench.record(1)["_r"]


def test_the_cleanup_leaves_what_nobody_has_told_of(bench: Bench) -> None:
    """B-61: a document that vanished before its deletion was planned is not cleaned up without its run."""
    bench.handle(document())
    bench.delete(1)
    assert not is_orphan(bench)


@pytest.mark.parametrize("dropped", [False, True])
def test_a_scan_runs_the_deletions_that_were_missed(bench: Bench, make_desk: MakeDesk, *, dropped: bool) -> None:
    """B-49, B-61: unless the collection was dropped: nobody has meant its documents."""
    desk, globals_ = make_desk(bench), bench.connection.globals()
    desk.define()
    assert reconcile(desk)
    bench.handle(document())
    bench.delete(1)
    definitions.mark_unreconciled(globals_, bench.task.name, dropped=dropped, term=1)
    assert reconcile(desk)
    assert bench.record(1)["_r"]["gone"] is True
    assert bench.state(1) is (COMPLETED if dropped else PENDING)
    bench.plan(document())
    bench.complete(*bench.claim(1))
    bench.delete(1)
    definitions.mark_unreconciled(globals_, bench.task.name, term=1)
    assert reconcile(desk)
    assert bench.state(1) is PENDING


def test_a_collection_that_is_not_there_was_dropped(bench: Bench, make_desk: MakeDesk) -> None:
    """B-61: also where nobody has seen that happen, as the history is lost."""
    desk = make_desk(bench)
    desk.define()
    bench.handle(document())
    bench.source.drop()
    assert reconcile(desk)
    assert bench.record(1)["_r"]["gone"] is True
    assert bench.state(1) is COMPLETED


@pytest.mark.parametrize("made_again", [True, False])
def test_a_collection_that_is_dropped_during_a_scan(
    bench: Bench, make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch, *, made_again: bool
) -> None:
    """B-61: the scan began for another reason, and the stream has yet to tell of the drop."""
    desk = make_desk(bench)
    desk.define()
    bench.handle(document())
    lay = desk.planning.apply

    def drop_and_lay(*args: Any, **kwargs: Any) -> set[bytes]:
        bench.source.drop()
        if made_again:
            bench.put({"_id": 2, "on": True, "v": 1})
        return lay(*args, **kwargs)

    monkeypatch.setattr(desk.planning, "apply", drop_and_lay)
    assert reconcile(desk)
    assert bench.state(1) is COMPLETED


def test_a_collection_that_was_dropped_and_made_again(bench: Bench, make_desk: MakeDesk) -> None:
    """B-61: while no planner ran, and the scan that its start wants is faster than the stream."""
    desk = make_desk(bench)
    desk.define()
    bench.handle(document())
    assert reconcile(desk)
    bench.source.drop()
    bench.put({"_id": 2, "on": True, "v": 1})
    definitions.mark_unreconciled(bench.connection.globals(), bench.task.name, term=1)
    assert reconcile(desk)
    assert bench.record(1)["_r"]["gone"] is True
    assert bench.state(1) is COMPLETED
    bench.plan(document())
    bench.complete(*bench.claim(1))
    bench.delete(1)
    definitions.mark_unreconciled(bench.connection.globals(), bench.task.name, term=1)
    assert reconcile(desk)
    assert bench.state(1) is PENDING


def test_a_worker_with_a_newer_definition_runs_it(bench: Bench, connection: Connection, settings: Settings) -> None:
    """B-32, B-61: there is no document that the stored filter could be asked about."""
    bench.handle(document())
    delete(bench)
    stored: dict[str, Any] = {"namespace": "shop.orders", "collated": False, "term": 1}
    definitions.define(connection.globals(), bench.task, **stored)
    other = dataclasses.replace(bench.task, filter=compile_filter({"on": True, "new": 1}))
    assert definitions.define(connection.globals(), other, **stored).generation == 2
    told: list[Any] = []

    def body(run: Run, context: TaskContext) -> Outcome:
        told.append((context.deleted, context.watched_values))
        with pytest.raises(TaskConditionFailedError, match="deleted"):
            context.get_document()
        return outcome_of_return(run)

    runtime = Runtime(settings, Registry(), connection)
    execute(runtime, other, [Named(bench.key(1), 0)], each(body), token="t", worker="w")  # noqa: S106
    assert told == [(True, {"v": 1})]
    assert handled(bench)


@pytest.fixture
def told(connection: Connection, settings: Settings) -> Callable[[ReactiveTask], list[bool]]:
    """Let a worker whose code has a task run the record; return what each call of its handler was told."""

    def run(task: ReactiveTask) -> list[bool]:
        calls: list[bool] = []

        def body(run: Run, context: TaskContext) -> Outcome:
            calls.append(context.deleted)
            return outcome_of_return(run)

        runtime = Runtime(settings, Registry(), connection)
        execute(runtime, task, [Named(RecordKey(task.name, 1), 0)], each(body), token="t", worker="w")  # noqa: S106
        return calls

    return run


def test_a_deletion_that_waits_when_the_option_is_switched_off(
    bench: Bench, connection: Connection, told: Callable[[ReactiveTask], list[bool]]
) -> None:
    """B-8, B-61: nothing runs for a document that is gone, and the cleanup may have the record."""
    bench.handle(document())
    delete(bench)
    off = dataclasses.replace(bench.task, on_delete=False)
    definitions.define(connection.globals(), off, namespace="shop.orders", collated=False, term=1)
    assert told(off) == []
    assert bench.record(1)["executionHistory"][-1]["status"] == "skipped"
    bench.task = off
    assert handled(bench)


def test_a_worker_whose_code_knows_no_deletions_leaves_them_to_others(
    bench: Bench, connection: Connection, told: Callable[[ReactiveTask], list[bool]]
) -> None:
    """B-43, B-61: while two versions of the code are deployed the leader's counts."""
    bench.handle(document())
    delete(bench)
    definitions.define(connection.globals(), bench.task, namespace="shop.orders", collated=False, term=1)
    assert told(dataclasses.replace(bench.task, on_delete=False)) == []
    assert bench.state(1) is PENDING
    assert bench.record(1)["attempts"] == 0
    bench.make_due(1)
    assert told(bench.task) == [True]
    assert handled(bench)


def test_a_deletion_that_is_tried_again_when_the_option_is_switched_off(bench: Bench) -> None:
    """B-61: whoever ends its run, the record waits for nothing more."""
    bench.handle(document())
    delete(bench)
    claim = deletion(bench)
    bench.task = dataclasses.replace(bench.task, on_delete=False)
    assert bench.complete(claim).state is COMPLETED
    assert handled(bench)


def test_inserted_again_outside_the_filter_nothing_runs_after_a_read_of_it(bench: Bench) -> None:
    """B-8, B-61: a run for the deletion has found the new document, which has left before it could run."""
    bench.handle(document())
    delete(bench)
    claim = deletion(bench)
    bench.put(document(2))
    assert bench.settle(claim, overtaken({"v": 2})).state is PENDING
    bench.put({"_id": 1, "on": False})
    bench.leave(1)
    assert bench.state(1) is COMPLETED


def test_inserted_again_and_left_again_nothing_runs(bench: Bench) -> None:
    """B-61: the insert has taken the deletion's place, and then the document is none of the task's."""
    bench.handle(document())
    delete(bench)
    bench.plan(document(2))
    bench.plan({"_id": 1, "on": False})
    assert bench.state(1) is COMPLETED
    assert not bench.claim(1)
