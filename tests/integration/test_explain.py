"""Why a document ran, will run or will not: each answer provoked on a real server."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from bson import Timestamp
from celery import Celery

from celery_reactive import Reactive, reactive_task
from celery_reactive.core.filters import compile_filter
from celery_reactive.core.outcome import Deferred, Skipped
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import UnknownTaskError
from celery_reactive.management.explain import Explanation, Outlook
from celery_reactive.store import definitions, instances, leadership, records, unplanned
from celery_reactive.store.instances import WorkerFacts
from tests.acceptance.project import wait_until
from tests.integration.bench import TOOK, Bench, Document


@pytest.fixture
def reactive(mongodb_url: str) -> Iterator[Reactive]:
    """The handle of an app whose task `sync` watches `v` of the orders with `on` set."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.reactive_mongodb_url = mongodb_url
    app.conf.task_routes = {"shop.sync": {"queue": "erp"}}
    options: dict[str, Any] = {"filter": {"on": True}, "watch_projection": {"v": 1}, "debounce": 0}

    def handler(ctx: Any) -> None:
        """Never called here."""

    reactive_task(collection="orders", task="sync", **options)(app.task(handler, name="shop.sync", shared=False))
    handle = Reactive.of(app)
    yield handle
    handle.runtime.connection.close()


@pytest.fixture
def bench(reactive: Reactive) -> Bench:
    """A workbench for the records of `sync`, with a leader, its definition, and a worker on the queue."""
    reactive.app.finalize()
    task = reactive.registry.get("sync")
    globals_ = reactive.runtime.connection.globals()
    leadership.acquire(globals_, "default", "one", leadership.read(globals_, "default"))
    namespace = reactive.runtime.connection.namespace(task)
    definitions.define(globals_, task, namespace=namespace, collated=False, term=1)
    definitions.mark_reconciled(globals_, "sync", generation=1, needs=0, term=1)
    announce(reactive, queues=["erp"])
    return Bench(reactive.runtime.connection, task)


def announce(reactive: Reactive, *, queues: list[str]) -> None:
    """Let a worker live that serves *queues*."""
    facts = WorkerFacts(
        queues=queues, slots=1, pool="solo", limited=False, prefetch=1, acks_late=False, tasks={"sync": 1}, version="1"
    )
    instances.announce_worker(reactive.runtime.connection.globals(), "celery@here", facts)


def on(doc_id: Any = 1, **fields: Any) -> Document:
    """Return a document that matches."""
    return {"_id": doc_id, "on": True, "v": 1, **fields}


def codes(found: Explanation) -> set[str]:
    """Return what is said, as programs read it."""
    return {reason.code for reason in found.reasons}


def test_an_unknown_task_lists_the_known(reactive: Reactive) -> None:
    """B-53: a misspelt name is answered with the right one."""
    with pytest.raises(UnknownTaskError, match="did you mean 'sync'"):
        reactive.explain("synk", 1)


def test_a_document_that_does_not_exist(reactive: Reactive, bench: Bench) -> None:
    """B-53: an id of another type, or an operator, is an id of no document."""
    bench.put(on(1))
    for doc_id in (2, "1", {"$gt": 0}, None):
        found = reactive.explain("sync", doc_id)
        assert (found.outlook, found.document_exists, codes(found)) == (Outlook.WILL_NOT_RUN, False, {"no_document"})


def test_a_document_that_does_not_match(reactive: Reactive, bench: Bench) -> None:
    """B-53: the filter is shown, and it is the stored one that counts."""
    bench.put({"_id": 1, "on": False})
    found = reactive.explain("sync", 1)
    assert (found.outlook, found.matches, codes(found)) == (Outlook.WILL_NOT_RUN, False, {"no_match"})
    assert '{"on": true}' in str(found)


def test_a_document_that_the_planner_has_not_seen(reactive: Reactive, bench: Bench) -> None:
    """B-53: it matches, and will get its record."""
    bench.put(on())
    found = reactive.explain("sync", 1)
    assert (found.outlook, codes(found)) == (Outlook.WILL_RUN, {"no_record"})


@pytest.mark.parametrize("reason", unplanned.Reason)
def test_a_document_that_cannot_be_planned(reactive: Reactive, bench: Bench, reason: unplanned.Reason) -> None:
    """B-53: poison tells its error, a lock who holds it up."""
    bench.put(on())
    globals_ = reactive.runtime.connection.globals()
    unplanned.note(globals_, bench.key(1), at=Timestamp(1, 1), gone=False, reason=reason, error="no such operator")
    found = reactive.explain("sync", 1)
    assert found.outlook is Outlook.HELD_BACK
    if reason is unplanned.Reason.FAILED:
        assert "planning_failed" in codes(found)
        assert "no such operator" in str(found)
    else:
        assert "locked" in codes(found)


