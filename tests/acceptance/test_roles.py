"""The roles that are shipped suffice for planners, workers and people, and grant no more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import OperationFailure

from celery_reactive.embedded.mongo import find_mongod
from celery_reactive.embedded.process import free_port, listens
from tests.acceptance.accounts import ROLES, create_accounts, guarded_mongod, shipped_roles, url_of
from tests.acceptance.project import Process, Project

WATCHED = ["jobs", "limited", "batched"]
TASKS = Path(__file__).with_name("roles_tasks.py")
DATABASE = "shop"
ENDS = {
    "nothing": "completed",
    "fail": "failed",
    "kill": "completed",
    "defer": "completed",
    "throttle": "completed",
    "mark": "completed",
}
"""What a document asks for, and the state its record ends in."""
COMMANDS = (
    "status",
    "tasks list",
    "tasks count",
    "tasks show job fail",
    "tasks explain job fail",
    "tasks retry --task job --yes",
    "trigger limited anew",
    "trigger job fail",
    "pause job",
    "resume job",
    "throttle job 1s",
    "limit limited --rate 5/s",
    "reconcile --wait job",
    "cleanup",
    "plan job --dry-run",
    "operations list",
    "failures",
    "metrics",
    "beat list",
    "tasks discard --task job --yes",
    "tasks purge limited --gone --yes",
)
# Runs command lines until one fails: a process for each would take as long as all the rest.
ONE_BY_ONE = """
import sys
from click.testing import CliRunner
from celery_reactive import cli
for line in sys.argv[1:]:
    result = CliRunner().invoke(cli._standalone(), ["-A", "proj", *line.split()])
    print(line)
    if result.exit_code:
        sys.exit(f"{result.output} {result.exception!r}")
"""
RIGHTS = ("shop.*", "shop._celery_reactive", *(f"shop.{name}_tasks" for name in WATCHED))
"""Where a worker has less than a planner."""
UNAUTHORIZED = 13
# Prints what roles.js would run, for it needs no more of mongosh than this.
SHELL = """
const commands = [];
const runCommand = (command) => (command.rolesInfo ? { roles: [] } : (commands.push(command), { ok: 1 }));
Object.assign(globalThis, { require, print: () => {}, db: { getSiblingDB: () => ({ runCommand }) } });
require("vm").runInThisContext(require("fs").readFileSync("roles.js", "utf8"));
console.log(JSON.stringify(commands));
"""

pytestmark = pytest.mark.skipif(find_mongod() is None, reason="only mongod has access control")


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoClient[dict[str, Any]]]:
    """The administrator of a server that asks for passwords; the roles and a user of each are there."""
    with guarded_mongod(tmp_path_factory.mktemp("key") / "key") as admin:
        create_accounts(admin, DATABASE, WATCHED)
        yield admin


@pytest.fixture
def project(tmp_path: Path, admin: MongoClient[dict[str, Any]], broker_url: str) -> Iterator[Project]:
    """A project on that server; `as_user` says whom its next process is."""
    project = Project(tmp_path, admin[DATABASE], {"BROKER_URL": broker_url})
    (tmp_path / "proj.py").write_text(TASKS.read_text())
    yield project
    project.stop()
    admin.drop_database(DATABASE)


def as_user(project: Project, role: str) -> Project:
    """Let the next process have the rights of *role*."""
    project.environment["MONGODB_URL"] = address(project.database.client, role)
    return project


def address(admin: MongoClient[dict[str, Any]], role: str) -> str:
    """Return the connection string of the user with that role."""
    assert admin.address is not None
    return url_of(admin.address[1], f"reactive{role}", DATABASE)


def run(project: Project, role: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a program of that user, to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=project.folder,
        env={**os.environ, **as_user(project, role).environment, "PYTHONPATH": str(project.folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )


def states(records: Any) -> dict[str, str]:
    """Return the state of each record by its document."""
    return {record["_id"]["d"]: record["status"] for record in records.find({"_id.t": "job"})}


def test_planner_and_worker_need_no_more_than_their_roles(project: Project) -> None:
    """Failures, a killed process, deferral, throttle, a transaction, limits, batches, deletion, a change of leader."""
    database = project.database
    planners = [as_user(project, "Planner").planner(name) for name in ("one", "two")]
    worker = as_user(project, "Worker").worker("--concurrency", "2")
    for name in WATCHED:
        database[name].insert_many([{"_id": do, "do": do} for do in ENDS])
    project.wait_until(lambda: states(database.jobs_tasks) == ENDS)
    for name in ("limited_tasks", "batched_tasks"):
        project.wait_until(lambda name=name: database[name].count_documents({"status": "completed"}) == len(ENDS))
    leader = planners[["one", "two"].index(str(project.leader()))]
    leader.stop()
    database.jobs.delete_one({"_id": "nothing"})
    database.jobs.insert_one({"_id": "after", "do": "nothing"})
    project.wait_until(lambda: states(database.jobs_tasks).get("after") == "completed")
    project.wait_until(lambda: "nothing" not in states(database.jobs_tasks))
    assert worker.stop() == 0
    assert "not authorized" not in project.logs().lower(), project.logs()


def test_the_operator_may_do_all_that_the_command_line_can(project: Project) -> None:
    """B-68: looking and acting by hand; the dashboard calls the same."""
    as_user(project, "Planner").planner("one")
    as_user(project, "Worker").worker("--concurrency", "2")
    database = project.database
    database.jobs.insert_one({"_id": "fail", "do": "fail"})
    database.limited.insert_many([{"_id": "gone"}, {"_id": "anew"}])
    project.wait_until(lambda: states(database.jobs_tasks) == {"fail": "failed"})
    project.wait_until(lambda: database.limited_tasks.count_documents({"status": "completed"}) == 2)
    database.limited.delete_one({"_id": "gone"})
    database.limited_tasks.delete_one({"_id.d": "anew"})
    done = run(project, "Operator", "-c", ONE_BY_ONE, *COMMANDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == COMMANDS[-1]
    assert [record["_id"]["d"] for record in database.limited_tasks.find()] == ["anew"]


@pytest.mark.parametrize(("role", "complaints"), [("Planner", set()), ("Worker", set(RIGHTS))])
def test_the_doctor_misses_a_right_of_the_planners_where_it_is_not_granted(
    project: Project, role: str, complaints: set[str]
) -> None:
    """It is to be run as the planner's user."""
    done = run(project, role, "-m", "celery_reactive.cli", "-A", "proj", "doctor", "--json")
    found = [one for one in json.loads(done.stdout)["findings"] if one["code"] == "missing_rights"]
    assert {one["subject"] for one in found} == complaints, done.stdout


