"""The command line against real servers: what it says, and what a planner lives through."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from bson import Timestamp
from pymongo import MongoClient
from pymongo.database import Database

from celery_reactive import embedded
from celery_reactive.embedded.mongo import find_mongod
from celery_reactive.embedded.process import free_port
from tests.acceptance.project import Project, wait_until

REACTIVE = [sys.executable, "-m", "celery_reactive.cli"]
CELERY_REACTIVE = [sys.executable, "-m", "celery", "-A", "proj", "reactive"]
needs_entry_point = pytest.mark.skipif(
    not entry_points(group="celery.commands", name="reactive"),
    reason="the package is not installed, so that Celery does not know its commands",
)


def rewrite(project: Project, text: str) -> None:
    """Put *text* in the place of the project's module."""
    (project.folder / "proj.py").write_text(text)


# --- what it says ----------------------------------------------------------------------------------


def test_status_tells_leader_queues_and_workers(project: Project) -> None:
    """Who leads, how far it has planned, what waits, who works: for people and for programs."""
    project.planner("one")
    project.worker("--concurrency", "1", "--hostname", "w1@here")
    project.database.jobs.insert_many([{"_id": 1, "do": "nothing"}, {"_id": 2, "do": "fail"}])
    project.wait_until(lambda: project.record("job", 1).get("status") == "completed")
    project.wait_until(lambda: project.record("job", 2).get("status") == "failed")
    ended = project.run("status", "--json")
    assert ended.returncode == 0, ended.stderr
    status = json.loads(ended.stdout)
    job = next(task for task in status["tasks"] if task["task"] == "job")
    assert status["leader"]["instance"] == "one"
    assert status["leader"]["term"] == 1
    assert 0 <= status["leader"]["heartbeat_age"] < 3
    assert status["positions"][0]["database"] == project.database.name
    assert 0 <= status["positions"][0]["lag"] < 60
    assert (job["counts"]["completed"], job["counts"]["failed"], job["counts"]["pending"]) == (1, 1, 0)
    assert job["generation"] == job["reconciled_generation"] == 1
    assert status["workers"] == ["w1@here"]
    shown = project.run("status").stdout
    assert "one, term 1" in shown
    assert f"{project.database.name}.jobs" in shown


def test_status_before_any_planner_says_what_to_start(project: Project) -> None:
    """A new project's first look is an answer, not an error."""
    ended = project.run("status")
    assert ended.returncode == 0, ended.stderr
    assert "start `celery-reactive -A … planner`" in ended.stdout
    assert "no planner has seen it yet" in ended.stdout


def test_status_shows_the_controls_in_force(project: Project) -> None:
    """B-53: a paused task is not mistaken for a stuck one."""
    project.database["_celery_reactive"].insert_one({"_id": {"k": "task", "t": "job"}, "task": "job", "paused": True})
    assert "paused" in project.run("status").stdout


def test_limits_are_set_by_hand(project: Project) -> None:
    """B-58: until they are set again, and `status` shows them."""
    ended = project.run("limit", "job", "--rate", "100/m", "--concurrency", "5")
    assert ended.stdout == "job: rate 100/m, concurrency 5, priority declared\n"
    assert "at most 100/m, set by hand" in project.run("status").stdout
    ended = project.run("limit", "job", "--rate", "declared", "--concurrency", "unlimited")
    assert ended.stdout == "job: rate declared, concurrency unlimited, priority declared\n"
    ended = project.run("limit", "job", "--priority", "ten")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "priority: expected an integer from 0 to 9, got 'ten'" in ended.stderr


def test_the_app_may_come_from_the_environment(project: Project) -> None:
    """`celery-reactive status` is enough where CELERY_APP is set."""
    assert project.run_program(*REACTIVE, "status", CELERY_APP="proj").returncode == 0


def test_failures_are_listed_with_document_and_reason(project: Project) -> None:
    """B-20: what could not be planned is found without looking into the database."""
    project.database["_celery_reactive"].insert_one(
        {
            "_id": {"k": "unplanned", "t": "job", "d": 7},
            "at": Timestamp(1, 1),
            "reason": "failed",
            "error": "[boom] too large",
            "since": project.database.client.admin.command("hello")["localTime"],
            "tries": 2,
        },
    )
    shown = project.run("failures")
    assert "[boom] too large" in shown.stdout
    (failure,) = json.loads(project.run("failures", "--json", "--task", "job").stdout)
    assert failure["key"] == {"task": "job", "doc_id": 7}
    unknown = project.run("failures", "--task", "jop")
    assert unknown.returncode == 2
    assert "did you mean 'job'" in unknown.stderr


