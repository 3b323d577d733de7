"""The Grafana board: rows of panels, each a few expressions over the metrics of the catalogue.

Printed by `celery-reactive metrics --grafana`. Every planner that is scraped in `cluster` mode tells the same of the
whole system, every process in `local` mode only its own: a variable says whether counters of several targets are the
same (`max`) or parts (`sum`). Gauges are the same wherever they are told.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SYSTEM = 'namespace=~"$namespace"'
_TASK = f'{_SYSTEM}, task_name=~"$task"'
_QUEUE = f'{_SYSTEM}, queue=~"$queue"'
_COLUMNS = 24


@dataclasses.dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    meaning: str
    queries: Sequence[tuple[str, str]]
    """Expression and legend."""
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    alarm_above: float | None = None
    """What is above it is shown in red."""
    alarm_below: float | None = None
    stacked: bool = False


def _rate(name: str, labels: Sequence[str], selector: str) -> str:
    """Return a counter's rate, of the whole system, by *labels*."""
    by = f" by ({', '.join(labels)})" if labels else ""
    return f"$combine{by} (rate(reactive_tasks_{name}{{{selector}}}[$__rate_interval]))"


def _gauge(name: str, labels: Sequence[str], selector: str) -> str:
    by = f" by ({', '.join(labels)})" if labels else ""
    return f"max{by} (reactive_tasks_{name}{{{selector}}})"


def _quantiles(name: str, labels: Sequence[str]) -> list[tuple[str, str]]:
    buckets = _rate(f"{name}_bucket", ("le", *labels), _TASK)
    return [
        (f"histogram_quantile({share}, sum by (le) ({buckets}))", f"p{round(share * 100)}")
        for share in (0.5, 0.95, 0.99)
    ]


_RUNS = _rate("duration_seconds_count", ("task_name", "status"), _TASK)
_FAILED_RUNS = _rate("duration_seconds_count", ("task_name", "status"), f'{_TASK}, status="failed"')
_SECONDS = _rate("duration_seconds_sum", ("task_name", "status"), _TASK)
_DEPTH = ("task_name", "status")
_DEAD = _gauge("queue_depth", _DEPTH, f'{_TASK}, status="failed"')
_UNFINISHED = _gauge("queue_depth", _DEPTH, f'{_TASK}, status!="completed"')

