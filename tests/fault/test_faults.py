"""Single faults, each with the outcome a user can count on and the words in which they are told.

What the database's or the broker's absence does is in `tests/acceptance`; all of it at once is in `test_chaos`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient, WriteConcern
from pymongo.database import Database
from pymongo.errors import PyMongoError

from celery_reactive.embedded import MongoServer, ValkeyServer
from celery_reactive.embedded.mongo import find_mongod
from celery_reactive.embedded.process import free_port
from tests.acceptance.project import Process, Project, wait_until
from tests.fault.network import Direction, Network

HERE = Path(__file__).parent
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
LONG_SECONDS = 60.0
ROOT, READER = "r00t-word", "reader-word"
"""Passwords."""
MakeMongoDB = Callable[..., MongoServer]
MakeProject = Callable[[MongoServer], Project]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What the test has started, ended in reverse: processes before the servers they use."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make_mongodb(stack: ExitStack) -> MakeMongoDB:
    """Start a MongoDB of the test's own."""
    return lambda **options: stack.enter_context(MongoServer(**options))


@pytest.fixture
def mongodb(make_mongodb: MakeMongoDB) -> MongoServer:
    """A replica set of one member."""
    return make_mongodb()


@pytest.fixture
def make_project(stack: ExitStack, tmp_path: Path) -> MakeProject:
    """Make a project on a MongoDB, and on a Valkey of its own."""

    def make(mongodb: MongoServer) -> Project:
        broker = stack.enter_context(ValkeyServer())
        client = stack.enter_context(MongoClient[dict[str, Any]](mongodb.url_of("shop")))
        database = client.get_database("shop", write_concern=WriteConcern("majority"))
        return stack.enter_context(running(tmp_path, database, mongodb.url_of("shop"), broker))

    return make


@contextmanager
def running(folder: Path, database: Database[Any], url: str, broker: ValkeyServer) -> Iterator[Project]:
    """A project whose processes end with the block."""
    project = Project(folder, database, {"MONGODB_URL": url, "BROKER_URL": broker.url})
    (folder / "proj.py").write_text((HERE / "fault_tasks.py").read_text())
    try:
        yield project
    finally:
        project.stop()


def write(project: Project, *doc_ids: Any, **fields: Any) -> None:
    """Insert documents."""
    project.database.jobs.insert_many([{"_id": doc_id, **fields} for doc_id in doc_ids])


def handled(project: Project, *doc_ids: Any) -> bool:
    """Whether all of them have been handled."""
    found = project.database.jobs_tasks.count_documents({"sourceDocId": {"$in": doc_ids}, "status": "completed"})
    return found == len(doc_ids)


def await_handled(project: Project, *doc_ids: Any) -> None:
    """Wait until all of them have been handled."""
    project.wait_until(lambda: handled(project, *doc_ids), timeout=LONG_SECONDS)


def is_running(process: Process) -> bool:
    """Whether the process has not ended."""
    return process._process.poll() is None


def test_elections_under_load_lose_nothing_and_end_nobody(make_mongodb: MakeMongoDB, make_project: MakeProject) -> None:
    """B-29, B-46: the primary steps down, then dies, while documents are written; the processes go on by themselves."""
    mongodb = make_mongodb(members=3)
    project = make_project(mongodb)
    worker, planner = project.worker("--concurrency", "2"), project.planner("planner")
    write(project, "first")
    await_handled(project, "first")
    for number in range(300):
        write(project, number)
        if number == 100:
            primary = mongodb.wait_for_primary()
            with MongoClient[dict[str, Any]]("127.0.0.1", primary.port, directConnection=True) as client:
                client.admin.command({"replSetStepDown": 30, "force": True})
        if number == 200:
            mongodb.wait_for_primary().kill()
    await_handled(project, *range(300))
    assert is_running(worker)
    assert is_running(planner)
    assert "Traceback" not in planner.text()


def test_a_leader_that_was_paused_and_wakes_up_does_no_harm(make_project: MakeProject, mongodb: MongoServer) -> None:
    """B-46: the other leads meanwhile; the first finds that its term has ended, says so and stands by."""
    project = make_project(mongodb)
    project.worker("--concurrency", "1")
    first = project.planner("first")
    project.wait_until(lambda: project.leader() == "first")
    write(project, 1)
    await_handled(project, 1)
    second = project.planner("second")
    first.send(signal.SIGSTOP)
    try:
        write(project, 2)
        project.wait_until(lambda: project.leader() == "second")
        await_handled(project, 2)
        write(project, *range(10, 60))
    finally:
        first.send(signal.SIGCONT)
    await_handled(project, *range(10, 60))
    project.wait_until(lambda: "leadership ended: instance=first term=1" in first.text())
    assert project.leader() == "second"
    second.stop()
    project.wait_until(lambda: project.leader() == "first")
    write(project, 3)
    await_handled(project, 3)
    assert {record["attempts"] for record in project.database.jobs_tasks.find()} == {1}


