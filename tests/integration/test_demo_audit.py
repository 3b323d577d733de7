"""The demo's judge finds each promise that is broken: a judge that cannot say no proves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.database import Database

from celery_reactive.cli.demo import audit
from celery_reactive.cli.demo.audit import Takeover, Verdict

START = datetime(2026, 1, 1, tzinfo=UTC)
ALLOWED = timedelta(seconds=5)


def at(seconds: float) -> datetime:
    """Return a moment of the play."""
    return START + timedelta(seconds=seconds)


def run_of(
    order: int, start: float, end: float | None, *, fence: int, status: str = "paid", **more: Any
) -> dict[str, Any]:
    """Return a run as the demo's handler writes it down."""
    run = {"order": order, "attempt": 1, "fence": fence, "startedAt": at(start), "outcome": "handled", **more}
    run["saw"] = {"status": status, "total": 1, "writtenAt": at(start - 0.1)}
    return run if end is None else {**run, "endedAt": at(end)}


@pytest.fixture
def shop(database: Database[Any]) -> Database[Any]:
    """A shop with one paid order that one run has handled."""
    database.orders.insert_one({"_id": 1, "status": "paid", "total": 1})
    database.runs.insert_one(run_of(1, 1, 2, fence=1))
    database.orders_tasks.insert_one({"task": audit.TASK, "status": "completed"})
    return database


def judge(shop: Database[Any], took: float = 3) -> Verdict:
    """Judge *shop*, whose leader was killed and succeeded *took* seconds later."""
    return audit.judge(shop, Takeover("a", at(10), "b", at(10 + took)), allowed_takeover=ALLOWED)


def broken(verdict: Verdict) -> list[str]:
    """Return the promises that were broken."""
    return [check.promise for check in verdict.checks if not check.is_kept]


def test_what_went_well_is_good(shop: Database[Any]) -> None:
    """No promise is broken, and the figures are those of the one run."""
    verdict = judge(shop)
    assert broken(verdict) == []
    assert verdict.is_good
    assert verdict.latency is not None
    assert round(verdict.latency.p50) == 100


@pytest.mark.parametrize(
    "change",
    [{"status": "shipped"}, {"total": 2}],
    ids=["another status", "another total"],
)
def test_a_final_state_that_no_run_saw_is_found(shop: Database[Any], change: Mapping[str, Any]) -> None:
    """B-10: the last finished run must have seen what the order is now."""
    shop.orders.update_one({"_id": 1}, {"$set": change})
    assert broken(judge(shop)) == ["the last state of every order was handled"]


def test_a_failed_last_run_has_not_handled_anything(shop: Database[Any]) -> None:
    """Only a run that ended well counts."""
    shop.runs.update_one({}, {"$set": {"outcome": "ErpError"}})
    assert "the last state of every order was handled" in broken(judge(shop))


def test_an_older_run_that_ended_last_does_not_hide_a_newer_one(shop: Database[Any]) -> None:
    """The fence tells which run was the last."""
    shop.runs.insert_one(run_of(1, 3, 4, fence=2, status="pending"))
    assert "the last state of every order was handled" in broken(judge(shop))


def test_an_order_that_concerns_nobody_needs_no_run(shop: Database[Any]) -> None:
    """Cancelled orders have left the filter."""
    shop.orders.insert_one({"_id": 2, "status": "cancelled", "total": 1})
    assert judge(shop).is_good


def test_two_runs_of_one_order_at_the_same_time_are_found(shop: Database[Any]) -> None:
    """B-23: never two live runs."""
    shop.runs.insert_one(run_of(1, 1.5, 3, fence=2))
    assert broken(judge(shop)) == ["no order was ever handled twice at the same time"]


def test_runs_of_different_orders_may_overlap(shop: Database[Any]) -> None:
    """Two workers are there to do two things at once."""
    shop.orders.insert_one({"_id": 2, "status": "paid", "total": 1})
    shop.runs.insert_one(run_of(2, 1.5, 3, fence=1))
    assert judge(shop).is_good


def test_a_run_that_never_ended_is_an_overlap_with_the_next(shop: Database[Any]) -> None:
    """Nobody knows how long it went on."""
    shop.runs.update_one({}, {"$unset": {"endedAt": 1}})
    shop.runs.insert_one(run_of(1, 5, 6, fence=2))
    assert broken(judge(shop)) == ["no order was ever handled twice at the same time"]


def test_a_fence_that_fell_is_found(shop: Database[Any]) -> None:
    """B-27: the fence only grows."""
    shop.runs.insert_one(run_of(1, 3, 4, fence=1))
    assert broken(judge(shop)) == ["the fence of an order only grew"]


@pytest.mark.parametrize("state", ["pending", "processing", "processing_dirty", "failed"])
def test_a_record_that_is_left_is_found(shop: Database[Any], state: str) -> None:
    """Nothing may wait or run when all is said to be handled, nor have failed for good."""
    shop.orders_tasks.insert_one({"task": audit.TASK, "status": state})
    assert broken(judge(shop)) == ["nothing is left waiting, running or failed"]


def test_a_slow_takeover_is_found(shop: Database[Any]) -> None:
    """B-46: within the TTL and a heartbeat."""
    assert broken(judge(shop, took=6)) == ["a stand-by took over from the killed leader in time"]
    assert not audit.judge(shop, None, allowed_takeover=ALLOWED).is_good


def test_what_a_takeover_held_up_is_told_apart(shop: Database[Any]) -> None:
    """Neither hides the other: not the takeover in the quantiles, nor the quantiles in the takeover."""
    held_up = run_of(1, 14, 14.5, fence=2)
    held_up["saw"]["writtenAt"] = at(11)
    queued = run_of(1, 14.6, 14.7, fence=3)
    queued["saw"]["writtenAt"] = at(13.8)
    shop.runs.insert_many([held_up, queued, run_of(1, 20, 21, fence=4)])
    verdict = judge(shop)
    assert verdict.latency is not None
    assert verdict.latency_in_takeover is not None
    assert round(verdict.latency.longest) == 100
    assert [round(verdict.latency_in_takeover.longest), round(verdict.latency_in_takeover.p50)] == [3000, 800]
