"""The parts of an app's reactive side, frozen and passed down: settings, tasks, MongoDB, events.

Made by the composition root (`app.py`). Knows nothing of Celery, planner or worker.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from celery_reactive.core.registry import Registry
from celery_reactive.events import Event
from celery_reactive.settings import Settings
from celery_reactive.store.connection import Connection

logger = logging.getLogger("celery_reactive")


@dataclasses.dataclass(frozen=True, slots=True)
class Runtime:
    """What planner, worker and management share."""

    settings: Settings
    registry: Registry
    connection: Connection
    listeners: tuple[Callable[[Event], None], ...] = ()
    """Called with each event after it was logged; one that raises is logged and harms nothing."""
    task_caller: Callable[..., Any] | None = None
    """Wraps every execution: called with the call to make and its context (B-37)."""
    task_filter: Callable[[str], object] | None = None
    """Asked with a task's name each dispatch round; where it returns false the task is held back (B-37)."""

    def emit(self, event: Event) -> None:
        """Log *event* and tell every listener."""
        if logger.isEnabledFor(event.level):
            # The message stays constant, for machines that group by it; people read the facts behind it.
            facts = {"event": event.code, "facts": event.facts()}
            logger.log(event.level, f"{event.message}: %s", event.in_words(), extra=facts)  # noqa: G004 -- constant
        for listener in self.listeners:
            try:
                listener(event)
            except Exception:
                logger.exception("event listener raised", extra={"event": event.code})

    @contextmanager
    def briefly_connected(self) -> Iterator[Self]:
        """Yield these parts with a short-lived connection of short time-outs, for a process that keeps none."""
        with self.connection.brief() as connection:
            yield dataclasses.replace(self, connection=connection)
