"""Limits in a project as a user runs it: workers of several processes, one planner, changed while they run (B-58)."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.project import Process, Project

TASKS = Path(__file__).with_name("limit_tasks.py")


@pytest.fixture
def shop(project: Project) -> Project:
    """The project with the tasks of this test."""
    (project.folder / "proj.py").write_text(TASKS.read_text())
    return project


def write(project: Project, kind: str, doc_ids: range, **fields: Any) -> None:
    """Insert documents for a task."""
    project.database.jobs.insert_many([{"_id": doc_id, kind: True, **fields} for doc_id in doc_ids])


def begun(project: Project, task: str) -> list[float]:
    """Return when the runs of a task began, by the clock of this machine."""
    return sorted(run["began"] for run in project.database.runs.find({"task": task}))


def most_in_a_second(starts: list[float]) -> int:
    """Return how many starts the fullest second holds."""
    return max(sum(first <= other < first + 1 for other in starts) for first in starts)


def sent(planner: Process, task: str) -> int:
    """Return how many records the planner says to have sent."""
    lines = [line for line in planner.text().splitlines() if "dispatched" in line and f"task={task} " in line]
    return sum(int(found[1]) for line in lines if (found := re.search(r"records=(\d+)", line)))


def limit(project: Project, *options: str) -> None:
    """Run `celery-reactive limit`."""
    project.run("limit", *options).check_returncode()


def test_a_rate_holds_for_all_workers_and_is_used_up(shop: Project) -> None:
    """B-58: no second holds more starts, also after it was changed, and no message is sent in vain."""
    planner = shop.planner("one")
    for name in ("w1@here", "w2@here"):
        shop.worker("--concurrency", "2", "--hostname", name)
    write(shop, "loose", range(1000, 1004))
    shop.wait_until(lambda: len(begun(shop, "loose")) == 4)
    write(shop, "call", range(40))
    shop.wait_until(lambda: len(begun(shop, "call")) == 40)
    starts = begun(shop, "call")
    assert most_in_a_second(starts) <= 10
    assert 3.0 <= starts[-1] - starts[0] < 5.0
    limit(shop, "call", "--rate", "25/s")
    write(shop, "call", range(40, 90))
    shop.wait_until(lambda: len(begun(shop, "call")) == 90)
    starts = begun(shop, "call")[40:]
    assert 10 < most_in_a_second(starts) <= 25
    assert starts[-1] - starts[0] < 3.0
    assert sent(planner, "call") <= 100


def test_few_run_at_a_time(shop: Project) -> None:
    """B-58: two of four processes' runs at any moment, one after the other without a pause."""
    shop.environment["DEFAULT_RATE"] = "1000/s"
    shop.planner("one")
    workers = [shop.worker("--concurrency", "2", "--hostname", name) for name in ("w1@here", "w2@here")]
    write(shop, "loose", range(1000, 1004))
    shop.wait_until(lambda: len(begun(shop, "loose")) == 4)
    write(shop, "narrow", range(40))
    shop.wait_until(lambda: shop.database.runs.count_documents({"task": "narrow", "ended": {"$gt": 0}}) == 40)
    runs = list(shop.database.runs.find({"task": "narrow"}))
    assert max(sum(one["began"] <= run["began"] < one["ended"] for one in runs) for run in runs) == 2
    assert max(run["ended"] for run in runs) - min(run["began"] for run in runs) < 4.0
    assert "task_default_rate_limit keeps messages back in each worker by itself" in workers[0].text()


@pytest.mark.parametrize("whole", [False, True], ids=["process", "worker"])
def test_a_killed_worker_leaves_its_slot(shop: Project, *, whole: bool) -> None:
    """B-58: at once where its parent process lives, else when the run is given up."""
    shop.planner("one")
    worker = shop.worker("--concurrency", "1", "--hostname", "w1@here")
    write(shop, "single", range(1), seconds=60)
    shop.wait_until(lambda: begun(shop, "single"))
    write(shop, "single", range(1, 3), seconds=0)
    if whole:
        shop.worker("--concurrency", "1", "--hostname", "w2@here")
        os.killpg(worker.pid, signal.SIGKILL)
    else:
        os.kill(shop.database.runs.find_one({"task": "single"})["pid"], signal.SIGKILL)  # type: ignore[index]
    waited = shop.wait_until(
        lambda: shop.database["jobs_tasks"].count_documents({"task": "single", "status": "completed"}) >= 2
    )
    assert waited < (15 if whole else 8)
    limiter: Any = shop.database["_celery_reactive"].find_one({"_id": {"k": "limiter", "t": "single"}})
    assert sum(slot["n"] for slot in limiter["slots"]) <= 1
