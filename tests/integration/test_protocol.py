"""Guards of the protocol that only a rarer history needs: each test fails without the one it names.

The everyday ones are in `test_guards.py`.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from bson import Timestamp

from celery_reactive.core.outcome import GivenBack
from celery_reactive.core.states import RecordState
from celery_reactive.errors import LeaseLostError
from celery_reactive.planner.reconcile import Reconciler
from celery_reactive.store import records, scans
from tests.integration.bench import LEASE, Bench, overtaken
from tests.integration.conftest import MakeDesk

A = {"_id": 1, "on": True, "v": "a"}
B = {"_id": 1, "on": True, "v": "b"}
PAST = {"$subtract": ["$$NOW", 10**7]}


@pytest.mark.parametrize("company", [False, True])
def test_a_lapsed_lease_is_nobodys_to_claim(bench: Bench, company: bool) -> None:  # noqa: FBT001 -- parametrized
    """B-23: claim's `pending`: the lease looks expired by the clock, its worker may live; only rescue ends it."""
    claim = bench.start(A)
    bench.records.update_one({}, [{"$set": {"nextRunAt": PAST, "_r.wakeAt": PAST}}])
    assert bench.claim(*((1, 2) if company else (1,))) == []
    assert bench.complete(claim).state is RecordState.COMPLETED


def test_a_leader_of_an_older_definition_does_not_mark_what_left_its_filter(bench: Bench) -> None:
    """B-43: leave's generation: a document outside the old filter may well match the new one."""
    bench.generation = 2
    bench.plan(A)
    bench.generation = 1
    assert bench.leave(1) == 0
    assert bench.state(1) is RecordState.PENDING


def test_an_old_event_does_not_undo_what_the_worker_read(bench: Bench) -> None:
    """B-33: overtake's time: the event of a state before the claim comes late, and must not bring it back."""
    bench.plan(A)
    old = bench.cluster_time()
    (claim,) = bench.claim(1)
    assert claim.cluster_time > old
    bench.put(B)
    assert bench.settle(claim, overtaken({"v": "b"})).state is RecordState.PENDING
    bench.put(A)  # what a paused leader read before the claim, played by hand
    bench.observe(1, at=old)
    assert bench.record(1)["lastObservedValues"] == {"v": "b"}


def test_a_scan_stamps_what_it_read_with_a_time_before_the_read(
    bench: Bench, make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-48: with the reply's later time the event of a change in between would be refused, and the change lost."""
    desk = make_desk(bench)
    desk.define()
    for doc_id in range(20):
        bench.put({**A, "_id": doc_id})
    read_page = scans.next_documents
    asked: list[Timestamp] = []
    stamped: list[Timestamp] = []

    def read_later(*args: Any, **kwargs: Any) -> Any:
        bench.source.database["others"].insert_one({})
        asked.append(bench.cluster_time())
        return read_page(*args, **kwargs)

    apply = desk.planning.apply

    def note(*args: Any, at: Timestamp, **kwargs: Any) -> set[bytes]:
        stamped.append(at)
        return apply(*args, at=at, **kwargs)

    monkeypatch.setattr(scans, "next_documents", read_later)
    monkeypatch.setattr(desk.planning, "apply", note)
    Reconciler(desk.runtime, desk.planning, group="default", term=1, ended=threading.Event()).reconcile_needed()
    assert len(stamped) == 3
    assert all(at < time for at, time in zip(stamped, asked, strict=False))
    assert {record["_r"]["at"] for record in bench.records.find()} == set(stamped)


def test_a_renewal_that_comes_after_the_rescue_finds_nothing(bench: Bench) -> None:
    """B-27: renew's state and token: the record is pending again, and must not look alive."""
    claim = bench.start(A)
    (lease,) = records.running(bench.records, bench.task.name)
    records.rescue(bench.records, bench.task, lease, GivenBack())
    before = bench.raw(1)
    assert records.renew(bench.records, [claim.key], claim.token, LEASE) == set()
    with pytest.raises(LeaseLostError):
        bench.complete(claim)
    assert bench.raw(1) == before
