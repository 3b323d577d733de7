"""Bulk work as tracked operations: begun once, seen by everybody, cancelled by anybody, gone on with by somebody else.

Called by `Reactive`, the command line and the dashboard; the leading planner calls `resume_stalled`. An operation is a
retry, a discard or a purge of many records. It goes page by page, and how far it has come is stored after each, so that
it ends also where the process that began it does not: the leading planner goes on with what stands still. A page that
was done and not noted is done again, and changes only what still is what it was chosen for.
"""

from __future__ import annotations

import dataclasses
import getpass
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from types import EllipsisType
from typing import Any, cast

from bson import json_util
from bson.regex import Regex

from celery_reactive.core.duration import format_duration
from celery_reactive.core.options import read_integer
from celery_reactive.core.record import EXACT_EJSON
from celery_reactive.core.suggest import did_you_mean, listed, shown
from celery_reactive.errors import (
    ArgumentError,
    ConfigurationError,
    StatementFailedError,
    StoreBusyError,
    UnknownTaskError,
)
from celery_reactive.events import ManualAction
from celery_reactive.management import by_hand, cleanup
from celery_reactive.management.by_hand import Change
from celery_reactive.management.pages import Batch, pages
from celery_reactive.management.selection import Selection, TaskFilters, select
from celery_reactive.runtime import Runtime
from celery_reactive.store import operations, queries
from celery_reactive.store.operations import OperationState, Stored

MAX_LISTED = 1000
"""Most operations listed; a larger limit is cut to it."""
_MOST_RESUMED = 20


class Action(StrEnum):
    """What an operation does to its records."""

    RETRY = "retry"
    DISCARD = "discard"
    PURGE = "purge"


_CHANGES: Mapping[Action, Change] = {Action.RETRY: by_hand.retry, Action.DISCARD: by_hand.discard}
_PURGE_OPTIONS = ("task", "gone", "left", "older_than")


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """An operation, as it was at one moment. Times are the server's."""

    id: str
    action: Action
    asked: Mapping[str, Any]
    """What was asked for: the filters of `get_tasks`, or the options of `purge`."""
    by: str | None
    """Who asked."""
    state: OperationState
    total: int | None
    """How many records, or documents of a source, are to be looked at, as counted at the start; None: unknown."""
    looked: int
    """How many have been."""
    changed: int
    """Records changed or removed."""
    limit: int | None
    """Most records changed; None: all."""
    error: str | None
    """Why it failed."""
    created_at: datetime
    updated_at: datetime
    """When it last went on."""
    ended_at: datetime | None
    is_stalled: bool
    """Whether nobody runs it at the moment; the leading planner will, if there is one."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Done:
    """A page that is done."""

    looked: int
    changed: Mapping[str, int]
    """By task."""
    place: Mapping[str, Any]


OnProgress = Callable[[Operation], object]


def start(
    runtime: Runtime,
    action: Action | str,
    asked: Mapping[str, Any],
    *,
    everything: bool = False,
    limit: int | None = None,
    by: str | None = None,
    runner: str | None = None,
) -> Operation:
    """Write down an operation; it is run by `run`, or by the leading planner.

    Args:
        runtime: The app's parts.
        action: Retry, discard or purge.
        asked: The filters of `get_tasks`, or the options of `purge`: `task`, `gone`, `left`, `older_than`.
        everything: Must be true for a retry or discard that no filter narrows.
        limit: Most records changed; None: all. Not for a purge.
        by: Who asks, for people; None: the user of this process and its host.
        runner: A token by which the caller will `run` it; None: the leading planner does.

    Raises:
        UnknownTaskError: A named task does not exist; the message lists the known ones. Nothing was written.
        ArgumentError: The action, a filter or an option has no meaning. Nothing was written.
        StoreUnavailableError: It may have been written.
        StatementFailedError: The server refuses the query. Nothing was written.
    """
    what, most = _action(action), _limit(limit)
    if what is Action.PURGE:
        fixed, total = _purge_asked(runtime, asked, most)
    else:
        fixed, total = _selected(runtime, cast("TaskFilters", dict(asked)), everything=everything)
    globals_ = runtime.connection.globals()
    operations.forget_old(globals_)
    stored = operations.create(
        globals_,
        secrets.token_hex(6),
        action=what.value,
        asked=json_util.dumps(fixed, json_options=EXACT_EJSON),
        by=by or _this_user(),
        limit=most,
        total=total,
        runner=runner,
    )
    return _operation(stored)


def run(
    runtime: Runtime,
    operation: str,
    *,
    runner: str,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Operation:
    """Go on with an operation to its end, or until it is cancelled.

    Args:
        runtime: The app's parts.
        operation: Its id.
        runner: The caller's token: the one it was started with, or a new one for what nobody runs.
        on_progress: Called after each page.
        should_stop: Asked after each page; where it returns true, the operation is left for somebody else.

    Returns:
        The operation as it is afterwards; unchanged where somebody else runs it, or it has ended.

    Raises:
        ArgumentError: There is no such operation.
        StoreUnavailableError: MongoDB does not answer; the leading planner goes on.
    """
    globals_ = runtime.connection.globals()
    taken = operations.take(globals_, operation, runner)
    if taken is not None:
        try:
            _go_on(runtime, taken, runner, on_progress, should_stop)
        except (StoreBusyError, StatementFailedError, UnknownTaskError, ConfigurationError) as error:
            operations.end(globals_, operation, runner, OperationState.FAILED, error=str(error))
    return get(runtime, operation)


def resume_stalled(runtime: Runtime, should_stop: Callable[[], bool]) -> int:
    """Go on with what nobody runs; the leading planner calls this every few seconds.

    What names tasks that this code does not declare is left to a planner whose code does.

    Args:
        runtime: The app's parts.
        should_stop: Asked after each page.

    Returns:
        How many operations were gone on with.

    Raises:
        StoreUnavailableError: MongoDB does not answer.
    """
    globals_ = runtime.connection.globals()
    resumed = 0
    for stored in operations.find(globals_, state=OperationState.RUNNING, limit=_MOST_RESUMED):
        if should_stop():
            break
        if stored.is_stalled and _is_known(runtime, stored):
            run(runtime, stored.id, runner=new_runner(runtime), should_stop=should_stop)
            resumed += 1
    return resumed


def new_runner(runtime: Runtime) -> str:
    """Return a token that names this process, and nobody else's run."""
    return f"{runtime.settings.instance_id}/{secrets.token_hex(4)}"


