"""What an earlier release has stored is read, run and changed by this one; what this one stores has not changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from bson import json_util

from celery_reactive.core.limits import Overrides
from celery_reactive.core.outcome import Completed
from celery_reactive.core.record import EXACT_EJSON
from celery_reactive.core.states import FINAL, RUNNING, RecordState
from celery_reactive.management import listing, reconciling
from celery_reactive.management.status import read_status
from celery_reactive.planner import process
from celery_reactive.planner.plan import Planning
from celery_reactive.settings import Settings
from celery_reactive.store import (
    checkpoints,
    counters,
    definitions,
    leadership,
    limiters,
    measures,
    positions,
    records,
    unplanned,
)
from celery_reactive.store.connection import Connection
from tests.integration import stored_format
from tests.integration.bench import TOOK, Bench
from tests.integration.stored_format import FOLDER, RELEASE, TASK

RELEASES = sorted(path.stem for path in FOLDER.glob("*.json"))


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest, connection: Connection) -> str:
    """A release whose stored documents are in the database."""
    name: str = request.param
    stored_format.load(connection, name)
    return name


@pytest.fixture
def upgraded(release: str, connection: Connection) -> Bench:
    """A workbench over what the release has stored."""
    assert release
    return stored_format.bench_of(connection)


def test_what_is_stored_today_is_what_this_releases_file_holds(connection: Connection) -> None:
    """A change of the format is seen, and can be weighed: older releases within a major version must read it."""
    stored_format.store_everything(connection)
    kept = json_util.loads((FOLDER / f"{RELEASE}.json").read_text(), json_options=EXACT_EJSON)
    today = stored_format.dump(connection)
    for name in ("records", "globals"):
        assert stored_format.shapes(today[name]) == stored_format.shapes(kept[name])


def test_every_record_is_listed(upgraded: Bench, settings: Settings) -> None:
    """B-51: no field is missed."""
    runtime = stored_format.runtime_of(upgraded.connection, settings)
    page = listing.get_tasks(runtime, {}, limit=1000)
    assert page.total == len(page.items) == upgraded.records.count_documents({}) > 20
    assert {item.status for item in page.items} == set(RecordState)


def test_the_globals_are_read(upgraded: Bench, settings: Settings) -> None:
    """B-46 to B-48: lock, definitions, controls, position, checkpoint, and what could not be planned."""
    globals_, database = upgraded.connection.globals(), "stored"
    assert leadership.read(globals_, "default") == leadership.Lock("host-1", 1, 1)
    stored = definitions.read(globals_, TASK)
    assert (stored.generation, stored.reconciled_generation, stored.handler_version) == (3, 3, 2)
    assert stored.lineage.comparable == {1, 3}
    held = definitions.read(globals_, "shop.index")
    assert held.paused
    assert held.overrides == Overrides(stored_format.LIMITS.rate, 3, 9)
    room = limiters.room(globals_, {TASK: stored_format.LIMITS})[TASK]
    assert (room.records, [slots.token for slots in limiters.held(globals_, [TASK])]) == (2, ["open"])
    position = positions.read(globals_, "default", database)
    assert position is not None
    assert position.covers == {(TASK, 3), ("shop.index", 1)}
    checkpoint = checkpoints.read(globals_, "default", database, "orders")
    assert checkpoint is not None
    assert (checkpoint.after, checkpoint.done) == ({"b": 1}, 500)
    assert [entry.key.doc_id for entry in unplanned.find(globals_)] == ["failed", "locked"]
    runtime = stored_format.runtime_of(upgraded.connection, settings)
    assert read_status(runtime).planning_failures == 2
    totals = counters.read(globals_, preference="primary")
    assert totals.counters == {("retries_total", (TASK,)): 6}
    assert [sum(one.numbers) for one in totals.distributions.values()] == [2]
    assert [one.name for one in counters.live(globals_)] == ["live"]
    assert measures.read_completed(globals_, ["default"]) == {TASK: 5}
    assert reconciling.under_way(runtime, group="default")[0].done == 500


def test_every_record_lives_on(upgraded: Bench, settings: Settings) -> None:
    """B-21 to B-28: a changed document runs, whatever its record was; running ones are ended by their tokens."""
    for lease in records.running(upgraded.records, TASK):
        claimed = upgraded.records.find_one({"_id": lease.key.id})
        assert claimed is not None
        records.settle_by_token(upgraded.records, upgraded.task, lease.key, lease.token, Completed(TOOK))
    runtime = stored_format.runtime_of(upgraded.connection, settings)
    (planned,) = process._define(runtime, [upgraded.task], 2)
    assert planned.generation == 4, "another database than the one it was stored in"
    ids = [record["sourceDocId"] for record in upgraded.records.find()]
    for doc_id in ids:
        upgraded.put({"_id": doc_id, "on": True, "v": "newest"})
    with upgraded.connection.causal_session() as session:
        at = upgraded.cluster_time()
        session.advance_operation_time(at)
        Planning(runtime, [planned]).apply(planned, ids, at=at, live=True, session=session)
    for doc_id in ids:
        upgraded.records.update_one({"_id": upgraded.key(doc_id).id}, {"$unset": {"_r.alone": 1}})
        upgraded.make_due(doc_id)
        (claim,) = upgraded.claim(doc_id)
        assert upgraded.complete(claim).state is RecordState.COMPLETED
    assert upgraded.records.count_documents({"lastObservedValues": {"v": "newest"}}) == len(ids)
    assert not upgraded.records.count_documents({"status": {"$in": sorted(RUNNING)}})
    assert upgraded.retry(*ids) == len(ids)
    assert upgraded.discard(*ids) == len(ids)
    assert upgraded.records.count_documents({"status": {"$in": sorted(FINAL)}}) == len(ids)


def test_there_is_a_file_of_this_release() -> None:
    """And it is small enough to be read."""
    assert RELEASE in RELEASES
    assert Path(FOLDER / f"{RELEASE}.json").stat().st_size < 200_000
