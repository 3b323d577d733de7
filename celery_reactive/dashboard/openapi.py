"""The OpenAPI 3.1 document of the JSON API, made from the same lists that requests are checked by."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from celery_reactive.core.states import RecordState
from celery_reactive.dashboard import actions, parameters, selecting
from celery_reactive.dashboard.access import Action
from celery_reactive.dashboard.pages import DEFAULT_SPAN, SPANS
from celery_reactive.management.activity import Covers
from celery_reactive.management.explain import Outlook
from celery_reactive.management.listing import SORTABLE
from celery_reactive.management.operations import Action as OperationAction
from celery_reactive.store.instances import Kind
from celery_reactive.store.operations import OperationState
from celery_reactive.store.unplanned import Reason as Unplannable

BASE = "/api/v1"

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": parameters.LONGEST_TEXT}
_TIME: Schema = {"type": ["string", "null"], "description": "ISO 8601; null: not known, or never."}
_SECONDS: Schema = {"type": ["number", "null"], "description": "Seconds; null: not known."}
_NUMBER: Schema = {"type": "integer", "minimum": 0}
_SORTS = [*SORTABLE, *(f"-{field}" for field in SORTABLE)]

_FIELDS: Mapping[str, tuple[str, Schema]] = {
    "task": ("Name of a task.", _TEXT),
    "status": ("State of records.", {"type": "string", "enum": [state.value for state in RecordState]}),
    "collection": ("Watched collection, as `orders` or `shop.orders`.", _TEXT),
    "doc_id": (
        "A document's `_id`: extended JSON, or what it looks like. Taken literally, never as an operator.",
        _TEXT,
    ),
    "error": ("Text in the last error, as it stands; with `regex` a regular expression.", _TEXT),
    "regex": ("Whether `error` is a regular expression, of 200 characters at most.", {"type": "boolean"}),
    "template": ("What the errors of a group say; see `errors`.", _TEXT),
    "has_error": ("Whether there is a last error.", {"type": "boolean"}),
    "key": ("A record: `[task, document id]` as JSON. Instead of filters.", _TEXT),
    "all": ("Must be true where no filter is given.", {"type": "boolean"}),
    "delay": ('A duration such as `"15m"`.', _TEXT),
    "rate": ('Most starts in a period, as `"100/m"`; or `unlimited`, or `declared`.', _TEXT),
    "concurrency": ("Most runs at a time; or `unlimited`, or `declared`.", _TEXT),
    "priority": ("Of its messages, 0 to 9, 9 most urgent; or `declared`.", _TEXT),
    "entry": ("Name of an entry of Celery beat's schedule.", _TEXT),
    "operation": ("Id of an operation.", _TEXT),
    "sort": ("Field to sort by; a minus before it: descending.", {"type": "string", "enum": _SORTS}),
    "limit": (
        f"Most items; more than {selecting.MOST_LIMIT} means {selecting.MOST_LIMIT}.",
        {"type": "integer", "minimum": 1, "default": selecting.DEFAULT_LIMIT},
    ),
    "skip": ("Records to pass over.", {"type": "integer", "minimum": 0, "maximum": 10_000, "default": 0}),
    "after": ("`next` of the page before.", _TEXT),
    "span": ("How far back.", {"type": "string", "enum": list(SPANS), "default": DEFAULT_SPAN}),
}
"""Every parameter and field: what it means, and the schema of one value."""
_SEVERAL = frozenset({"task", "status", "collection", "key"})
"""Those that may be given several times, where records are selected."""

_SUMMARIES: Mapping[Action, str] = {
    Action.RETRY: "Make records pending now; a running one runs again at once after.",
    Action.DISCARD: "End pending and failed records without a run.",
    Action.TRIGGER: "Run a task for one document now.",
    Action.PAUSE: "Start no run of a task until it is resumed.",
    Action.RESUME: "End the pause of a task, and a throttle too; or let one record run that the loop guard paused.",
    Action.THROTTLE: "Start no run of a task until a time.",
    Action.RECONCILE: "Have every document of a task compared with its record.",
    Action.LIMIT: "Set limits and priority of a task, instead of what it declares.",
    Action.SEND: "Send the task of an entry of the schedule once, now.",
    Action.CANCEL: "Stop an operation after the page it works at.",
}


def document(*, root: str) -> dict[str, Any]:
    """Return the document.

    Args:
        root: Where the dashboard is mounted.
    """
    one_task = ("task",)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "celery-reactive dashboard",
            "version": importlib.metadata.version("celery-reactive"),
            "description": "Look at reactive tasks and change what has to be changed by hand.",
        },
        "servers": [{"url": root or "/"}],
        "security": [{}, {"basic": []}, {"bearer": []}],
        "paths": {
            f"{BASE}/status": _reading("status", "State of the whole system.", (), "Status"),
            f"{BASE}/activity": _reading("activity", "What was run lately.", ("span", "task"), "Activity"),
            f"{BASE}/records": _reading(
                "records", "A page of records.", (*selecting.FILTERS, *selecting.PAGING), "Page", several=True
            ),
            f"{BASE}/record": _reading(
                "record",
                "One record, and why it ran, will run or will not.",
                ("task", "doc_id"),
                "Explained",
                required=("task", "doc_id"),
            ),
            f"{BASE}/errors": _reading("errors", "Errors of the newest records, in groups.", one_task, "Errors"),
            f"{BASE}/failures": _reading(
                "failures", "Documents that could not be planned.", ("task", "limit"), "Failures"
            ),
            f"{BASE}/planner": _reading("planner", "Who leads and led; processes; the oplog.", (), "Planner"),
            f"{BASE}/schedule": _reading("schedule", "Entries of Celery beat's schedule.", (), "Schedule"),
            f"{BASE}/operations": _reading("operations", "Bulk work of the last week.", ("limit",), "Operations"),
            f"{BASE}/preview": _changing(
                "preview",
                "What retry or discard with the same body would touch.",
                selecting.TARGETS,
                "Preview",
                optional=selecting.TARGETS,
            ),
            **{
                f"{BASE}/{action}": _changing(
                    action.value, summary, actions.fields_of(action), "Done", optional=actions.optional_of(action)
                )
                for action, summary in _SUMMARIES.items()
            },
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _reading(
    name: str,
    summary: str,
    fields: tuple[str, ...],
    result: str,
    *,
    required: tuple[str, ...] = (),
    several: bool = False,
) -> dict[str, Any]:
    listed = [_parameter(field, required=field in required, several=several and field in _SEVERAL) for field in fields]
    return {
        "get": {"operationId": name, "summary": summary, "parameters": listed, "responses": _responses(result)},
    }


def _parameter(name: str, *, required: bool, several: bool) -> dict[str, Any]:
    meaning, schema = _FIELDS[name]
    if several:
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": parameters.MOST_VALUES}
    return {"name": name, "in": "query", "description": meaning, "required": required, "schema": schema}


def _changing(
    name: str, summary: str, fields: tuple[str, ...], result: str, *, optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    is_bulk = fields == selecting.TARGETS
    properties = {field: _property(field, several=is_bulk and field in _SEVERAL) for field in fields}
    body = {
        "type": "object",
        "properties": properties,
        "required": [field for field in fields if field not in optional],
        "additionalProperties": False,
    }
    return {
        "post": {
            "operationId": name,
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": _responses(result),
        },
    }


def _property(name: str, *, several: bool) -> Schema:
    meaning, schema = _FIELDS[name]
    if several:
        schema = {
            "anyOf": [schema, {"type": "array", "items": schema, "minItems": 1, "maxItems": parameters.MOST_VALUES}]
        }
    return {**schema, "description": meaning}


def _responses(result: str) -> dict[str, Any]:
    reasons = {
        "400": "Something asked for has no meaning.",
        "401": "Credentials are missing or wrong.",
        "403": "Not allowed.",
        "404": "There is no such task.",
        "413": "The body is too large.",
        "415": "The body is no JSON.",
        "503": "MongoDB does not answer, or not within the time limit.",
    }
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Refused"}}}
    return {
        "200": {
            "description": "Done.",
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{result}"}}},
        },
        **{status: {"description": reason, "content": refused} for status, reason in reasons.items()},
    }


def _schemas() -> dict[str, Schema]:
    return {
        "Refused": _object({"reason": {"type": "string"}}),
        "Done": _object(
            {
                "sentence": {"type": "string"},
                "changed": {"type": ["integer", "null"], "minimum": 0},
                "operation": {"type": ["string", "null"], "description": "Goes on with it; null: it is done."},
            }
        ),
        "Preview": _object({"count": _NUMBER, "sample": _list("Record")}),
        "Record": _record(),
        "Page": _object(
            {
                "items": _list("Record"),
                "total": _NUMBER,
                "limit": _NUMBER,
                "skip": _NUMBER,
                "next": {"type": ["string", "null"], "description": "For `after`; null: this is the last page."},
            }
        ),
        "Explanation": _object(
            {
                "outlook": {"type": "string", "enum": [each.value for each in Outlook]},
                "reasons": _list_of(
                    _object({"code": {"type": "string"}, "text": {"type": "string"}, "holds_back": {"type": "boolean"}})
                ),
                "document_exists": {"type": "boolean"},
                "matches": {"type": ["boolean", "null"]},
            }
        ),
        "Explained": _object({"record": _or_null("Record"), "explanation": _ref("Explanation")}),
        "Errors": _object({"groups": _list("ErrorGroup"), "looked_at": _NUMBER, "is_cut": {"type": "boolean"}}),
        "ErrorGroup": _object(
            {
                "task": {"type": "string"},
                "template": {"type": "string"},
                "type": {"type": ["string", "null"]},
                "failed": _NUMBER,
                "retrying": _NUMBER,
                "first_at": _TIME,
                "last_at": _TIME,
                "sample": {"type": "string"},
            }
        ),
        "Planner": _planner(),
        "Schedule": _object({"items": _list("ScheduleEntry")}),
        "ScheduleEntry": _object(
            {
                "name": {"type": "string"},
                "task": {"type": "string"},
                "schedule": {"type": "string"},
                "last_run_at": _TIME,
                "runs": _NUMBER,
                "due_in_seconds": _SECONDS,
            }
        ),
        "Operations": _object({"items": _list("Operation")}),
        "Operation": _operation(),
        "Failures": _object({"items": _list("Failure")}),
        "Failure": _object(
            {
                "task": {"type": "string"},
                "doc_id": {"type": "string"},
                "reason": {"type": "string", "enum": [reason.value for reason in Unplannable]},
                "error": {"type": "string"},
                "since": _TIME,
                "tries": _NUMBER,
            }
        ),
        **_status(),
        **_activity(),
    }


def _planner() -> Schema:
    term = _object(
        {
            "term": _NUMBER,
            "instance": {"type": "string"},
            "since": _TIME,
            "ended_at": _TIME,
            "was_handed_over": {"type": "boolean", "description": "False: it goes on, or its leader has vanished."},
        }
    )
    process = _object(
        {
            "name": {"type": "string"},
            "kind": {"type": "string", "enum": [kind.value for kind in Kind]},
            "started_at": _TIME,
            "seen_at": _TIME,
            "is_live": {"type": "boolean"},
            "queues": _list_of({"type": "string"}),
            "slots": {"type": ["integer", "null"], "description": "Messages it runs at once; null: it runs none."},
            "pool": {"type": ["string", "null"]},
        }
    )
    return _object({"oplog_window_seconds": _SECONDS, "terms": _list_of(term), "processes": _list_of(process)})


def _operation() -> Schema:
    return _object(
        {
            "id": {"type": "string"},
            "action": {"type": "string", "enum": [action.value for action in OperationAction]},
            "asked": {"type": "string", "description": "Extended JSON."},
            "by": {"type": ["string", "null"]},
            "state": {"type": "string", "enum": [state.value for state in OperationState]},
            "total": {"type": ["integer", "null"], "minimum": 0},
            "looked": _NUMBER,
            "changed": _NUMBER,
            "error": {"type": ["string", "null"]},
            "created_at": _TIME,
            "updated_at": _TIME,
            "ended_at": _TIME,
            "is_stalled": {"type": "boolean"},
        }
    )


def _record() -> Schema:
    times = (
        "next_run_at",
        "due_at",
        "created_at",
        "updated_at",
        "started_at",
        "completed_at",
        "last_finalized_at",
        "first_error_at",
    )
    entry = _object(
        {
            "at": _TIME,
            "status": {"type": ["string", "null"]},
            "duration_seconds": _SECONDS,
            "error": {"type": ["string", "null"]},
            "reason": {"type": ["string", "null"]},
        }
    )
    return _object(
        {
            "task": {"type": "string"},
            "doc_id": {"type": "string", "description": "Extended JSON."},
            "collection": {"type": "string"},
            "status": _FIELDS["status"][1],
            "attempts": _NUMBER,
            **dict.fromkeys(times, _TIME),
            "last_error": {"type": ["string", "null"]},
            "last_error_type": {"type": ["string", "null"]},
            "last_observed_values": {"description": "Extended JSON, secrets masked."},
            "history": _list_of(entry),
            "gone": {"type": "boolean"},
            "left": {"type": "boolean"},
            "guarded": {"type": "boolean"},
        }
    )


def _status() -> dict[str, Schema]:
    leader = _object(
        {
            "instance": {"type": ["string", "null"]},
            "term": _NUMBER,
            "since": _TIME,
            "heartbeat_age_seconds": _SECONDS,
            "is_stale": {"type": "boolean"},
        }
    )
    task = _object(
        {
            "task": {"type": "string"},
            "collection": {"type": "string"},
            "counts": _object({state.value: _NUMBER for state in RecordState}),
            "oldest_wait_seconds": _SECONDS,
            "paused": {"type": "boolean"},
            "throttled_until": _TIME,
            "rate_limit": {"type": ["string", "null"]},
            "max_concurrency": {"type": ["integer", "null"]},
            "priority": _NUMBER,
            "is_reconciled": {"type": "boolean"},
            "differs": {"type": "boolean"},
        }
    )
    return {
        "Status": _object(
            {
                "group": {"type": "string"},
                "leader": _or_null("Leader"),
                "positions": _list_of(
                    _object({"database": {"type": "string"}, "planned_to": _TIME, "lag_seconds": _SECONDS})
                ),
                "tasks": _list("Task"),
                "reconciliations": _list("Reconciliation"),
                "planning_failures": _NUMBER,
                "first_failures": _list("Failure"),
            }
        ),
        "Leader": leader,
        "Task": task,
        "Reconciliation": _object(
            {
                "collection": {"type": "string"},
                "tasks": _list_of({"type": "string"}),
                "done": _NUMBER,
                "total": _NUMBER,
                "per_second": {"type": "number"},
                "remaining_seconds": _SECONDS,
            }
        ),
    }


def _activity() -> dict[str, Schema]:
    quantiles = ("wait_p50_seconds", "wait_p95_seconds", "duration_p50_seconds", "duration_p95_seconds")
    number = {"type": ["integer", "null"], "minimum": 0, "description": "Null: not known, or not complete yet."}
    step = _object({"at": _TIME, "completed": number, "failed": number, **dict.fromkeys(quantiles, _SECONDS)})
    return {
        "Activity": _object(
            {
                "since": _TIME,
                "until": _TIME,
                "step_seconds": {"type": "number"},
                "runs": {**_NUMBER, "description": "How many runs it covers."},
                "covers": {
                    "type": "string",
                    "enum": [each.value for each in Covers],
                    "description": "Every attempt that workers have counted; or of each record the last run.",
                },
                "late_seconds": {"type": "number", "description": "After so long at most it knows of a run."},
                "is_cut": {"type": "boolean", "description": "Whether older runs are missing."},
                "steps": _list_of(step),
            }
        ),
    }


def _object(properties: dict[str, Schema]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(name: str) -> Schema:
    return _list_of(_ref(name))


def _list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(name: str) -> Schema:
    return {"anyOf": [_ref(name), {"type": "null"}]}
