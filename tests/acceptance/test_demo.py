"""The demo, short: what a stranger sees first."""

from __future__ import annotations

import subprocess
import sys


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
    assert "is killed" in ended.stdout
    assert "All promises were kept." in ended.stdout