_ROWS: dict[str, Sequence[_Panel]] = {
    "Health": (
        _Panel(
            "Leaders",
            "Planners that lead. One for each planner group; none: nothing is planned or sent.",
            [(f"sum(reactive_tasks_planner_leader{{{_SYSTEM}}})", "leaders")],
            kind="stat",
            width=4,
            alarm_below=1,
        ),
        _Panel(
            "Planners",
            "Planners that answer, leading or standing by.",
            [(f"count(reactive_tasks_planner_leader{{{_SYSTEM}}})", "planners")],
            kind="stat",
            width=4,
        ),
        _Panel(
            "Stream lag",
            "How far planning is behind the database.",
            [(_gauge("change_stream_lag_seconds", (), _SYSTEM), "lag")],
            unit="s",
            kind="stat",
            width=4,
            alarm_above=60,
        ),
        _Panel(
            "Oldest due",
            "How long ago the oldest pending record became due.",
            [(_gauge("global_lag_seconds", (), _TASK), "lag")],
            unit="s",
            kind="stat",
            width=4,
            alarm_above=900,
        ),
        _Panel(
            "Dead letters",
            "Records that have no attempts left: `celery-reactive tasks list --status failed`.",
            [(f"sum({_DEAD})", "failed")],
            kind="stat",
            width=4,
            alarm_above=1,
        ),
        _Panel(
            "Cannot be planned",
            "Documents that could not be planned: `celery-reactive failures`.",
            [(f"sum({_gauge('planning_failures', ('task_name',), _TASK)})", "documents")],
            kind="stat",
            width=4,
            alarm_above=1,
        ),
    ),
    "Flow": (
        _Panel(
            "Runs",
            "Runs that ended, by outcome; `failed` also where another attempt follows.",
            [(f"sum by (status) ({_RUNS})", "{{status}}")],
            unit="ops",
            stacked=True,
        ),
        _Panel(
            "Records by state",
            "Records that wait or run. Completed ones are left out: they are many.",
            [
                (
                    f"sum by (status) ({_UNFINISHED})",
                    "{{status}}",
                )
            ],
            stacked=True,
        ),
        _Panel(
            "Runs by task",
            "Runs that ended, whatever their outcome.",
            [(f"sum by (task_name) ({_RUNS})", "{{task_name}}")],
            unit="ops",
        ),
        _Panel(
            "Planned",
            "Documents planned after a change, by what became of them.",
            [(f"sum by (result) ({_rate('planned_total', ('task_name', 'result'), _TASK)})", "{{result}}")],
            unit="ops",
            stacked=True,
        ),
        _Panel(
            "Dispatched",
            "Records for which a message was published, and of them those that were sent again.",
            [
                (_rate("dispatched_total", ("queue",), _QUEUE), "{{queue}}"),
                (_rate("redispatched_total", (), _SYSTEM), "again"),
            ],
            unit="ops",
        ),
        _Panel(
            "In flight",
            "Records with the broker that no worker has claimed yet.",
            [(_gauge("in_flight", ("queue",), _QUEUE), "{{queue}}")],
        ),
    ),
    "Latency": (
        _Panel(
            "Wait",
            "From due to the start of the run, first attempts only.",
            _quantiles("wait_seconds", ("task_name",)),
            unit="s",
        ),
        _Panel(
            "Run time",
            "From claim to end, whatever the outcome.",
            _quantiles("duration_seconds", ("task_name", "status")),
            unit="s",
        ),
        _Panel(
            "Mean run time by task",
            "Which task is the slow one.",
            [
                (f"sum by (task_name) ({_SECONDS}) / (sum by (task_name) ({_RUNS}) > 0)", "{{task_name}}"),
            ],
            unit="s",
        ),
        _Panel(
            "Oldest due by task",
            "How long ago the oldest pending record became due. It grows where a task is paused or has no worker.",
            [(_gauge("global_lag_seconds", ("task_name",), _TASK), "{{task_name}}")],
            unit="s",
            width=12,
        ),
        _Panel(
            "Stream lag",
            "How far planning is behind the database, and how far the oplog reaches: beyond it, all is compared anew.",
            [
                (_gauge("change_stream_lag_seconds", (), _SYSTEM), "lag"),
                (_gauge("oplog_window_seconds", (), _SYSTEM), "oplog window"),
            ],
            unit="s",
            width=12,
        ),
    ),
    "Failures": (
        _Panel(
            "Failure ratio by task",
            "Share of runs that failed.",
            [
                (
                    f"sum by (task_name) ({_FAILED_RUNS}) / (sum by (task_name) ({_RUNS}) > 0)",
                    "{{task_name}}",
                )
            ],
            unit="percentunit",
        ),
        _Panel(
            "Retries by task",
            "Failed attempts after which another follows.",
            [(_rate("retries_total", ("task_name",), _TASK), "{{task_name}}")],
            unit="ops",
        ),
        _Panel(
            "Dead letters by task",
            "Records that have no attempts left.",
            [(_gauge("queue_depth", ("task_name",), f'{_TASK}, status="failed"'), "{{task_name}}")],
        ),
        _Panel(
            "Leases lost",
            "Runs whose worker had vanished, and results that came too late.",
            [(_rate("lock_lost_total", ("task_name",), _TASK), "{{task_name}}")],
            unit="ops",
        ),
        _Panel(
            "Broker refusals",
            "Times the broker did not take messages.",
            [(_rate("dispatch_failures_total", ("reason",), _SYSTEM), "{{reason}}")],
            unit="ops",
        ),
        _Panel(
            "Documents that cannot be planned",
            "They are listed by `celery-reactive failures`.",
            [(_gauge("planning_failures", ("task_name",), _TASK), "{{task_name}}")],
        ),
    ),
    "Planner": (
        _Panel(
            "Who leads",
            "1 where a planner leads its group.",
            [(f"reactive_tasks_planner_leader{{{_SYSTEM}}}", "{{instance}} {{group}}")],
        ),
        _Panel(
            "Terms",
            "Each election is a new term: often means that planners lose the database or die.",
            [(_gauge("planner_term", ("group",), _SYSTEM), "{{group}}")],
        ),
        _Panel(
            "Elections",
            "Elections won.",
            [(_rate("leader_elections_total", (), _SYSTEM), "elections")],
            unit="ops",
        ),
        _Panel(
            "Stream errors, failed batches",
            "Change streams that were opened again, and batches that were planned again.",
            [
                (_rate("stream_errors_total", (), _SYSTEM), "stream errors"),
                (_rate("flush_failures_total", (), _SYSTEM), "failed batches"),
            ],
            unit="ops",
        ),
        _Panel(
            "Reconciliation",
            "How much of a reconciliation under way is done.",
            [(_gauge("reconciliation_progress_ratio", ("task_name",), _TASK), "{{task_name}}")],
            unit="percentunit",
        ),
        _Panel(
            "Since the last reconciliation",
            "Of any task.",
            [(f"time() - {_gauge('last_reconciliation_timestamp_seconds', (), _SYSTEM)}", "age")],
            unit="s",
            kind="stat",
        ),
    ),
    "Controls": (
        _Panel(
            "Paused",
            "1 while a task is paused: `celery-reactive resume TASK`.",
            [(_gauge("paused", ("task_name",), _TASK), "{{task_name}}")],
        ),
        _Panel(
            "Paused by the loop guard",
            "Records whose handler triggers itself: `celery-reactive resume TASK DOC_ID` when it is mended.",
            [(_gauge("loop_guarded", ("task_name",), _TASK), "{{task_name}}")],
        ),
        _Panel(
            "Throttled for",
            "How long a task is still throttled.",
            [
                (
                    f"clamp_min({_gauge('throttled_until_timestamp_seconds', ('task_name',), _TASK)} - time(), 0)",
                    "{{task_name}}",
                )
            ],
            unit="s",
        ),
        _Panel(
            "Versions",
            "Versions of the package that answer.",
            [(f"count by (version) (reactive_tasks_build_info{{{_SYSTEM}}})", "{{version}}")],
        ),
    ),
}


