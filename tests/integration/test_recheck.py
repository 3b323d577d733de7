"""Documents whose filter depends on time are looked at again when their interval has passed (B-59)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from celery_reactive.core.registry import Registry
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.planner.recheck import Rechecker
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store import definitions
from celery_reactive.store.connection import Connection
from tests.integration.bench import Bench
from tests.integration.conftest import MakeBench

PAST = {"$lt": ["$until", "$$NOW"]}


class Desk:
    """A rechecker, and what it has asked for."""

    def __init__(self, connection: Connection, settings: Settings, *benches: Bench) -> None:
        self.asked = 0
        self._globals = connection.globals()
        planned = [PlannedTask(bench.task, 1, collated=False) for bench in benches]
        for bench in benches:
            definitions.define(self._globals, bench.task, namespace="shop.orders", collated=False, term=1)
        ended = threading.Event()
        ended.set()
        runtime = Runtime(settings, Registry(), connection)
        self.rechecker = Rechecker(runtime, planned, on_wanted=self._ask, ended=ended)

    def _ask(self) -> None:
        self.asked += 1

    def reconciled(self, task: str, *, ago: timedelta = timedelta(0)) -> None:
        """Let every document have been looked at so long ago."""
        needs = definitions.read(self._globals, task).needs
        definitions.mark_reconciled(self._globals, task, generation=1, needs=needs, term=1)
        back = {"$subtract": ["$reconciledAt", ago // timedelta(milliseconds=1)]}
        self._globals.update_one({"_id": {"k": "task", "t": task}}, [{"$set": {"reconciledAt": back}}])

    def is_wanted(self, task: str) -> bool:
        """Whether a reconciliation is wanted."""
        return definitions.read(self._globals, task).reconciled_generation == 0


@pytest.fixture
def desk_of(connection: Connection, settings: Settings) -> Callable[..., Desk]:
    """Make a desk for workbenches."""
    return lambda *benches: Desk(connection, settings, *benches)


@pytest.mark.parametrize("interval", ["10m", "CRON */5 * * * *"])
def test_a_task_is_looked_at_again_when_its_time_has_come(
    make_bench: MakeBench, desk_of: Callable[..., Desk], interval: str
) -> None:
    """B-59: a duration or a schedule, from the last reconciliation on, whatever it was for."""
    bench = make_bench("offers.end", filter=PAST, recheck_interval=interval)
    desk = desk_of(bench)
    desk.reconciled(bench.task.name)
    desk.rechecker.step()
    assert (desk.asked, desk.is_wanted(bench.task.name)) == (0, False)
    desk.reconciled(bench.task.name, ago=timedelta(minutes=11))
    desk.rechecker.step()
    assert (desk.asked, desk.is_wanted(bench.task.name)) == (1, True)
    desk.rechecker.step()
    assert desk.asked == 1


def test_one_that_is_under_way_for_another_reason_is_enough(
    make_bench: MakeBench, desk_of: Callable[..., Desk]
) -> None:
    """B-59: it looks at every document, too."""
    bench = make_bench("offers.end", filter=PAST, recheck_interval="1s")
    desk = desk_of(bench)
    desk.rechecker.step()
    desk.reconciled(bench.task.name, ago=timedelta(hours=1))
    definitions.request_reconciliation(bench.connection.globals(), bench.task.name)
    desk.rechecker.step()
    assert desk.asked == 0


def test_other_tasks_are_left_alone(make_bench: MakeBench, desk_of: Callable[..., Desk]) -> None:
    """B-59: no interval, no look."""
    desk = desk_of(make_bench("plain"))
    desk.reconciled("plain", ago=timedelta(days=400))
    assert not desk.rechecker.is_needed
    desk.rechecker.step()
    assert desk.asked == 0
