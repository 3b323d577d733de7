"""Ending a wait: a record that backs off, is deferred or debounces becomes due without time passing.

For tests only, so it is no transition and not among the statements of `store/records`: the record is what it would be
had the time come, with its attempts, its deferrals and its history. Nothing that runs in production may call this.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from celery_reactive.app import Reactive
from celery_reactive.core.record import RecordKey
from celery_reactive.core.states import CLAIM
from celery_reactive.store import pipelines, wake
from celery_reactive.store.errors import translating


def make_due(app: Celery, task: str, doc_id: Any) -> bool:
    """Make a waiting record due now, as if the time had passed; the planner dispatches it at once.

    `attempts`, `dueAt` and `lastError` stay. A pause, a throttle or a limit of the task still holds it back.

    Args:
        app: The Celery app.
        task: The task's name.
        doc_id: The document's `_id`, taken literally.

    Returns:
        Whether the record was waiting: false where there is none, it runs or has ended.

    Raises:
        UnknownTaskError: There is no such task; the message lists the known ones.
        StoreUnavailableError: MongoDB does not answer; it may be due or not.
    """
    app.loader.import_default_modules()
    app.finalize()
    runtime = Reactive.of(app).runtime
    definition = runtime.registry.get(task)
    due = {"nextRunAt": "$$NOW", "_r.wakeAt": "$$NOW", "_r.sent": False, "_r.dispatches": 0}
    with translating():
        changed = runtime.connection.records(definition).update_one(
            {"_id": RecordKey(task, doc_id).id, **pipelines.state_is(CLAIM.sources)},
            [{"$set": due}],
        )
    wake.wake(runtime.connection.globals(), task)
    return changed.matched_count == 1
