"""What a caller's filters mean: checked, and brought to one `Part` for each records collection (B-51).

Called by `listing` and `by_hand`. Values are data: an id, a text or a list means what it says, and nothing that a
caller gives becomes an operator, except in `source`, which is a query by intention. Reads nothing from MongoDB.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from types import EllipsisType
from typing import Any, TypedDict

from bson.regex import Regex

from celery_reactive.core.registry import Registry
from celery_reactive.core.states import RecordState
from celery_reactive.core.suggest import did_you_mean, listed, shown
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import ArgumentError
from celery_reactive.runtime import Runtime
from celery_reactive.store.connection import Connection
from celery_reactive.store.queries import Documents, Wanted

LONGEST_PATTERN = 200
"""Characters of a regular expression that somebody types: enough for any error, too few to keep a server busy."""


class TaskFilters(TypedDict, total=False):
    """Which records are meant. All filters narrow together; None does not narrow, except as a `doc_id`."""

    task: str | Iterable[str] | None
    """A task's name, or several."""
    status: str | Iterable[str] | None
    """A `RecordState` or its text, or several."""
    doc_id: Any
    """The source document's `_id`, taken literally: 0, `""`, None, a list or `{"$in": [...]}` are ids. `...`: any."""
    collection: str | Iterable[str] | None
    """A watched collection, as `orders` or `shop.orders`, or several."""
    source: Mapping[str, Any] | None
    """A query on the watched collection, any that `find` takes; `{}`: every document that exists."""
    error: str | re.Pattern[str] | None
    """In the last error's message: a plain text, or a regular expression (time-limited)."""
    has_error: bool | None
    """Whether there is a last error."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """The part of a selection that lies in one records collection."""

    namespace: str
    """`database.collection` of what the tasks watch."""
    tasks: tuple[ReactiveTask, ...]
    wanted: Wanted
    source: Documents
    records: Documents


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """The records a caller means."""

    parts: tuple[Part, ...]
    """One for each records collection, in the order of their namespaces."""
    source: Mapping[str, Any] | None
    """None: whatever the documents are, and whether or not they exist."""
    is_everything: bool
    """Whether no filter narrows it."""


def select(runtime: Runtime, filters: TaskFilters) -> Selection:
    """Return what *filters* mean.

    Args:
        runtime: The app's parts.
        filters: As the caller wrote them.

    Raises:
        UnknownTaskError: A named task does not exist; the message lists the known ones.
        ArgumentError: A filter has no meaning, or `source` does not tell which collection it is about.
    """
    _refuse_unknown(filters)
    source = _source(filters.get("source"))
    states = _states(filters.get("status"))
    error = _error(filters.get("error"))
    has_error = _has_error(filters.get("has_error"))
    doc_id: Any | EllipsisType = filters.get("doc_id", ...)
    parts: list[Part] = []
    for namespace, tasks in _by_namespace(runtime, filters).items():
        wanted = Wanted(tuple(task.name for task in tasks), states, doc_id, error, has_error)
        connection = runtime.connection
        parts.append(Part(namespace, tasks, wanted, connection.source(tasks[0]), connection.records(tasks[0])))
    is_placed = filters.get("task") is not None or filters.get("collection") is not None
    if source is not None and len(parts) > 1 and not is_placed:
        namespaces = listed(part.namespace for part in parts)
        raise ArgumentError("source", [f"expected task or collection beside it, as {namespaces} are watched"])
    return Selection(tuple(parts), source, is_everything=not _narrows(filters))


def read_pattern(text: str) -> re.Pattern[str]:
    """Return what a person typed as a regular expression on error texts; the server matches it, within a time limit.

    Raises:
        ArgumentError: It is too long, or none.
    """
    if len(text) > LONGEST_PATTERN:
        raise ArgumentError("error", [f"expected a pattern of at most {LONGEST_PATTERN} characters, got {len(text)}"])
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ArgumentError("error", [f"expected a regular expression, got {shown(text)}: {error}"]) from error


def _refuse_unknown(filters: TaskFilters) -> None:
    known = TaskFilters.__annotations__
    problems = [f"unknown filter {name!r}{did_you_mean(name, known)}" for name in filters if name not in known]
    if problems:
        raise ArgumentError("filters", [*problems, f"expected some of {listed(known)}"])


def _narrows(filters: TaskFilters) -> bool:
    """Whether any filter leaves something out; an empty query on the source is no wish for a part of it."""
    narrowing = {name: value for name, value in filters.items() if name not in ("doc_id", "source")}
    return (
        any(value is not None for value in narrowing.values())
        or filters.get("doc_id", ...) is not ...
        or bool(filters.get("source"))
    )


def _by_namespace(runtime: Runtime, filters: TaskFilters) -> dict[str, tuple[ReactiveTask, ...]]:
    """Return the tasks that are meant, by what they watch, both in order."""
    connection = runtime.connection
    tasks = _tasks(runtime.registry, filters.get("task"))
    collections = _collections(runtime, filters.get("collection"))
    grouped: dict[str, list[ReactiveTask]] = {}
    for task in sorted(tasks, key=lambda task: (connection.namespace(task), task.name)):
        if collections is None or not collections.isdisjoint(_names(connection, task)):
            grouped.setdefault(connection.namespace(task), []).append(task)
    return {namespace: tuple(group) for namespace, group in grouped.items()}


def _tasks(registry: Registry, value: str | Iterable[str] | None) -> Iterable[ReactiveTask]:
    if value is None:
        return registry
    return [registry.get(name) for name in dict.fromkeys(_texts("task", value))]


def _collections(runtime: Runtime, value: str | Iterable[str] | None) -> set[str] | None:
    if value is None:
        return None
    known = {name for task in runtime.registry for name in _names(runtime.connection, task)}
    asked = set(_texts("collection", value))
    problems = [
        f"no reactive task watches {name!r}{did_you_mean(name, known)} (watched: {listed(sorted(known))})"
        for name in sorted(asked - known)
    ]
    if problems:
        raise ArgumentError("collection", problems)
    return asked


def _names(connection: Connection, task: ReactiveTask) -> set[str]:
    """Return what the collection of *task* may be called: by itself, and with its database."""
    return {task.collection, connection.namespace(task)}


def _states(value: str | Iterable[str] | None) -> frozenset[RecordState]:
    if value is None:
        return frozenset(RecordState)
    texts = _texts("status", value)
    problems = [
        f"expected one of {listed(RecordState)}, got {shown(text)}{did_you_mean(text, RecordState)}"
        for text in texts
        if text not in set(RecordState)
    ]
    if problems:
        raise ArgumentError("status", problems)
    return frozenset(RecordState(text) for text in texts)


def _texts(name: str, value: object) -> list[str]:
    """Return one text or several as a list; nothing but texts is taken for one."""
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, (list, tuple, set, frozenset)) and all(isinstance(text, str) for text in texts):
        return list(texts)
    raise ArgumentError(name, [f"expected a string or a list of strings, got {shown(value)}"])


def _source(value: object) -> Mapping[str, Any] | None:
    if value is None or isinstance(value, Mapping):
        return value
    raise ArgumentError("source", [f"expected a query as a dict, got {shown(value)}"])


def _error(value: object) -> str | Regex[str] | None:
    match value:
        case None | str():
            return value
        case re.Pattern(pattern=str()):
            # The server matches UTF-8 anyway and knows no such flag.
            return Regex(value.pattern, value.flags & ~re.UNICODE)
        case _:
            raise ArgumentError("error", [f"expected a string or a compiled pattern of one, got {shown(value)}"])


def _has_error(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise ArgumentError("has_error", [f"expected True or False, got {shown(value)}"])
