"""A task that notes when each of its runs began and ended, sent to a queue of the test's own."""

import os
import time
from datetime import UTC, datetime

from celery import Celery

from celery_reactive import reactive_task

app = Celery("proj", broker=os.environ["BROKER_URL"])
app.conf.task_default_queue = os.environ["QUEUE"]
app.conf.reactive_mongodb_url = os.environ["MONGODB_URL"]
app.conf.reactive_leader_ttl = "3s"
app.conf.broker_connection_retry_on_startup = True


@reactive_task(task="job", collection="jobs", debounce=0)
@app.task
def job(ctx):
    began = datetime.now(UTC)
    time.sleep(0.2)
    runs = ctx.client.get_default_database().runs
    runs.insert_one({"doc": ctx.doc_id, "began": began, "ended": datetime.now(UTC)})