def board() -> dict[str, Any]:
    """Return the board, as Grafana imports it."""
    return {
        "uid": "celery-reactive",
        "title": "Celery Reactive",
        "description": "Reactive tasks: health, flow, latency, failures, planner, controls.",
        "tags": ["celery", "mongodb"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-3h", "to": "now"},
        "refresh": "30s",
        "timezone": "",
        "links": [],
        "annotations": {"list": []},
        "templating": {"list": _variables()},
        "panels": list(_panels()),
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0},
        _chosen_of("namespace", "Namespace", "label_values(reactive_tasks_build_info, namespace)"),
        _chosen_of("task", "Task", f"label_values(reactive_tasks_paused{{{_SYSTEM}}}, task_name)"),
        _chosen_of("queue", "Queue", f"label_values(reactive_tasks_in_flight{{{_SYSTEM}}}, queue)"),
        {
            "name": "combine",
            "label": "Targets tell",
            "type": "custom",
            "query": "the same (cluster) : max, parts (local) : sum",
            "current": {"text": "the same (cluster)", "value": "max"},
            "options": [
                {"text": "the same (cluster)", "value": "max", "selected": True},
                {"text": "parts (local)", "value": "sum", "selected": False},
            ],
            "hide": 0,
        },
    ]


def _chosen_of(name: str, label: str, query: str) -> dict[str, Any]:
    """Return a variable: all, or several of what a query finds; a label that is nowhere counts as any."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def _panels() -> Iterator[dict[str, Any]]:
    ids = itertools.count(1)
    top = 0
    for title, panels in _ROWS.items():
        place = {"h": 1, "w": _COLUMNS, "x": 0, "y": top}
        yield {"id": next(ids), "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        top += 1
        left = 0
        height = 4 if all(panel.kind == "stat" for panel in panels) else 8
        for panel in panels:
            if left + panel.width > _COLUMNS:
                left, top = 0, top + height
            place = {"h": height, "w": panel.width, "x": left, "y": top}
            yield {"id": next(ids), "gridPos": place, **_drawn(panel)}
            left += panel.width
        top += height


def _drawn(panel: _Panel) -> dict[str, Any]:
    custom = {"fillOpacity": 15, "showPoints": "never", "stacking": {"mode": "normal" if panel.stacked else "none"}}
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": _thresholds(panel)}
    options: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background"}
    if panel.kind == "timeseries":
        defaults["custom"] = custom
        options = {"legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": letter, "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for letter, (expression, legend) in zip("ABCDEF", panel.queries, strict=False)
        ],
    }


def _thresholds(panel: _Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.alarm_above is not None:
        steps.append({"color": "red", "value": panel.alarm_above})
    if panel.alarm_below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.alarm_below}]
    return {"mode": "absolute", "steps": steps}
