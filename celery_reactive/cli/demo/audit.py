"""The demo's judge: what the handler wrote down, held against what the shop wrote.

Called by `story`. Reads the collections `orders` and `tally` of the shop and `runs` of the handler; of the
package's own it reads the records' states and the leader's lock only to show them. All times are the database's.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from pymongo.database import Database

from celery_reactive.core.states import RUNNING, RecordState
from celery_reactive.store import queries

Shop = Database[dict[str, Any]]

TASK = "sync_order_to_erp"
STATUSES = ("pending", "paid", "packed", "shipped")
"""Orders in one of these concern the task; a cancelled one does not."""
_GROUP = "default"
_RECENT = timedelta(seconds=5)


@dataclasses.dataclass(frozen=True, slots=True)
class Latency:
    """How long it took from a write to the start of the handler that saw it, in milliseconds."""

    p50: float
    p95: float
    p99: float
    longest: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency | None:
        """Return the quantiles, None of nothing."""
        if not milliseconds:
            return None
        ordered = sorted(milliseconds)
        last = len(ordered) - 1
        return cls(*(ordered[round(last * share)] for share in (0.5, 0.95, 0.99, 1)))


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """The system at one moment, for the board."""

    tally: Counter[str]
    states: Counter[str]
    runs: int
    failed_runs: int
    leader: str | None
    term: int
    heartbeat_age: timedelta | None
    """Since the leader renewed its lock."""
    latency: Latency | None
    """Of the last five seconds."""
    unhandled: int
    """Orders whose present state no run has seen yet."""


@dataclasses.dataclass(frozen=True, slots=True)
class Takeover:
    """The leader was killed and another planner took over."""

    killed: str
    killed_at: datetime
    successor: str
    led_at: datetime

    @property
    def duration(self) -> timedelta:
        """How long nobody led."""
        return self.led_at - self.killed_at


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One promise and whether it was kept."""

    promise: str
    broken: Sequence[str]
    """What speaks against it, in words; empty: kept."""

    @property
    def is_kept(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.broken


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What the audit came to."""

    checks: tuple[Check, ...]
    tally: Counter[str]
    orders: int
    runs: int
    failed_runs: int
    skipped_runs: int
    latency: Latency | None
    """Of first attempts, without those that the takeover held up."""
    latency_in_takeover: Latency | None
    """Of writes from the kill until what had piled up was handled."""
    takeover: Takeover | None

    @property
    def is_good(self) -> bool:
        """Whether every promise was kept."""
        return all(check.is_kept for check in self.checks)


def look(shop: Shop) -> Snapshot:
    """Return the system as it is now."""
    lock = queries.leading(shop["_celery_reactive"], _GROUP)
    newest = [] if lock is None else list(shop.runs.find({"startedAt": {"$gte": lock.now - _RECENT}}))
    return Snapshot(
        tally=_tally(shop),
        states=_states(shop),
        runs=shop.runs.count_documents({}),
        failed_runs=shop.runs.count_documents({"outcome": "ErpError"}),
        leader=None if lock is None else lock.holder,
        term=0 if lock is None else lock.term,
        heartbeat_age=None if lock is None or lock.renewed_at is None else lock.now - lock.renewed_at,
        latency=Latency.of([_milliseconds(run) for run in newest if _tells_latency(run)]),
        unhandled=len(_unhandled(shop)),
    )


def takeover(shop: Shop, killed: str, killed_at: datetime) -> Takeover | None:
    """Return how *killed* was succeeded, None while it has not been."""
    lock = queries.leading(shop["_celery_reactive"], _GROUP)
    if lock is None or lock.holder is None or lock.holder == killed or lock.since is None:
        return None
    return Takeover(killed, killed_at, lock.holder, lock.since)


def is_settled(shop: Shop) -> bool:
    """Whether every order's final state has been handled and nothing waits or runs."""
    states = _states(shop)
    return not any(states[state] for state in (RecordState.PENDING, *RUNNING)) and not _unhandled(shop)


def judge(shop: Shop, taken_over: Takeover | None, *, allowed_takeover: timedelta) -> Verdict:
    """Return the verdict on everything that was written down.

    Args:
        shop: The database.
        taken_over: How the killed leader was succeeded; None: it was not.
        allowed_takeover: The longest that may take.
    """
    runs = list(shop.runs.find(sort=[("startedAt", 1), ("fence", 1)]))
    by_order = defaultdict(list)
    for run in runs:
        by_order[run["order"]].append(run)
    outcomes = Counter(run.get("outcome", "unfinished") for run in runs)
    states = _states(shop)
    waiting = [f"{states[state]} {state}" for state in RecordState if states[state] and state != RecordState.COMPLETED]
    held_up, others = _split(runs, taken_over)
    return Verdict(
        checks=(
            Check("the last state of every order was handled", _unhandled(shop)),
            Check("no order was ever handled twice at the same time", _overlaps(by_order)),
            Check("the fence of an order only grew", _fences_that_fell(by_order)),
            Check("nothing is left waiting, running or failed", waiting),
            Check("a stand-by took over from the killed leader in time", _late(taken_over, allowed_takeover)),
        ),
        tally=_tally(shop),
        orders=shop.orders.count_documents({}),
        runs=len(runs),
        failed_runs=outcomes["ErpError"],
        skipped_runs=outcomes["TaskConditionFailedError"],
        latency=Latency.of(others),
        latency_in_takeover=Latency.of(held_up),
        takeover=taken_over,
    )


def _tally(shop: Shop) -> Counter[str]:
    stored = shop.tally.find_one({"_id": "shop"}, projection={"_id": 0})
    return Counter(stored or {})


def _states(shop: Shop) -> Counter[str]:
    return Counter({state.value: n for state, n in queries.count_by_state(shop.orders_tasks, TASK).items()})


def _unhandled(shop: Shop) -> list[str]:
    """Return the orders whose final state no finished run was the last to see."""
    last_run = [
        {"$match": {"$expr": {"$eq": ["$order", "$$order"]}, "outcome": "handled"}},
        {"$sort": {"fence": -1}},
        {"$limit": 1},
    ]
    found = shop.orders.aggregate(
        [
            {"$match": {"status": {"$in": list(STATUSES)}}},
            {"$lookup": {"from": "runs", "let": {"order": "$_id"}, "pipeline": last_run, "as": "run"}},
            {"$set": {"run": {"$first": "$run"}}},
            {
                "$match": {
                    "$expr": {
                        "$or": [{"$ne": ["$run.saw.status", "$status"]}, {"$ne": ["$run.saw.total", "$total"]}],
                    },
                },
            },
            {"$project": {"status": 1, "saw": "$run.saw.status"}},
        ],
    )
    return [f"order {order['_id']} is {order['status']}, last handled {order.get('saw')}" for order in found]


def _overlaps(by_order: dict[Any, list[dict[str, Any]]]) -> list[str]:
    return [
        f"order {order}: attempt with fence {second['fence']} began before fence {first['fence']} had ended"
        for order, runs in by_order.items()
        for first, second in pairwise(runs)
        if "endedAt" not in first or second["startedAt"] < first["endedAt"]
    ]


def _fences_that_fell(by_order: dict[Any, list[dict[str, Any]]]) -> list[str]:
    return [
        f"order {order}: fence {second['fence']} came after {first['fence']}"
        for order, runs in by_order.items()
        for first, second in pairwise(runs)
        if second["fence"] <= first["fence"]
    ]


def _late(taken_over: Takeover | None, allowed: timedelta) -> list[str]:
    if taken_over is None:
        return ["nobody took over"]
    if taken_over.duration > allowed:
        return [f"it took {taken_over.duration.total_seconds():.1f} s, allowed are {allowed.total_seconds():.1f} s"]
    return []


def _split(runs: Sequence[dict[str, Any]], taken_over: Takeover | None) -> tuple[list[float], list[float]]:
    """Return the latencies in milliseconds of writes that the takeover held up, and of all others."""
    telling = [run for run in runs if _tells_latency(run)]
    if taken_over is None:
        return [], [_milliseconds(run) for run in telling]
    waited = [run for run in telling if _found_no_leader(run, taken_over)]
    caught_up = max((run["startedAt"] for run in waited), default=taken_over.led_at)
    held_up: list[float] = []
    others: list[float] = []
    for run in telling:
        came_in_between = run["startedAt"] >= taken_over.killed_at and run["saw"]["writtenAt"] <= caught_up
        (held_up if came_in_between else others).append(_milliseconds(run))
    return held_up, others


def _found_no_leader(run: dict[str, Any], taken_over: Takeover) -> bool:
    """Whether the write came before the next planner led, and its run only after the last one had died."""
    written: datetime = run["saw"]["writtenAt"]
    return written <= taken_over.led_at and run["startedAt"] >= taken_over.killed_at


def _tells_latency(run: dict[str, Any]) -> bool:
    """Whether the run is the first that its write led to: a retry has waited for other reasons."""
    return bool(run["attempt"] == 1 and run.get("outcome") == "handled")


def _milliseconds(run: dict[str, Any]) -> float:
    latency: timedelta = run["startedAt"] - run["saw"]["writtenAt"]
    return latency / timedelta(milliseconds=1)
