"""What Celery and the broker say of themselves, read for `doctor`. Connects for a moment; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from celery_reactive.app import Reactive
from celery_reactive.management.doctor.case import CelerySide
from celery_reactive.planner.publish import Publisher

_CONNECT_SECONDS = 2.0
_REDIS = "redis"
_REDIS_USUAL_VISIBILITY_SECONDS = 3600
_LONGEST_ERROR = 300


def read_celery_side(handle: Reactive) -> CelerySide:
    """Return what *handle*'s app says of itself, and its broker.

    Raises:
        ConfigurationError: The settings cannot be read.
    """
    app, registry = handle.app, handle.runtime.registry
    publisher = Publisher(app, handle.runtime)
    celery_tasks = {task.name: app.tasks[registry.celery_name(task.name)] for task in registry}
    queues = {task.name: publisher.queue_of(task) for task in registry}
    transport, shown, problem, redis = _broker(app)
    conf = app.conf
    return CelerySide(
        broker=shown,
        transport=transport,
        broker_error=problem,
        redis_maxmemory=int(redis.get("maxmemory") or 0),
        redis_maxmemory_policy=redis.get("maxmemory-policy"),
        redis_visibility_timeout=_visibility(app) if transport.startswith(_REDIS) else None,
        always_eager=bool(conf.task_always_eager),
        acks_late=bool(conf.task_acks_late) or any(task.acks_late for task in celery_tasks.values()),
        prefetch_multiplier=int(conf.worker_prefetch_multiplier or 0),
        result_backend=_kind(conf.result_backend),
        accepts_json=any(kind in {"json", "application/json"} for kind in conf.accept_content),
        queues={name: None if queue is None else queue.name for name, queue in queues.items()},
        time_limits=dict(_time_limits(app, celery_tasks)),
    )


def _kind(backend: object) -> str | None:
    """Return what a result backend is, without its address; None: there is none."""
    name = str(backend or "").partition(":")[0]
    return None if name in {"", "disabled"} else name


def _time_limits(app: Celery, celery_tasks: dict[str, Any]) -> Iterator[tuple[str, tuple[float | None, float | None]]]:
    for name, task in celery_tasks.items():
        hard = task.time_limit or app.conf.task_time_limit
        soft = task.soft_time_limit or app.conf.task_soft_time_limit
        if hard or soft:
            yield name, (hard, soft)


def _visibility(app: Celery) -> timedelta:
    options = app.conf.broker_transport_options or {}
    return timedelta(seconds=float(options.get("visibility_timeout", _REDIS_USUAL_VISIBILITY_SECONDS)))


def _broker(app: Celery) -> tuple[str, str, str | None, dict[str, Any]]:
    """Return the broker's kind, its address without its password, why it does not answer, and what Redis says."""
    with _briefly(app) as connection:
        transport, shown = str(connection.transport.driver_type), str(connection.as_uri())
        away = (OSError, OperationalError, *connection.connection_errors, *connection.channel_errors)
        try:
            connection.ensure_connection(max_retries=1, timeout=_CONNECT_SECONDS)
            redis = _redis_memory(connection) if transport == _REDIS else {}
        except away as error:
            return transport, shown, " ".join(str(error).split())[:_LONGEST_ERROR] or type(error).__name__, {}
    return transport, shown, None, redis


@contextmanager
def _briefly(app: Celery) -> Iterator[Any]:
    """Yield a connection that cannot hang."""
    own = app.conf.broker_transport_options or {}
    is_redis = app.connection_for_write().transport.driver_type == _REDIS
    limits = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), _CONNECT_SECONDS) if is_redis else {}
    connection = app.connection_for_write(connect_timeout=_CONNECT_SECONDS, transport_options={**own, **limits})
    with connection:
        yield connection


def _redis_memory(connection: Any) -> dict[str, Any]:
    """Return how much a Redis may hold and what it does then; empty where it may not be asked."""
    with suppress(*connection.channel_errors):
        answer: dict[str, Any] = connection.default_channel.client.config_get("maxmemory*")
        return answer
    return {}
