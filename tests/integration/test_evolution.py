"""Definitions change while records live on: what runs again, and what does not (B-43 to B-45)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from bson import Timestamp

from celery_reactive.core.declaration import declare
from celery_reactive.core.message import Named
from celery_reactive.core.outcome import Completed, Deferred, Outcome
from celery_reactive.core.registry import Registry
from celery_reactive.core.states import RecordState
from celery_reactive.errors import TaskConditionFailedError, TermEndedError
from celery_reactive.events import Event, ReprocessingFinished
from celery_reactive.planner import process
from celery_reactive.planner.evolve import Evolver
from celery_reactive.planner.plan import Planning
from celery_reactive.planner.reconcile import Reconciler
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store import definitions, pipelines, positions
from celery_reactive.store.change_stream import Change, ChangeKind
from celery_reactive.store.connection import Connection
from celery_reactive.store.positions import Position
from celery_reactive.worker.context import TaskContext
from celery_reactive.worker.execute import execute
from celery_reactive.worker.run import Run
from tests.integration.bench import TOOK, Bench, Document, each

NAME = "shop.sync"
FIRST = {"_id": 1, "on": True, "v": "first", "w": "other"}


class Deployment:
    """One version of the code: its leader's planning, and a workbench of its workers."""

    def __init__(self, connection: Connection, settings: Settings, term: int, options: dict[str, Any]) -> None:
        self.term = term
        self.task = declare(NAME, {"collection": "orders", "debounce": 0, **options})
        self.events: list[Event] = []
        registry = Registry()
        registry.add(self.task, celery_name=NAME)
        self.runtime = Runtime(settings, registry, connection, (self.events.append,))
        (self.planned,) = process._define(self.runtime, [self.task], term)
        self.planning = Planning(self.runtime, [self.planned])
        self.bench = Bench(connection, self.task)
        self.bench.generation = self.planned.generation

    def reconcile(self) -> bool:
        """Reconcile if that is needed."""
        ended = threading.Event()
        return Reconciler(self.runtime, self.planning, group="default", term=self.term, ended=ended).reconcile_needed()

    def evolve(self, ended: threading.Event | None = None) -> bool:
        """Reset what the handler's version asks for."""
        evolver = Evolver(self.runtime, [self.planned], term=self.term, ended=ended or threading.Event())
        return evolver.evolve()

    def see(self, document: Document) -> None:
        """Write a document, and plan the change as the stream tells it."""
        at = self.bench.put(document)
        self.planning.plan_changes([Change(ChangeKind.WRITTEN, "orders", document["_id"])], at=at)

    def run(self, doc_id: Any, handler: Callable[[TaskContext], None]) -> None:
        """Run a record as a worker with this code does."""

        def body(run: Run, context: TaskContext) -> Outcome:
            handler(context)
            return Completed(TOOK, document_checked=run.document_checked)

        named = [Named(self.bench.key(doc_id), 0)]
        execute(self.runtime, self.task, named, each(body), token=f"run of {doc_id} in {self.term}", worker="bench")

    def handle(self, document: Document) -> None:
        """Write, plan and handle a document."""
        self.see(document)
        self.bench.complete(self.bench.claim(document["_id"])[0])


Deploy = Callable[..., Deployment]


@pytest.fixture
def deploy(connection: Connection, settings: Settings) -> Deploy:
    """Deploy the code with a declaration: the next leader defines it."""
    terms = iter(range(1, 100))

    def make(**options: Any) -> Deployment:
        return Deployment(connection, settings, next(terms), {"watch_projection": {"v": 1}, **options})

    return make


# --- filter and projection ----------------------------------------------------------------------------


def test_the_same_definition_is_the_same_generation(deploy: Deploy) -> None:
    """B-43: a restart reconciles nothing."""
    one = deploy()
    assert one.reconcile()
    again = deploy()
    assert again.planned.generation == one.planned.generation == 1
    assert not again.reconcile()


