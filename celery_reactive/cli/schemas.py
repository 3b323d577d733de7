"""The JSON that commands print with `--json`, as JSON Schema: made from the types whose values they print.

Called by the command `schema` and the tests. A later release may add fields and never takes one away within a major
version, so that a schema allows what it does not name.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import click
from bson import Timestamp

from celery_reactive.cli.output import VERBATIM
from celery_reactive.core.record import RecordKey
from celery_reactive.management.doctor.finding import Diagnosis
from celery_reactive.management.explain import Explanation
from celery_reactive.management.listing import Page, TaskRecord
from celery_reactive.management.operations import Operation
from celery_reactive.management.plan import PlanReport
from celery_reactive.management.schedule import ScheduleEntry
from celery_reactive.management.status import Status
from celery_reactive.store.unplanned import Unplanned

Schema = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Count:
    """A number of records."""

    count: int


PRINTED: Mapping[str, Any] = {
    "status": Status,
    "failures": list[Unplanned],
    "doctor": Diagnosis,
    "plan": PlanReport,
    "tasks list": Page,
    "tasks show": TaskRecord,
    "tasks count": Count,
    "tasks explain": Explanation,
    "tasks retry": Operation,
    "tasks discard": Operation,
    "tasks purge": Operation,
    "operations list": list[Operation],
    "operations show": Operation,
    "beat list": list[ScheduleEntry],
}
"""What each command prints."""


def _words(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the words that go on with the command named so far, for the shell."""
    so_far = tuple(ctx.params.get("command") or ())
    words = {command[len(so_far)] for command in map(_split, PRINTED) if command[: len(so_far)] == so_far != command}
    return sorted(word for word in words if word.startswith(incomplete))


def _split(command: str) -> tuple[str, ...]:
    return tuple(command.split())


@click.command()
@click.argument("command", nargs=-1, shell_complete=_words)
def schema(command: tuple[str, ...]) -> None:
    """Print the JSON Schema of what COMMAND prints with --json, as in `schema tasks list`; without one, name them."""
    name = " ".join(command)
    if not name:
        click.echo("\n".join(PRINTED))
    elif name in PRINTED:
        click.echo(json.dumps(schema_of(name), indent=2))
    else:
        raise click.UsageError(f"{name!r} prints no JSON; expected one of: {', '.join(PRINTED)}")


def schema_of(command: str) -> Schema:
    """Return the JSON Schema of what *command* prints."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, "title": f"celery-reactive {command} --json", **_of(PRINTED[command])}


def _of(hint: Any) -> Schema:
    origin = typing.get_origin(hint)
    if origin is not None:
        return _of_generic(origin, typing.get_args(hint))
    if hint is RecordKey:
        return {
            "type": "object",
            "properties": {"task": {"type": "string"}, "doc_id": {}},
            "required": ["task", "doc_id"],
        }
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _of_dataclass(hint)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return {"enum": [str(one) for one in hint]}
    return dict(_PLAIN.get(hint, {}))


_PLAIN: Mapping[Any, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
    datetime: {"type": "string", "format": "date-time"},
    timedelta: {"type": "number", "description": "seconds"},
    Timestamp: {"type": "string"},
}


def _of_generic(origin: Any, arguments: tuple[Any, ...]) -> Schema:
    if origin in {typing.Union, types.UnionType}:
        return {"anyOf": [_of(one) for one in arguments]}
    if issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _of(arguments[1])}
    return {"type": "array", "items": _of(arguments[0])}


def _of_dataclass(kind: type[Any]) -> Schema:
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    properties = {name: {} if name in VERBATIM else _of(hints[name]) for name in names}
    return {"type": "object", "properties": properties, "required": names}
