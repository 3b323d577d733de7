"""Planners and workers: whether they live, serve every task, and run the same code."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from celery_reactive.core.duration import format_duration
from celery_reactive.core.task import DEFAULT_GROUP
from celery_reactive.management.doctor.case import Case
from celery_reactive.management.doctor.finding import Finding, error, note, warning
from celery_reactive.store import examination, queries, records

NO_LEADER = error(
    "no_leader",
    "start `celery-reactive -A … planner` (with --group where the task names one); of one that runs, compare "
    "reactive_mongodb_url and the globals' database with these",
)
LEADER_VANISHED = error("leader_vanished", "a stand-by takes over by itself; start a planner if there is none")
NO_STAND_BY = note("no_stand_by", "start a second planner on another machine: it takes over when the first is gone")
PLANNER_LAG = warning("planner_lag", "look at the planner's log and its CPU; divide the tasks into planner groups")
NO_WORKER = error(
    "no_worker", "start `celery -A … worker`; of one that runs, compare reactive_mongodb_url with this one"
)
QUEUE_WITHOUT_WORKER = error(
    "queue_without_worker", "start a worker with -Q and that queue, or correct task_routes or the task's queue="
)
WORKER_LACKS_TASK = error(
    "worker_lacks_task", "deploy this code to the worker, or give the task a queue that only such workers serve"
)
SENT_IN_VAIN = warning(
    "sent_in_vain",
    "compare broker_url of planners and workers; where workers are busy with other tasks, give this one a queue and a "
    "worker of its own",
)
WORKER_CODE_OLDER = warning("worker_code_older", "restart the worker with this code")
MIXED_VERSIONS = warning("mixed_versions", "install one version of celery-reactive on all machines")
TIME_LIMIT_IGNORED = warning(
    "time_limit_ignored", "run the task on prefork, where time limits are in force, or do without them"
)
FEW_IN_FLIGHT = warning("few_in_flight", "raise reactive_max_in_flight to several times the slots of the queue")

_LAG = timedelta(minutes=1)


def planners(case: Case) -> Iterator[Finding]:
    """Whether somebody leads each group, keeps up, and has a stand-by."""
    globals_ = case.runtime.connection.globals()
    for group in sorted({task.group for task in case.tasks}):
        name = f"planner group {group!r}"
        lock = queries.leading(globals_, group)
        if lock is None or lock.holder is None:
            yield NO_LEADER.on(name, "nobody leads: no change is seen, and nothing is sent")
            continue
        if lock.renewed_at is not None and lock.now - lock.renewed_at > case.runtime.settings.leader_ttl:
            silent = format_duration(timedelta(seconds=round((lock.now - lock.renewed_at).total_seconds())))
            yield LEADER_VANISHED.on(name, f"{lock.holder} leads and has been silent for {silent}")
        elif sum(one.facts.get("group", DEFAULT_GROUP) == group for one in case.planners) < 2:  # noqa: PLR2004 -- two
            yield NO_STAND_BY.on(name, "one planner is alive: while it is gone, nothing is planned or sent")


def positions(case: Case) -> Iterator[Finding]:
    """Whether changes are planned as they come."""
    connection = case.runtime.connection
    places = {(task.group, task.database or connection.default_database) for task in case.tasks}
    for group, database in sorted(places):
        planned = queries.planned(connection.globals(), group, database)
        if planned is None:
            continue
        lag = planned.now - datetime.fromtimestamp(planned.at.time, UTC)
        if lag > _LAG:
            behind = format_duration(timedelta(seconds=round(lag.total_seconds())))
            yield PLANNER_LAG.on(f"changes of {database}", f"they are planned up to {behind} ago")


def workers(case: Case) -> Iterator[Finding]:
    """Whether every task is served, by this code, within its limits."""
    if case.tasks and not case.workers:
        yield NO_WORKER.on("workers", "no worker is alive that has reactive tasks")
        return
    for task in case.tasks:
        serving = case.workers_of(task)
        queue = case.celery.queues.get(task.name)
        if not serving and queue is not None:
            yield QUEUE_WITHOUT_WORKER.on(task.name, f"no live worker consumes from its queue {queue!r}")
        for name, facts in serving.items():
            version = facts.tasks.get(task.name)
            wanted = task.evolution.handler_version
            if version is None:
                yield WORKER_LACKS_TASK.on(
                    name, f"it consumes from the queue of {task.name} and does not know the task"
                )
            elif version < wanted:
                problem = f"it runs version {version} of the handler of {task.name}, and this code has {wanted}"
                yield WORKER_CODE_OLDER.on(name, problem)
            if _ignores_limits(case, task.name, facts.pool):
                yield TIME_LIMIT_IGNORED.on(task.name, f"its time limits are not in force on {name} ({facts.pool})")


def deliveries(case: Case) -> Iterator[Finding]:
    """Whether what is sent arrives: workers serve the queue, and neither claim nor run anything of it."""
    for task in case.tasks:
        controls = case.controls[task.name]
        if not case.workers_of(task) or controls.paused or controls.is_throttled:
            continue
        target = case.runtime.connection.records(task)
        number = examination.sent_in_vain(target, task.name)
        if number and not records.is_running(target, task.name):
            problem = f"{number:,} records were sent more than once, and no worker of its queue takes them"
            yield SENT_IN_VAIN.on(task.name, problem)


def _ignores_limits(case: Case, task: str, pool: str) -> bool:
    hard, soft = case.celery.time_limits.get(task, (None, None))
    if pool in {"threads", "solo"}:
        return bool(hard or soft)
    return pool in {"gevent", "eventlet"} and bool(soft) and not hard


def versions(case: Case) -> Iterator[Finding]:
    """Whether all processes have the same release of this package."""
    here = importlib.metadata.version("celery-reactive")
    for name, facts in case.workers.items():
        if facts.version and facts.version != here:
            yield MIXED_VERSIONS.on(name, f"it has celery-reactive {facts.version}, and this process has {here}")


def room(case: Case) -> Iterator[Finding]:
    """Whether as much may be in flight as workers can run."""
    slots: dict[str, int] = {}
    for facts in case.workers.values():
        for queue in facts.queues:
            slots[queue] = slots.get(queue, 0) + facts.slots
    most = case.runtime.settings.max_in_flight
    for queue, number in sorted(slots.items()):
        if most < number and queue in case.celery.queues.values():
            yield FEW_IN_FLIGHT.on(
                queue, f"workers run {number} messages at once, and reactive_max_in_flight is {most}"
            )
