"""The processes beside the demo: started in sessions of their own, ended in good order, never left behind.

Called by `story`. In a session of its own a process does not get the terminal's Ctrl-C, so that the demo decides
who ends when. If the demo itself is killed, a watchdog that waits for the end of its input kills the process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

_WATCHDOG = 'read -r _; kill -s KILL -- "-$1" 2>/dev/null'
_LOG_TAIL_LINES = 15

_APP = "celery_reactive.cli.demo.app"
_REACTIVE = (sys.executable, "-m", "celery_reactive.cli", "-A", _APP)
_WRITER = Path(__file__).with_name("writer.py")


class Child:
    """A process of the demo.

    Attributes:
        name: For people; also names its log.
        log: What it printed.
    """

    def __init__(self, name: str, command: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> None:
        """Start the process.

        Args:
            name: For people.
            command: Program and arguments.
            folder: Where its log goes.
            environment: Added to this process's own.
        """
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @classmethod
    def planner(cls, name: str, port: int, *, folder: Path, environment: Mapping[str, str]) -> Self:
        """Start a planner that goes by *name* in the leader's lock, and serves its metrics at *port*."""
        return cls(
            name,
            [*_REACTIVE, "planner", f"--metrics-port={port}"],
            folder=folder,
            environment={**environment, "CELERY_REACTIVE_DEMO_PLANNER": name},
        )

    @classmethod
    def worker(cls, name: str, *, folder: Path, environment: Mapping[str, str]) -> Self:
        """Start a prefork worker with two processes."""
        options = ["--concurrency=2", "--loglevel=INFO", "--without-gossip", "--without-mingle"]
        return cls(
            name,
            [sys.executable, "-m", "celery", "-A", _APP, "worker", f"--hostname={name}@%h", *options],
            folder=folder,
            environment=environment,
        )

    @classmethod
    def dashboard(cls, name: str, port: int, *, folder: Path, environment: Mapping[str, str]) -> Self:
        """Start the web dashboard, for this machine only."""
        command = [*_REACTIVE, "dashboard", f"--port={port}", "--title=demo"]
        return cls(name, command, folder=folder, environment=environment)

    @classmethod
    def shop(cls, name: str, url: str, seconds: float, *, folder: Path) -> Self:
        """Start the shop; it ends by itself after *seconds*."""
        return cls(name, [sys.executable, "-P", str(_WRITER), url, str(seconds)], folder=folder, environment={})

    @classmethod
    def prometheus(cls, name: str, port: int, configuration: Path, *, folder: Path) -> Self:
        """Start a Prometheus, for this machine only.

        Raises:
            OSError: There is no such program.
        """
        options = [
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder}/{name}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        return cls(name, ["prometheus", *options], folder=folder, environment={})

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, None while it runs; negative: by that signal."""
        return self._process.poll()

    def kill(self) -> None:
        """End it and its children as a crash would."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._dismiss_watchdog()

    def ask_to_end(self) -> None:
        """Ask it to end in good order (SIGTERM)."""
        if self.exit_code is None:
            self._process.terminate()

    def stop(self, *, within_seconds: float = 10.0) -> None:
        """Wait until it has ended, as it was asked to; kill what has not *within_seconds*."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(within_seconds)
        self.kill()

    def tail(self) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])

    def _dismiss_watchdog(self) -> None:
        self._watchdog.kill()
        self._watchdog.wait()
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
