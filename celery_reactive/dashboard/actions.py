"""Everything that can be changed from here, by pages and API alike: what it would do, and doing it.

Each action is a call of management's. Whether the caller may is checked first, in one place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import assert_never

from celery_reactive.core.duration import parse_duration
from celery_reactive.dashboard.access import Action, Permission, RefusedError
from celery_reactive.dashboard.parameters import Fields, doc_id_of, required
from celery_reactive.dashboard.selecting import TARGETS, Target
from celery_reactive.management import by_hand, controls, listing, reconciling
from celery_reactive.management.listing import TaskRecord
from celery_reactive.runtime import Runtime

SAMPLE = 5
BULK = frozenset({Action.RETRY, Action.DISCARD})
"""Actions on whatever records a target means; the others are for one task."""


@dataclasses.dataclass(frozen=True, slots=True)
class Preview:
    """What an action on records would touch."""

    count: int
    sample: tuple[TaskRecord, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """What an action came to."""

    sentence: str
    changed: int | None = None
    """Records; None: the action is not about records."""


def fields_of(action: Action) -> tuple[str, ...]:
    """Return the names of what an action may be told."""
    match action:
        case Action.RETRY | Action.DISCARD:
            return TARGETS
        case Action.TRIGGER:
            return ("task", "doc_id")
        case Action.THROTTLE:
            return ("task", "delay")
        case Action.PAUSE | Action.RESUME | Action.RECONCILE:
            return ("task",)
        case _:
            assert_never(action)


def refuse_without(permission: Permission, action: Action) -> None:
    """Refuse an action that is not allowed.

    Raises:
        RefusedError: It is not among what the request may do.
    """
    if action not in permission:
        raise RefusedError(403, f"you may look, and not {action}")


def preview(runtime: Runtime, target: Target) -> Preview:
    """Return how many records *target* means, and a few of them.

    Raises:
        ReactiveError: What the listing raises.
    """
    count, sample = 0, list[TaskRecord]()
    for filters in target.meant():
        page = listing.get_tasks(runtime, filters, limit=SAMPLE)
        count += page.total
        sample += page.items[: SAMPLE - len(sample)]
    return Preview(count, tuple(sample))


def perform(runtime: Runtime, action: Action, fields: Fields) -> Done:
    """Do it.

    Args:
        runtime: The app's parts.
        action: What, allowed already.
        fields: On what.

    Raises:
        RefusedError: The fields do not say what on.
        ReactiveError: What management raises.
    """
    match action:
        case Action.RETRY:
            changed = _change_all(runtime, Target.read(fields), by_hand.retry_tasks)
            return Done(f"{_records(changed)} pending now", changed)
        case Action.DISCARD:
            changed = _change_all(runtime, Target.read(fields), by_hand.discard_tasks)
            return Done(f"{_records(changed)} discarded: completed without a run", changed)
        case Action.TRIGGER:
            return _trigger(runtime, required(fields, "task"), required(fields, "doc_id"))
        case Action.PAUSE:
            controls.pause(runtime, task := required(fields, "task"))
            return Done(f"{task} is paused: no run starts until it is resumed")
        case Action.RESUME:
            controls.resume(runtime, task := required(fields, "task"))
            return Done(f"{task} is resumed")
        case Action.THROTTLE:
            task, delay = required(fields, "task"), parse_duration(required(fields, "delay"), name="delay")
            until = controls.throttle(runtime, task, delay)
            return Done(f"no run of {task} starts before {until:%Y-%m-%d %H:%M:%S} UTC")
        case Action.RECONCILE:
            reconciling.request(runtime, [task := required(fields, "task")])
            return Done(f"the leading planner compares every document of {task} with its record")
        case _:
            assert_never(action)


def _change_all(runtime: Runtime, target: Target, change: Callable[..., int]) -> int:
    return sum(change(runtime, filters, everything=target.everything) for filters in target.meant())


def _trigger(runtime: Runtime, task: str, doc_id: str) -> Done:
    if by_hand.trigger(runtime, task, doc_id_of(doc_id)):
        return Done(f"{task} runs for {doc_id} now", 1)
    return Done(f"nothing to run: {task} has no record of {doc_id}, and no document with this id matches", 0)


def _records(number: int) -> str:
    return f"{number:,} record is" if number == 1 else f"{number:,} records are"