def cancel(runtime: Runtime, operation: str) -> bool:
    """Stop an operation after its page; what it has changed stays changed.

    Returns:
        Whether it was still running.

    Raises:
        ArgumentError: There is no such operation.
        StoreUnavailableError: It may have been cancelled.
    """
    cancelled = operations.cancel(runtime.connection.globals(), operation)
    if not cancelled:
        get(runtime, operation)
    return cancelled


def get(runtime: Runtime, operation: str) -> Operation:
    """Return an operation as it is now.

    Raises:
        ArgumentError: There is none of this id.
        StoreUnavailableError: MongoDB does not answer.
    """
    stored = operations.read(runtime.connection.globals(), operation)
    if stored is None:
        days = operations.KEPT_FOR.days
        problem = f"expected the id of an operation of the last {days} days, got {shown(operation)}"
        raise ArgumentError("operation", [problem])
    return _operation(stored)


def find(runtime: Runtime, *, running: bool = False, limit: int = 50) -> list[Operation]:
    """Return operations, the newest first: all of the last week, or those that are not ended.

    Raises:
        ConfigurationError: The limit has no meaning.
        StoreUnavailableError: MongoDB does not answer.
    """
    most = min(read_integer(limit, "limit", at_least=1), MAX_LISTED)
    state = OperationState.RUNNING if running else None
    return [_operation(stored) for stored in operations.find(runtime.connection.globals(), state=state, limit=most)]


# --- running ------------------------------------------------------------------------------------------


def _go_on(
    runtime: Runtime,
    taken: Stored,
    runner: str,
    on_progress: OnProgress | None,
    should_stop: Callable[[], bool],
) -> None:
    """Work through the pages that are left, and note the end unless the operation is taken away before."""
    globals_ = runtime.connection.globals()
    changed: Counter[str] = Counter()
    try:
        for page in _pages_done(runtime, taken):
            changed.update(page.changed)
            number = sum(page.changed.values())
            if not operations.advance(globals_, taken.id, runner, looked=page.looked, changed=number, place=page.place):
                return
            if on_progress is not None:
                on_progress(get(runtime, taken.id))
            if should_stop():
                return
        operations.end(globals_, taken.id, runner, OperationState.DONE)
    finally:
        for task, number in changed.items():
            if number:
                runtime.emit(ManualAction(taken.action, task, number))


def _pages_done(runtime: Runtime, taken: Stored) -> Iterator[_Done]:
    """Yield the pages that are left, each done when it is asked for."""
    action, asked = Action(taken.action), _read_asked(taken)
    if action is Action.PURGE:
        return _purged(runtime, asked, taken.place)
    selection = select(runtime, cast("TaskFilters", asked))
    room = None if taken.limit is None else taken.limit - taken.changed
    return _changed(runtime, selection, _CHANGES[action], taken.place, room)


