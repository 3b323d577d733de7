"""Bulk work that is left to the leading planner."""

from __future__ import annotations

import json
from typing import Any

from tests.acceptance.project import Project

MANY = 2000
PAGE = 5


def leave_to_the_planner(project: Project, *words: str) -> dict[str, Any]:
    """Type a bulk command with --background; return the operation."""
    begun = project.run(*words, "--yes", "--background", "--json")
    operation: dict[str, Any] = json.loads(begun.stdout)
    assert operation["state"] == "running"
    return operation


def test_the_leading_planner_does_what_it_is_left(project: Project) -> None:
    """B-51: the command returns at once, and the records are changed."""
    project.planner("one")
    project.database.jobs.insert_many([{"_id": number, "do": "nothing"} for number in range(5)])
    project.wait_until(lambda: project.database.jobs_tasks.count_documents({"task": "job"}) == 5)
    leave_to_the_planner(project, "tasks", "discard", "--task", "job")
    project.wait_until(lambda: all(project.record("job", number)["status"] == "completed" for number in range(5)))


def test_bulk_work_outlives_the_planners_that_are_killed_at_it(project: Project) -> None:
    """B-51, B-52: killed twice midway, the next one goes on; each record is treated once, and only those meant."""
    planner = project.planner("plans")
    orders = [{"_id": number, "do": "nothing", "pick": number % 2 == 0} for number in range(MANY)]
    project.database.jobs.insert_many(orders)
    project.wait_until(lambda: project.database.jobs_tasks.count_documents({}) == 2 * MANY, timeout=60)
    planner.kill()
    with (project.folder / "proj.py").open("a") as module:
        module.write(f"\napp.conf.reactive_batch_size = {PAGE}\n")
    begun = leave_to_the_planner(project, "tasks", "discard", "--task", "job", "--source", '{"pick": true}')
    stored = project.database["_celery_reactive"]
    one = {"_id": {"k": "operation", "o": begun["id"]}}

    def looked() -> int:
        return int((stored.find_one(one) or {})["looked"])

    for name in ("first", "second"):
        before = looked()
        planner = project.planner(name)
        project.wait_until(lambda before=before: looked() > before, timeout=60)  # type: ignore[misc]
        planner.kill()
        seen = stored.find_one(one) or {}
        assert (seen["state"], before < seen["looked"] < begun["total"]) == ("running", True)
        # What stands still for twenty seconds is gone on with; here they have passed.
        stored.update_one(one, [{"$set": {"updatedAt": {"$subtract": ["$$NOW", 60_000]}}}])
    project.planner("last")
    project.wait_until(lambda: (stored.find_one(one) or {})["state"] == "done", timeout=60)
    done = stored.find_one(one) or {}
    assert done["looked"] == begun["total"] == MANY // 2
    # A page that was done and not noted is done again, and finds nothing to change.
    assert MANY // 2 - 2 * PAGE <= done["changed"] <= MANY // 2
    discarded = {"status": "completed", "executionHistory.0.status": "discarded", "executionHistory": {"$size": 1}}
    treated = {record["sourceDocId"] for record in project.database.jobs_tasks.find({"task": "job", **discarded})}
    assert treated == set(range(0, MANY, 2))
    untouched = {"status": "pending", "executionHistory": []}
    assert project.database.jobs_tasks.count_documents({"task": "job", **untouched}) == MANY // 2
    assert project.database.jobs_tasks.count_documents({"task": "coroutine", **untouched}) == MANY
