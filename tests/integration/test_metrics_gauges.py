"""Gauges: what a scrape measures, at the moment it asks (B-55)."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from bson import Timestamp

from celery_reactive.core.registry import Registry
from celery_reactive.core.states import RecordState
from celery_reactive.errors import StoreBusyError, StoreUnavailableError, TermEndedError
from celery_reactive.metrics import catalogue
from celery_reactive.metrics.catalogue import Metric
from celery_reactive.metrics.chores import Chores
from celery_reactive.metrics.gauges import Gauges
from celery_reactive.store import checkpoints, definitions, measures, positions, queries, records, server, unplanned
from celery_reactive.store.checkpoints import Checkpoint, Scanned
from celery_reactive.store.connection import Connection
from celery_reactive.store.positions import Position
from celery_reactive.store.unplanned import Reason
from tests.integration.bench import Bench
from tests.integration.conftest import MakeBench

HOUR = timedelta(hours=1)


@dataclasses.dataclass
class System:
    """Two tasks of one planner group, and a look at them."""

    connection: Connection
    sync: Bench
    other: Bench

    @property
    def gauges(self) -> Gauges:
        """What measures them."""
        registry = Registry()
        for bench in (self.sync, self.other):
            registry.add(bench.task, celery_name=bench.task.name)
        return Gauges(self.connection, registry, preference="secondaryPreferred", queue_of=lambda _task: "erp")

    def read(self) -> dict[tuple[Metric, tuple[str, ...]], float]:
        """Return every gauge."""
        return {(sample.metric, sample.labels): sample.value for sample in self.gauges.read()}

    def value(self, metric: Metric, *labels: str) -> float | None:
        """Return one of them, None where it is missing."""
        return self.read().get((metric, labels))


@pytest.fixture
def system(connection: Connection, make_bench: MakeBench) -> System:
    """A system in which nothing has happened yet."""
    return System(connection, make_bench("shop.sync"), make_bench("shop.other"))


def test_of_a_new_system_everything_is_nothing(system: System) -> None:
    """B-55: every task is there from the start; what nobody can know yet is missing."""
    found = system.read()
    for task in ("shop.sync", "shop.other"):
        for state in measures.UNFINISHED:
            assert found[catalogue.QUEUE_DEPTH, (task, state.value)] == 0
        for metric in (catalogue.GLOBAL_LAG, catalogue.PAUSED, catalogue.THROTTLED, catalogue.PLANNING_FAILURES):
            assert found[metric, (task,)] == 0
    assert found[catalogue.IN_FLIGHT, ("erp",)] == 0
    named = {metric for metric, _ in found}
    assert not named & {catalogue.STREAM_LAG, catalogue.TERM, catalogue.LAST_RECONCILIATION, catalogue.PROGRESS}


def test_records_are_counted_by_state(system: System) -> None:
    """B-55: those that wait or run at once; those that are completed as the leader has counted them last."""
    bench = system.sync
    bench.plan(*({"_id": doc_id, "v": 1} for doc_id in range(5)))
    bench.claim(0)
    records.mark_sent(bench.records, [bench.key(1)], first_deadline=HOUR, longest_deadline=HOUR)
    bench.records.update_many({"sourceDocId": {"$in": [2, 3]}}, {"$set": {"status": "completed"}})
    found = system.read()
    assert found[catalogue.QUEUE_DEPTH, ("shop.sync", RecordState.PENDING)] == 2
    assert found[catalogue.QUEUE_DEPTH, ("shop.sync", RecordState.PROCESSING)] == 1
    assert (catalogue.QUEUE_DEPTH, ("shop.sync", RecordState.COMPLETED)) not in found
    assert found[catalogue.IN_FLIGHT, ("erp",)] == 1
    ended = threading.Event()
    ended.set()
    tasks = (system.sync.task, system.other.task)
    Chores(system.connection, tasks, group="default", term=3, ended=ended).step()
    assert system.value(catalogue.QUEUE_DEPTH, "shop.sync", RecordState.COMPLETED) == 2
    assert system.value(catalogue.QUEUE_DEPTH, "shop.other", RecordState.COMPLETED) == 0


def test_an_old_leader_counts_for_nobody(connection: Connection) -> None:
    """B-46, B-55: what it writes to the globals names its term, and is refused."""
    measures.store_completed(connection.globals(), "default", {"shop.sync": 7}, term=2)
    with pytest.raises(TermEndedError):
        measures.store_completed(connection.globals(), "default", {"shop.sync": 1}, term=1)
    assert measures.read_completed(connection.globals(), ["default"]) == {"shop.sync": 7}
    measures.store_completed(connection.globals(), "default", {"shop.sync": 8}, term=2)
    assert measures.read_completed(connection.globals(), ["default"]) == {"shop.sync": 8}


@pytest.mark.parametrize(("due_in_seconds", "least", "most"), [(-100, 100, 160), (0, 0, 60), (100, 0, 0)])
def test_the_lag_is_that_of_the_oldest_due(system: System, due_in_seconds: int, least: float, most: float) -> None:
    """B-55: now − the oldest pending `dueAt`; what is due later is no lag, and none is below 0."""
    system.sync.plan({"_id": 1, "v": 1}, {"_id": 2, "v": 1})
    due = {"$add": ["$$NOW", due_in_seconds * 1000]}
    system.sync.records.update_one({"sourceDocId": 1}, [{"$set": {"dueAt": due}}])
    system.sync.records.update_one({"sourceDocId": 2}, [{"$set": {"dueAt": {"$add": [due, 50_000]}}}])
    lag = system.value(catalogue.GLOBAL_LAG, "shop.sync")
    assert lag is not None
    assert least <= lag <= most


def test_what_the_loop_guard_has_paused_is_no_lag(system: System) -> None:
    """B-64: it waits for a person, and is counted apart."""
    system.sync.guard({"_id": 1, "v": 1})
    system.sync.guard({"_id": 2, "v": 1})
    system.sync.records.update_many({}, [{"$set": {"dueAt": {"$add": ["$$NOW", -9_000_000]}}}])
    system.sync.plan({"_id": 3, "v": 1})
    assert system.value(catalogue.GUARDED, "shop.sync") == 2
    assert system.value(catalogue.GUARDED, "shop.other") == 0
    lag = system.value(catalogue.GLOBAL_LAG, "shop.sync")
    assert lag is not None
    assert lag < 60


@pytest.mark.parametrize(
    ("behind_seconds", "idle", "stored_seconds_ago", "least", "most"),
    [(3, False, 0, 3, 60), (9, True, 9, 0, 0), (100, True, 100, 100, 160), (-50, False, 0, 0, 0)],
)
def test_the_stream_lag_tells_idle_from_standing_still(
    system: System, behind_seconds: int, stored_seconds_ago: int, least: float, most: float, *, idle: bool
) -> None:
    """B-55: cluster time − the time planned up to; idle 0, unless nobody has said so for long; never below 0."""
    now = server.now(system.connection.database()).timestamp()
    globals_ = system.connection.globals()
    for database, behind in ((system.connection.default_database, behind_seconds), ("unwatched", 9999)):
        position = Position({"t": 1}, Timestamp(int(now - behind), 1), None, frozenset())
        positions.store(globals_, "default", database, position, idle=idle, term=1)
    ago = {"$subtract": ["$$NOW", stored_seconds_ago * 1000]}
    globals_.update_many({"_id.k": "position"}, [{"$set": {"storedAt": ago}}])
    lag = system.value(catalogue.STREAM_LAG)
    assert lag is not None
    assert least <= lag <= most


def test_controls_show(system: System) -> None:
    """B-55: paused, and until when a task is throttled; a throttle that is over is none."""
    globals_ = system.connection.globals()
    definitions.set_paused(globals_, "shop.sync", paused=True)
    until = server.now(system.connection.database()) + HOUR
    definitions.throttle(globals_, "shop.sync", until)
    definitions.throttle(globals_, "shop.other", until - 2 * HOUR)
    found = system.read()
    assert (found[catalogue.PAUSED, ("shop.sync",)], found[catalogue.PAUSED, ("shop.other",)]) == (1, 0)
    assert found[catalogue.THROTTLED, ("shop.sync",)] == pytest.approx(until.timestamp(), abs=0.01)
    assert found[catalogue.THROTTLED, ("shop.other",)] == 0


def test_what_cannot_be_planned_is_counted_by_task(system: System) -> None:
    """B-55: whatever the type of the document's id."""
    for doc_id in (1, "1", None, {"a": 1}):
        unplanned.note(
            system.connection.globals(),
            dataclasses.replace(system.sync.key(1), doc_id=doc_id),
            at=Timestamp(1, 1),
            gone=False,
            reason=Reason.FAILED,
            error="no",
        )
    assert system.value(catalogue.PLANNING_FAILURES, "shop.sync") == 4
    assert system.value(catalogue.PLANNING_FAILURES, "shop.other") == 0


