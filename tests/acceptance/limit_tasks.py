"""Tasks of a project that limits how its runs start; each notes when it ran."""

import os
import time

from celery import Celery

from celery_reactive import reactive_task

app = Celery("proj", broker=os.environ["BROKER_URL"])
app.conf.reactive_mongodb_url = os.environ["MONGODB_URL"]
app.conf.reactive_leader_ttl = "3s"
app.conf.reactive_visibility_timeout = "3s"
app.conf.broker_connection_retry_on_startup = True
app.conf.task_default_rate_limit = os.environ.get("DEFAULT_RATE")


def note(ctx, seconds):
    began = time.time()
    runs = ctx.client.get_default_database().runs
    runs.insert_one({"task": ctx.task, "doc": ctx.doc_id, "began": began, "pid": os.getpid()})
    time.sleep(seconds)
    runs.update_one({"task": ctx.task, "doc": ctx.doc_id, "began": began}, {"$set": {"ended": time.time()}})


@reactive_task(task="call", collection="jobs", filter={"call": True}, debounce=0, rate_limit="10/s")
@app.task
def call(ctx):
    note(ctx, 0)


@reactive_task(task="narrow", collection="jobs", filter={"narrow": True}, debounce=0, max_concurrency=2)
@app.task
def narrow(ctx):
    note(ctx, 0.03)


@reactive_task(task="single", collection="jobs", filter={"single": True}, debounce=0, max_concurrency=1)
@app.task
def single(ctx):
    note(ctx, ctx.get_document()["seconds"] if ctx.attempt == 1 else 0)


@reactive_task(task="loose", collection="jobs", filter={"loose": True}, debounce=0)
@app.task
def loose(ctx):
    note(ctx, 0)
