"""The dry run of a deployment: it counts what the deployment then does, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bson import ObjectId
from celery import Celery

from celery_reactive import Reactive, reactive_task
from celery_reactive.errors import ConfigurationError, UnknownTaskError
from celery_reactive.management.plan import PlanReport
from celery_reactive.store import definitions
from tests.integration.bench import Bench, Document

Deploy = Callable[..., Reactive]


@pytest.fixture
def deploy(mongodb_url: str) -> Iterator[Deploy]:
    """Make an app with one task, as one version of the code declares it."""
    made: list[Reactive] = []

    def make(name: str = "sync", **options: Any) -> Reactive:
        app = Celery("shop", broker="memory://", set_as_current=False)
        app.conf.reactive_mongodb_url = mongodb_url
        app.conf.reactive_batch_size = 3

        def handler(ctx: Any) -> None:
            """Never called here."""

        declared = {"filter": {"on": True}, "watch_projection": {"v": 1}, "debounce": 0, **options}
        decorate = reactive_task(collection="orders", task=name, **declared)
        decorate(app.task(handler, name="shop.handler", shared=False))
        app.finalize()
        made.append(Reactive.of(app))
        return made[-1]

    yield make
    for handle in made:
        handle.runtime.connection.close()


def bench_of(handle: Reactive, name: str = "sync") -> Bench:
    """Return a workbench for the records of a task."""
    return Bench(handle.runtime.connection, handle.registry.get(name))


def define(handle: Reactive, name: str = "sync") -> None:
    """Store the definition as a leader does."""
    task = handle.registry.get(name)
    definitions.define(
        handle.runtime.connection.globals(),
        task,
        namespace=handle.runtime.connection.namespace(task),
        collated=False,
        term=1,
    )


def on(doc_id: Any, **fields: Any) -> Document:
    """Return a document that matches."""
    return {"_id": doc_id, "on": True, "v": 1, **fields}


def counts(report: PlanReport) -> tuple[int, int, int, int]:
    """Return what would be created, run again, skipped, and left alone."""
    return report.create, report.rerun, report.skip, report.unchanged


def everything(handle: Reactive) -> dict[str, list[Document]]:
    """Return all that is stored in the database."""
    database = handle.runtime.connection.database()
    return {name: list(database[name].find(sort=[("_id", 1)])) for name in sorted(database.list_collection_names())}


def test_a_new_task_creates_what_matches(deploy: Deploy) -> None:
    """B-53: with samples of every type of id, and nothing is written, not even a collection."""
    handle = deploy()
    source = handle.runtime.connection.database().orders
    source.insert_many([on(1), on("a"), on(ObjectId()), on({"a": 1}), {"_id": 2, "on": False}])
    before = everything(handle)
    report = handle.plan("sync")
    assert counts(report) == (4, 0, 0, 0)
    assert (report.is_new, report.changes, report.documents) == (True, (), 5)
    assert {"a", 1}.issubset([one for one in report.samples["create"] if not isinstance(one, dict)])
    assert everything(handle) == before


def test_the_same_code_changes_nothing(deploy: Deploy) -> None:
    """B-53: but for what has changed and not been seen yet."""
    handle = deploy()
    bench = bench_of(handle)
    define(handle)
    for number in range(5):
        bench.handle(on(number))
    assert counts(handle.plan("sync")) == (0, 0, 0, 5)
    bench.put(on(4, v=2))
    bench.put(on(9))
    report = handle.plan("sync")
    assert counts(report) == (1, 1, 0, 4)
    assert (report.samples["create"], report.samples["rerun"]) == ((9,), (4,))


def test_a_narrowed_filter_skips_what_waits(deploy: Deploy) -> None:
    """B-43: pending records whose document no longer matches; finished ones only leave."""
    bench = bench_of(deploy())
    define(deploy())
    bench.plan(*(on(number, paid=number < 2) for number in range(4)))
    bench.handle(on("done", paid=False))
    bench.plan(on("retried", paid=False))
    bench.retry("retried")
    report = deploy(filter={"on": True, "paid": True}).plan("sync")
    assert counts(report) == (0, 0, 2, 2)
    assert report.changes == ("filter",)
    assert sorted(report.samples["skip"]) == [2, 3]


def test_a_widened_filter_creates(deploy: Deploy) -> None:
    """B-43: and says so where that runs nothing."""
    bench = bench_of(deploy())
    define(deploy())
    bench.handle(on(1))
    bench.put({"_id": 2, "on": False})
    assert counts(deploy(filter={}).plan("sync")) == (1, 0, 0, 1)
    report = deploy(filter={}, backfill=False).plan("sync")
    assert any("backfill=False" in note for note in report.notes)


def test_a_new_projection_runs_only_what_differs(deploy: Deploy) -> None:
    """B-43: equal under the projection of the record's own generation is unchanged; an unknown generation runs."""
    bench = bench_of(deploy())
    define(deploy())
    for number in range(4):
        bench.handle(on(number))
    bench.put(on(3, v=2))
    bench.records.update_one({"sourceDocId": 2}, {"$set": {"_r.gen": 0}})
    report = deploy(watch_projection={"v": 1, "w": 1}).plan("sync")
    assert counts(report) == (0, 2, 0, 2)
    assert report.changes == ("projection",)
    assert sorted(report.samples["rerun"]) == [2, 3]


@pytest.mark.parametrize(("policy", "rerun"), [("none", 0), ("reprocess_failed", 1), ("reprocess_all", 3)])
def test_a_new_version_runs_what_its_policy_says(deploy: Deploy, policy: str, rerun: int) -> None:
    """B-44: records of documents that are gone are passed over."""
    bench = bench_of(deploy())
    define(deploy())
    bench.handle(on(1))
    bench.handle(on(2))
    bench.exhaust(bench.start(on(3)))
    bench.handle(on("gone"))
    bench.delete("gone")
    evolution = {"handler_version": 2, "on_handler_version_change": policy}
    report = deploy(evolution=evolution).plan("sync")
    assert (report.rerun, report.unchanged, report.changes) == (rerun, 3 - rerun, ("handler_version",))


def test_what_has_left_and_come_back_runs(deploy: Deploy) -> None:
    """B-8: entering the filter is a change; with `{"_id": 1}` it is none."""
    handle = deploy()
    bench = bench_of(handle)
    define(handle)
    bench.handle(on(1))
    bench.plan({"_id": 1, "on": False})
    bench.put(on(1))
    assert counts(handle.plan("sync")) == (0, 1, 0, 0)


def test_documents_that_cannot_be_planned_are_counted_apart(deploy: Deploy) -> None:
    """B-20: the others of their page are counted as ever."""
    handle = deploy(watch_projection={"share": {"$divide": [1, "$v"]}})
    handle.runtime.connection.database().orders.insert_many([on(n, v=n % 4) for n in range(8)])
    report = handle.plan("sync")
    assert (report.create, report.failing) == (6, 2)
    assert report.samples["failing"] == (0, 4)
    assert any("`failures`" in note for note in report.notes)


def test_a_renamed_task_is_noticed(deploy: Deploy) -> None:
    """B-2: with the line that keeps its records."""
    old = deploy("old.tasks.sync")
    bench = bench_of(old, "old.tasks.sync")
    define(old, "old.tasks.sync")
    bench.handle(on(1))
    (note,) = deploy("new.place.sync").plan("new.place.sync").notes
    assert 'task="old.tasks.sync"' in note
    (note,) = deploy("new.name").plan("new.name").notes
    assert "1 records" in note
    assert deploy("another", filter={"x": 1}).plan("another").notes == ()


def test_whole_large_documents_are_noticed(deploy: Deploy) -> None:
    """B-53: what is watched is copied into the record."""
    handle = deploy(watch_projection=None)
    handle.runtime.connection.database().orders.insert_one(on(1, text="x" * 9000))
    (note,) = handle.plan("sync").notes
    assert "watch_projection" in note
    assert deploy().plan("sync").notes == ()


def test_a_collection_with_a_collation_is_read_under_it(deploy: Deploy) -> None:
    """B-5: the filter means what `find` means; values are compared exactly."""
    handle = deploy(filter={"s": "PAID"}, watch_projection={"v": 1})
    database = handle.runtime.connection.database()
    database.create_collection("orders", collation={"locale": "en", "strength": 2})
    database.orders.insert_many([{"_id": 1, "s": "paid", "v": "a"}, {"_id": 2, "s": "open", "v": "a"}])
    assert counts(handle.plan("sync")) == (1, 0, 0, 0)


def test_what_the_server_cannot_compile_is_refused(deploy: Deploy) -> None:
    """B-3: in its words; and an unknown task lists the known."""
    with pytest.raises(ConfigurationError, match="refuses"):
        deploy(filter={"$expr": {"$add": ["a"]}}).plan("sync")
    with pytest.raises(UnknownTaskError, match="known: sync"):
        deploy().plan("nothing")
