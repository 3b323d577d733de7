"""One Celery-style signal per event (B-54): `celery_reactive.signals.run_finished.connect(receiver)`.

Sent with `sender` the Celery app and the event's fields as keyword arguments, plus `event` itself,
in the process where it happened: planner, worker child, or the caller of a management function. A
receiver that raises is logged by Celery and harms nothing.
"""

from __future__ import annotations

import dataclasses

from celery.utils.dispatch import Signal

from celery_reactive.events import EVENTS

SIGNALS: dict[str, Signal] = {
    event.code: Signal(
        name=event.code,
        providing_args={"event", *(field.name for field in dataclasses.fields(event))},
    )
    for event in EVENTS
}
"""Every signal by its code."""

globals().update(SIGNALS)

__all__ = ["SIGNALS", *sorted(SIGNALS)]  # noqa: PLE0604 -- one name per event, made from the table
