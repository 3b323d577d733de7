"""Every metric: name, kind, labels and meaning. The one place that says so.

Read by whoever counts, measures or exposes, and by the tables of the user's guide. A label's values are few and known
beforehand: names of declared tasks, states, queues; never the id of a document.
"""

from __future__ import annotations

import dataclasses
from enum import StrEnum

from celery_reactive.core import totals

PREFIX = "reactive_tasks_"
SUCCESS, FAILED = totals.SUCCESS, totals.FAILED
"""Values of `status` of a run's duration."""
UNDECLARED = "(undeclared)"
"""The value of `task_name` for whatever is counted of a task that is not declared."""


class Kind(StrEnum):
    """What Prometheus calls it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One metric."""

    name: str
    """Without the prefix."""
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()
    """Upper bounds in seconds, of a histogram."""

    @property
    def full_name(self) -> str:
        """The name as it is exposed."""
        return f"{PREFIX}{self.name}"


_TASK = ("task_name",)
_RUN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_WAIT_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)

DURATION = Metric(
    totals.DURATION,
    Kind.HISTOGRAM,
    ("task_name", "status"),
    "How long runs took, from claim to end. `status`: `success`, or `failed` also where another attempt follows. "
    "Skipped, deferred and given-back runs are not counted.",
    _RUN_SECONDS,
)
WAIT = Metric(
    totals.WAIT,
    Kind.HISTOGRAM,
    _TASK,
    "How long records waited from the time they became due to the start of their run; first attempts only.",
    _WAIT_SECONDS,
)
RETRIES = Metric("retries_total", Kind.COUNTER, _TASK, "Failed attempts after which another follows.")
LOCK_LOST = Metric(
    "lock_lost_total",
    Kind.COUNTER,
    _TASK,
    "Leases lost: runs that the leader ended because their worker had vanished, and results that were not written "
    "because the record was somebody else's by then.",
)
PLANNED = Metric(
    "planned_total",
    Kind.COUNTER,
    ("task_name", "result"),
    "Documents planned after a change. `result`: `written` (inserted or updated), `deleted`, `failed` (could not be "
    "planned), `locked` (a transaction holds the record, planned apart).",
)
DISPATCHED = Metric("dispatched_total", Kind.COUNTER, ("queue",), "Records for which a message was published.")
REDISPATCHED = Metric(
    "redispatched_total", Kind.COUNTER, (), "Of them, those sent before and not claimed by their dispatch deadline."
)
DISPATCH_FAILURES = Metric(
    "dispatch_failures_total",
    Kind.COUNTER,
    ("reason",),
    "Times the broker did not take messages. `reason`: `unavailable`, or `refused` for some tasks only.",
)
ELECTIONS = Metric("leader_elections_total", Kind.COUNTER, (), "Elections won by a planner.")
STREAM_ERRORS = Metric(
    "stream_errors_total", Kind.COUNTER, (), "Failures of change streams, each opened again; also lost positions."
)
FLUSH_FAILURES = Metric(
    "flush_failures_total",
    Kind.COUNTER,
    (),
    "Batches of changes that could not be planned or whose position could not be stored; they are planned again.",
)
QUEUE_DEPTH = Metric(
    "queue_depth",
    Kind.GAUGE,
    ("task_name", "status"),
    "Records by state; `completed` is counted once a minute.",
)
GLOBAL_LAG = Metric(
    "global_lag_seconds",
    Kind.GAUGE,
    _TASK,
    "How long ago the oldest pending record became due; 0: nothing is due.",
)
STREAM_LAG = Metric(
    "change_stream_lag_seconds",
    Kind.GAUGE,
    (),
    "How far planning is behind the database: the largest over all change streams; 0 when idle.",
)
LAST_RECONCILIATION = Metric(
    "last_reconciliation_timestamp_seconds", Kind.GAUGE, (), "When a reconciliation was last finished, of any task."
)
IN_FLIGHT = Metric("in_flight", Kind.GAUGE, ("queue",), "Records with the broker, sent and not claimed yet.")
LEADER = Metric(
    "planner_leader", Kind.GAUGE, ("group",), "1 on the planner that leads its group, 0 on one that stands by."
)
TERM = Metric("planner_term", Kind.GAUGE, ("group",), "The newest term of leadership.")
OPLOG = Metric(
    "oplog_window_seconds",
    Kind.GAUGE,
    (),
    "How far back the oplog of the primary reaches; absent where the planner may not read it.",
)
PROGRESS = Metric(
    "reconciliation_progress_ratio",
    Kind.GAUGE,
    _TASK,
    "How much of a reconciliation under way is done, 0 to 1; absent where there is none.",
)
PLANNING_FAILURES = Metric(
    "planning_failures", Kind.GAUGE, _TASK, "Documents that cannot be planned now, those of locked records included."
)
PAUSED = Metric("paused", Kind.GAUGE, _TASK, "1 while the task is paused.")
GUARDED = Metric("loop_guarded", Kind.GAUGE, _TASK, "Records that the loop guard has paused, until they are resumed.")
THROTTLED = Metric(
    "throttled_until_timestamp_seconds", Kind.GAUGE, _TASK, "Until when the task is throttled; 0: it is not."
)
BUILD = Metric("build_info", Kind.GAUGE, ("version",), "1; the version of this package that answers.")

METRICS: tuple[Metric, ...] = (
    DURATION,
    WAIT,
    RETRIES,
    QUEUE_DEPTH,
    GLOBAL_LAG,
    STREAM_LAG,
    LOCK_LOST,
    PLANNED,
    PLANNING_FAILURES,
    DISPATCHED,
    REDISPATCHED,
    DISPATCH_FAILURES,
    IN_FLIGHT,
    LEADER,
    TERM,
    ELECTIONS,
    STREAM_ERRORS,
    FLUSH_FAILURES,
    OPLOG,
    LAST_RECONCILIATION,
    PROGRESS,
    PAUSED,
    THROTTLED,
    GUARDED,
    BUILD,
)
"""All of them, in the order in which they are exposed."""