@pytest.mark.parametrize(("done", "total", "ratio"), [(25, 100, 0.25), (120, 100, 1.0), (0, 0, 0.0)])
def test_a_reconciliation_under_way_shows_its_progress(system: System, done: int, total: int, ratio: float) -> None:
    """B-55: of its tasks, from nothing to all; an estimate that was too small does not go beyond."""
    scanned = (Scanned("shop.sync", 1, 0), Scanned("forgotten", 1, 0))
    checkpoint = Checkpoint(scanned, Timestamp(1, 1), "", 1, done, total)
    checkpoints.store(system.connection.globals(), "default", "shop", "orders", checkpoint, term=1)
    found = {labels: value for (metric, labels), value in system.read().items() if metric is catalogue.PROGRESS}
    assert found == {("shop.sync",): ratio}


def test_only_the_groups_that_are_asked_for_are_measured(system: System) -> None:
    """B-55: in `local` mode a leader measures what it leads."""
    assert [
        sample.labels for sample in system.gauges.read(frozenset({"elsewhere"})) if "shop.sync" in sample.labels
    ] == []


@pytest.mark.parametrize("error", [StoreBusyError("too long"), StoreUnavailableError("away")])
def test_what_cannot_be_told_is_missing_and_an_absent_database_an_error(
    system: System, monkeypatch: pytest.MonkeyPatch, error: StoreUnavailableError
) -> None:
    """B-55: one count that takes too long harms no other gauge."""

    def fail(*_arguments: Any) -> None:
        raise error

    monkeypatch.setattr(queries, "oldest_due", fail)
    if not isinstance(error, StoreBusyError):
        with pytest.raises(StoreUnavailableError):
            system.read()
        return
    named = {metric for metric, _ in system.read()}
    assert catalogue.GLOBAL_LAG not in named
    assert {catalogue.QUEUE_DEPTH, catalogue.PAUSED, catalogue.OPLOG} <= named


@pytest.fixture
def without_rights(connection: Connection) -> Iterator[None]:
    """The server refuses to let the oplog be read, as it does a user of the planner's role without that right."""
    oplog = {"failCommands": ["find"], "errorCode": 13, "namespace": "local.oplog.rs"}
    admin = connection.client.admin
    admin.command({"configureFailPoint": "failCommand", "mode": "alwaysOn", "data": oplog})
    yield
    admin.command({"configureFailPoint": "failCommand", "mode": "off"})


@pytest.mark.usefixtures("without_rights")
def test_an_oplog_that_may_not_be_read_is_missing(system: System) -> None:
    """B-55: the right to read it is optional."""
    assert system.value(catalogue.OPLOG) is None
    assert system.value(catalogue.PAUSED, "shop.sync") == 0


def test_the_oplog_reaches_back(system: System) -> None:
    """B-55: from the first entry to the last."""
    window = system.value(catalogue.OPLOG)
    assert window is not None
    assert window >= 0
