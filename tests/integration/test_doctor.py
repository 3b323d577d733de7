"""Each ailment provoked, and found with its remedy; what is well is not complained of."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from bson import Timestamp
from celery import Celery
from click.testing import CliRunner, Result

from celery_reactive import Reactive, cli, reactive_task
from celery_reactive.cli.celery_side import read_celery_side
from celery_reactive.core.policies import Evolution
from celery_reactive.embedded.mongo import find_mongod
from celery_reactive.embedded.process import free_port
from celery_reactive.management.doctor import examine as doctor
from celery_reactive.management.doctor.case import CelerySide
from celery_reactive.management.doctor.finding import Diagnosis, Severity
from celery_reactive.store import definitions, examination, indexes, instances, leadership, unplanned
from celery_reactive.store.examination import Oplog
from celery_reactive.store.instances import Kind, WorkerFacts
from tests.integration.bench import Bench

Declare = Callable[..., Reactive]
WELL = CelerySide(broker="redis://here", transport="redis", queues={"sync": "erp"})
FACTS = WorkerFacts(
    queues=["erp"], slots=4, pool="prefork", limited=False, prefetch=4, acks_late=False, tasks={"sync": 1}, version=""
)


@pytest.fixture
def declare(mongodb_url: str) -> Iterator[Declare]:
    """Make an app with a task of the given name and options."""
    made: list[Reactive] = []

    def make(
        name: str | None = "sync", *, url: str = mongodb_url, conf: dict[str, Any] | None = None, **options: Any
    ) -> Reactive:
        app = Celery("shop", broker="memory://", set_as_current=False)
        app.conf.update({"reactive_mongodb_url": url, **(conf or {})})

        def handler(ctx: Any) -> None:
            """Never called here."""

        if name is not None:
            declared = {"collection": "orders", "watch_projection": {"v": 1}, "debounce": 0, **options}
            reactive_task(task=name, **declared)(app.task(handler, name=f"shop.{name}", shared=False))
        app.finalize()
        made.append(Reactive.of(app))
        return made[-1]

    yield make
    for handle in made:
        handle.runtime.connection.close()


@pytest.fixture
def well(declare: Declare) -> Reactive:
    """An installation in good order: a leader, a stand-by, a worker, the collections with their indexes."""
    return settle(declare())


def settle(handle: Reactive) -> Reactive:
    """Let the processes of an installation live, and its collections be."""
    runtime = handle.runtime
    globals_ = runtime.connection.globals()
    leadership.acquire(globals_, "default", "one", leadership.read(globals_, "default"))
    for task in runtime.registry:
        runtime.connection.source(task).insert_one({"v": 1})
        indexes.prepare(runtime.connection.records(task))
        define(handle, term=1)
    for name in ("one", "two"):
        instances.announce(globals_, Kind.PLANNER, name, {"group": "default"})
    instances.announce_worker(globals_, "celery@here", FACTS)
    return handle


def define(handle: Reactive, *, term: int) -> None:
    """Store the definitions of this code as a leader does."""
    for task in handle.runtime.registry:
        namespace = handle.runtime.connection.namespace(task)
        definitions.define(handle.runtime.connection.globals(), task, namespace=namespace, collated=False, term=term)


def found(handle: Reactive, **celery: Any) -> set[str]:
    """Return the codes of what is found."""
    diagnosis = doctor.examine(handle.runtime, dataclasses.replace(WELL, **celery))
    assert diagnosis.unchecked == (), diagnosis
    return noted(diagnosis)


def noted(diagnosis: Diagnosis) -> set[str]:
    """Return the codes of a diagnosis, each of which says what to do."""
    assert all(finding.remedy and finding.problem and finding.subject for finding in diagnosis.findings)
    return {finding.code for finding in diagnosis.findings}


def test_what_is_well_is_not_complained_of(well: Reactive) -> None:
    """No finding at all, not even a note."""
    assert found(well) == set()


# --- Celery and its broker ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("celery", "code"),
    [
        ({"transport": "memory"}, "in_memory_broker"),
        ({"broker_error": "Connection refused"}, "broker_away"),
        ({"redis_maxmemory": 1000, "redis_maxmemory_policy": "allkeys-lru"}, "evicting_redis"),
        ({"redis_visibility_timeout": timedelta(seconds=30)}, "short_visibility"),
        ({"always_eager": True}, "always_eager"),
        ({"acks_late": True}, "acks_late"),
        ({"prefetch_multiplier": 0}, "unlimited_prefetch"),
        ({"result_backend": "redis"}, "results_unused"),
        ({"accepts_json": False}, "no_json"),
        ({"queues": {"sync": "nobody"}}, "queue_without_worker"),
    ],
)
def test_settings_of_celery(well: Reactive, celery: dict[str, Any], code: str) -> None:
    """Each by itself, and nothing else is said."""
    assert found(well, **celery) == {code}


def test_a_redis_that_keeps_everything_is_well(well: Reactive) -> None:
    """A limit is no ailment without eviction, and a policy none without a limit."""
    assert found(well, redis_maxmemory=1000, redis_maxmemory_policy="noeviction") == set()
    assert found(well, redis_maxmemory_policy="allkeys-lru") == set()


def test_what_celery_says_is_read_from_its_configuration(declare: Declare, broker_url: str) -> None:
    """With the real broker: what it may hold, and what it does then."""
    if not broker_url.startswith("redis"):
        pytest.skip("needs Redis or Valkey")
    conf = {
        "broker_url": broker_url,
        "task_acks_late": True,
        "worker_prefetch_multiplier": 0,
        "result_backend": "redis://:secret@nowhere/1",
        "accept_content": ["pickle"],
        "task_routes": {"shop.sync": {"queue": "erp"}},
        "task_time_limit": 60,
        "broker_transport_options": {"visibility_timeout": 5},
    }
    side = read_celery_side(declare(conf=conf))
    assert (side.transport, side.broker_error, side.acks_late, side.prefetch_multiplier) == ("redis", None, True, 0)
    assert (side.result_backend, side.accepts_json) == ("redis", False)
    assert (side.queues, side.time_limits) == ({"sync": "erp"}, {"sync": (60, None)})
    assert side.redis_visibility_timeout == timedelta(seconds=5)
    assert "secret" not in repr(side)
    with redis.Redis.from_url(broker_url) as server:
        before = server.config_get("maxmemory*")
        try:
            server.config_set("maxmemory", 10**9)
            server.config_set("maxmemory-policy", "allkeys-lru")
            side = read_celery_side(declare(conf=conf))
        finally:
            server.config_set("maxmemory", before["maxmemory"])
            server.config_set("maxmemory-policy", before["maxmemory-policy"])
    assert (side.redis_maxmemory, side.redis_maxmemory_policy) == (10**9, "allkeys-lru")


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_away_is_told_within_seconds(declare: Declare, scheme: str) -> None:
    """And its password is not."""
    url = f"{scheme}://:secret@127.0.0.1:{free_port()}/0"
    began = time.monotonic()
    side = read_celery_side(declare(conf={"broker_url": url}))
    assert side.broker_error is not None
    assert "secret" not in side.broker + side.broker_error
    assert time.monotonic() - began < 10


# --- the server -----------------------------------------------------------------------------------------


def test_a_server_that_is_away(declare: Declare) -> None:
    """The rest cannot be asked, and is said to be unchecked."""
    url = f"mongodb://user:secret@127.0.0.1:{free_port()}/x?serverSelectionTimeoutMS=300"
    handle = declare(url=url, conf={"reactive_mongodb_client": lambda: _hasty_client(url)})
    diagnosis = doctor.examine(handle.runtime, WELL)
    assert noted(diagnosis) == {"mongodb_away"}
    assert diagnosis.unchecked
    assert "secret" not in repr(diagnosis)


def _hasty_client(url: str) -> Any:
    from pymongo import MongoClient  # noqa: PLC0415 -- of this test

    return MongoClient(url, serverSelectionTimeoutMS=300)


def test_a_standalone_server(declare: Declare, tmp_path: Path) -> None:
    """B-65: with the way to a replica set."""
    program = find_mongod()
    if program is None:
        pytest.skip("SecantusDB cannot be started standalone")
    port = free_port()
    options = [f"--dbpath={tmp_path}", f"--port={port}", "--bind_ip=127.0.0.1", "--nounixsocket"]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as mongod:
        try:
            handle = declare(url=f"mongodb://127.0.0.1:{port}/x")
            diagnosis = doctor.examine(handle.runtime, WELL)
            # While there is a server: the driver looks ten seconds for one to end its sessions on.
            handle.runtime.connection.close()
        finally:
            mongod.kill()
    assert noted(diagnosis) == {"no_replica_set"}
    assert "rs.initiate()" in diagnosis.findings[0].remedy


def test_an_old_server(well: Reactive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older than what is needed."""
    monkeypatch.setattr("celery_reactive.store.server._OLDEST", (99, 0))
    assert noted(doctor.examine(well.runtime, WELL)) == {"server_too_old"}