@pytest.mark.parametrize("way", ["by the scan", "by an event"])
def test_a_new_projection_alone_runs_nothing(deploy: Deploy, way: str) -> None:
    """B-43: where nothing changed under the old one, the record gets its new snapshot and stays as it is."""
    before = deploy()
    before.handle(FIRST)
    handled = before.bench.record(1)
    after = deploy(watch_projection={"v": 1, "w": 1})
    assert after.planned.generation == 2
    if way == "by the scan":
        after.reconcile()
    else:
        after.see(FIRST)
    record = after.bench.record(1)
    assert record["lastObservedValues"] == {"v": "first", "w": "other"}
    assert record["_r"]["gen"] == 2
    unread = {"lastObservedValues", "_r"}
    assert {k: v for k, v in record.items() if k not in unread} == {k: v for k, v in handled.items() if k not in unread}
    after.see({**FIRST, "w": "new"})
    assert after.bench.state(1) is RecordState.PENDING


@pytest.mark.parametrize("way", ["by the scan", "by an event"])
def test_what_changed_meanwhile_runs(deploy: Deploy, way: str) -> None:
    """B-43, B-45: a change that nobody saw, under the projection of the record's own generation."""
    before = deploy()
    before.handle(FIRST)
    after = deploy(watch_projection={"w": 1, "v": 1})
    if way == "by the scan":
        after.bench.put({**FIRST, "v": "second"})
        after.reconcile()
    else:
        after.see({**FIRST, "v": "second"})
    assert after.bench.state(1) is RecordState.PENDING
    assert after.bench.record(1)["lastObservedValues"] == {"w": "other", "v": "second"}


def test_a_generation_no_longer_known_counts_as_different(deploy: Deploy, connection: Connection) -> None:
    """B-43: nobody can tell, and one run too many is right."""
    deploy().handle({"_id": 1, "v": "first"})
    projection = {"v": 1, "not there": 1}
    deploy(watch_projection=projection)
    connection.globals().update_one({"_id": {"k": "task", "t": NAME}}, {"$unset": {"past": 1}})
    after = deploy(watch_projection=projection)
    after.reconcile()
    assert after.bench.state(1) is RecordState.PENDING
    assert after.bench.record(1)["lastObservedValues"] == {"v": "first"}


def test_only_so_many_generations_are_kept(deploy: Deploy, connection: Connection) -> None:
    """B-43: without a scan in between they would pile up; done, only those with the present projection stay."""
    for number in range(15):
        deployed = deploy(watch_projection={f"v{number}": 1})
    stored = definitions.read(connection.globals(), NAME)
    assert [generation for generation, _ in stored.past] == list(range(5, 15))
    deployed.reconcile()
    assert definitions.read(connection.globals(), NAME).past == ()


def test_an_earlier_projection_that_fails_counts_as_different(deploy: Deploy) -> None:
    """B-20, B-43: one document where it fails does not keep the others from being told."""
    before = deploy(watch_projection={"r": {"$divide": [1, "$n"]}})
    for doc_id in range(10):
        before.handle({"_id": doc_id, "n": 1})
    before.bench.put({"_id": 4, "n": 0})
    after = deploy(watch_projection={"n": 1})
    after.reconcile()
    states = {record["sourceDocId"]: record["status"] for record in after.bench.records.find()}
    assert states == {doc_id: "pending" if doc_id == 4 else "completed" for doc_id in range(10)}


def test_a_widened_filter_back_fills(deploy: Deploy) -> None:
    """B-43: what matches now for the first time runs; what matched before does not."""
    before = deploy(filter={"on": True})
    before.handle(FIRST)
    before.see({**FIRST, "_id": 2, "on": False})
    after = deploy(filter={})
    after.reconcile()
    assert after.bench.state(1) is RecordState.COMPLETED
    assert after.bench.state(2) is RecordState.PENDING