def test_a_document_on_which_the_filter_fails(reactive: Reactive, bench: Bench) -> None:
    """B-53: the server's own words."""
    definitions.define(
        reactive.runtime.connection.globals(),
        _with_failing_filter(bench),
        namespace=reactive.runtime.connection.namespace(bench.task),
        collated=False,
        term=1,
    )
    bench.put(on())
    found = reactive.explain("sync", 1)
    assert found.matches is None
    assert "filter_fails" in codes(found)
    assert "divide" in str(found)


def _with_failing_filter(bench: Bench) -> ReactiveTask:
    return dataclasses.replace(bench.task, filter=compile_filter({"$expr": {"$divide": [1, {"$subtract": [1, "$v"]}]}}))


def test_a_record_that_is_due(reactive: Reactive, bench: Bench) -> None:
    """B-53: nothing holds it up."""
    bench.plan(on())
    found = reactive.explain("sync", 1)
    assert (found.outlook, codes(found)) == (Outlook.WILL_RUN, {"due"})
    assert str(found).startswith("sync[1] will run.")


def test_a_record_that_waits_for_the_debounce(reactive: Reactive, bench: Bench) -> None:
    """B-53: with the time at which the wait ends."""
    bench.plan(on())
    later = {"$add": ["$$NOW", 60_000]}
    bench.records.update_one({}, [{"$set": {"nextRunAt": later, "_r.wakeAt": later}}])
    found = reactive.explain("sync", 1)
    assert (found.outlook, codes(found)) == (Outlook.WILL_RUN, {"debounced"})


def test_a_record_that_waits_for_its_retry(reactive: Reactive, bench: Bench) -> None:
    """B-53: with the error of the attempt before."""
    bench.error(bench.start(on()), message="502 Bad Gateway", retry_in=timedelta(minutes=5))
    found = reactive.explain("sync", 1)
    assert (found.outlook, codes(found)) == (Outlook.WILL_RUN, {"waits_for_retry"})
    assert "502 Bad Gateway" in str(found)


def test_a_record_that_was_deferred(reactive: Reactive, bench: Bench) -> None:
    """B-53: by its handler, and whether a change cuts it short."""
    claim = bench.start(on())
    bench.settle(claim, Deferred(bench.now() + timedelta(hours=1), hold=True))
    found = reactive.explain("sync", 1)
    assert codes(found) == {"deferred"}
    assert "also if the document changes" in str(found)


def test_a_record_whose_message_is_with_the_broker(reactive: Reactive, bench: Bench) -> None:
    """B-53: since when, and when it is sent again."""
    bench.plan(on())
    minute = timedelta(minutes=1)
    records.mark_sent(bench.records, [bench.key(1)], first_deadline=minute, longest_deadline=minute)
    # The mark does not wait for a majority, which is what is read here.
    wait_until(lambda: codes(reactive.explain("sync", 1)) == {"with_broker"}, logs=str, timeout=10)
    assert reactive.explain("sync", 1).outlook is Outlook.WILL_RUN


def test_a_record_without_a_worker(reactive: Reactive, bench: Bench) -> None:
    """B-53: a worker that serves other queues is none."""
    bench.plan(on())
    announce(reactive, queues=["celery"])
    found = reactive.explain("sync", 1)
    assert (found.outlook, codes(found)) == (Outlook.HELD_BACK, {"due", "no_worker"})
    assert "'erp'" in str(found)


@pytest.mark.parametrize("control", ["paused", "throttled"])
def test_a_task_that_is_held_back(reactive: Reactive, bench: Bench, control: str) -> None:
    """B-53: with the command that ends it."""
    bench.plan(on())
    if control == "paused":
        reactive.pause("sync")
    else:
        reactive.throttle("sync", "1h")
    found = reactive.explain("sync", 1)
    assert (found.outlook, codes(found)) == (Outlook.HELD_BACK, {"due", control})


def test_a_record_that_runs(reactive: Reactive, bench: Bench) -> None:
    """B-53: where, since when, and that it runs once more."""
    bench.start(on())
    found = reactive.explain("sync", 1)
    assert codes(found) == {"running"}
    assert "bench runs attempt 1 since" in str(found)
    bench.plan(on(v=2))
    found = reactive.explain("sync", 1)
    assert (found.outlook, codes(found)) == (Outlook.RUNS, {"running", "runs_again"})
    bench.records.update_one({}, [{"$set": {"nextRunAt": {"$subtract": ["$$NOW", 1000]}}}])
    assert "lease_over" in codes(reactive.explain("sync", 1))