@pytest.mark.parametrize("direction", list(Direction), ids=lambda direction: direction.name)
def test_a_planner_cut_off_in_one_direction_is_replaced(
    make_project: MakeProject, mongodb: MongoServer, direction: Direction
) -> None:
    """B-46: whether its statements or their answers are lost: the other leads, and it stands by once it is back."""
    project = make_project(mongodb)
    project.worker("--concurrency", "1")
    with Network() as network:
        port = mongodb.members[0].port
        link = network.link(port)
        cut_off = project_behind(project, {port: link.port}).planner("cut-off")
        project.wait_until(lambda: project.leader() == "cut-off")
        project.planner("other")
        write(project, 1)
        await_handled(project, 1)
        link.silence(direction)
        write(project, 2)
        project.wait_until(lambda: project.leader() == "other", timeout=LONG_SECONDS)
        await_handled(project, 2)
        link.heal()
        project.wait_until(lambda: "leadership ended: instance=cut-off term=1" in cut_off.text(), timeout=LONG_SECONDS)
        write(project, *range(10, 40))
        await_handled(project, *range(10, 40))
        assert project.leader() == "other"
        assert is_running(cut_off)
        cut_off.stop()


def project_behind(project: Project, routes: dict[int, int]) -> Project:
    """Return the same project as processes see it that reach these ports through links."""
    behind = Project(project.folder, project.database, project.environment)
    (project.folder / "proj.py").write_text((HERE / "fault_tasks.py").read_text())
    behind.environment |= {
        "PYTHONPATH": f"{HERE / 'routed'}{os.pathsep}{project.folder}",
        "ROUTES": json.dumps(routes),
    }
    behind._processes = project._processes
    return behind


def test_a_history_that_is_gone_is_made_up_for(make_mongodb: MakeMongoDB, make_project: MakeProject) -> None:
    """B-49: while no planner ran the oplog went over its position; it says so, and looks at everything once."""
    options = ["--syncdelay=1", "--setParameter=minSnapshotHistoryWindowInSeconds=0"]
    project = make_project(make_mongodb(oplog_mib=1, options=options))
    project.worker("--concurrency", "1")
    planner = project.planner("planner")
    write(project, "seen", "changed", "deleted")
    await_handled(project, "seen", "changed", "deleted")
    assert planner.stop() == 0
    project.database.jobs.update_one({"_id": "changed"}, {"$set": {"n": 1}})
    project.database.jobs.delete_one({"_id": "deleted"})
    write(project, "missed")
    overwrite_oplog(project.database)
    planner = project.planner("planner")
    await_handled(project, "missed")
    project.wait_until(lambda: project.record("job", "changed")["lastObservedValues"].get("n") == 1)
    await_handled(project, "changed")
    project.wait_until(lambda: project.record("job", "deleted")["_r"].get("gone"))
    assert "stream position lost, reconciling" in planner.text()
    assert len(project.record("job", "seen")["executionHistory"]) == 1


def overwrite_oplog(database: Database[Any]) -> None:
    """Write until the oldest entry of the oplog is newer than this call."""
    oplog = database.client.local["oplog.rs"]
    newest = oplog.find_one(sort=[("$natural", -1)])
    assert newest is not None

    def is_over() -> bool:
        database.ballast.insert_many([{"text": "x" * 100_000} for _ in range(10)])
        oldest = oplog.find_one(sort=[("$natural", 1)])
        return bool(oldest is not None and oldest["ts"] > newest["ts"])

    wait_until(is_over, logs=lambda: "the oplog keeps its entries", timeout=LONG_SECONDS)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a file system of half a gigabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=500m", "celery-reactive-test", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to make a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_waited_out(
    small_disk: Path, make_mongodb: MakeMongoDB, make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-29, B-46: mongod ends without space for its journal; with space and started again, all goes on."""
    with monkeypatch.context() as patched:
        patched.setattr("tempfile.tempdir", str(small_disk))
        mongodb = make_mongodb()
    project = make_project(mongodb)
    worker, planner = project.worker("--concurrency", "1"), project.planner("planner")
    write(project, 1)
    await_handled(project, 1)
    ballast = small_disk / "ballast"
    fill(ballast)
    write_until_it_ends(mongodb)
    project.wait_until(lambda: "MongoDB does not answer, waiting" in planner.text(), timeout=LONG_SECONDS)
    ballast.unlink()
    mongodb.start()
    write(project, 2)
    await_handled(project, 1, 2)
    assert is_running(worker)
    assert is_running(planner)


def fill(ballast: Path) -> None:
    """Take all the space that is left."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