def test_a_user_without_rights(declare: Declare, well: Reactive, mongodb_url: str) -> None:
    """Named one by one; one who may do everything needed is well."""
    database = well.runtime.connection.database()
    for name, roles in (("reader", ["read"]), ("writer", ["readWrite"])):
        database.command("createUser", name, pwd="pw", roles=roles)  # noqa: S106 -- of this test
    separator = "&" if "?" in mongodb_url else "?"
    for name, expected in (("reader", {"missing_rights"}), ("writer", set())):
        url = f"{mongodb_url}{separator}authSource={database.name}".replace("mongodb://", f"mongodb://{name}:pw@")
        diagnosis = doctor.examine(declare(url=url).runtime, WELL)
        assert noted(diagnosis) == expected, diagnosis
    database.command("dropAllUsersFromDatabase")


@pytest.mark.usefixtures("well")
def test_writes_that_a_failover_may_lose(declare: Declare, mongodb_url: str) -> None:
    """Of the connection string, as the user's own code has it."""
    separator = "&" if "?" in mongodb_url else "?"
    assert found(declare(url=f"{mongodb_url}{separator}w=1")) == {"weak_writes"}


@pytest.mark.parametrize(
    ("oplog", "expected"), [(Oplog(timedelta(hours=1), is_full=True), {"small_oplog"}), (None, set())]
)
def test_a_small_oplog(
    well: Reactive, monkeypatch: pytest.MonkeyPatch, oplog: Oplog | None, expected: set[str]
) -> None:
    """Only where it is full: a young one is short and grows."""
    assert examination.oplog(well.runtime.connection.database()) is not None
    monkeypatch.setattr(examination, "oplog", lambda _: oplog)
    assert found(well) == expected
    monkeypatch.setattr(examination, "oplog", lambda _: Oplog(timedelta(hours=1), is_full=False))
    assert found(well) == set()