def test_a_record_that_is_done(reactive: Reactive, bench: Bench) -> None:
    """B-53: and a change that nobody has seen yet."""
    bench.handle(on())
    found = reactive.explain("sync", 1)
    assert (found.outlook, codes(found)) == (Outlook.WILL_NOT_RUN, {"handled"})
    bench.put(on(v=2))
    found = reactive.explain("sync", 1)
    assert (found.outlook, codes(found)) == (Outlook.WILL_RUN, {"unseen", "handled"})


def test_a_record_that_failed(reactive: Reactive, bench: Bench) -> None:
    """B-53: for good, with its last error."""
    bench.exhaust(bench.start(on()))
    found = reactive.explain("sync", 1)
    assert (found.outlook, codes(found)) == (Outlook.WILL_NOT_RUN, {"failed"})
    assert "broken" in str(found)


def test_a_record_that_was_skipped(reactive: Reactive, bench: Bench) -> None:
    """B-53: with the reason that its history keeps."""
    bench.settle(bench.start(on()), Skipped("the document was deleted", TOOK))
    found = reactive.explain("sync", 1)
    assert codes(found) == {"skipped"}
    assert "the document was deleted" in str(found)


def test_a_record_that_was_discarded(reactive: Reactive, bench: Bench) -> None:
    """B-53: by hand."""
    bench.plan(on())
    bench.discard(1)
    assert "discarded by hand" in str(reactive.explain("sync", 1))


def test_a_record_whose_document_is_gone_or_has_left(reactive: Reactive, bench: Bench) -> None:
    """B-53: and that comes back."""
    bench.handle(on())
    bench.plan({"_id": 1, "on": False})
    assert codes(reactive.explain("sync", 1)) == {"no_match", "left"}
    bench.put(on())
    assert reactive.explain("sync", 1).outlook is Outlook.WILL_RUN
    bench.leave(1, at=bench.delete(1), gone=True)
    assert codes(reactive.explain("sync", 1)) == {"no_document", "gone"}


def test_a_record_of_an_older_definition(reactive: Reactive, bench: Bench) -> None:
    """B-53: the reconciliation decides, and is said to be under way."""
    bench.handle(on())
    bench.records.update_one({}, {"$set": {"_r.gen": 0}})
    assert "older_generation" in codes(reactive.explain("sync", 1))
    bench.put(on(2))
    definitions.request_reconciliation(reactive.runtime.connection.globals(), "sync")
    assert "reconciling" in codes(reactive.explain("sync", 2))


def test_without_a_leader_nothing_is_seen(reactive: Reactive, bench: Bench) -> None:
    """B-53: what has to run is held back, and what to start is said."""
    bench.plan(on())
    leadership.release(reactive.runtime.connection.globals(), "default", "one", 1)
    found = reactive.explain("sync", 1)
    assert (found.outlook, codes(found)) == (Outlook.HELD_BACK, {"due", "no_leader"})


def test_other_code_in_the_lead_is_told(reactive: Reactive, bench: Bench) -> None:
    """B-53: its definition counts, not this one."""
    bench.plan(on())
    stored = {"_id": {"k": "task", "t": "sync"}}
    reactive.runtime.connection.globals().update_one(stored, {"$set": {"filter": '{"on": {"$ne": false}}'}})
    assert "other_definition" in codes(reactive.explain("sync", 1))


def test_a_record_that_the_loop_guard_has_paused(reactive: Reactive, bench: Bench) -> None:
    """B-64: it says so, and what to do; a change does not alter that."""
    bench.guard(on())
    for document in (on(), on(v=2)):
        bench.plan(document)
        found = reactive.explain("sync", 1)
        assert found.outlook is Outlook.HELD_BACK
        assert "loop_guarded" in codes(found)
        assert "resume sync" in str(found)
    assert reactive.resume("sync", 1)
    assert "loop_guarded" not in codes(reactive.explain("sync", 1))


def test_a_deletion_that_is_a_run_of_its_own(mongodb_url: str) -> None:
    """B-61: it says what the run is for, though there is no document."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.reactive_mongodb_url = mongodb_url

    def handler(ctx: Any) -> None:
        """Never called here."""

    reactive_task(collection="orders", task="sync", debounce=0, on_delete=True)(
        app.task(handler, name="s", shared=False)
    )
    app.finalize()
    handle = Reactive.of(app)
    bench = Bench(handle.runtime.connection, handle.registry.get("sync"))
    bench.handle(on())
    bench.delete(1)
    bench.leave(1, gone=True)
    assert {"no_document", "deleted", "due"} <= codes(handle.explain("sync", 1))
    handle.runtime.connection.close()
