"""The main job, as a user starts it: a document is written, a worker handles it, whoever dies on the way."""

from __future__ import annotations

import signal

import pytest

from tests.acceptance.project import Project

POOLS = ["prefork", "threads", "solo"]

ENDS = {
    "nothing": ("completed", 1),
    "fail": ("failed", 2),
    "fail once": ("completed", 2),
    "defer": ("completed", 1),
    "retry": ("completed", 2),
    "mark": ("completed", 1),
    "transaction": ("completed", 1),
    "abort": ("completed", 2),
    "move on": ("completed", 1),
    "slow": ("completed", 1),
}
"""What a document asks for, and the state and the attempts its record ends with."""
ENDS_OF_A_PROCESS = {"kill": ("completed", 2), "exit": ("completed", 2)}


@pytest.mark.parametrize("pool", POOLS)
def test_every_way_a_run_ends_lands_in_its_record(project: Project, pool: str) -> None:
    """B-24, B-25, B-28, B-33, B-34, B-36, B-40: success, failure, deferral, retry, transaction, a killed process."""
    wanted = {**ENDS, **(ENDS_OF_A_PROCESS if pool == "prefork" else {})}
    project.worker("--pool", pool, "--concurrency", "2")
    project.planner("planner")
    project.database.jobs.insert_many([{"_id": do, "do": do, "n": 1} for do in wanted])

    def ended(do: str) -> bool:
        return project.record("job", do).get("status") in ("completed", "failed")

    project.wait_until(lambda: all(ended(do) for do in wanted))
    reached = {do: (project.record("job", do)["status"], project.record("job", do)["attempts"]) for do in wanted}
    assert reached == wanted
    assert project.record("job", "fail")["lastError"] == "$always"
    assert project.database.out.count_documents({}) == 1
    seen = [run["n"] for run in project.database.runs.find({"doc": "move on"})]
    assert seen == [1, 2]
    project.wait_until(lambda: all(project.record("coroutine", do).get("status") == "completed" for do in wanted))


def test_a_hard_time_limit_is_a_failed_attempt(project: Project) -> None:
    """B-30: the record is tried again within seconds, long before its lease would end."""
    project.worker("--concurrency", "1")
    project.planner("planner")
    project.database.limited.insert_one({"_id": 1})
    records = project.database.limited_tasks
    project.wait_until(lambda: records.count_documents({"status": "completed", "attempts": 2}), timeout=20)
    record = records.find_one({})
    assert record is not None
    assert "TimeLimitExceeded" in record["executionHistory"][0]["error"]


def test_nothing_is_lost_when_the_leader_is_killed(project: Project) -> None:
    """B-46: the stand-by takes over within TTL and heartbeat, and what was written meanwhile is handled."""
    planners = {"one": project.planner("one")}
    project.worker("--concurrency", "1")
    project.wait_until(project.leader)
    planners["two"] = project.planner("two")
    project.wait_until(lambda: "planner started" in planners["two"].text())
    project.database.jobs.insert_one({"_id": "before", "do": "nothing"})
    project.wait_until(lambda: project.record("job", "before").get("status") == "completed")
    planners["one"].send(signal.SIGKILL)
    project.database.jobs.insert_many([{"_id": number, "do": "nothing"} for number in range(20)])
    took = project.wait_until(
        lambda: all(project.record("job", number).get("status") == "completed" for number in range(20)),
    )
    assert project.leader() == "two"
    assert took < 10


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP], ids=["by TERM", "by closing its terminal"])
def test_a_planner_told_to_stop_hands_over_at_once(project: Project, told: signal.Signals) -> None:
    """B-46, B-68: exit code 0, and the stand-by leads without waiting for the TTL."""
    # Whoever has started the tests in the background may have had closed terminals ignored, in all that they start.
    ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    first = project.planner("one")
    signal.signal(signal.SIGHUP, ignored)
    project.wait_until(lambda: project.leader() == "one")
    second = project.planner("two")
    project.wait_until(lambda: "planner started" in second.text())
    first.send(told)
    assert project.wait_until(lambda: project.leader() == "two") < 3
    assert first.wait() == 0


def test_a_worker_told_to_stop_finishes_what_it_runs(project: Project) -> None:
    """B-68: SIGTERM in the middle of a run: it is finalized, not left to its lease."""
    worker = project.worker("--concurrency", "1")
    project.planner("planner")
    project.database.jobs.insert_one({"_id": "s", "do": "slow"})
    project.wait_until(lambda: project.record("job", "s").get("status") == "processing")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert project.record("job", "s")["status"] == "completed"


def test_a_throttle_holds_for_every_worker(project: Project) -> None:
    """B-35: no run of the task starts before the time, on whichever process."""
    project.worker("--concurrency", "2")
    project.planner("planner")
    project.database.jobs.insert_one({"_id": "t", "do": "throttle"})
    project.wait_until(lambda: project.record("job", "t").get("status") == "completed")
    project.database.jobs.insert_one({"_id": "later", "do": "nothing"})
    project.wait_until(lambda: project.record("job", "later").get("status") == "completed")
    until = project.database["_celery_reactive"].find_one({"_id": {"k": "task", "t": "job"}})
    assert until is not None
    assert project.record("job", "later")["startedAt"] >= until["throttledUntil"]
