"""The demo, short: what a stranger sees first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest


def test_the_demo_kills_the_leader_and_keeps_its_promises() -> None:
    """B-10, B-23, B-46: exit code 0 only if every order's last state was handled, never twice at once."""
    ended = subprocess.run(
        [sys.executable, "-m", "celery_reactive.cli", "demo", "--seconds", "8"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "dashboard at http://localhost:" in ended.stdout
    assert "planner-b has metrics at http://127.0.0.1:" in ended.stdout
    assert "is killed" in ended.stdout
    assert "All promises were kept." in ended.stdout


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in Linux' /proc")
def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    """Servers, planners, worker and shop end with the demo, and it says that it was not played to its end."""
    marker = {"CELERY_REACTIVE_DEMO_TEST": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "celery_reactive.cli", "demo"],
        env={**os.environ, **marker},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Whoever started the tests in the background has made them deaf to it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 -- no threads here
    ) as demo:
        assert demo.stdout is not None
        assert any("the shop opens" in line for line in demo.stdout)
        assert len(started_with(marker)) > 5
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1, rest
    assert "Traceback" not in rest
    assert started_with(marker) == []


def started_with(environment: dict[str, str]) -> list[str]:
    """Return the processes that carry *environment*, but this one's."""
    ((name, value),) = environment.items()
    wanted = f"{name}={value}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found
