"""Holding tasks back: pause, resume, throttle (B-35, B-53).

Called by `Reactive`. A control that has returned is in force for every claim that begins after it, cluster-wide; runs
under way go on.
"""

from __future__ import annotations

from datetime import datetime

from celery_reactive.core.duration import Duration, in_utc, parse_duration
from celery_reactive.errors import ConfigurationError
from celery_reactive.events import TaskPaused, TaskThrottled
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, queries


def pause(runtime: Runtime, task: str) -> None:
    """Start no run of *task* until it is resumed; its documents are planned meanwhile.

    Raises:
        UnknownTaskError: There is no such task; the message lists the known ones. Nothing was changed.
        StoreUnavailableError: The pause may be in force or not.
    """
    _set_paused(runtime, task, paused=True)


def resume(runtime: Runtime, task: str) -> None:
    """End the pause of *task*, and a throttle too.

    Raises:
        UnknownTaskError: There is no such task; the message lists the known ones. Nothing was changed.
        StoreUnavailableError: The pause may be in force or not.
    """
    _set_paused(runtime, task, paused=False)


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


def _set_paused(runtime: Runtime, task: str, *, paused: bool) -> None:
    name = runtime.registry.get(task).name
    definitions.set_paused(runtime.connection.globals(), name, paused=paused)
    runtime.emit(TaskPaused(name, paused))


def _server_time_of(runtime: Runtime, delay: Duration | datetime) -> datetime:
    if isinstance(delay, datetime):
        if delay.tzinfo is None:
            problem = f"expected a duration or an aware datetime, got {delay!r}; add tzinfo=datetime.UTC"
            raise ConfigurationError("delay", [problem])
        return in_utc(delay)
    length = parse_duration(delay, name="delay")
    return queries.server_time(runtime.connection.globals()) + length
