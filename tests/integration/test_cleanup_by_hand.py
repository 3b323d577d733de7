"""Removing records by hand: a cleanup now, and purging whatever the policy says (B-4, B-41)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery

from celery_reactive import Reactive, reactive_task, signals
from celery_reactive.core.declaration import declare
from celery_reactive.core.record import RecordKey
from celery_reactive.core.states import RecordState
from celery_reactive.errors import ConfigurationError, UnknownTaskError
from celery_reactive.management.cleanup import count_purge
from celery_reactive.store import definitions, orphans, unplanned
from tests.integration.bench import Bench
from tests.integration.test_cleanup import age, gone, left_over

DOCUMENT = {"on": True, "v": "first"}
KEEPING = {"delete_when": "never"}
REMOVING = {"delete_when": "source_document_deleted_or_no_longer_matching", "keep_for": 0}


def define(bench: Bench) -> Bench:
    """Store the definition of a bench's task as a leader does."""
    definitions.define(
        bench.connection.globals(),
        bench.task,
        namespace=bench.connection.namespace(bench.task),
        collated=False,
        term=1,
    )
    return bench


@pytest.fixture
def reactive(mongodb_url: str) -> Iterator[Reactive]:
    """The handle of an app in which `keeping` never removes a record, and `removing` does so at once."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.reactive_mongodb_url = mongodb_url
    app.conf.reactive_batch_size = 3

    def handler(ctx: Any) -> None:
        """Never called here."""

    for name, policy in (("keeping", KEEPING), ("removing", REMOVING)):
        options: dict[str, Any] = {"collection": "orders", "filter": {"on": True}, "debounce": 0}
        task = app.task(handler, name=f"shop.{name}", shared=False)
        reactive_task(task=name, cleanup_policy=policy, **options)(task)
    app.finalize()
    reactive = Reactive.of(app)
    yield reactive
    reactive.runtime.connection.close()


@pytest.fixture
def keeping(reactive: Reactive) -> Bench:
    """A workbench for the records of `keeping`, whose definition is stored."""
    return define(Bench(reactive.runtime.connection, reactive.registry.get("keeping")))


@pytest.fixture
def removing(reactive: Reactive) -> Bench:
    """A workbench for the records of `removing`, whose definition is stored."""
    return define(Bench(reactive.runtime.connection, reactive.registry.get("removing")))


@pytest.fixture
def former(reactive: Reactive) -> Bench:
    """A workbench for the records of `shop.former`, which is no longer declared; its collection has a dot."""
    options = {"collection": "old.orders", "filter": {"on": True}, "debounce": 0}
    return define(Bench(reactive.runtime.connection, declare("shop.former", options)))


def orphaned(bench: Bench) -> None:
    """Leave of ten documents two marked gone, one gone and two left without a mark, one left with one."""
    gone(bench, 0, 1)
    for doc_id in range(2, 10):
        bench.handle({**DOCUMENT, "_id": doc_id})
    bench.source.delete_one({"_id": 2})
    bench.source.update_many({"_id": {"$in": [3, 4]}}, {"$set": {"on": False}})
    bench.plan({**DOCUMENT, "_id": 5, "on": False})


# --- a cleanup now ----------------------------------------------------------------------------------


def test_a_cleanup_goes_by_the_policies(reactive: Reactive, keeping: Bench, removing: Bench) -> None:
    """B-41, B-42: marked or not; told of each task that removes at all."""
    told: list[Any] = []
    connected = signals.cleanup_finished.connect(lambda **facts: told.append((facts["task"], facts["records"])))
    orphaned(keeping)
    orphaned(removing)
    assert reactive.cleanup() == 6
    signals.cleanup_finished.disconnect(connected)
    assert left_over(removing) == {6, 7, 8, 9}
    assert left_over(keeping) == set(range(10))
    assert told == [("removing", 6)]


def test_a_cleanup_of_some_tasks(reactive: Reactive, keeping: Bench, removing: Bench) -> None:
    """B-42: of those named; of none if one of them is unknown."""
    orphaned(keeping)
    orphaned(removing)
    with pytest.raises(UnknownTaskError, match="keeping, removing"):
        reactive.cleanup("removing", "remving")
    assert reactive.cleanup("keeping") == 0
    assert reactive.cleanup("removing", "removing") == 6


def test_a_cleanup_evaluates_the_stored_filter(reactive: Reactive, removing: Bench) -> None:
    """B-41, B-43: not that of the code at hand, which may be another version."""
    define(Bench(removing.connection, declare("removing", {"collection": "orders", "filter": {"v": "first"}})))
    removing.generation = 2
    for doc_id in range(2):
        removing.put({**DOCUMENT, "_id": doc_id, "on": bool(doc_id)})
    removing.task = declare("removing", {"collection": "orders", "filter": {"v": "first"}, "debounce": 0})
    removing.observe(0, 1)
    removing.discard(0, 1)
    removing.put({**DOCUMENT, "_id": 1, "v": "second"})
    assert reactive.cleanup() == 1
    assert left_over(removing) == {0}


def test_a_task_that_no_planner_has_seen_has_nothing_to_clean(reactive: Reactive) -> None:
    """B-42: no definition is stored, and no collection is there."""
    assert reactive.cleanup() == 0


# --- purging ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"gone": True}, {3, 4, 5, 6, 7, 8, 9}),
        ({"left": True}, {0, 1, 2, 6, 7, 8, 9}),
        ({"gone": True, "left": True}, {6, 7, 8, 9}),
        ({"gone": True, "left": True, "older_than": "2d"}, {0, 2, 4, 5, 6, 7, 8, 9}),
    ],
    ids=["gone", "left", "both", "older"],
)
def test_purging_removes_by_hand_what_the_policy_keeps(
    reactive: Reactive, keeping: Bench, removing: Bench, options: dict[str, Any], kept: set[int]
) -> None:
    """B-41: also under `never`; counted before; of this task alone."""
    orphaned(keeping)
    orphaned(removing)
    age(keeping, 1, 3, 6, by=timedelta(days=3), fields="updatedAt lastFinalizedAt")
    assert count_purge(reactive.runtime, "keeping", **options) == 10 - len(kept)
    assert left_over(keeping) == set(range(10))
    assert reactive.purge("keeping", **options) == 10 - len(kept)
    assert left_over(keeping) == kept
    assert left_over(removing) == set(range(10))


def test_a_running_record_is_neither_counted_nor_marked(reactive: Reactive, keeping: Bench) -> None:
    """B-41: what is to become of it is told when its run has ended."""
    keeping.start({**DOCUMENT, "_id": 1})
    keeping.source.delete_one({"_id": 1})
    before = keeping.raw(1)
    assert count_purge(reactive.runtime, "keeping", gone=True) == 0
    assert reactive.purge("keeping", gone=True) == 0
    assert keeping.raw(1) == before


def test_a_purge_is_told(reactive: Reactive, keeping: Bench) -> None:
    """B-54: as every change by hand; nothing is told of where nothing was removed."""
    told: list[Any] = []
    connected = signals.manual_action.connect(lambda **facts: told.append((facts["action"], facts["records"])))
    gone(keeping, 1)
    reactive.purge("keeping", gone=True)
    reactive.purge("keeping", gone=True)
    signals.manual_action.disconnect(connected)
    assert told == [("purge", 1)]


def test_a_declared_task_keeps_the_records_it_needs(reactive: Reactive, keeping: Bench) -> None:
    """B-4: its other records are in use."""
    keeping.handle({**DOCUMENT, "_id": 1})
    for ask in (reactive.purge, count_of(reactive)):
        with pytest.raises(ConfigurationError, match="expected gone or left"):
            ask("keeping")
        with pytest.raises(ConfigurationError, match="older_than"):
            ask("keeping", gone=True, older_than="soon")
    assert left_over(keeping) == {1}


def count_of(reactive: Reactive) -> Callable[..., int]:
    """Return `count_purge` as `Reactive.purge` is called."""
    return lambda *args, **options: count_purge(reactive.runtime, *args, **options)


@pytest.mark.usefixtures("keeping", "former")
def test_a_task_that_was_never_there_is_unknown(reactive: Reactive) -> None:
    """B-4: the message lists the tasks there are or were."""
    for ask in (reactive.purge, count_of(reactive)):
        with pytest.raises(UnknownTaskError, match=r"did you mean 'shop\.former'\? \(known: keeping, removing, shop\."):
            ask("shop.formr")


def test_all_records_of_a_task_that_is_no_longer_declared_go(reactive: Reactive, former: Bench, keeping: Bench) -> None:
    """B-4: whatever their state, and with the last of them what is stored about the task; but none that runs."""
    globals_ = former.connection.globals()
    for doc_id in range(8):
        former.handle({**DOCUMENT, "_id": doc_id})
    former.plan({**DOCUMENT, "_id": "waits"})
    claim = former.start({**DOCUMENT, "_id": "runs"})
    former.exhaust(former.start({**DOCUMENT, "_id": "failed"}))
    keeping.handle({**DOCUMENT, "_id": 1})
    age(former, 5, fields="updatedAt lastFinalizedAt")
    key = RecordKey("shop.former", 1)
    unplanned.note(globals_, key, at=claim.cluster_time, gone=False, reason=unplanned.Reason.FAILED, error="broken")
    orphans.note_time(globals_, "default", "shop.former", term=1)

    assert count_purge(reactive.runtime, "shop.former", older_than="1d") == 1
    assert reactive.purge("shop.former", older_than="1d") == 1
    assert count_purge(reactive.runtime, "shop.former") == 9
    assert reactive.purge("shop.former") == 9
    assert left_over(former) == {"runs"}
    assert globals_.count_documents({"_id.t": "shop.former"}) == 3
    former.complete(claim)
    assert reactive.purge("shop.former") == 1
    assert globals_.count_documents({"_id.t": "shop.former"}) == 0
    assert left_over(keeping) == {1}
    assert globals_.count_documents({"_id.t": "keeping"}) == 1


def test_a_purged_task_that_is_declared_again_begins_anew(reactive: Reactive, former: Bench) -> None:
    """B-45: it is reconciled, so that its documents run."""
    former.handle({**DOCUMENT, "_id": 1})
    definitions.mark_reconciled(former.connection.globals(), "shop.former", generation=1, needs=0, term=1)
    assert definitions.read(former.connection.globals(), "shop.former").reconciled_generation == 1
    reactive.purge("shop.former")
    assert definitions.read(define(former).connection.globals(), "shop.former").reconciled_generation == 0
    former.observe(1)
    assert former.state(1) is RecordState.PENDING


@pytest.mark.parametrize("options", [{"gone": True}, {"left": True}], ids=["gone", "left"])
def test_orphans_alone_of_a_task_that_is_no_longer_declared(
    reactive: Reactive, former: Bench, options: dict[str, bool]
) -> None:
    """B-41: by the definition that was its last, which stays."""
    orphaned(former)
    assert reactive.purge("shop.former", **options) == 3
    assert len(left_over(former)) == 7
    assert definitions.read(former.connection.globals(), "shop.former").generation == 1