def _changed(
    runtime: Runtime, selection: Selection, change: Change, place: Mapping[str, Any] | None, room: int | None
) -> Iterator[_Done]:
    for page in pages(runtime, selection, place=place):
        changed: Counter[str] = Counter()
        for batch in page.batches:
            left = None if room is None else room - changed.total()
            changed[batch.task.name] += _change_up_to(batch, change, left)
        if room is not None:
            room -= changed.total()
        yield _Done(page.looked, changed, page.place)
        if room is not None and room <= 0:
            return


def _change_up_to(batch: Batch, change: Change, most: int | None) -> int:
    """Change records of *batch*, up to *most* of them."""
    if most is None or len(batch.ids) <= most:
        return change(batch)
    done = 0
    ids = batch.ids
    while ids and done < most:
        some, ids = ids[: most - done], ids[most - done :]
        done += change(dataclasses.replace(batch, ids=some))
    return done


def _purged(runtime: Runtime, asked: Mapping[str, Any], place: Mapping[str, Any] | None) -> Iterator[_Done]:
    after: Sequence[Any] = [] if place is None else [place["after"]]
    for page in cleanup.purge_pages(runtime, **_purge_options(asked), after=after):
        yield _Done(page.looked, {asked["task"]: page.removed}, {"after": page.last})


# --- what is asked for --------------------------------------------------------------------------------


def _selected(runtime: Runtime, filters: TaskFilters, *, everything: bool) -> tuple[dict[str, Any], int | None]:
    """Return the filters, with the tasks they mean today, and how many are to be looked at."""
    selection = by_hand.chosen(runtime, filters, everything=everything)
    fixed: dict[str, Any] = {
        name: list(value) if isinstance(value, (set, frozenset, tuple)) else value
        for name, value in filters.items()
        if not isinstance(value, EllipsisType) and (value is not None or name == "doc_id")
    }
    fixed["task"] = [task.name for part in selection.parts for task in part.tasks]
    return fixed, _total(selection)


def _total(selection: Selection) -> int | None:
    try:
        if selection.source is not None:
            return sum(queries.count_documents(part.source, selection.source) for part in selection.parts)
        return sum(queries.count(part.records, part.wanted) for part in selection.parts)
    except StoreBusyError:
        return None


def _purge_asked(runtime: Runtime, asked: Mapping[str, Any], limit: int | None) -> tuple[dict[str, Any], int | None]:
    problems = [
        f"unknown option {name!r}{did_you_mean(name, _PURGE_OPTIONS)}" for name in asked if name not in _PURGE_OPTIONS
    ]
    if "task" not in asked:
        problems.append("expected the name of a task")
    if limit is not None:
        problems.append("expected no limit")
    if problems:
        raise ArgumentError("purge", problems)
    older_than = asked.get("older_than")
    fixed = {
        "task": asked["task"],
        "gone": bool(asked.get("gone")),
        "left": bool(asked.get("left")),
        "older_than": format_duration(older_than) if isinstance(older_than, timedelta) else older_than,
    }
    try:
        return fixed, cleanup.count_purge(runtime, **_purge_options(fixed))
    except StoreBusyError:
        return fixed, None


def _purge_options(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asked[name] for name in _PURGE_OPTIONS}


def _read_asked(stored: Stored) -> dict[str, Any]:
    asked: dict[str, Any] = json_util.loads(stored.asked, json_options=EXACT_EJSON)
    if isinstance(asked.get("error"), Regex):
        asked["error"] = asked["error"].try_compile()
    return asked


def _is_known(runtime: Runtime, stored: Stored) -> bool:
    """Whether this code declares the tasks of an operation; a purge may be of one that is not declared."""
    if stored.action == Action.PURGE:
        return True
    declared = {task.name for task in runtime.registry}
    return declared.issuperset(_read_asked(stored)["task"])


def _action(action: object) -> Action:
    if isinstance(action, str) and action in set(Action):
        return Action(action)
    meant = did_you_mean(str(action), Action)
    raise ArgumentError("action", [f"expected one of {listed(Action)}, got {shown(action)}{meant}"])


def _limit(limit: object) -> int | None:
    return None if limit is None else read_integer(limit, "limit", at_least=1)


def _this_user() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        # A container's user may have no name.
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def _operation(stored: Stored) -> Operation:
    return Operation(
        id=stored.id,
        action=Action(stored.action),
        asked=_read_asked(stored),
        by=stored.by,
        state=stored.state,
        total=stored.total,
        looked=stored.looked,
        changed=stored.changed,
        limit=stored.limit,
        error=stored.error,
        created_at=stored.created_at,
        updated_at=stored.updated_at,
        ended_at=stored.ended_at,
        is_stalled=stored.is_stalled,
    )
