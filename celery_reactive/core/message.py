"""The message that wakes a worker: which records of one task may be due.

Packed by `planner/dispatch`, unpacked by the worker. A message is a hint: it names records, and the
claim decides. Nothing in it is evaluated, and one that cannot be read claims nothing.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from celery_reactive.core.record import Due, RecordKey, id_from_text, id_to_text
from celery_reactive.core.task import HIGHEST_PRIORITY

HEADER = "reactive"
"""Tells a planner's message from a user's own `.delay()`."""
_VERSION = 1
_SHOWN_IDS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Named:
    """One record as a message names it."""

    key: RecordKey
    cycle: int
    attempts: int = 0
    """Before this run, when the message was sent: for people."""


class MessageError(ValueError):
    """A message carries the header but cannot be read; nothing was claimed."""


def message_for(*, namespace: str, due: Sequence[Due], max_attempts: int | None) -> dict[str, Any]:
    """Return the options of `apply_async` for a message that names the records *due*.

    Args:
        namespace: `database.collection`, part of Celery's ids.
        due: One or more records.
        max_attempts: Of the task's retry policy, for people.
    """
    ids = [id_to_text(one.key.doc_id) for one in due]
    single = due[0] if len(due) == 1 else None
    header = {
        "v": _VERSION,
        "ns": namespace,
        "cycles": [one.cycle for one in due],
        "attempts": [one.attempts for one in due],
        "max": max_attempts,
    }
    return {
        "args": (ids,),
        "kwargs": {},
        "task_id": single.key.celery_id(namespace, single.cycle) if single else str(uuid.uuid4()),
        "headers": {HEADER: header},
        "argsrepr": shown_ids(ids),
        "kwargsrepr": "{}",
        "retries": single.attempts if single else 0,
        "ignore_result": True,
        # A task's own would let its records fail while no worker is there.
        "expires": None,
    }


def message_priority(priority: int | None, *, zero_is_first: bool) -> int | None:
    """Return the priority of a message, 0 to 9, by which a broker orders as *priority* means it: 9 is most urgent.

    Args:
        priority: Of a task; None: none, whatever the broker.
        zero_is_first: Whether the broker's most urgent messages are those of priority 0, as Redis has it.
    """
    return HIGHEST_PRIORITY - priority if priority is not None and zero_is_first else priority


def shown_ids(ids: Sequence[str]) -> str:
    """Return ids as Flower shows them: the first few, and how many there are."""
    shown = ", ".join(ids[:_SHOWN_IDS])
    return f"({shown})" if len(ids) <= _SHOWN_IDS else f"({len(ids)} documents: {shown}, …)"


def is_reactive(request: Mapping[str, Any]) -> bool:
    """Whether a message with these headers was published by a planner."""
    return _header(request) is not None


def _header(request: Mapping[str, Any]) -> Any:
    # Protocol 2 puts custom headers beside the task's own, and some transports into `headers`.
    header, others = request.get(HEADER), request.get("headers")
    return others.get(HEADER) if header is None and isinstance(others, Mapping) else header


def celery_ids(request: Mapping[str, Any], named: Sequence[Named]) -> list[str]:
    """Return the Celery id of each record that a message names, in their order."""
    namespace = str(_header(request).get("ns"))
    return [one.key.celery_id(namespace, one.cycle) for one in named]


def most_attempts(request: Mapping[str, Any]) -> int | None:
    """Return how often the records of a message are tried at most; None: without end, or nobody said."""
    most = _header(request).get("max")
    return most if isinstance(most, int) else None


def unpack(task: str, request: Mapping[str, Any], args: Any) -> list[Named]:
    """Return the records that a message names.

    Raises:
        MessageError: It cannot be read.
    """
    header = _header(request)
    version = header.get("v") if isinstance(header, Mapping) else None
    if version != _VERSION:
        raise MessageError(f"expected message version {_VERSION} for {task}, got {version!r}; upgrade this worker")
    try:
        (ids,) = args
        if not isinstance(ids, (list, tuple)):
            raise TypeError(f"expected a list of ids, got {type(ids).__name__}")  # noqa: TRY301 -- one way out
        # What only people see may be missing: not every version of the planner says it.
        attempts = header.get("attempts") or [0] * len(ids)
        named = [
            Named(RecordKey(task, id_from_text(text)), int(cycle), int(spent))
            for text, cycle, spent in zip(ids, header["cycles"], attempts, strict=True)
        ]
    except (TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
        raise MessageError(f"a message for {task} cannot be read: {error}") from error
    if not named:
        raise MessageError(f"a message for {task} names no record")
    return named
