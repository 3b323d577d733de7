"""The tasks of `test_batches.py`: a handler that gets several documents at once, each of which says what it wants."""

import os
import signal
import time

from celery import Celery

from celery_reactive import Reactive, reactive_task

app = Celery("proj", broker=os.environ["BROKER_URL"])
app.conf.update(
    reactive_mongodb_url=os.environ["MONGODB_URL"],
    reactive_visibility_timeout="10s",
    broker_connection_retry_on_startup=True,
    task_default_queue=os.environ["QUEUE"],
    task_send_sent_event=True,
)
retries = {"type": "fixed", "interval": "60s", "max_attempts": 2}


def note(self, contexts):
    database = Reactive.of(app).runtime.connection.client.get_default_database()
    database.calls.insert_one({"docs": [ctx.doc_id for ctx in contexts], "id": self.request.id})


def handle(self, contexts):
    note(self, contexts)
    for ctx in contexts:
        document = ctx.get_document()
        match document["do"]:
            case "complete":
                ctx.complete()
            case "fail":
                ctx.fail(ValueError(f"{ctx.doc_id} is broken"))
            case "defer":
                ctx.defer_current("1h")
            case "kill" if ctx.attempt == 1 and len(contexts) > 1:
                os.kill(os.getpid(), signal.SIGKILL)
            case "sleep":
                time.sleep(60)
            case "raise":
                raise RuntimeError("all of them")


watched = {"collection": "docs", "debounce": 0, "watch_projection": {"do": 1}, "retry_policy": retries}
gathered = reactive_task(task="gathered", filter={"task": "gathered"}, batch=(5, "1500ms"), **watched)(
    app.task(bind=True, name="gathered")(handle)
)
at_once = reactive_task(task="at_once", filter={"task": "at_once"}, batch=10, **watched)(
    app.task(bind=True, name="at_once")(handle)
)
limited = reactive_task(task="limited", filter={"task": "limited"}, batch={"size": 10, "wait": "1s"}, **watched)(
    app.task(bind=True, name="limited", time_limit=2)(handle)
)
