"""What management returns as JSON: times in ISO 8601, durations in seconds, user values in extended JSON, redacted.

Called by the API. The shapes are those of `openapi`, and change only with its version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from celery_reactive.core.record import id_to_text
from celery_reactive.core.redaction import Redaction
from celery_reactive.dashboard.actions import Done
from celery_reactive.management.activity import Activity
from celery_reactive.management.error_groups import ErrorGroups
from celery_reactive.management.explain import Explanation
from celery_reactive.management.listing import Page, TaskRecord
from celery_reactive.management.operations import Operation
from celery_reactive.management.planners import Planners
from celery_reactive.management.reconciling import ReconciliationStatus
from celery_reactive.management.schedule import ScheduleEntry
from celery_reactive.management.status import Status, TaskStatus
from celery_reactive.store.unplanned import Unplanned


def user_value(value: Any) -> Any:
    """Return a value of the user's in relaxed extended JSON, which keeps BSON's types apart."""
    return json.loads(id_to_text(value))


def record(one: TaskRecord, redaction: Redaction) -> dict[str, Any]:
    """Return a record."""
    return {
        "task": one.task,
        "doc_id": id_to_text(one.source_doc_id),
        "collection": one.collection,
        "status": one.status.value,
        "attempts": one.attempts,
        "next_run_at": _time(one.next_run_at),
        "due_at": _time(one.due_at),
        "created_at": _time(one.created_at),
        "updated_at": _time(one.updated_at),
        "started_at": _time(one.started_at),
        "completed_at": _time(one.completed_at),
        "last_finalized_at": _time(one.last_finalized_at),
        "first_error_at": _time(one.first_error_at),
        "last_error": None if one.last_error is None else redaction.text(one.last_error),
        "last_error_type": one.last_error_type,
        "last_observed_values": user_value(redaction.value(one.last_observed_values)),
        "history": [_history(entry, redaction) for entry in one.execution_history],
        "gone": one.gone,
        "left": one.left,
        "guarded": one.guarded,
    }


def _history(entry: Mapping[str, Any], redaction: Redaction) -> dict[str, Any]:
    error = entry.get("error")
    return {
        "at": _time(entry.get("at")),
        "status": entry.get("status"),
        "duration_seconds": None if entry.get("durationMs") is None else entry["durationMs"] / 1000,
        "error": None if error is None else redaction.text(str(error)),
        "reason": entry.get("reason"),
    }


def page(found: Page, redaction: Redaction) -> dict[str, Any]:
    """Return a page of records."""
    return {
        "items": [record(one, redaction) for one in found.items],
        "total": found.total,
        "limit": found.limit,
        "skip": found.skip,
        "next": found.next,
    }


def explanation(found: Explanation, redaction: Redaction) -> dict[str, Any]:
    """Return why a document ran, will run or will not."""
    return {
        "outlook": found.outlook.value,
        "reasons": [
            {"code": reason.code, "text": redaction.text(reason.text), "holds_back": reason.holds_back}
            for reason in found.reasons
        ],
        "document_exists": found.document_exists,
        "matches": found.matches,
    }


def status(found: Status, redaction: Redaction) -> dict[str, Any]:
    """Return the state of the whole system."""
    leader = found.leader
    return {
        "group": found.group,
        "leader": None
        if leader is None
        else {
            "instance": leader.instance,
            "term": leader.term,
            "since": _time(leader.since),
            "heartbeat_age_seconds": _seconds(leader.heartbeat_age),
            "is_stale": leader.is_stale,
        },
        "positions": [
            {
                "database": position.database,
                "planned_to": _time(position.planned_to),
                "lag_seconds": _seconds(position.lag),
            }
            for position in found.positions
        ],
        "tasks": [_task(one) for one in found.tasks],
        "reconciliations": [reconciliation(one) for one in found.reconciliations],
        "planning_failures": found.planning_failures,
        "first_failures": [failure(one, redaction) for one in found.first_failures],
    }


def _task(one: TaskStatus) -> dict[str, Any]:
    return {
        "task": one.task,
        "collection": one.namespace,
        "counts": {state.value: number for state, number in one.counts.items()},
        "oldest_wait_seconds": _seconds(one.oldest_wait),
        "paused": one.paused,
        "throttled_until": _time(one.throttled_until),
        "rate_limit": one.rate_limit,
        "max_concurrency": one.max_concurrency,
        "priority": one.priority,
        "is_reconciled": one.is_reconciled,
        "differs": one.differs,
    }


def reconciliation(one: ReconciliationStatus) -> dict[str, Any]:
    """Return how far a reconciliation has come."""
    return {
        "collection": one.namespace,
        "tasks": list(one.tasks),
        "done": one.done,
        "total": one.total,
        "per_second": one.per_second,
        "remaining_seconds": _seconds(one.remaining),
    }


def failure(one: Unplanned, redaction: Redaction) -> dict[str, Any]:
    """Return a document that could not be planned."""
    return {
        "task": one.key.task,
        "doc_id": id_to_text(one.key.doc_id),
        "reason": one.reason.value,
        "error": redaction.text(one.error),
        "since": _time(one.since),
        "tries": one.tries,
    }


def done(what: Done) -> dict[str, Any]:
    """Return what an action came to."""
    return {"sentence": what.sentence, "changed": what.changed, "operation": what.operation}


def operation(one: Operation, redaction: Redaction) -> dict[str, Any]:
    """Return an operation."""
    return {
        "id": one.id,
        "action": one.action.value,
        "asked": redaction.text(id_to_text(one.asked)),
        "by": one.by,
        "state": one.state.value,
        "total": one.total,
        "looked": one.looked,
        "changed": one.changed,
        "error": None if one.error is None else redaction.text(one.error),
        "created_at": _time(one.created_at),
        "updated_at": _time(one.updated_at),
        "ended_at": _time(one.ended_at),
        "is_stalled": one.is_stalled,
    }


def planners(found: Planners) -> dict[str, Any]:
    """Return who leads and led, and the processes."""
    return {
        "oplog_window_seconds": _seconds(found.oplog_window),
        "terms": [
            {
                "term": one.term,
                "instance": one.holder,
                "since": _time(one.since),
                "ended_at": _time(one.ended_at),
                "was_handed_over": one.was_handed_over,
            }
            for one in found.terms
        ],
        "processes": [
            {
                "name": one.name,
                "kind": one.kind.value,
                "started_at": _time(one.started_at),
                "seen_at": _time(one.seen_at),
                "is_live": one.is_live,
                "queues": list(one.facts.get("queues", ())),
                "slots": one.facts.get("slots"),
                "pool": one.facts.get("pool"),
            }
            for one in found.instances
        ],
    }


def schedule_entry(one: ScheduleEntry) -> dict[str, Any]:
    """Return an entry of the schedule."""
    return {
        "name": one.name,
        "task": one.task,
        "schedule": one.schedule,
        "last_run_at": _time(one.last_run_at),
        "runs": one.runs,
        "due_in_seconds": _seconds(one.due_in),
    }


def errors(found: ErrorGroups, redaction: Redaction) -> dict[str, Any]:
    """Return errors in groups."""
    return {
        "groups": [
            {
                "task": group.task,
                "template": group.template,
                "type": group.type,
                "failed": group.failed,
                "retrying": group.retrying,
                "first_at": _time(group.first_at),
                "last_at": _time(group.last_at),
                "sample": redaction.text(group.sample),
            }
            for group in found.groups
        ],
        "looked_at": found.looked_at,
        "is_cut": found.is_cut,
    }


def activity(found: Activity) -> dict[str, Any]:
    """Return what has been run lately, each step of time as one column."""
    return {
        "since": _time(found.since),
        "until": _time(found.until),
        "step_seconds": found.step.total_seconds(),
        "runs": found.runs,
        "covers": found.covers.value,
        "late_seconds": _seconds(found.late),
        "is_cut": found.is_cut,
        "steps": [
            {
                "at": _time(step.at),
                "completed": step.completed,
                "failed": step.failed,
                "wait_p50_seconds": _seconds(step.wait_p50),
                "wait_p95_seconds": _seconds(step.wait_p95),
                "duration_p50_seconds": _seconds(step.duration_p50),
                "duration_p95_seconds": _seconds(step.duration_p95),
            }
            for step in found.steps
        ],
    }


def _time(moment: Any) -> str | None:
    if moment is None:
        return None
    # A time beyond Python's comes as a number of milliseconds.
    return moment.isoformat() if isinstance(moment, datetime) else str(moment)


def _seconds(length: timedelta | None) -> float | None:
    return None if length is None else length.total_seconds()
