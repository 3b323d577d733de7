"""The quickstart works as it is written: its files, its commands, what it says they print."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.project import Process, wait_until

PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"
PROGRAMS = {
    "python": [sys.executable],
    "celery": [sys.executable, "-m", "celery"],
    "celery-reactive": [sys.executable, "-m", "celery_reactive.cli"],
}
STAYING = {"worker": "-A proj worker", "planner": "-A proj planner"}


def files() -> dict[str, str]:
    """Return the files that the page shows, by the names in their first lines."""
    return dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL))


def commands() -> list[str]:
    """Return what the page tells to type, but for the installation."""
    typed = re.findall(r"^\$ (.*)$", PAGE.read_text(), flags=re.MULTILINE)
    return [command for command in typed if "pip install" not in command and "venv" not in command]


def program(command: str) -> list[str]:
    """Return the arguments of a command, run by this Python."""
    name, *arguments = shlex.split(command)
    return [*PROGRAMS[name], *arguments]


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """What a test starts, ended after it, the last first."""
    started: list[Process] = []
    yield started
    for process in reversed(started):
        process.kill()


def test_the_quickstart_does_what_it_says(tmp_path: Path, processes: list[Process]) -> None:
    """B-10, B-16: three writes, one run with the last state; then the commands that look."""
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    servers, *rest = commands()
    processes.append(Process("servers", program(servers), tmp_path, {}))
    wait_until(lambda: processes[0].text().count("export ") == 2, logs=processes[0].text)
    environment = dict(re.findall(r"^export (\w+)='(.*)'$", processes[0].text(), flags=re.MULTILINE))
    for name, part in STAYING.items():
        [command] = [one for one in rest if part in one]
        processes.append(Process(name, program(command), tmp_path, environment))

    looking = [one for one in rest if not any(part in one for part in STAYING.values())]
    assert looking[0] == "python write.py"
    typed(looking[0], tmp_path, environment)
    wait_until(lambda: "invoice A-1 over 42" in processes[1].text(), logs=processes[1].text)
    assert processes[1].text().count("invoice A-1") == 1
    answers = [typed(command, tmp_path, environment) for command in looking[1:]]
    assert all("send_invoice" in answer for answer in answers)


def typed(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a command of the page to its end, and return what it printed."""
    ended = subprocess.run(
        program(command), cwd=folder, env={**os.environ, **environment}, check=True, timeout=30, capture_output=True
    )
    return ended.stdout.decode()
