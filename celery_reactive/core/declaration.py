"""From the options of `@reactive_task(...)` to a checked definition (B-2).

Called by the decorator. Must never let a mistake through or report only the first: whoever reads the error can mend
the whole declaration at once.
"""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from celery_reactive.core.batch import Batch
from celery_reactive.core.cron import is_schedule, read_schedule
from celery_reactive.core.duration import parse_duration
from celery_reactive.core.filters import Filter, compile_filter
from celery_reactive.core.limits import read_concurrency, read_rate
from celery_reactive.core.options import Options, read_boolean, read_integer, read_text
from celery_reactive.core.policies import CleanupPolicy, Evolution
from celery_reactive.core.projection import Projection, compile_projection
from celery_reactive.core.retry import RetryPolicy
from celery_reactive.core.suggest import shown
from celery_reactive.core.task import (
    DEFAULT_DEBOUNCE,
    DEFAULT_GROUP,
    DEFAULT_HISTORY_LIMIT,
    DEFAULT_LOOP_GUARD,
    DEFAULT_PRIORITY,
    HIGHEST_PRIORITY,
    ReactiveTask,
)
from celery_reactive.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OPTIONS = (
    "task",
    "collection",
    "database",
    "filter",
    "watch_projection",
    "backfill",
    "debounce",
    "debounce_max_wait",
    "retry_policy",
    "cleanup_policy",
    "execution_history_limit",
    "evolution",
    "chunk",
    "batch",
    "priority",
    "rate_limit",
    "max_concurrency",
    "loop_guard",
    "recheck_interval",
    "on_delete",
    "track_changes",
    "document_class",
    "group",
)
"""Every option there is. Another is refused by name, so that none is silently ignored."""

T = TypeVar("T")

_LEAST_INTERVAL = timedelta(seconds=1)
_OF_THE_SERVER = frozenset({"admin", "config", "local"})
_NOT_IN_A_DATABASE = frozenset('/\\. "$*<>:|?')
_LONGEST_DATABASE = 63
_LONGEST_NAMESPACE = 255


def declare(name: str, options: Mapping[str, Any]) -> ReactiveTask:
    """Return the definition that *options* mean.

    Args:
        name: The Celery task's name; the option `task` takes its place.
        options: As written in the decorator.

    Raises:
        ConfigurationError: Options are unknown, missing or wrong. Its subject is the task's name, and all that is
            wrong is listed. Nothing was declared.
    """
    given = Options(_subject(name, options), options, OPTIONS)
    task = ReactiveTask(
        name=given.read("task", _optional(read_text), None) or name,
        collection=given.require("collection", _read_collection, "", expected='for example "orders"'),
        database=given.read("database", _optional(_read_database), None),
        filter=given.read("filter", _nameless(compile_filter), Filter({})),
        projection=given.read("watch_projection", _nameless(compile_projection), Projection()),
        backfill=given.read("backfill", read_boolean, default=True),
        debounce=given.read("debounce", given.duration, DEFAULT_DEBOUNCE),
        debounce_max_wait=given.read("debounce_max_wait", given.optional_duration, None),
        retry_policy=given.read("retry_policy", _nameless(RetryPolicy.parse), RetryPolicy()),
        cleanup_policy=given.read("cleanup_policy", _nameless(CleanupPolicy.parse), CleanupPolicy()),
        execution_history_limit=given.read(
            "execution_history_limit", functools.partial(read_integer, at_least=0), DEFAULT_HISTORY_LIMIT
        ),
        evolution=given.read("evolution", _nameless(Evolution.parse), Evolution()),
        chunk=given.read("chunk", _read_chunk, None),
        batch=given.read("batch", _nameless(_read_batch), None),
        priority=given.read(
            "priority", functools.partial(read_integer, at_least=0, at_most=HIGHEST_PRIORITY), DEFAULT_PRIORITY
        ),
        rate_limit=given.read("rate_limit", read_rate, None),
        max_concurrency=given.read("max_concurrency", read_concurrency, None),
        loop_guard=given.read("loop_guard", _read_loop_guard, DEFAULT_LOOP_GUARD),
        recheck_interval=given.read("recheck_interval", _read_interval, None),
        on_delete=given.read("on_delete", read_boolean, default=False),
        track_changes=given.read("track_changes", read_boolean, default=False),
        document_class=given.read("document_class", _read_document_class, None),
        group=given.read("group", read_text, DEFAULT_GROUP),
    )
    if task.chunk is not None and task.batch is not None:
        given.refuse("chunk: expected none beside batch, whose size says how many documents a message names")
    given.check()
    return task


def _subject(name: str, options: Mapping[str, Any]) -> str:
    """Return the name the task would have, for the error."""
    try:
        return read_text(options["task"], "task")
    except (ConfigurationError, KeyError, TypeError):
        return name


def _optional(reader: Callable[[object, str], str]) -> Callable[[object, str], str | None]:
    return lambda value, name: None if value is None else reader(value, name)


def _nameless(reader: Callable[[object], T]) -> Callable[[object, str], T]:
    return lambda value, _name: reader(value)


def _read_collection(value: object, name: str) -> str:
    collection = read_text(value, name)
    misplaced = collection.startswith(".") or collection.endswith(".") or ".." in collection
    if "$" in collection or misplaced or len(collection.encode()) > _LONGEST_NAMESPACE:
        problem = f"expected the name of a collection, without '$' and empty parts, got {shown(value)}"
        raise ConfigurationError(name, [problem])
    if collection.startswith("system."):
        raise ConfigurationError(name, [f"expected a collection of yours, got the system's {shown(value)}"])
    return collection


def _read_database(value: object, name: str) -> str:
    database = read_text(value, name)
    if _NOT_IN_A_DATABASE & set(database) or len(database.encode()) > _LONGEST_DATABASE:
        raise ConfigurationError(name, [f"expected the name of a database, got {shown(value)}"])
    if database in _OF_THE_SERVER:
        raise ConfigurationError(name, [f"expected a database of yours, got the server's {shown(value)}"])
    return database


def _read_batch(value: object) -> Batch | None:
    return None if value is None else Batch.parse(value)


def _read_loop_guard(value: object, name: str) -> int | None:
    return None if value is None else read_integer(value, name, at_least=1)


def _read_interval(value: object, name: str) -> timedelta | str | None:
    if value is None:
        return None
    if is_schedule(value):
        read_schedule(str(value), name)
        return str(value)
    interval = parse_duration(value, name=name)
    if interval < _LEAST_INTERVAL:
        raise ConfigurationError(name, [f"expected at least 1 s, got {shown(value)}"])
    return interval


def _read_document_class(value: object, name: str) -> Callable[[dict[str, Any]], Any] | None:
    if value is None or callable(value):
        return value
    raise ConfigurationError(name, [f"expected a Pydantic model or a callable, got {shown(value)}"])


def _read_chunk(value: object, name: str) -> int | Literal["auto"] | None:
    if value is None:
        return None
    if isinstance(value, str) and value == "auto":
        return "auto"
    if isinstance(value, int):
        return read_integer(value, name, at_least=1)
    raise ConfigurationError(name, [f'expected "auto" or a positive integer, got {shown(value)}'])
