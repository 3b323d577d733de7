"""A reconciliation goes on where it was, begins anew where it must, and tells how far it has come (B-48)."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from bson import Int64, MaxKey, ObjectId, Timestamp

from celery_reactive.core.registry import Registry
from celery_reactive.errors import StoreUnavailableError, TermEndedError
from celery_reactive.events import ReconciliationProgressed
from celery_reactive.management import reconciling
from celery_reactive.planner import reconcile as reconcile_module
from celery_reactive.planner.reconcile import Reconciler
from celery_reactive.runtime import Runtime
from celery_reactive.store import checkpoints, definitions, scans
from celery_reactive.store.checkpoints import Checkpoint, Part, Scanned
from celery_reactive.store.scans import Span
from tests.integration.bench import Bench, Desk
from tests.integration.conftest import MakeBench, MakeDesk

DOCUMENTS = 40
"""Six pages of seven."""


@pytest.fixture
def desk(bench: Bench, make_desk: MakeDesk) -> Desk:
    """A planner's desk for `bench`, whose task is defined, over some documents."""
    desk = make_desk(bench)
    desk.define()
    bench.source.insert_many({"_id": doc_id, "on": True, "v": 1} for doc_id in range(DOCUMENTS))
    return desk


class Leader:
    """Reconciles as the leader of a term does, and notes which documents and records it looks at."""

    def __init__(self, desk: Desk, term: int) -> None:
        self.ended = threading.Event()
        self.reconciler = Reconciler(desk.runtime, desk.planning, group="default", term=term, ended=self.ended)
        self.documents: list[Any] = []
        self.records: list[Any] = []

    def reconcile(self, *, stop_after: int | None = None) -> bool:
        """Reconcile what needs it; stop in good order after so many ids."""
        stopper = self._stopper(stop_after)
        with (
            _noting("next_documents", self.documents, stopper),
            _noting("next_records", self.records, stopper),
        ):
            return self.reconciler.reconcile_needed()

    def _stopper(self, stop_after: int | None) -> Any:
        def look() -> None:
            if stop_after is not None and len(self.documents) + len(self.records) >= stop_after:
                self.ended.set()

        return look


@contextmanager
def _noting(name: str, ids: list[Any], then: Any) -> Iterator[None]:
    original = getattr(scans, name)

    def noting(*args: Any, **kwargs: Any) -> Span | None:
        span: Span | None = original(*args, **kwargs)
        if span is not None:
            ids.extend(range(0 if span.after == scans.START else span.after + 1, span.until + 1))
        then()
        return span

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scans, name, noting)
        yield


@pytest.mark.parametrize("looked_at", [14, DOCUMENTS + 7], ids=["among the documents", "among the records"])
def test_the_next_leader_goes_on_from_the_checkpoint(bench: Bench, desk: Desk, looked_at: int) -> None:
    """B-48: nothing is looked at twice, and nothing is left out."""
    first, second = Leader(desk, 1), Leader(desk, 2)
    first.reconcile(stop_after=looked_at)
    assert second.reconcile()
    assert first.documents + second.documents == list(range(DOCUMENTS))
    assert first.records + second.records == list(range(DOCUMENTS))
    assert bench.records.count_documents({"status": "pending"}) == DOCUMENTS
    assert not second.reconcile()