@pytest.mark.parametrize("words", [("schema", "tasks", "list"), ("metrics", "--grafana"), ("--help",)], ids=" ".join)
def test_a_reader_that_goes_away_is_no_failure_to_tell_of(words: tuple[str, ...]) -> None:
    """`… | head` ends without a traceback."""
    with subprocess.Popen([*REACTIVE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        writer.stdout.close()
        assert writer.stderr is not None
        assert writer.stderr.read() == ""


@needs_entry_point
def test_celery_has_the_same_commands(project: Project) -> None:
    """`celery -A proj reactive …` is `celery-reactive -A proj …`."""
    assert json.loads(project.run_program(*CELERY_REACTIVE, "status", "--json").stdout)["group"] == "default"
    wrong = project.run_program(*CELERY_REACTIVE, "plannr")
    assert wrong.returncode == 2
    assert "planner" in wrong.stderr


@pytest.mark.parametrize(
    ("typed", "variable", "offered"),
    [
        ("celery-reactive rec", "_CELERY_REACTIVE_COMPLETE", {"reconcile"}),
        ("celery-reactive -A proj planner --gr", "_CELERY_REACTIVE_COMPLETE", {"--group"}),
        ("celery-reactive -A proj reconcile j", "_CELERY_REACTIVE_COMPLETE", {"job"}),
        ("celery-reactive -A proj failures --task j", "_CELERY_REACTIVE_COMPLETE", {"job"}),
        ("celery-reactive tasks list --sort nextR", "_CELERY_REACTIVE_COMPLETE", {"nextRunAt"}),
        ("celery-reactive schema operations s", "_CELERY_REACTIVE_COMPLETE", {"show"}),
        ("celery-reactive -A nothing reconcile j", "_CELERY_REACTIVE_COMPLETE", set()),
        ("celery -A proj reactive reconcile j", "_CELERY_COMPLETE", {"job"}),
    ],
)
@needs_entry_point
def test_the_shell_completes_commands_options_and_tasks(
    project: Project, typed: str, variable: str, offered: set[str]
) -> None:
    """As click's completion asks a program; the names of tasks come from the project."""
    program = str(Path(sys.executable).with_name(typed.partition(" ")[0]))
    completing = {variable: "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    answer = project.run_program(program, **completing)
    assert {line.partition(",")[2] for line in answer.stdout.split()} == offered, answer.stderr


@pytest.mark.parametrize(
    ("app", "text", "code", "words"),
    [
        ("proj", "x = 1", 2, "-A module:variable"),
        ("proj:nope", "from celery import Celery\napp = Celery()", 2, "-A module:variable"),
        ("proj:x", "x = 1", 2, "expected a Celery app, got int"),
        ("proj", "1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("proj", "import nosuchlibrary", 1, "No module named 'nosuchlibrary'"),
        ("proj", "from celery import Celery\napp = Celery(include=['lost'])", 1, "No module named 'lost'"),
    ],
    ids=[
        "no app",
        "no such variable",
        "not an app",
        "it raises",
        "it imports what is missing",
        "its tasks are missing",
    ],
)
def test_an_app_that_cannot_be_loaded_is_told_in_one_message(
    project: Project, app: str, text: str, code: int, words: str
) -> None:
    """Wrong names are wrong use (2), code that raises is a failure (1) and named with its line."""
    rewrite(project, text)
    ended = project.run_program(*REACTIVE, "-A", app, "status")
    assert ended.returncode == code, ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_traceback_is_shown_where_it_is_asked_for(project: Project) -> None:
    """By option or by environment."""
    command = [*REACTIVE, "-A", "proj", "failures", "--task", "jop"]
    assert "Traceback" in project.run_program(*command, CELERY_REACTIVE_TRACEBACK="1").stderr
    assert "Traceback" in project.run_program(*REACTIVE, "--traceback", *command[len(REACTIVE) :]).stderr


def test_a_misspelt_option_is_answered_with_the_right_one(project: Project) -> None:
    """Exit code 2 and a suggestion."""
    ended = project.run("planner", "--grup", "x")
    assert ended.returncode == 2
    assert "--group" in ended.stderr


def test_a_standalone_server_is_refused_with_the_remedy(project: Project, tmp_path: Path) -> None:
    """B-65: without a replica set there are no change streams; the message says how to make it one."""
    program = find_mongod()
    if program is None:
        pytest.skip("SecantusDB cannot be started standalone")
    port = free_port()
    folder = tmp_path / "standalone"
    folder.mkdir()
    options = [f"--dbpath={folder}", f"--port={port}", "--bind_ip=127.0.0.1", "--nounixsocket"]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as mongod:
        try:
            ended = project.run("planner", MONGODB_URL=f"mongodb://127.0.0.1:{port}/x")
        finally:
            mongod.kill()
    assert ended.returncode == 1
    assert "--replSet" in ended.stderr
    assert "Traceback" not in ended.stderr


# --- what a planner lives through ------------------------------------------------------------------


@pytest.fixture
def own_servers() -> Iterator[tuple[embedded.MongoServer, embedded.ValkeyServer]]:
    """Servers of the test's own, to be suspended and killed."""
    with embedded.MongoServer() as mongodb, embedded.ValkeyServer() as broker:
        yield mongodb, broker


@pytest.fixture
def early(tmp_path: Path, own_servers: tuple[embedded.MongoServer, embedded.ValkeyServer]) -> Iterator[Project]:
    """A project of which nothing runs yet, on servers of its own."""
    mongodb, broker = own_servers
    with MongoClient[dict[str, Any]](mongodb.url_of("shop")) as client:
        database: Database[dict[str, Any]] = client.get_default_database()
        project = Project(tmp_path, database, {"MONGODB_URL": mongodb.url_of("shop"), "BROKER_URL": broker.url})
        yield project
        project.stop()


@pytest.fixture
def own_project(early: Project) -> Project:
    """A project on servers of its own, with a worker and a planner that lead a quiet life."""
    early.worker("--concurrency", "1")
    early.planner("one")
    handle(early, "first")
    return early


def handle(project: Project, doc_id: str) -> None:
    """Write a document and wait until it has been handled."""
    project.database.jobs.insert_one({"_id": doc_id, "do": "nothing"})
    project.wait_until(lambda: project.record("job", doc_id).get("status") == "completed", timeout=60)


def test_a_frozen_mongodb_is_waited_out(
    own_project: Project, own_servers: tuple[embedded.MongoServer, embedded.ValkeyServer]
) -> None:
    """B-46, B-49: five seconds without an answer, longer than the leader's TTL: the planner goes on by itself."""
    mongodb, _ = own_servers
    mongodb.suspend()
    try:
        with suppress(subprocess.TimeoutExpired):
            ended = own_project._processes[1].wait(timeout=5)
            pytest.fail(f"the planner ended with {ended}\n{own_project.logs()}")
    finally:
        mongodb.resume()
    handle(own_project, "after")


def health_of(port: int) -> dict[str, int]:
    """Return what a planner says of its health; 0 while its port is closed."""
    found = {}
    for path in ("healthz", "readyz"):
        try:
            with urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
                found[path] = answer.status
        except HTTPError as refused:
            found[path] = refused.code
        except OSError:
            found[path] = 0
    return found


@pytest.mark.parametrize("absence", ["frozen", "away"])
def test_a_planner_waits_for_its_database_at_the_start(
    early: Project, own_servers: tuple[embedded.MongoServer, embedded.ValkeyServer], absence: str
) -> None:
    """B-46, B-68: it says so, is alive and not ready, goes on by itself, and listens to its supervisor meanwhile."""
    mongodb, _ = own_servers
    (mongodb.suspend if absence == "frozen" else mongodb.kill)()
    port = free_port()
    try:
        planners = early.planner("one", "--metrics-port", str(port)), early.planner("two")
        for planner in planners:
            early.wait_until(lambda planner=planner: "does not answer, waiting" in planner.text())
            assert "MongoDB at mongodb://127.0.0.1:" in planner.text()
        assert health_of(port) == {"healthz": 200, "readyz": 503}
        planners[1].send(signal.SIGTERM)
        assert planners[1].wait(timeout=2) == 0
    finally:
        (mongodb.resume if absence == "frozen" else mongodb.start)()
    early.wait_until(lambda: health_of(port) == {"healthz": 200, "readyz": 200})
    early.wait_until(lambda: early.leader() == "one")
    assert "answers again" in planners[0].text()


def test_a_restarted_empty_broker_is_waited_for(
    own_project: Project, own_servers: tuple[embedded.MongoServer, embedded.ValkeyServer]
) -> None:
    """B-66: what was due while the broker was away is sent when it is back."""
    _, broker = own_servers
    worker, planner = own_project._processes[:2]

    def is_completed() -> bool:
        # Celery's worker itself ends, now and then, when its Redis dies; a supervisor starts it again.
        with suppress(subprocess.TimeoutExpired):
            nonlocal worker
            worker.wait(timeout=0.01)
            worker = own_project.worker("--concurrency", "1")
        return bool(own_project.record("job", "meanwhile").get("status") == "completed")

    broker.kill()
    own_project.database.jobs.insert_one({"_id": "meanwhile", "do": "nothing"})
    own_project.wait_until(lambda: "broker did not take messages" in planner.text())
    broker.start()
    own_project.wait_until(is_completed, timeout=90)
    handle(own_project, "after")


def test_the_log_is_one_line_per_event_with_its_facts(project: Project) -> None:
    """A reader sees who leads without looking anywhere else."""
    planner = project.planner("one")
    project.wait_until(lambda: "leadership won: instance=one term=1" in planner.text())


def test_a_second_signal_ends_a_planner_at_once(project: Project) -> None:
    """Ctrl-C twice is meant: nobody waits for a database that does not answer."""
    planner = project.planner("one")
    project.wait_until(lambda: project.leader() == "one")
    # Held, so that both are there before either is handled.
    planner.send(signal.SIGSTOP)
    planner.send(signal.SIGINT)
    planner.send(signal.SIGTERM)
    planner.send(signal.SIGCONT)
    wait_until(lambda: planner._process.poll() is not None, logs=planner.text, timeout=5)
