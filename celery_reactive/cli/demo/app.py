"""The sample project of the demo: an app with one reactive task, which writes down each of its runs.

Loaded by the demo's planners and worker (`-A celery_reactive.cli.demo.app`). Server addresses come from the
environment, as Celery and this package read them; a planner's name in the lock from CELERY_REACTIVE_DEMO_PLANNER.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from bson import ObjectId
from celery import Celery

from celery_reactive import TaskContext, reactive_task
from celery_reactive.cli.demo.audit import STATUSES, TASK

_FAILING_SHARE = 0.03
_WORK_SECONDS = (0.002, 0.015)

app = Celery("shop")
app.conf.update(
    broker_connection_retry_on_startup=True,
    reactive_leader_ttl="3s",
    reactive_metrics_push_interval="1s",
    reactive_visibility_timeout="10s",
    task_default_queue=urlsplit(os.environ.get("CELERY_REACTIVE_MONGODB_URL", "")).path.strip("/") or "demo",
    worker_redirect_stdouts=False,
)
if "CELERY_REACTIVE_DEMO_PLANNER" in os.environ:
    app.conf.reactive_instance_id = os.environ["CELERY_REACTIVE_DEMO_PLANNER"]


class ErpError(Exception):
    """The ERP has one of its moments."""


@reactive_task(
    collection="orders",
    filter={"status": {"$in": list(STATUSES)}},
    watch_projection={"status": 1, "total": 1},
    debounce=0,
    retry_policy={"type": "fixed", "interval": "500ms", "max_attempts": 20},
)
@app.task(name=TASK)
def sync_order_to_erp(ctx: TaskContext) -> None:
    """Send an order to the ERP, which sometimes fails."""
    with _written_down(ctx) as saw:
        order = ctx.get_document()
        threading.Event().wait(random.uniform(*_WORK_SECONDS))  # noqa: S311 -- stands for work
        if random.random() < _FAILING_SHARE:  # noqa: S311 -- stands for an unreliable ERP
            raise ErpError("503 Service Unavailable")
        saw.update({name: order[name] for name in ("status", "total", "writtenAt")})


@contextmanager
def _written_down(ctx: TaskContext) -> Iterator[dict[str, object]]:
    """Write down a run's start and end, by the database's clock, and what the body says it saw."""
    runs = ctx.client.get_default_database().runs
    run = {"_id": ObjectId()}
    saw: dict[str, object] = {}
    started = {"order": {"$literal": ctx.doc_id}, "attempt": ctx.attempt, "fence": ctx.fence, "startedAt": "$$NOW"}
    runs.update_one(run, [{"$set": started}], upsert=True)
    outcome = "handled"
    try:
        yield saw
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        ended = {"outcome": outcome, "saw": {"$literal": saw}, "endedAt": "$$NOW"}
        runs.update_one(run, [{"$set": ended}])
