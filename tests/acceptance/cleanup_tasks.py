"""Tasks of a project whose records go in different ways."""

import os

from celery import Celery

from celery_reactive import CleanupPolicy, reactive_task

app = Celery("proj", broker=os.environ["BROKER_URL"])
app.conf.reactive_mongodb_url = os.environ["MONGODB_URL"]
app.conf.reactive_leader_ttl = "3s"
app.conf.reactive_cleanup_interval = os.environ.get("CLEANUP_INTERVAL", "24h")
app.conf.broker_connection_retry_on_startup = True

at_once = CleanupPolicy(keep_for=0)


@reactive_task(task="job", collection="jobs", debounce=0, cleanup_policy=at_once)
@app.task
def job(ctx):
    document = ctx.get_document()
    if document.get("finish"):
        ctx.client.get_default_database().jobs.delete_one({"_id": ctx.doc_id})


@reactive_task(task="report", collection="jobs", debounce=0, cleanup_policy={"delete_when": "never"})
@app.task
def report(ctx):
    pass


if "FORMER" in os.environ:

    @reactive_task(task="former", collection="jobs", debounce=0)
    @app.task
    def former(ctx):
        pass
