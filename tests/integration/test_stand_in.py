"""Where no mongod runs, SecantusDB stands in: a sample of the tests passes on it, so that it does not break unseen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

SHOP = Path(__file__).parents[2] / "examples/shop"
OURS = (
    "test_protocol.py",
    "test_records_dispatching.py",
    "test_testing.py::test_a_handler_that_triggers_itself_is_stopped_and_resumed",
)


@pytest.mark.parametrize(("folder", "tests"), [(SHOP, ()), (Path(__file__).parent, OURS)], ids=["shop", "ours"])
def test_a_sample_passes_without_a_mongod(folder: Path, tests: Sequence[str]) -> None:
    """Dispatch, claims, ends of runs, the loop guard, and an example's own tests; `make secantus` runs more."""
    environment = {**os.environ, "CELERY_REACTIVE_EMBEDDED": "secantus"}
    for name in ("MONGODB_URL", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *tests]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout
