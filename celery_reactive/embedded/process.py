"""One server process: started on a free port, found to answer, killed, frozen, and ended with whoever started it.

Called by the modules of the single servers; knows none of them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from celery_reactive.errors import ReactiveError

HOST = "127.0.0.1"
START_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.02
_PORT_ATTEMPTS = 5
_LOG_TAIL_CHARACTERS = 2000
_PORT_TAKEN = ("in use", "eaddrinuse")

# Outlives its parent by design: the end of its input is the parent's end, whatever ended it. PR_SET_PDEATHSIG would
# kill the server with the *thread* that started it.
_WATCHDOG = 'read -r _; kill -s KILL -- "-$1" 2>/dev/null; rm -rf "$2"'


class EmbeddedServerError(ReactiveError):
    """A server could not be found or started; nothing of it is left running."""


class _PortTakenError(Exception):
    """Somebody else took the port between its choice and its use."""


class Process:
    """One server process, with what it starts itself.

    Its port and its data survive `kill()`: `start()` brings the same server back. `stop()` discards both.

    Attributes:
        name: For people and for the data folder's name.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[int, Path], Sequence[str]],
        owner: Callable[[int], int | None],
        *,
        environment: Callable[[int, Path], Mapping[str, str]] = lambda _port, _folder: {},
    ) -> None:
        """Prepare a server; nothing is started.

        Args:
            name: For people and for the data folder's name.
            command: Makes the command line from the port and the data folder.
            owner: Returns the id of the process that answers on a port, or None while nobody does.
            environment: Makes what is added to this process's environment from the port and the data folder.
        """
        self.name = name
        self._command = command
        self._owner = owner
        self._environment = environment
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
    def folder(self) -> Path:
        """The folder of its data and logs.

        Raises:
            EmbeddedServerError: The server was never started, or was stopped.
        """
        if self._folder is None:
            raise EmbeddedServerError(f"{self.name} has no folder: it was not started")
        return self._folder

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
            EmbeddedServerError: It ended or did not answer within 30 s; the message holds the end of its log. Data from
                before are kept, and it may be started once more.
        """
        if self.pid is not None:
            return
        # One that has ended by itself leaves its helpers and its watchdog.
        self.kill()
        if self._port is None or self._folder is None:
            self._start_anew(Path(tempfile.mkdtemp(prefix=f"celery-reactive-{self.name}-")))
        else:
            self._start_again(self._port, self._folder)

    def _start_anew(self, folder: Path) -> None:
        self._folder = folder
        for _ in range(_PORT_ATTEMPTS):
            port = free_port()
            with contextlib.suppress(_PortTakenError):
                self._launch(port, folder)
                self._port = port
                return
        self.stop()
        raise EmbeddedServerError(f"{self.name}: the port was taken by somebody else each time")

    def _start_again(self, port: int, folder: Path) -> None:
        """Start on the same port; somebody's outgoing connection may have it for a while."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(_PortTakenError):
                self._launch(port, folder)
                return
        raise EmbeddedServerError(f"{self.name}: somebody else has taken port {port} meanwhile")

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
            self._signal_all(self._child, signal.SIGKILL)
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
        self._signal_all(self._child, number)

    def _signal_all(self, child: subprocess.Popen[bytes], number: signal.Signals) -> None:
        # The child leads a group of its own, in which everything is that it starts.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    def _launch(self, port: int, folder: Path) -> None:
        command = self._command(port, folder)
        try:
            self._child = _spawn(command, self._environment(port, folder), folder / "output.log")
        except OSError as error:
            if self._port is None:
                self.stop()
            raise EmbeddedServerError(f"{self.name}: {command[0]} cannot be run: {error.strerror}") from error
        self._watchdog = _watch_over(self._child, folder)
        self._await_answer(self._child, port)

    def _await_answer(self, child: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            owner = self._owner(port)
            if owner == child.pid:
                return
            if owner is not None:
                self.kill()
                raise _PortTakenError
            if _ended(child, within_seconds=POLL_SECONDS):
                self._report(f"ended with code {child.returncode}")
        self._report(f"did not answer within {START_TIMEOUT_SECONDS:.0f} s")

    def _report(self, what: str) -> NoReturn:
        tail = self._log_tail()
        if any(words in tail for words in _PORT_TAKEN):
            self.kill()
            raise _PortTakenError
        if self._port is None:
            self.stop()
        else:
            self.kill()
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


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Return whether somebody listens on *port*."""
    with socket.socket() as attempt:
        return attempt.connect_ex((HOST, port)) == 0


def _spawn(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C is for the server's users, who need it until they have ended well.
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def _watch_over(child: subprocess.Popen[bytes], folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(child.pid), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _ended(child: subprocess.Popen[bytes], *, within_seconds: float) -> bool:
    try:
        child.wait(timeout=within_seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