def test_a_planner_that_vanished_is_followed_from_its_last_checkpoint(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-48: stored after the work, so that at most what came after it is looked at twice."""
    monkeypatch.setattr(reconcile_module, "_CHECKPOINT_SECONDS", 0)
    first, second = Leader(desk, 1), Leader(desk, 2)

    class PowerCutError(Exception):
        """The process is gone."""

    apply = desk.planning.apply

    def apply_or_vanish(task: Any, whose: Any, **options: Any) -> set[bytes]:
        if whose.until > 14:
            raise PowerCutError
        return apply(task, whose, **options)

    desk.planning.apply = apply_or_vanish  # type: ignore[method-assign]
    with pytest.raises(PowerCutError):
        first.reconcile()
    desk.planning.apply = apply  # type: ignore[method-assign]
    second.reconcile()
    assert second.documents == list(range(14, DOCUMENTS))


@pytest.mark.parametrize("change", ["a reason", "a generation", "a task"])
def test_a_checkpoint_is_void_where_anything_is_different(
    bench: Bench, desk: Desk, make_bench: MakeBench, make_desk: MakeDesk, change: str
) -> None:
    """B-48, B-49: what was looked at before a history was lost, or under another definition, is looked at again."""
    Leader(desk, 1).reconcile(stop_after=14)
    benches = [bench]
    match change:
        case "a reason":
            definitions.mark_unreconciled(bench.connection.globals(), bench.task.name, term=1)
        case "a generation":
            benches = [make_bench(filter={"on": True, "v": 1}, watch_projection={"v": 1})]
            benches[0].generation = 2
        case _:
            benches.append(make_bench("shop.index"))
    after = make_desk(*benches)
    after.define(2)
    leader = Leader(after, 2)
    leader.reconcile()
    assert leader.documents == list(range(DOCUMENTS))


def test_a_planner_that_is_stopped_at_the_last_page_has_nothing_left(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-48, B-68: what is done is noted as done."""
    first, second = Leader(desk, 1), Leader(desk, 2)
    read = scans.next_records

    def read_and_stop(*args: Any, **options: Any) -> Span | None:
        span = read(*args, **options)
        if span is None:
            first.ended.set()
        return span

    monkeypatch.setattr(scans, "next_records", read_and_stop)
    assert first.reconcile()
    assert not second.reconcile()


def test_a_reason_that_comes_during_a_reconciliation_makes_another(bench: Bench, desk: Desk) -> None:
    """B-48, B-49: what it looked at before that reason is not done."""
    globals_ = bench.connection.globals()
    leader = Leader(desk, 1)
    apply = desk.planning.apply

    def apply_and_lose_history(*args: Any, **options: Any) -> set[bytes]:
        desk.planning.apply = apply  # type: ignore[method-assign]
        definitions.mark_unreconciled(globals_, bench.task.name, term=1)
        return apply(*args, **options)

    desk.planning.apply = apply_and_lose_history  # type: ignore[method-assign]
    leader.reconcile()
    assert definitions.read(globals_, bench.task.name).reconciled_generation == 0
    assert leader.reconcile()
    assert leader.documents == [*range(DOCUMENTS), *range(DOCUMENTS)]
    assert definitions.read(globals_, bench.task.name).reconciled_generation == 1


MANY = 300
"""Documents that are walked in two parts."""


@pytest.fixture
def many(bench: Bench, desk: Desk) -> Desk:
    """As `desk`, over so many documents that they are walked in parts."""
    bench.source.insert_many({"_id": doc_id, "on": True, "v": 1} for doc_id in range(DOCUMENTS, MANY))
    return desk


@pytest.mark.parametrize("looked_at", [100, MANY + 100], ids=["among the documents", "among the records"])
def test_two_parts_are_walked_at_once_and_each_goes_on_where_it_was(bench: Bench, many: Desk, looked_at: int) -> None:
    """B-48: nothing is looked at twice, and nothing is left out."""
    first, second = Leader(many, 1), Leader(many, 2)
    first.reconcile(stop_after=looked_at)
    stored = checkpoints.read(bench.connection.globals(), "default", bench.source.database.name, "orders")
    assert stored is not None
    assert len(stored.parts) == 2
    assert stored.done == len(first.documents) + len(first.records)
    assert second.reconcile()
    assert sorted(first.documents + second.documents) == list(range(MANY))
    assert sorted(first.records + second.records) == list(range(MANY))
    assert bench.records.count_documents({"status": "pending"}) == MANY
    assert not second.reconcile()


def test_a_release_that_knows_no_parts_goes_on_through_all_of_them(bench: Bench, many: Desk) -> None:
    """B-48: and what it leaves of them is no longer taken for true."""
    globals_, place = bench.connection.globals(), ("default", bench.source.database.name, "orders")
    first, second = Leader(many, 1), Leader(many, 2)
    first.reconcile(stop_after=100)
    stored = checkpoints.read(globals_, *place)
    assert stored is not None
    assert stored.after == stored.parts[0].after < stored.parts[1].after
    globals_.update_one({"_id.k": "reconciliation"}, {"$set": {"after": stored.parts[1].after}})
    second.reconcile()
    assert second.documents == list(range(stored.parts[1].after + 1, MANY))


def test_what_fails_in_one_part_ends_the_other(many: Desk) -> None:
    """B-48: the next attempt goes on from what both had done."""
    leader = Leader(many, 1)
    apply = many.planning.apply

    def apply_or_fail(task: Any, whose: Any, **options: Any) -> set[bytes]:
        if whose.until == MANY - 1:
            raise StoreUnavailableError("it is away")
        return apply(task, whose, **options)

    many.planning.apply = apply_or_fail  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailableError):
        leader.reconcile()
    many.planning.apply = apply  # type: ignore[method-assign]
    assert leader.reconcile()
    assert {*leader.documents} == {*range(MANY)}
    assert not [thread for thread in threading.enumerate() if "MainThread 2" in thread.name]


