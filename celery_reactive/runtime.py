"""The parts of an app's reactive side, frozen and passed down: settings, tasks, MongoDB, events.

Made by the composition root (`app.py`). Knows nothing of Celery, planner or worker.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

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

    def emit(self, event: Event) -> None:
        """Log *event* and tell every listener."""
        logger.log(event.level, event.message, extra={"event": event.code, "facts": event.facts()})
        for listener in self.listeners:
            try:
                listener(event)
            except Exception:
                logger.exception("event listener raised", extra={"event": event.code})
