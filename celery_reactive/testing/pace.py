"""Quick tests: no debounce, and the planner's waits near zero, inside a block.

Called by tests and by the fixtures; `inline` asks whether it is in force. What waits on purpose, a retry policy or a
deferral, waits as ever: `make_due` ends such a wait.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import ModuleType
from typing import Any
from unittest import mock

from celery import Celery

from celery_reactive.app import Reactive
from celery_reactive.core.task import ReactiveTask
from celery_reactive.planner import dispatch, elect, process, watch

_MOMENT_SECONDS = 0.02
_WAITS: tuple[tuple[ModuleType, str, Any], ...] = (
    (watch, "_READ_WAIT", timedelta(milliseconds=50)),
    (watch, "_STORE_INTERVAL_SECONDS", _MOMENT_SECONDS),
    (watch, "_IDLE_STORE_INTERVAL_SECONDS", 0.2),
    (dispatch, "_POLL_SECONDS", 0.1),
    (elect, "_STAND_BY_SECONDS", 0.1),
    (process, "_GLANCE_SECONDS", _MOMENT_SECONDS),
    (process, "_LOOK_SECONDS", 0.1),
    (process, "_MEND_SECONDS", 0.1),
)
"""What a planner waits for that runs in this process, and for how long instead."""

_in_force: list[None] = []
"""One entry for each block that is open."""


@contextmanager
def fast() -> Iterator[None]:
    """Let the planners of this process not wait, and tasks that `run_inline` starts not debounce, inside the block.

    It goes around `run_inline`. Semantics stay: several quick changes may lead to several runs where a debounce would
    have made them one.
    """
    with ExitStack() as changed:
        for module, name, value in _WAITS:
            changed.enter_context(mock.patch.object(module, name, value))
        _in_force.append(None)
        changed.callback(_in_force.pop)
        yield


@contextmanager
def at_pace(app: Celery) -> Iterator[None]:
    """Take the debounce off the app's tasks inside the block, if `fast` is in force."""
    declared = list(Reactive.of(app).registry) if _in_force else []
    try:
        for task in declared:
            _redeclare(app, dataclasses.replace(task, debounce=timedelta(0), debounce_max_wait=None))
        yield
    finally:
        for task in declared:
            _redeclare(app, task)


def _redeclare(app: Celery, task: ReactiveTask) -> None:
    registry = Reactive.of(app).registry
    celery_name = registry.celery_name(task.name)
    registry.add(task, celery_name=celery_name)
    type(app.tasks[celery_name]).reactive = task