@pytest.mark.parametrize("change", ["nothing", "a projection", "a wider filter"])
def test_without_back_fill_what_comes_between_two_leaders_runs(
    deploy: Deploy, connection: Connection, change: str
) -> None:
    """B-2, B-10, B-43: only what matched at the first deployment, or matches a wider filter, does not run."""
    whole = {"backfill": False, "filter": {"on": True}}
    before = deploy(**whole)
    before.bench.put(FIRST)
    before.bench.put({**FIRST, "_id": 2, "on": False})
    before.reconcile()
    planned = before.bench.cluster_time()
    position = Position({"_data": "token"}, planned, None, frozenset({(NAME, 1)}))
    positions.store(connection.globals(), "default", before.bench.source.database.name, position, term=1)
    inserted = before.bench.put({**FIRST, "_id": 3})
    changes = {"nothing": {}, "a projection": {"watch_projection": {"w": 1}}, "a wider filter": {"filter": {}}}
    after = deploy(**{**whole, **changes[change]})
    definitions.request_reconciliation(connection.globals(), NAME)
    assert after.reconcile()
    after.planning.plan_changes([Change(ChangeKind.WRITTEN, "orders", 3, inserted=True)], at=inserted)
    states = {record["sourceDocId"]: record["status"] for record in after.bench.records.find()}
    unrun = {1: "completed"} if change != "a wider filter" else {1: "completed", 2: "completed"}
    assert states == {**unrun, 3: "pending"}


def test_a_narrowed_filter_leaves_records(deploy: Deploy) -> None:
    """B-8, B-43: pending ones are skipped and marked left, the others marked."""
    before = deploy()
    before.handle(FIRST)
    before.see({**FIRST, "_id": 2})
    after = deploy(filter={"v": "second"})
    after.reconcile()
    assert all(after.bench.record(doc_id)["_r"]["left"] for doc_id in (1, 2))
    assert after.bench.state(2) is RecordState.COMPLETED
    assert after.bench.record(2)["executionHistory"][-1]["status"] == "skipped"


def test_without_a_scan_each_document_is_compared_when_it_changes(deploy: Deploy) -> None:
    """B-43: `reconcile_on_trigger_change=False`; also then, a new projection alone runs nothing."""
    lazy = {"evolution": {"reconcile_on_trigger_change": False}}
    before = deploy(**lazy)
    before.reconcile()
    before.handle(FIRST)
    before.handle({**FIRST, "_id": 2})
    after = deploy(watch_projection={"v": 1, "w": 1}, **lazy)
    assert not after.reconcile()
    after.see(FIRST)
    after.see({**FIRST, "_id": 2, "v": "second"})
    assert after.bench.state(1) is RecordState.COMPLETED
    assert after.bench.state(2) is RecordState.PENDING


def test_a_task_that_watches_another_collection_is_reconciled_in_any_case(deploy: Deploy) -> None:
    """B-43, B-48: without a scan on a changed filter; nobody has looked at that collection yet."""
    lazy = {"evolution": {"reconcile_on_trigger_change": False}}
    deploy(**lazy).reconcile()
    after = deploy(collection="others", **lazy)
    after.bench.put(FIRST)
    assert after.reconcile()
    assert after.bench.state(1) is RecordState.PENDING


def test_a_scan_under_way_is_wanted_whatever_the_next_deployment_says(deploy: Deploy) -> None:
    """B-43, B-48: only what has been looked at needs no scan for a changed filter."""
    deploy(filter={"on": False}).reconcile()
    deploy(filter={"on": True}).bench.put(FIRST)
    after = deploy(filter={"on": True}, evolution={"reconcile_on_trigger_change": False})
    assert after.reconcile()
    assert after.bench.state(1) is RecordState.PENDING


