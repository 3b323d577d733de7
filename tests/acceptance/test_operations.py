"""Bulk work that is left to the leading planner."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.acceptance.project import Project


def test_the_leading_planner_does_what_it_is_left(project: Project) -> None:
    """B-51: the command returns at once, and the records are changed."""
    project.planner("one")
    project.database.jobs.insert_many([{"_id": number, "do": "nothing"} for number in range(5)])
    project.wait_until(lambda: project.database.jobs_tasks.count_documents({"task": "job"}) == 5)
    command = ["-A", "proj", "tasks", "discard", "--task", "job", "--yes", "--background", "--json"]
    begun = subprocess.run(
        [sys.executable, "-m", "celery_reactive.cli", *command],
        cwd=project.folder,
        env={**os.environ, **project.environment, "PYTHONPATH": str(project.folder)},
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert json.loads(begun.stdout)["state"] == "running"
    project.wait_until(lambda: all(project.record("job", number)["status"] == "completed" for number in range(5)))
