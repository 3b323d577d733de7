"""The examples do what their READMEs say, started as these say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from tests.acceptance.project import Process, wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_shop_syncs_its_order_and_welcomes_its_customer(
    tmp_path: Path,
    database: Database[Any],
    mongodb_url: str,
    broker_url: str,
) -> None:
    """B-1, B-17: worker, planner and writer are processes of their own; the writer knows nothing of us."""
    folder = EXAMPLES / "shop"
    servers = {"MONGODB_URL": mongodb_url, "BROKER_URL": broker_url, "PYTHONPATH": str(folder)}
    python = [sys.executable, "-m"]
    app = ["-A", "shop.celery_app"]
    processes = [
        Process("worker", [*python, "celery", *app, "worker", "-c", "1"], tmp_path, servers),
        Process("planner", [*python, "celery_reactive.cli", *app, "planner"], tmp_path, servers),
    ]
    try:
        subprocess.run([*python, "shop.write"], cwd=folder, env={**os.environ, **servers}, check=True, timeout=30)
        wait_until(lambda: database.erp.find_one({"status": "paid", "amount": 42}), logs=processes[1].text)
        wait_until(lambda: database.customers.find_one({"name": "Ada", "welcomed": True}), logs=processes[0].text)
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("example", sorted({test.parent.name for test in EXAMPLES.glob("*/test_*.py")}))
def test_an_examples_own_tests_pass(example: str, tmp_path: Path, mongodb_url: str) -> None:
    """What a user copies to begin with."""
    if example == "django_shop":
        pytest.importorskip("pytest_django")
    folder = tmp_path / example
    shutil.copytree(EXAMPLES / example, folder, ignore=shutil.ignore_patterns("__pycache__", "*.sqlite3"))
    # No broker: its address leads nowhere, and the tests have theirs in memory.
    environment = {**os.environ, "MONGODB_URL": mongodb_url, "BROKER_URL": "redis://127.0.0.1:1"}
    environment.pop("PYTEST_ADDOPTS", None)
    # Nor the plugins of our own tests, which take three seconds to import.
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    plugins = ["-p", "pytest_celery_reactive", *(["-p", "django"] if example == "django_shop" else [])]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--rootdir", str(folder), *plugins],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout


def test_every_example_is_in_the_table() -> None:
    """What nobody finds nobody copies."""
    table = (EXAMPLES / "README.md").read_text()
    projects = {readme.parent.name for readme in EXAMPLES.glob("*/README.md")}
    assert set(re.findall(r"^\| \[(\w+)\]\(\1/\)", table, re.MULTILINE)) == projects
