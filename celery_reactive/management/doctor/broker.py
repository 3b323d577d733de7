"""Celery's settings and its broker, as far as they matter to reactive tasks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from celery_reactive.core.duration import format_duration
from celery_reactive.management.doctor.case import Case
from celery_reactive.management.doctor.finding import Finding, error, note, warning

BROKER_AWAY = error("broker_away", "start it, or correct broker_url: records wait in MongoDB meanwhile")
IN_MEMORY_BROKER = error("in_memory_broker", "use Redis, Valkey or RabbitMQ: no other process sees these messages")
ALWAYS_EAGER = error("always_eager", "set task_always_eager to False: a planner refuses to start with it")
NO_JSON = error("no_json", 'add "json" to accept_content: messages of reactive tasks are JSON')
EVICTING_REDIS = error(
    "evicting_redis", "set maxmemory-policy to noeviction: a Redis that evicts keys loses whole queues"
)
SHORT_VISIBILITY = warning(
    "short_visibility",
    "raise visibility_timeout of broker_transport_options above reactive_visibility_timeout: messages of runs under "
    "way are delivered again meanwhile, for nothing",
)
ACKS_LATE = note(
    "acks_late", "leave task_acks_late off for reactive tasks: what a lost worker ran is sent again in any case"
)
UNLIMITED_PREFETCH = warning(
    "unlimited_prefetch",
    "set worker_prefetch_multiplier to 1 to 4: one worker takes everything, and the others have nothing to do",
)
RESULTS_UNUSED = note(
    "results_unused",
    "nothing, if other tasks use it: reactive runs store no result, their records tell what came of them",
)

_LATE = timedelta(hours=1)


def broker(case: Case) -> Iterator[Finding]:
    """Whether messages can be sent, and stay."""
    side = case.celery
    if side.transport in {"memory", "filesystem"}:
        yield IN_MEMORY_BROKER.on(side.broker, f"the broker is of the kind {side.transport!r}")
        return
    if side.broker_error is not None:
        yield BROKER_AWAY.on(side.broker, f"it does not answer: {side.broker_error}")
        return
    if side.redis_maxmemory and side.redis_maxmemory_policy not in {None, "noeviction"}:
        problem = f"it evicts keys ({side.redis_maxmemory_policy}) when it holds {side.redis_maxmemory:,} bytes"
        yield EVICTING_REDIS.on(side.broker, problem)


def settings(case: Case) -> Iterator[Finding]:
    """Whether Celery's settings suit reactive tasks."""
    side = case.celery
    if side.always_eager:
        yield ALWAYS_EAGER.on("task_always_eager", "every handler would run inside the planner")
    if not side.accepts_json:
        yield NO_JSON.on("accept_content", "workers do not accept JSON")
    lease = case.runtime.settings.visibility_timeout
    if side.redis_visibility_timeout is not None and side.redis_visibility_timeout < lease:
        problem = (
            f"Redis gives messages to another worker after {format_duration(side.redis_visibility_timeout)}, "
            f"and a lease is {format_duration(lease)}"
        )
        yield SHORT_VISIBILITY.on("visibility_timeout", problem)
    if side.acks_late:
        yield ACKS_LATE.on("task_acks_late", "messages are acknowledged after their runs")
    if side.prefetch_multiplier == 0:
        yield UNLIMITED_PREFETCH.on("worker_prefetch_multiplier", "a worker takes as many messages as there are")
    if side.result_backend:
        yield RESULTS_UNUSED.on("result_backend", "a result backend is configured")