def test_a_viewer_sees_a_dashboard(project: Project) -> None:
    """Every page of one that is read only."""
    as_user(project, "Planner").planner("one")
    project.database.jobs.insert_one({"_id": "nothing", "do": "nothing"})
    project.wait_until(lambda: states(project.database.jobs_tasks))
    port = free_port()
    arguments = ["-A", "proj", "dashboard", "--read-only", "--port", str(port)]
    dashboard = Process(
        "dashboard",
        [sys.executable, "-m", "celery_reactive.cli", *arguments],
        project.folder,
        as_user(project, "Viewer").environment,
    )
    try:
        project.wait_until(lambda: listens(port))
        for page in ("", "records", "errors", "planner", "operations", "schedule"):
            answer = httpx.get(f"http://127.0.0.1:{port}/{page}", timeout=20)
            assert answer.status_code == 200, (page, answer.text, dashboard.text())
    finally:
        dashboard.stop()
    assert "not authorized" not in dashboard.text().lower(), dashboard.text()


FORBIDDEN: dict[str, Callable[[Database[Any]], object]] = {
    "write what is watched": lambda shop: shop.jobs.insert_one({}),
    "change what is watched": lambda shop: shop.jobs.update_one({}, {"$set": {"do": "evil"}}),
    "make a record": lambda shop: shop.jobs_tasks.insert_one({}),
    "remove a record": lambda shop: shop.jobs_tasks.delete_many({}),
    "drop the records": lambda shop: shop.jobs_tasks.drop(),
    "index the records": lambda shop: shop.jobs_tasks.create_index("x"),
    "remove the leader's lock": lambda shop: shop["_celery_reactive"].delete_many({}),
    "read another collection": lambda shop: shop.secrets.find_one(),
    "read another database": lambda shop: shop.client["payroll"].people.find_one(),
    "watch a collection": lambda shop: shop.jobs.watch().close(),
    "read the oplog": lambda shop: shop.client["local"]["oplog.rs"].find_one(),
    "list users": lambda shop: shop.client["admin"].command("usersInfo", 1),
}


@pytest.mark.parametrize("deed", FORBIDDEN)
def test_a_worker_may_do_nothing_that_it_need_not(admin: MongoClient[dict[str, Any]], deed: str) -> None:
    """What runs the code of many handlers can neither start runs nor read what is not its own."""
    with MongoClient[dict[str, Any]](address(admin, "Worker")) as worker, pytest.raises(OperationFailure) as refused:
        FORBIDDEN[deed](worker[DATABASE])
    assert refused.value.code == UNAUTHORIZED


@pytest.mark.parametrize("role", ["Planner", "Operator", "Viewer"])
def test_only_the_users_own_programs_write_what_is_watched(admin: MongoClient[dict[str, Any]], role: str) -> None:
    """Also those who may read all of it."""
    with MongoClient[dict[str, Any]](address(admin, role)) as client, pytest.raises(OperationFailure) as refused:
        client[DATABASE].jobs.update_many({}, {"$set": {"do": "evil"}})
    assert refused.value.code == UNAUTHORIZED


@pytest.mark.skipif(shutil.which("node") is None, reason="roles.js needs mongosh, or node in its place")
def test_the_script_creates_these_roles() -> None:
    """`roles.js` and these tests make the same of the same file."""
    made = subprocess.run(
        ["node", "-e", SHELL],
        cwd=ROLES.parent,
        env={**os.environ, "DATABASE": DATABASE, "COLLECTIONS": ", ".join(WATCHED)},
        capture_output=True,
        text=True,
        check=True,
    )
    commands = json.loads(made.stdout)
    assert {one["createRole"]: one["privileges"] for one in commands} == shipped_roles(DATABASE, WATCHED)
