"""Holding tasks back: pause, resume, throttle, limit (B-35, B-53, B-58).

Called by `Reactive`. A control that has returned is in force for every claim that begins after it, cluster-wide; runs
under way go on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from celery_reactive.core.duration import Duration, in_utc, parse_duration
from celery_reactive.core.limits import UNLIMITED, Overrides, Rate, Unlimited
from celery_reactive.core.options import Options, read_integer
from celery_reactive.core.record import RecordKey
from celery_reactive.core.suggest import listed
from celery_reactive.core.task import HIGHEST_PRIORITY
from celery_reactive.errors import ArgumentError, ConfigurationError
from celery_reactive.events import ManualAction, TaskLimited, TaskPaused, TaskThrottled
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, queries, records
from celery_reactive.store.wake import wake_if_possible

T = TypeVar("T")


def pause(runtime: Runtime, task: str) -> None:
    """Start no run of *task* until it is resumed; its documents are planned meanwhile.

    Raises:
        UnknownTaskError: There is no such task; the message lists the known ones. Nothing was changed.
        StoreUnavailableError: The pause may be in force or not.
    """
    _set_paused(runtime, task, paused=True)


def resume(runtime: Runtime, task: str, doc_id: Any = ...) -> bool:
    """End the pause of *task*, and a throttle too; or let one record run again that the loop guard has paused (B-64).

    Args:
        runtime: The app's parts.
        task: The task's name.
        doc_id: The document's `_id`, taken literally. Without it the whole task is meant, and no record.

    Returns:
        Whether anything could be resumed: false where the loop guard has not paused that record.

    Raises:
        UnknownTaskError: There is no such task; the message lists the known ones. Nothing was changed.
        StoreUnavailableError: The pause may be in force or not.
        StatementFailedError: The id cannot be sent to the server. Nothing was changed.
    """
    if doc_id is ...:
        _set_paused(runtime, task, paused=False)
        return True
    definition = runtime.registry.get(task)
    is_resumed = records.resume(runtime.connection.records(definition), RecordKey(definition.name, doc_id))
    if is_resumed:
        runtime.emit(ManualAction("resume", definition.name, 1))
        wake_if_possible(runtime.connection.globals(), definition.name)
    return is_resumed


def throttle(runtime: Runtime, task: str, delay: Duration | datetime) -> datetime:
    """Start no run of *task* until a time; a longer throttle that is in force stays.

    Args:
        runtime: The app's parts.
        task: The task's name.
        delay: A duration from now by the server's clock, or an aware datetime.

    Returns:
        The time in force now.

    Raises:
        UnknownTaskError: There is no such task; the message lists the known ones. Nothing was changed.
        ConfigurationError: A negative duration or a naive datetime. Nothing was changed.
        StoreUnavailableError: The throttle may be in force or not.
    """
    name = runtime.registry.get(task).name
    in_force = definitions.throttle(runtime.connection.globals(), name, _server_time_of(runtime, delay))
    runtime.emit(TaskThrottled(name, in_force))
    return in_force


def limit(runtime: Runtime, task: str, changes: Mapping[str, object]) -> Overrides:
    """Set limits and priority of *task* that count instead of the declared ones.

    Args:
        runtime: The app's parts.
        task: The task's name.
        changes: Of `rate`, `concurrency` and `priority`; None lets the declared one count again, `"unlimited"` lifts
            it, and what is not there stays as it is.

    Returns:
        Everything that is set by hand now.

    Raises:
        UnknownTaskError: There is no such task; the message lists the known ones. Nothing was changed.
        ArgumentError: A value is no limit, or there is none; all that is wrong is listed. Nothing was changed.
        StoreUnavailableError: The limits may be in force or not.
    """
    name = runtime.registry.get(task).name
    given = Options(f"limit {name}", changes, tuple(_READERS))
    if not changes:
        given.refuse(f"expected one of {listed(_READERS)} at least")
    read = {option: given.read(option, reader, None) for option, reader in _READERS.items() if option in changes}
    _refuse_wrong(given)
    in_force = definitions.set_limits(runtime.connection.globals(), name, read)
    rate = None if in_force.rate is None else str(in_force.rate)
    runtime.emit(TaskLimited(name, rate, in_force.concurrency, in_force.priority))
    wake_if_possible(runtime.connection.globals(), name)
    return in_force


def _refuse_wrong(given: Options) -> None:
    try:
        given.check()
    except ConfigurationError as error:
        raise ArgumentError(error.subject, error.problems) from error


def _or_declared(reader: Callable[[object, str], T]) -> Callable[[object, str], T | None]:
    return lambda value, name: None if value is None else reader(value, name)


def _or_unlimited(reader: Callable[[object, str], T]) -> Callable[[object, str], T | Unlimited]:
    return lambda value, name: UNLIMITED if value == UNLIMITED else reader(value, name)


_READERS: Mapping[str, Callable[[object, str], Rate | int | Unlimited | None]] = {
    "rate": _or_declared(_or_unlimited(Rate.parse)),
    "concurrency": _or_declared(_or_unlimited(functools.partial(read_integer, at_least=1))),
    "priority": _or_declared(functools.partial(read_integer, at_least=0, at_most=HIGHEST_PRIORITY)),
}


def _set_paused(runtime: Runtime, task: str, *, paused: bool) -> None:
    name = runtime.registry.get(task).name
    definitions.set_paused(runtime.connection.globals(), name, paused=paused)
    runtime.emit(TaskPaused(name, paused))
    wake_if_possible(runtime.connection.globals(), name)


def _server_time_of(runtime: Runtime, delay: Duration | datetime) -> datetime:
    if isinstance(delay, datetime):
        if delay.tzinfo is None:
            problem = f"expected a duration or an aware datetime, got {delay!r}; add tzinfo=datetime.UTC"
            raise ArgumentError("delay", [problem])
        return in_utc(delay)
    length = parse_duration(delay, name="delay")
    return queries.server_time(runtime.connection.globals()) + length
