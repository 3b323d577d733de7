"""Everything that can be changed from here, by pages and API alike: what it would do, and doing it.

Each action is a call of management's. Whether the caller may is checked first, in one place.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
from collections.abc import Callable
from typing import assert_never

from celery_reactive.core.duration import parse_duration
from celery_reactive.core.suggest import listed
from celery_reactive.dashboard.access import Action, Permission, RefusedError
from celery_reactive.dashboard.parameters import Fields, doc_id_of, required
from celery_reactive.dashboard.selecting import TARGETS, Target
from celery_reactive.errors import ReactiveError
from celery_reactive.management import by_hand, controls, listing, operations, reconciling
from celery_reactive.management.listing import TaskRecord
from celery_reactive.management.operations import Operation
from celery_reactive.runtime import Runtime
from celery_reactive.store.operations import OperationState

logger = logging.getLogger(__name__)

SAMPLE = 5
BULK = frozenset({Action.RETRY, Action.DISCARD})
"""Actions on whatever records a target means."""
LIMITS = ("rate", "concurrency", "priority")
DECLARED = "declared"
"""Instead of a limit: what the task declares counts again."""
_MOMENTS_SECONDS = 2.0
"""So long somebody waits to see the end of what they have asked for."""


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
    """Records; None: the action is not about records, or it goes on."""
    operation: str | None = None
    """The operation that does it; None: it is done."""


def fields_of(action: Action) -> tuple[str, ...]:
    """Return the names of what an action may be told."""
    match action:
        case Action.RETRY | Action.DISCARD:
            return TARGETS
        case Action.TRIGGER | Action.RESUME:
            return ("task", "doc_id")
        case Action.THROTTLE:
            return ("task", "delay")
        case Action.LIMIT:
            return ("task", *LIMITS)
        case Action.CANCEL:
            return ("operation",)
        case Action.SEND:
            return ("entry",)
        case Action.PAUSE | Action.RECONCILE:
            return ("task",)
        case _:
            assert_never(action)


def optional_of(action: Action) -> tuple[str, ...]:
    """Return those of `fields_of` that may be missing; of what selects records, any may."""
    match action:
        case Action.RETRY | Action.DISCARD:
            return TARGETS
        case Action.LIMIT:
            return LIMITS
        case Action.RESUME:
            return ("doc_id",)
        case _:
            return ()


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


@dataclasses.dataclass(frozen=True, slots=True)
class Hands:
    """Who acts, and with what."""

    runtime: Runtime
    by: str
    """Who asks, for people."""
    send_entry: Callable[[str], str]
    """Sends an entry of the schedule; returns the id of the message."""


def perform(hands: Hands, action: Action, fields: Fields) -> Done:
    """Do it.

    Args:
        hands: Who acts.
        action: What, allowed already.
        fields: On what.

    Raises:
        RefusedError: The fields do not say what on.
        ReactiveError: What management raises.
    """
    runtime = hands.runtime
    match action:
        case Action.RETRY | Action.DISCARD:
            return _change(runtime, action, Target.read(fields), hands.by)
        case Action.TRIGGER:
            return _trigger(runtime, required(fields, "task"), required(fields, "doc_id"))
        case Action.PAUSE:
            controls.pause(runtime, task := required(fields, "task"))
            return Done(f"{task} is paused: no run starts until it is resumed")
        case Action.RESUME:
            return _resume(runtime, required(fields, "task"), fields.text("doc_id"))
        case Action.THROTTLE:
            task, delay = required(fields, "task"), parse_duration(required(fields, "delay"), name="delay")
            until = controls.throttle(runtime, task, delay)
            return Done(f"no run of {task} starts before {until:%Y-%m-%d %H:%M:%S} UTC")
        case Action.RECONCILE:
            reconciling.request(runtime, [task := required(fields, "task")])
            return Done(f"the leading planner compares every document of {task} with its record")
        case Action.LIMIT:
            return _limit(runtime, required(fields, "task"), fields)
        case Action.SEND:
            sent = hands.send_entry(entry := required(fields, "entry"))
            return Done(f"{entry} is sent, id {sent}")
        case Action.CANCEL:
            was_running = operations.cancel(runtime, required(fields, "operation"))
            return Done("the operation stops; what it has changed stays changed" if was_running else "it had ended")
        case _:
            assert_never(action)


def _change(runtime: Runtime, action: Action, target: Target, by: str) -> Done:
    """Change the records that *target* names at once, or as an operation where it selects them."""
    if target.keys:
        for key in target.keys:
            runtime.registry.get(key.task)
        change = by_hand.retry_tasks if action is Action.RETRY else by_hand.discard_tasks
        return _changed(action, sum(change(runtime, filters) for filters in target.meant()))
    (filters,) = target.meant()
    runner = operations.new_runner(runtime)
    started = operations.start(runtime, action.value, filters, everything=target.everything, by=by, runner=runner)
    ended = _run_aside(runtime, started.id, runner)
    match ended:
        case Operation(state=OperationState.DONE):
            return _changed(action, ended.changed)
        case Operation(error=str(error)):
            raise RefusedError(400, f"{error} ({ended.changed:,} records had been changed by then)")
        case _:
            return Done("it goes on as an operation; see how far it has come", operation=started.id)


def _run_aside(runtime: Runtime, operation: str, runner: str) -> Operation | None:
    """Run an operation in a thread of its own; return it if it has ended within moments.

    The thread ends with the process, whatever it is at: the leading planner goes on with the operation.
    """
    ended: list[Operation] = []

    def run() -> None:
        try:
            ended.append(operations.run(runtime, operation, runner=runner))
        except ReactiveError:
            logger.exception("an operation was left to the leading planner", extra={"operation": operation})

    thread = threading.Thread(target=run, name="reactive-operation", daemon=True)
    thread.start()
    thread.join(_MOMENTS_SECONDS)
    return ended[0] if ended else None


def _changed(action: Action, number: int) -> Done:
    outcome = "pending now" if action is Action.RETRY else "discarded: completed without a run"
    return Done(f"{_records(number)} {outcome}", number)


def _limit(runtime: Runtime, task: str, fields: Fields) -> Done:
    given = {name: text for name in LIMITS if (text := fields.text(name)) is not None}
    changes = {name: None if text == DECLARED else _number(text) for name, text in given.items()}
    if not changes:
        raise RefusedError(400, f"expected at least one of {listed(LIMITS)}")
    controls.limit(runtime, task, changes)
    return Done(f"{task}: " + ", ".join(f"{name} {text}" for name, text in given.items()))


def _number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else text


def _resume(runtime: Runtime, task: str, doc_id: str | None) -> Done:
    if doc_id is None:
        controls.resume(runtime, task)
        return Done(f"{task} is resumed")
    if controls.resume(runtime, task, doc_id_of(doc_id)):
        return Done(f"{task} runs for {doc_id} now", 1)
    return Done(f"nothing to resume: the loop guard has not paused the record of {doc_id}", 0)


def _trigger(runtime: Runtime, task: str, doc_id: str) -> Done:
    if by_hand.trigger(runtime, task, doc_id_of(doc_id)):
        return Done(f"{task} runs for {doc_id} now", 1)
    return Done(f"nothing to run: {task} has no record of {doc_id}, and no document with this id matches", 0)


def _records(number: int) -> str:
    return f"{number:,} record is" if number == 1 else f"{number:,} records are"