def write_until_it_ends(mongodb: MongoServer) -> None:
    """Write until mongod has no space left and ends."""

    def has_ended() -> bool:
        with MongoClient[dict[str, Any]](mongodb.url, serverSelectionTimeoutMS=500, socketTimeoutMS=2000) as client:
            with suppress(PyMongoError):
                client.shop.ballast.insert_many([{"bytes": os.urandom(200_000)} for _ in range(20)])
            return mongodb.members[0].ended(within_seconds=0.1)

    wait_until(has_ended, logs=lambda: "mongod still runs", timeout=LONG_SECONDS)


@pytest.mark.skipif(not FAKETIME.exists(), reason="needs libfaketime (apt-get install faketime)")
def test_a_clock_that_jumps_ends_no_run_and_no_term(
    make_mongodb: MakeMongoDB, make_project: MakeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-28, B-46: the database's clock moves ahead by minutes: no live run is rescued, nobody else is elected."""
    clock = tmp_path / "clock"
    clock.write_text("+0s\n")
    with monkeypatch.context() as patched:
        patched.setenv("LD_PRELOAD", str(FAKETIME))
        patched.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
        patched.setenv("FAKETIME_NO_CACHE", "1")
        patched.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        mongodb = make_mongodb()
    project = make_project(mongodb)
    project.worker("--concurrency", "1")
    project.planner("first")
    project.wait_until(lambda: project.leader() == "first")
    project.planner("second")
    before = server_time(project.database)
    write(project, "long", seconds=8)
    project.wait_until(lambda: project.record("job", "long").get("status") == "processing")
    clock.write_text("+200s\n")
    project.wait_until(lambda: (server_time(project.database) - before).total_seconds() > 200)
    await_handled(project, "long")
    write(project, "after")
    await_handled(project, "after")
    assert project.record("job", "long")["attempts"] == 1
    assert project.leader() == "first"


def server_time(database: Database[Any]) -> Any:
    """Return the database's time."""
    return database.command("hello")["localTime"]


@pytest.fixture
def guarded_url(tmp_path: Path) -> Iterator[str]:
    """A mongod that asks who one is, with a user that may read `shop` and nothing else, and one that may do all."""
    program = find_mongod()
    if program is None:
        pytest.skip("SecantusDB knows no users")
    key, data, port = tmp_path / "key", tmp_path / "data", free_port()
    data.mkdir()
    key.write_text("a" * 40)
    key.chmod(0o400)
    options = ["--replSet=rs0", f"--port={port}", "--bind_ip=127.0.0.1", f"--dbpath={data}", f"--keyFile={key}"]
    with subprocess.Popen([program, *options, "--nounixsocket"], stdout=subprocess.DEVNULL) as mongod:
        try:
            with MongoClient[dict[str, Any]]("127.0.0.1", port, directConnection=True) as client:
                configuration = {"_id": "rs0", "members": [{"_id": 0, "host": f"127.0.0.1:{port}"}]}
                client.admin.command("replSetInitiate", configuration)
                wait_until(lambda: client.admin.command("hello")["isWritablePrimary"], logs=str)
                client.admin.command("createUser", "root", pwd=ROOT, roles=["root"])
            root = f"mongodb://root:{ROOT}@127.0.0.1:{port}/?replicaSet=rs0"
            with MongoClient[dict[str, Any]](root) as client:
                client.admin.command("createUser", "reader", pwd=READER, roles=[{"role": "read", "db": "shop"}])
            yield f"mongodb://{{user}}@127.0.0.1:{port}/shop?replicaSet=rs0&authSource=admin"
        finally:
            mongod.kill()


def test_a_user_who_may_only_read_is_told_what_is_missing(guarded_url: str, tmp_path: Path) -> None:
    """B-3: the planner ends at once with code 1 and the right that it lacks; no password is shown."""
    folder = tmp_path / "project"
    folder.mkdir()
    with ValkeyServer() as broker, MongoClient[dict[str, Any]](guarded_url.format(user=f"root:{ROOT}")) as client:
        reader = guarded_url.format(user=f"reader:{READER}")
        with running(folder, client.get_default_database(), reader, broker) as project:
            planner = project.planner("planner")
            assert planner.wait(timeout=30) == 1
            told = planner.text()
    assert "expected the right to run createIndexes on shop.jobs_tasks" in told
    assert "grant it the role readWrite on shop" in told
    assert READER not in told
    assert "Traceback" not in told
