"""The project of the fault tests: leases and terms of seconds, and a handler that says what it did.

Copied into a project's folder as `proj.py`.
"""

from __future__ import annotations

import os
import threading

from celery import Celery

from celery_reactive import TaskContext, reactive_task

app = Celery("proj", broker=os.environ["BROKER_URL"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    reactive_instance_id=os.environ.get("INSTANCE"),
    reactive_leader_ttl="3s",
    reactive_mongodb_url=os.environ["MONGODB_URL"],
    reactive_visibility_timeout="3s",
)


@reactive_task(
    task="job",
    collection="jobs",
    debounce=0,
    retry_policy={"type": "fixed", "interval": "200ms", "max_attempts": 10},
)
@app.task
def job(ctx: TaskContext) -> None:
    """Do what the document asks for: nothing, or wait for so many seconds."""
    threading.Event().wait(ctx.get_document().get("seconds", 0))