@pytest.mark.parametrize("hours", [-1, 1])
def test_clocks_that_differ(well: Reactive, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """In either direction."""
    told = examination.clock(well.runtime.connection.database()) + timedelta(hours=hours)
    monkeypatch.setattr(examination, "clock", lambda _: told)
    assert found(well) == {"clock_skew"}


# --- collections ----------------------------------------------------------------------------------------


def test_a_collection_that_is_not_there(well: Reactive) -> None:
    """It may come; a misspelt one does not."""
    well.runtime.connection.database().orders.drop()
    assert found(well) == {"collection_missing"}


def test_a_view(well: Reactive) -> None:
    """It has no change stream."""
    database = well.runtime.connection.database()
    database.orders.drop()
    database.create_collection("orders", viewOn="others", pipeline=[])
    assert "not_watchable" in found(well)


def test_records_that_are_not_ours(well: Reactive) -> None:
    """Somebody's collection ends by chance as ours do."""
    well.runtime.connection.database().orders_tasks.insert_one({"_id": 1, "todo": "shopping"})
    assert found(well) == {"foreign_records"}


def test_an_index_that_is_missing(well: Reactive) -> None:
    """Dropped by hand."""
    well.runtime.connection.database().orders_tasks.drop_index("reactive_wake")
    assert found(well) == {"missing_index"}


@pytest.mark.usefixtures("well")
def test_records_that_are_watched(declare: Declare) -> None:
    """The records of one task would be another's documents."""
    assert "suffix_clash" in found(declare("audit", collection="jobs_tasks"))


def test_large_documents_watched_whole(declare: Declare) -> None:
    """What is watched is copied."""
    handle = settle(declare(watch_projection=None))
    handle.runtime.connection.database().orders.insert_one({"text": "x" * 100_000})
    assert found(handle) == {"whole_large_documents"}


# --- tasks ----------------------------------------------------------------------------------------------


def test_no_task(declare: Declare) -> None:
    """Its module is not imported."""
    assert found(declare(None), queues={}) == {"no_task"}


def test_a_definition_that_the_server_refuses(declare: Declare) -> None:
    """B-3: in its words."""
    assert found(settle(declare(filter={"$expr": {"$add": ["a"]}}))) == {"definition_refused"}


def test_a_task_that_looks_renamed(declare: Declare) -> None:
    """B-2: its records would stay behind, and every document run once more."""
    old = settle(declare("old.sync"))
    bench = Bench(old.runtime.connection, old.runtime.registry.get("old.sync"))
    bench.handle({"_id": 1, "v": 1})
    leadership.release(old.runtime.connection.globals(), "default", "one", 1)
    codes = found(declare("new.sync"), queues={"new.sync": "erp"})
    assert "renamed_task" in codes
    assert "undeclared_records" not in codes


def test_records_of_a_task_that_is_gone(declare: Declare, well: Reactive) -> None:
    """B-4: they stay, are listed, and are no renamed task where nothing new is declared."""
    gone = declare("gone", filter={"x": 1})
    define(gone, term=0)
    Bench(gone.runtime.connection, gone.runtime.registry.get("gone")).handle({"_id": 1, "x": 1, "v": 1})
    assert found(well) == {"undeclared_records"}


def test_two_apps_on_one_globals_collection(declare: Declare, well: Reactive) -> None:
    """The leader defines what this code does not declare."""
    define(declare("theirs"), term=1)
    assert found(well) == {"other_app"}


@pytest.mark.usefixtures("well")
def test_a_leader_with_another_definition(declare: Declare) -> None:
    """B-43: the leader's counts."""
    assert found(declare(filter={"paid": True})) == {"other_definition"}


def test_documents_that_could_not_be_planned(well: Reactive) -> None:
    """B-20: they are listed elsewhere."""
    globals_ = well.runtime.connection.globals()
    key = Bench(well.runtime.connection, well.runtime.registry.get("sync")).key(1)
    unplanned.note(globals_, key, at=Timestamp(1, 1), gone=False, reason=unplanned.Reason.FAILED, error="boom")
    assert found(well) == {"planning_failures"}


@pytest.mark.parametrize("control", ["paused", "throttled"])
def test_a_task_that_is_held_back(well: Reactive, control: str) -> None:
    """B-53: it may be meant."""
    if control == "paused":
        well.pause("sync")
    else:
        well.throttle("sync", "1h")
    assert found(well) == {"held_back"}


# --- processes ------------------------------------------------------------------------------------------


def test_nobody_leads(well: Reactive) -> None:
    """No planner runs."""
    leadership.release(well.runtime.connection.globals(), "default", "one", 1)
    assert found(well) == {"no_leader"}


def test_a_leader_that_has_vanished(well: Reactive) -> None:
    """Its lock stands still."""
    old = [{"$set": {"renewedAt": {"$subtract": ["$$NOW", 120_000]}}}]
    well.runtime.connection.globals().update_one({"_id.k": "leader"}, old)
    assert found(well) == {"leader_vanished"}


def test_a_leader_without_a_stand_by(well: Reactive) -> None:
    """One planner is none when it is gone."""
    instances.leave(well.runtime.connection.globals(), Kind.PLANNER, "two")
    assert found(well) == {"no_stand_by"}


def test_a_planner_that_is_behind(well: Reactive) -> None:
    """Changes are planned minutes later."""
    globals_ = well.runtime.connection.globals()
    now = int(examination.clock(well.runtime.connection.database()).timestamp())
    place = {"k": "position", "g": "default", "db": well.runtime.connection.default_database}
    globals_.insert_one({"_id": place, "at": Timestamp(now - 300, 1), "token": {"_data": "00"}, "term": 1})
    assert found(well) == {"planner_lag"}


def test_no_worker(well: Reactive) -> None:
    """Nothing runs."""
    instances.leave(well.runtime.connection.globals(), Kind.WORKER, "celery@here")
    assert found(well) == {"no_worker"}


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"tasks": {}}, "worker_lacks_task"),
        ({"version": "0.0.1"}, "mixed_versions"),
        ({"slots": 5000}, "few_in_flight"),
    ],
)
def test_workers_that_differ(well: Reactive, facts: dict[str, Any], code: str) -> None:
    """By what they say of themselves."""
    worker = dataclasses.replace(FACTS, **facts)
    instances.announce_worker(well.runtime.connection.globals(), "celery@here", worker)
    assert found(well) == {code}


