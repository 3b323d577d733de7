"""A user's project, started as a user starts it: planners and workers as processes of their own.

Used by the acceptance tests through the fixtures of `conftest.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pymongo.database import Database

from celery_reactive import testing

SOURCE = Path(__file__).with_name("sample_tasks.py")


class Process:
    """A planner or a worker."""

    def __init__(self, name: str, arguments: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                arguments,
                cwd=folder,
                env={
                    **os.environ,
                    **environment,
                    "PYTHONPATH": environment.get("PYTHONPATH", str(folder)),
                    "C_FORCE_ROOT": "1",
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, as a supervisor does."""
        self._process.send_signal(number)

    def wait(self, timeout: float = 20) -> int:
        """Wait for its end and return the exit code."""
        return self._process.wait(timeout)

    def stop(self) -> int:
        """End it in good order, and with its whole group if it does not listen."""
        if self._process.poll() is None:
            self.send(signal.SIGTERM)
            try:
                return self.wait()
            except subprocess.TimeoutExpired:
                self.kill()
        return self._process.wait()

    def kill(self) -> None:
        """End it and all that it has started, at once: for what no test looks at any more."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")


class Project:
    """A folder with `proj.py` and the processes started from it."""

    def __init__(self, folder: Path, database: Database[Any], environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.database = database
        self.environment = dict(environment)
        self._processes: list[Process] = []
        (folder / "proj.py").write_text(SOURCE.read_text())

    def planner(self, name: str, *options: str) -> Process:
        """Start `celery-reactive -A proj planner`."""
        return self._command(name, "planner", *options)

    def reconcile(self, *options: str) -> Process:
        """Start `celery-reactive -A proj reconcile`."""
        return self._command("reconcile", "reconcile", *options)

    def run(self, *words: str, said: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `celery-reactive -A proj …` to its end; *said* is what is typed when it asks."""
        return self.run_program(
            sys.executable, "-m", "celery_reactive.cli", "-A", "proj", *words, said=said, **environment
        )

    def run_program(self, *command: str, said: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run any program in the project's folder to its end."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **self.environment, "PYTHONPATH": str(self.folder), **environment},
            input=said,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def _command(self, name: str, *arguments: str) -> Process:
        return self._start(name, [sys.executable, "-m", "celery_reactive.cli", "-A", "proj", *arguments], name)

    def worker(self, *options: str) -> Process:
        """Start `celery -A proj worker`; it does not wait a second for other workers to greet it."""
        command = [sys.executable, "-m", "celery", "-A", "proj", "worker", "--without-mingle"]
        return self._start("worker", [*command, *options], "worker")

    def _start(self, name: str, arguments: list[str], instance: str) -> Process:
        environment = {**self.environment, "INSTANCE": instance}
        process = Process(f"{name}-{len(self._processes)}", arguments, self.folder, environment)
        self._processes.append(process)
        return process

    @property
    def processes(self) -> tuple[Process, ...]:
        """All processes that were started, in that order."""
        return tuple(self._processes)

    def stop(self) -> None:
        """End all processes at once: those that listen take seconds, and how they end has tests of its own."""
        for process in reversed(self._processes):
            process.kill()

    def logs(self) -> str:
        """The ends of all logs, for a failed test."""
        return "\n".join(f"--- {process.log.name}\n{process.text()[-3000:]}" for process in self._processes)

    def leader(self) -> str | None:
        """Who leads."""
        lock = self.database["_celery_reactive"].find_one({"_id": {"k": "leader", "g": "default"}})
        return None if lock is None else lock["holder"]

    def record(self, task: str, doc_id: Any) -> dict[str, Any]:
        """A record, empty if there is none."""
        return self.database["jobs_tasks"].find_one({"_id": {"t": task, "d": doc_id}}) or {}

    def wait_until(self, condition: Callable[[], object], timeout: float = 30) -> float:
        """Wait until *condition* holds; return the seconds it took."""
        return wait_until(condition, logs=self.logs, timeout=timeout)


def wait_until(condition: Callable[[], object], *, logs: Callable[[], str], timeout: float = 30) -> float:
    """Wait until *condition* holds; return the seconds it took, or fail with the *logs*."""
    started = time.monotonic()
    testing.wait_until(condition, timeout=timeout, interval=0.02, explain=logs)
    return time.monotonic() - started