def test_definitions_that_were_dropped_are_made_again(deploy: Deploy, connection: Connection) -> None:
    """B-49: also where the leader has noted something on them since."""
    before = deploy()
    before.reconcile()
    connection.globals().drop()
    definitions.mark_unreconciled(connection.globals(), NAME, term=before.term)
    after = deploy()
    after.see(FIRST)
    assert after.reconcile()
    assert after.bench.state(1) is RecordState.PENDING


def test_re_entry_alone_runs_no_insert_only_task_whatever_its_filter_became(deploy: Deploy) -> None:
    """B-17, B-43: a filter that changed leaves the snapshots comparable."""
    insert_only = {"watch_projection": {"_id": 1}}
    before = deploy(filter={"on": True}, **insert_only)
    before.handle(FIRST)
    before.see({**FIRST, "on": False})
    before.bench.leave(1)
    after = deploy(filter={"on": True, "v": "first"}, **insert_only)
    after.reconcile()
    after.see(FIRST)
    assert after.bench.state(1) is RecordState.COMPLETED


def test_records_that_have_outlived_their_definition_are_planned(deploy: Deploy, connection: Connection) -> None:
    """B-10, B-49: the globals were dropped, or named anew; what is observed now is not older than what was."""
    deploy()
    before = deploy(watch_projection={"v": 1, "w": 1})
    before.handle(FIRST)
    connection.globals().drop()
    after = deploy(watch_projection={"v": 1, "w": 1})
    assert after.planned.generation > before.planned.generation
    after.see({**FIRST, "v": "second"})
    assert after.bench.state(1) is RecordState.PENDING
    assert after.bench.record(1)["lastObservedValues"]["v"] == "second"


def test_an_older_leaders_planning_does_not_undo_a_newer_generation(deploy: Deploy) -> None:
    """B-43, B-46: planner writes name their generation."""
    before = deploy()
    before.handle(FIRST)
    after = deploy(watch_projection={"v": 1, "w": 1})
    after.reconcile()
    adopted = after.bench.raw(1)
    before.see(FIRST)
    assert after.bench.raw(1) == adopted


@pytest.mark.parametrize("moved", [{"_r.at": Timestamp(2**31, 1)}, {"_r.gen": 7}], ids=["observed", "adopted"])
def test_a_record_that_moved_on_is_not_given_an_older_snapshot(deploy: Deploy, moved: dict[str, Any]) -> None:
    """B-43: what was read of the record must still be so when the snapshot is written."""
    bench = deploy().bench
    bench.handle(FIRST)
    books = bench.record(1)["_r"]
    bench.records.update_one({}, {"$set": {**moved, "lastObservedValues": {"v": "newest"}}})
    before = bench.raw(1)
    read = {"_id": bench.key(1).id, "w": {"v": "first", "w": "other"}, "gen": books["gen"], "at": books["at"]}
    merge = {"into": bench.records.name, "let": {"new": "$$ROOT"}, "whenNotMatched": "discard"}
    merge["whenMatched"] = pipelines.adopt_snapshot(2)
    bench.connection.database().aggregate([{"$documents": [{"$literal": read}]}, {"$merge": merge}])
    assert bench.raw(1) == before


# --- workers of two versions at once ---------------------------------------------------------------------


def test_a_run_is_checked_by_the_projection_of_its_own_snapshot(deploy: Deploy) -> None:
    """B-32, B-43: a record observed before a new projection runs once, with the document it is for."""
    before = deploy()
    before.see(FIRST)
    after = deploy(watch_projection={"v": 1, "w": 1})
    read: list[Document] = []
    before.run(1, lambda ctx: read.append(ctx.get_document()))
    assert read == [FIRST]
    assert after.bench.state(1) is RecordState.COMPLETED


