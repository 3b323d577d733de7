"""The options by which commands choose records, and what they come to as the filters of `Reactive.get_tasks` (B-51)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import click
from bson import json_util

from celery_reactive.cli.project import TaskName
from celery_reactive.core.doc_id import read_doc_id
from celery_reactive.core.record import EXACT_EJSON
from celery_reactive.core.states import RecordState
from celery_reactive.errors import ConfigurationError, StatementFailedError
from celery_reactive.management.selection import read_pattern


class DocId(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.2
    """A document's `_id`: extended JSON, or text that looks like what it is."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the id that was written."""
        try:
            return _Id(read_doc_id(value)) if isinstance(value, str) else value
        except ConfigurationError as error:
            self.fail("; ".join(error.problems), param, ctx)


class _Id:
    """Holds an id on its way through click, for which None would be an option that was not given."""

    def __init__(self, value: Any) -> None:
        self.value = value


def given_id(written: Any) -> Any:
    """Return the id that a `DocId` parameter holds."""
    return written.value


class _Query(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.2
    """A query on the watched collection, as extended JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            query = json_util.loads(value, json_options=EXACT_EJSON)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self.fail(f'expected a query as extended JSON, as {{"status": "paid"}}: {error}', param, ctx)
        if not isinstance(query, dict):
            self.fail(f"expected a JSON object, got {value[:100]!r}", param, ctx)
        return query


_OPTIONS = (
    click.option("--task", "tasks", multiple=True, type=TaskName(), help="Of this task; may be repeated."),
    click.option(
        "--status",
        "states",
        multiple=True,
        type=click.Choice([state.value for state in RecordState]),
        help="In this state; may be repeated.",
    ),
    click.option("--doc-id", type=DocId(), help='Of the document with this _id: 7, "7", an ObjectId, extended JSON.'),
    click.option("--collection", "collections", multiple=True, help="Of documents in this collection."),
    click.option("--source", type=_Query(), help="Of documents that this query finds, as extended JSON."),
    click.option("--error", help="With this text in the last error."),
    click.option("--regex", is_flag=True, help="Take --error for a regular expression."),
    click.option("--has-error/--no-error", default=None, help="With, or without, a last error."),
)


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the options by which records are chosen; it gets them as `chosen`."""

    @functools.wraps(command)
    def with_filters(*arguments: Any, **options: Any) -> Any:
        own = {name: options.pop(name) for name in _NAMES}
        try:
            return command(*arguments, chosen=_filters(own), **options)
        except StatementFailedError as error:
            if error.code in _NO_QUERY and (own["source"] is not None or own["regex"]):
                given = "--source" if own["source"] is not None else "--error"
                raise click.UsageError(f"{given}: expected what MongoDB takes: {error}") from error
            raise

    return functools.reduce(lambda inner, option: option(inner), reversed(_OPTIONS), with_filters)


_NO_QUERY = frozenset({2, 9, 14, 51091})
"""BadValue, FailedToParse, TypeMismatch, and a pattern that is none for the server: it does not take the query."""
_NAMES = ("tasks", "states", "doc_id", "collections", "source", "error", "regex", "has_error")


def _filters(options: Mapping[str, Any]) -> dict[str, Any]:
    filters: dict[str, Any] = {
        "task": list(options["tasks"]) or None,
        "status": list(options["states"]) or None,
        "collection": list(options["collections"]) or None,
        "source": options["source"],
        "error": _error(options["error"], is_pattern=options["regex"]),
        "has_error": options["has_error"],
    }
    if options["doc_id"] is not None:
        filters["doc_id"] = given_id(options["doc_id"])
    return {name: value for name, value in filters.items() if value is not None or name == "doc_id"}


def _error(text: str | None, *, is_pattern: bool) -> str | re.Pattern[str] | None:
    if not is_pattern:
        return text
    if text is None:
        raise click.UsageError("--regex: expected --error beside it")
    return read_pattern(text)