def test_messages_that_never_arrive(well: Reactive) -> None:
    """Planner and workers use different brokers: sent again and again, and nobody takes them."""
    bench = Bench(well.runtime.connection, well.registry.get("sync"))
    bench.plan({"_id": 1, "v": 1})
    bench.records.update_one({"sourceDocId": 1}, {"$set": {"_r.sent": True, "_r.dispatches": 1}})
    assert found(well) == set()
    bench.records.update_one({"sourceDocId": 1}, {"$set": {"_r.dispatches": 2}})
    assert found(well) == {"sent_in_vain"}
    well.pause("sync")
    assert found(well) == {"held_back"}
    well.resume("sync")
    bench.start({"_id": 2, "v": 1})
    assert found(well) == set()


@pytest.mark.usefixtures("well")
def test_a_worker_with_older_code(declare: Declare) -> None:
    """B-44: its handler's version is lower."""
    assert found(declare(evolution=Evolution(handler_version=2))) == {"worker_code_older"}


@pytest.mark.parametrize(
    ("pool", "limits", "expected"),
    [
        ("threads", (60, None), {"time_limit_ignored"}),
        ("solo", (None, 60), {"time_limit_ignored"}),
        ("gevent", (None, 60), {"time_limit_ignored"}),
        ("gevent", (60, None), set()),
        ("prefork", (60, 50), set()),
    ],
)
def test_time_limits_that_are_not_in_force(
    well: Reactive, pool: str, limits: tuple[float | None, float | None], expected: set[str]
) -> None:
    """B-30: by the pool of a worker that serves the task."""
    instances.announce_worker(well.runtime.connection.globals(), "celery@here", dataclasses.replace(FACTS, pool=pool))
    assert found(well, time_limits={"sync": limits}) == expected


