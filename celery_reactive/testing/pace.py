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
from celery_reactive.core.batch import Batch
from celery_reactive.core.task import ReactiveTask
from celery_reactive.planner import cleanup, dispatch, elect, process, watch

_MOMENT_SECONDS = 0.02
_COMPANY_WAIT = timedelta(milliseconds=100)
_WAITS: tuple[tuple[ModuleType, str, Any], ...] = (
    (watch, "_STORE_INTERVAL_SECONDS", _MOMENT_SECONDS),
    (dispatch, "_POLL_SECONDS", 0.1),
    (elect, "_STAND_BY_SECONDS", 0.1),
    (process, "_GLANCE_SECONDS", _MOMENT_SECONDS),
    (process, "_MEND_SECONDS", 0.1),
)
"""What a planner waits for that runs in this process and shall be fast, and for how long instead."""

_ALWAYS: tuple[tuple[ModuleType, str, Any], ...] = (
    (watch, "_READ_WAIT", timedelta(milliseconds=50)),
    (process, "_LOOK_SECONDS", 0.1),
    (cleanup, "_LOOK_SECONDS", 0.1),
    (watch, "_IDLE_STORE_INTERVAL_SECONDS", 0.2),
)
"""What holds up a planner that has been told to end, or one who waits for rest, and for how long instead."""

_in_force: list[None] = []
"""One entry for each block that is open."""


@contextmanager
def fast() -> Iterator[None]:
    """Let the planners of this process not wait, and tasks that `run_inline` starts not debounce, inside the block.

    A batch waits a tenth of a second for company at most. It goes around `run_inline`. Semantics stay: several quick
    changes may lead to several runs where a debounce would have made them one.
    """
    with ExitStack() as changed:
        for module, name, value in _WAITS:
            changed.enter_context(mock.patch.object(module, name, value))
        _in_force.append(None)
        changed.callback(_in_force.pop)
        yield


@contextmanager
def at_pace(app: Celery) -> Iterator[None]:
    """Let rest and end be noticed soon inside the block; take the debounce off the tasks, if `fast` is in force."""
    declared = list(Reactive.of(app).registry) if _in_force else []
    with ExitStack() as changed:
        for module, name, value in _ALWAYS:
            changed.enter_context(mock.patch.object(module, name, value))
        for task in declared:
            changed.callback(_redeclare, app, task)
            _redeclare(app, _hurried(task))
        yield


def _hurried(task: ReactiveTask) -> ReactiveTask:
    batch = None if task.batch is None else Batch(task.batch.size, min(task.batch.wait, _COMPANY_WAIT))
    return dataclasses.replace(task, debounce=timedelta(0), debounce_max_wait=None, batch=batch)


def _redeclare(app: Celery, task: ReactiveTask) -> None:
    registry = Reactive.of(app).registry
    celery_name = registry.celery_name(task.name)
    registry.add(task, celery_name=celery_name)
    type(app.tasks[celery_name]).reactive = task