def test_what_an_overtaken_run_saw_is_kept_under_its_generation(deploy: Deploy) -> None:
    """B-33, B-43: the next observation compares like with like."""
    before = deploy()
    before.see(FIRST)
    after = deploy(watch_projection={"v": 1, "w": 1})
    before.bench.put({**FIRST, "v": "second"})

    def handler(ctx: TaskContext) -> None:
        with pytest.raises(TaskConditionFailedError):
            ctx.get_document()

    def body(run: Run, context: TaskContext) -> Outcome:
        handler(context)
        return context._completion(run)

    execute(before.runtime, before.task, [Named(before.bench.key(1), 0)], each(body), token="t", worker="bench")  # noqa: S106
    record = after.bench.record(1)
    assert (record["lastObservedValues"], record["_r"]["gen"]) == ({"v": "second"}, 1)
    due = record["dueAt"]
    after.reconcile()
    record = after.bench.record(1)
    assert (record["lastObservedValues"], record["_r"]["gen"]) == ({"v": "second", "w": "other"}, 2)
    assert record["dueAt"] == due


# --- versions of the handler ------------------------------------------------------------------------------


def version(number: int, policy: str = "reprocess_all") -> dict[str, Any]:
    """Return the option for a version of the handler."""
    return {"evolution": {"handler_version": number, "on_handler_version_change": policy}}


def in_every_state(deployment: Deployment) -> None:
    """Make a record in each state, and two whose documents are off."""
    bench = deployment.bench
    for doc_id in ("pending", "running", "completed", "failed", "gone", "left"):
        deployment.see({"_id": doc_id, "v": 1})
    bench.error(bench.claim("pending")[0], retry_in=timedelta(hours=1))
    bench.claim("running")
    bench.complete(bench.claim("completed")[0])
    bench.exhaust(bench.claim("failed")[0])
    for doc_id in ("gone", "left"):
        bench.exhaust(bench.claim(doc_id)[0])
        bench.leave(doc_id, gone=doc_id == "gone")


@pytest.mark.parametrize(
    ("policy", "reset"),
    [
        ("none", {}),
        ("reprocess_failed", {"failed": "pending"}),
        (
            "reprocess_all",
            {"failed": "pending", "completed": "pending", "running": "processing_dirty", "pending": "pending"},
        ),
    ],
)
def test_a_new_version_resets_what_its_policy_names(deploy: Deploy, policy: str, reset: dict[str, str]) -> None:
    """B-44: due now, no attempts, no first error; what is gone or has left is passed over."""
    before = deploy(**version(1))
    in_every_state(before)
    old = {doc_id: before.bench.record(doc_id) for doc_id in ("pending", "running", "completed", "failed")}
    after = deploy(**version(2, policy))
    assert after.evolve() is bool(reset)
    for doc_id, record in old.items():
        new = after.bench.record(doc_id)
        if doc_id in reset:
            assert (new["status"], new["attempts"], new["firstErrorAt"]) == (reset[doc_id], 0, None)
            if doc_id != "running":
                assert new["nextRunAt"] <= after.bench.now()
        else:
            assert new == record
    assert after.bench.state("gone") is after.bench.state("left") is RecordState.FAILED
    assert after.events[-1] == ReprocessingFinished(NAME, 2, len(reset))


def test_a_new_version_keeps_the_time_of_what_is_held(deploy: Deploy) -> None:
    """B-34, B-44: nothing cuts that wait short; it runs by the new code then."""
    before = deploy(**version(1))
    before.see(FIRST)
    (claim,) = before.bench.claim(1)
    before.bench.settle(claim, Deferred(before.bench.now() + timedelta(hours=1), hold=True))
    time = before.bench.record(1)["nextRunAt"]
    after = deploy(**version(2))
    assert after.evolve()
    record = after.bench.record(1)
    assert (record["status"], record["nextRunAt"], record["_r"]["wakeAt"]) == ("pending", time, time)


def test_a_version_is_applied_once(deploy: Deploy) -> None:
    """B-44: a restart with the same code resets nothing."""
    before = deploy(**version(1))
    before.handle(FIRST)
    assert not before.evolve()
    after = deploy(**version(2))
    assert after.evolve()
    after.bench.complete(after.bench.claim(1)[0])
    assert not deploy(**version(2)).evolve()
    assert after.bench.state(1) is RecordState.COMPLETED


