"""A MongoDB that asks for a password, and the shipped roles in it.

Used by the tests of `deploy/mongodb`. `embedded.MongoServer` lets everybody do anything; this one enforces what is
granted, as an installation does.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from celery_reactive.embedded.mongo import find_mongod
from celery_reactive.embedded.process import HOST, Process
from tests.acceptance.project import wait_until

ROLES = Path(__file__).parents[2] / "deploy" / "mongodb" / "roles.json"
PASSWORD = secrets.token_hex(8)


@contextlib.contextmanager
def guarded_mongod(key_file: Path) -> Iterator[MongoClient[dict[str, Any]]]:
    """Run a replica set of one member with access control, and yield its administrator.

    Args:
        key_file: Where to write the key that members of a set with access control need.
    """
    key_file.write_text("0" * 64)
    key_file.chmod(0o600)
    guarded = False

    def command(port: int, folder: Path) -> list[str]:
        options = [f"--keyFile={key_file}"] if guarded else []
        data = [f"--dbpath={folder}", f"--logpath={folder / 'mongod.log'}", "--oplogSize=64", "--nounixsocket"]
        return [str(find_mongod()), "--replSet=rs0", f"--port={port}", f"--bind_ip={HOST}", *data, *options]

    def owner(port: int) -> int | None:
        # The administrator exists from the second start on, when nobody else may ask.
        account = {"username": "admin", "password": PASSWORD} if guarded else {}
        with contextlib.suppress(PyMongoError), _direct(port, **account) as client:
            return int(client.admin.command("serverStatus")["pid"])
        return None

    server = Process("mongod-guarded", command, owner)
    try:
        server.start()
        _initiate(server.port)
        server.kill()
        guarded = True
        server.start()
        with MongoClient[dict[str, Any]](url_of(server.port, "admin"), tz_aware=True) as admin:
            yield admin
    finally:
        server.stop()


def create_accounts(admin: MongoClient[dict[str, Any]], database: str, collections: list[str]) -> None:
    """Create the shipped roles, and for each of them a user of its name who has nothing else."""
    for role, privileges in shipped_roles(database, collections).items():
        admin.admin.command("createRole", role, privileges=privileges, roles=[])
        admin.admin.command("createUser", role, pwd=PASSWORD, roles=[role])


def shipped_roles(database: str, collections: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the privileges of each role, as `roles.js` makes them."""
    places = {
        "database": [(database, "")],
        "watched": [(database, name) for name in collections],
        "records": [(database, f"{name}_tasks") for name in collections],
        "globals": [(database, "_celery_reactive")],
        "oplog": [("local", "oplog.rs")],
    }
    return {
        f"reactive{name}": [
            {"resource": {"db": db, "collection": collection}, "actions": grant["actions"]}
            for grant in grants
            for db, collection in places[grant["on"]]
        ]
        for name, grants in json.loads(ROLES.read_text()).items()
    }


def url_of(port: int, user: str, database: str = "") -> str:
    """Return the connection string of a user."""
    return f"mongodb://{user}:{PASSWORD}@{HOST}:{port}/{database}?replicaSet=rs0&authSource=admin"


def _initiate(port: int) -> None:
    with _direct(port) as client:
        configuration = {"_id": "rs0", "members": [{"_id": 0, "host": f"{HOST}:{port}"}]}
        client.admin.command("replSetInitiate", configuration)
        wait_until(lambda: client.admin.command("hello")["isWritablePrimary"], logs=str)
        client.admin.command("createUser", "admin", pwd=PASSWORD, roles=["root"])


@contextlib.contextmanager
def _direct(port: int, **account: str) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](
        HOST, port, directConnection=True, serverSelectionTimeoutMS=2000, **account
    ) as client:
        yield client