def test_every_ailment_is_provoked_here() -> None:
    """A check that nothing can fail is none."""
    text = Path(__file__).read_text()
    assert [code for code in doctor.ailments() if f'"{code}"' not in text] == []


# --- the command ----------------------------------------------------------------------------------------


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Type `doctor` for an app."""

    def run(handle: Reactive, *words: str) -> Result:
        module = types.ModuleType("sick_proj")
        module.app = handle.app  # type: ignore[attr-defined]  # as the user's module has it
        monkeypatch.setitem(sys.modules, "sick_proj", module)
        return CliRunner().invoke(cli._standalone(), ["-A", "sick_proj", "doctor", *words])

    return run


def test_the_command_tells_what_to_do(well: Reactive, typed: Callable[..., Result]) -> None:
    """For people and for programs, with exit code 1."""
    ended = typed(well)
    assert ended.exit_code == 1
    assert "in_memory_broker" in ended.stdout
    assert "→ use Redis" in ended.stdout
    asked = typed(well, "--json")
    assert asked.exit_code == 1
    assert json.loads(asked.stdout)["findings"][0]["severity"] == "error"


def test_the_command_shows_no_part_of_a_password(
    well: Reactive, typed: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver takes the end of a password that was not escaped for a host."""
    away = dataclasses.replace(WELL, broker_error="hush:5672: name or service not known")
    monkeypatch.setattr(sys.modules["celery_reactive.cli.doctor"], "read_celery_side", lambda _: away)
    well.app.conf.broker_url = "amqp://me:p@hush@broker//"
    for ended in (typed(well), typed(well, "--json")):
        assert "broker_away" in ended.stdout
        assert "hush" not in ended.stdout


def test_notes_alone_are_no_failure(
    well: Reactive, typed: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installation in good order ends with 0."""
    monkeypatch.setattr(sys.modules["celery_reactive.cli.doctor"], "read_celery_side", lambda _: WELL)
    ended = typed(well)
    assert (ended.exit_code, ended.stdout) == (0, "nothing is wrong\n")
    well.pause("sync")
    assert typed(well).exit_code == 0


def test_settings_that_cannot_be_read_are_a_finding(declare: Declare, typed: Callable[..., Result]) -> None:
    """The command that explains what is wrong must not fail on it."""
    handle = declare()
    handle.app.conf.reactive_chunks = 7
    ended = typed(handle, "--json")
    del handle.app.conf.changes["reactive_chunks"]
    assert ended.exit_code == 1
    (finding,) = json.loads(ended.stdout)["findings"]
    assert finding["code"] == "wrong_settings"
    assert "did you mean 'reactive_chunk'" in finding["problem"]


def test_a_check_that_fails_is_said_and_hides_nothing(well: Reactive, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are made."""

    def refused(_: Any) -> None:
        raise doctor.StatementFailedError("not authorized", code=13)

    monkeypatch.setattr(examination, "clock", refused)
    well.pause("sync")
    diagnosis = doctor.examine(well.runtime, WELL)
    assert noted(diagnosis) == {"held_back"}
    assert diagnosis.unchecked == ("server (clock): not authorized",)
    assert [finding.severity for finding in diagnosis.findings] == [Severity.NOTE]