@pytest.mark.parametrize("after", [1, Int64(2**40), "$x", {"a.b": 1}, None, ObjectId(), MaxKey(), scans.START])
def test_a_checkpoint_is_read_as_it_was_stored(bench: Bench, after: Any) -> None:
    """B-19, B-48: an id is data, of every type."""
    globals_ = bench.connection.globals()
    whole = Checkpoint((Scanned("$task", 3, 2),), Timestamp(7, 1), "$task", after, 5, 9)
    parted = dataclasses.replace(whole, parts=(Part(after, "$y"), Part("$y", scans.END)))
    for stored in (whole, parted, whole):
        checkpoints.store(globals_, "default", "db", "orders", stored, term=1)
        assert checkpoints.read(globals_, "default", "db", "orders") == stored
    assert checkpoints.read(globals_, "other", "db", "orders") is None


def test_a_checkpoint_of_an_old_term_is_refused(bench: Bench) -> None:
    """B-46, B-48: a paused leader that wakes up moves nobody's checkpoint, and forgets none."""
    globals_ = bench.connection.globals()
    newer = Checkpoint((Scanned("task", 1, 0),), Timestamp(7, 1), "", 20, 20, 40)
    checkpoints.store(globals_, "default", "db", "orders", newer, term=2)
    older = Checkpoint((Scanned("task", 1, 0),), Timestamp(7, 1), "", 10, 10, 40)
    with pytest.raises(TermEndedError):
        checkpoints.store(globals_, "default", "db", "orders", older, term=1)
    checkpoints.clear(globals_, "default", "db", "orders", term=1)
    assert checkpoints.read(globals_, "default", "db", "orders") == newer


def test_progress_is_told(bench: Bench, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-48: in events, and for everybody who asks; done and total count documents and records."""
    monkeypatch.setattr(reconcile_module, "_TELL_SECONDS", 0)
    leader = Leader(desk, 1)
    leader.reconcile(stop_after=14)
    registry = Registry()
    registry.add(bench.task, celery_name=bench.task.name)
    runtime = Runtime(desk.runtime.settings, registry, bench.connection)
    (under_way,) = reconciling.under_way(runtime, group="default")
    assert (under_way.namespace, under_way.tasks) == (f"{bench.source.full_name}", (bench.task.name,))
    assert (under_way.done, under_way.total) == (14, DOCUMENTS)
    told = [event for event in desk.events if isinstance(event, ReconciliationProgressed)]
    assert [event.done for event in told] == [7, 14]
    assert all(event.total == DOCUMENTS and event.per_second > 0 for event in told)
    Leader(desk, 2).reconcile()
    assert reconciling.under_way(runtime, group="default") == ()


def test_a_reconciliation_can_be_asked_for(bench: Bench, desk: Desk) -> None:
    """B-48, B-50: of one task or of all; the leader sees it in what is stored."""
    registry = Registry()
    registry.add(bench.task, celery_name=bench.task.name)
    runtime = Runtime(desk.runtime.settings, registry, bench.connection)
    leader = Leader(desk, 1)
    leader.reconcile()
    for names in ([], [bench.task.name]):
        bench.records.delete_many({})
        reconciling.request(runtime, names)
        assert reconciling.waiting(runtime, names) == [bench.task.name]
        assert leader.reconcile()
        assert reconciling.waiting(runtime, names) == []
        assert bench.records.count_documents({"status": "pending"}) == DOCUMENTS