def test_a_new_leader_goes_on_and_resets_none_twice(deploy: Deploy, connection: Connection) -> None:
    """B-44: the version is stored after the last batch."""
    before = deploy(**version(1))
    for doc_id in range(20):
        before.handle({"_id": doc_id, "v": 1})
    interrupted = deploy(**version(2))
    ended = threading.Event()
    reset_one_page = interrupted.bench.records.__class__.update_many

    def update_many(*arguments: Any, **options: Any) -> Any:
        ended.set()
        return reset_one_page(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interrupted.bench.records.__class__, "update_many", update_many)
        interrupted.evolve(ended)
    assert definitions.read(connection.globals(), NAME).handler_version == 1
    (first,) = interrupted.bench.claim(0)
    interrupted.bench.complete(first)
    after = deploy(**version(2))
    assert after.evolve()
    assert definitions.read(connection.globals(), NAME).handler_version == 2
    assert after.bench.state(0) is RecordState.COMPLETED
    assert after.bench.records.count_documents({"status": "pending"}) == 19


def test_a_lower_version_is_a_warning(deploy: Deploy, caplog: pytest.LogCaptureFixture) -> None:
    """B-44: and nothing else."""
    deploy(**version(3)).handle(FIRST)
    after = deploy(**version(2))
    assert not after.evolve()
    assert "handler_version is lower" in caplog.text
    assert not deploy(**version(3)).evolve()


def test_a_leader_of_an_older_term_stores_no_version(deploy: Deploy) -> None:
    """B-44, B-46: it names its term."""
    before = deploy(**version(1))
    deploy(**version(1))
    with pytest.raises(TermEndedError):
        definitions.store_handler_version(before.bench.connection.globals(), NAME, 9, term=before.term)


def test_older_workers_leave_a_reset_record_to_newer_ones(deploy: Deploy) -> None:
    """B-44: given back for five seconds, without a call and without an attempt; by the newer code it is run."""
    old = deploy(**version(1))
    old.handle(FIRST)
    new = deploy(**version(2))
    new.evolve()
    called: list[str] = []
    old.run(1, lambda _ctx: called.append("old"))
    record = new.bench.record(1)
    assert (called, record["status"], record["attempts"]) == ([], "pending", 0)
    assert timedelta(seconds=4) < record["nextRunAt"] - new.bench.now() <= timedelta(seconds=5)
    new.bench.make_due(1)
    new.run(1, lambda _ctx: called.append("new"))
    assert (called, new.bench.state(1)) == (["new"], RecordState.COMPLETED)


def test_after_ten_minutes_older_workers_run_it(deploy: Deploy) -> None:
    """B-44: whoever forgot to deploy the workers loses nothing."""
    old = deploy(**version(1))
    old.handle(FIRST)
    new = deploy(**version(2))
    new.evolve()
    earlier = {"$subtract": ["$_r.reset.at", 10 * 60 * 1000]}
    new.bench.records.update_one({}, [{"$set": {"_r.reset.at": earlier}}])
    called: list[str] = []
    old.run(1, lambda _ctx: called.append("old"))
    assert called == ["old"]


def test_a_task_may_move_to_another_group(deploy: Deploy, connection: Connection) -> None:
    """B-65: its new group's first leader defines it, however many terms the old one has had."""
    for _ in range(3):
        before = deploy(group="old")
    moved = Deployment(connection, before.runtime.settings, 1, {"watch_projection": {"v": 1}, "group": "new"})
    assert moved.planned.generation == before.planned.generation
    assert moved.reconcile()


def test_other_options_make_no_generation(deploy: Deploy) -> None:
    """B-43: only filter and projection do."""
    assert deploy().planned.generation == deploy(debounce="5s", group="other").planned.generation
