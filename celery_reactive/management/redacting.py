"""What people are shown of what management finds: secrets masked in snapshots, errors and filters; ids and keys stay.

Called by the command line. What a secret is, `core.redaction` decides. Must not be called for what a program of the
user's asks for: that gets values as they are stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from celery_reactive.core.redaction import Redaction
from celery_reactive.management.explain import Explanation
from celery_reactive.management.listing import Page, TaskRecord
from celery_reactive.management.operations import Operation
from celery_reactive.management.status import Status
from celery_reactive.store.unplanned import Unplanned


def record(one: TaskRecord, redaction: Redaction) -> TaskRecord:
    """Return a record as people see it."""
    return dataclasses.replace(
        one,
        last_observed_values=redaction.value(one.last_observed_values),
        last_error=_text(one.last_error, redaction),
        last_error_traceback=_text(one.last_error_traceback, redaction),
        execution_history=tuple(_history(entry, redaction) for entry in one.execution_history),
    )


def page(found: Page, redaction: Redaction) -> Page:
    """Return a page of records as people see it."""
    return dataclasses.replace(found, items=[record(one, redaction) for one in found.items])


def explanation(found: Explanation, redaction: Redaction) -> Explanation:
    """Return an explanation as people see it: its sentences quote errors."""
    return dataclasses.replace(
        found,
        reasons=tuple(dataclasses.replace(reason, text=redaction.text(reason.text)) for reason in found.reasons),
        record=None if found.record is None else record(found.record, redaction),
    )


def failure(one: Unplanned, redaction: Redaction) -> Unplanned:
    """Return a document that could not be planned as people see it."""
    return dataclasses.replace(one, error=redaction.text(one.error))


def status(found: Status, redaction: Redaction) -> Status:
    """Return the state of the system as people see it."""
    return dataclasses.replace(found, first_failures=tuple(failure(one, redaction) for one in found.first_failures))


def operation(one: Operation, redaction: Redaction) -> Operation:
    """Return an operation as people see it: its filters quote documents and errors."""
    asked = {name: _told(name, value, redaction) for name, value in one.asked.items()}
    return dataclasses.replace(one, asked=redaction.value(asked), error=_text(one.error, redaction))


def _history(entry: Mapping[str, Any], redaction: Redaction) -> Mapping[str, Any]:
    return {name: _told(name, value, redaction) for name, value in entry.items()}


def _told(name: str, value: Any, redaction: Redaction) -> Any:
    """Return what goes by *name* among other things: of those, errors are texts."""
    return redaction.text(value) if name == "error" and isinstance(value, str) else value


def _text(text: str | None, redaction: Redaction) -> str | None:
    return None if text is None else redaction.text(text)
