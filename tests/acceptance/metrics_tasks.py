"""Tasks of a project that is scraped: each document says what its run shall do."""

import os
import time

from celery import Celery

from celery_reactive import reactive_task

app = Celery("proj", broker=os.environ["BROKER_URL"])
app.conf.reactive_mongodb_url = os.environ["MONGODB_URL"]
app.conf.reactive_leader_ttl = "3s"
app.conf.reactive_visibility_timeout = "2s"
app.conf.broker_connection_retry_on_startup = True
app.conf.reactive_metrics_push_interval = "1s"
app.conf.worker_pool_start_method = os.environ.get("START_METHOD", "fork")
if "PORT" in os.environ:
    app.conf.reactive_metrics_scrape_mode = "local"
    app.conf.reactive_metrics_port = int(os.environ["PORT"])
elif "LOCAL" in os.environ:
    app.conf.reactive_metrics_scrape_mode = "local"

quick = {"type": "fixed", "interval": "200ms", "max_attempts": 2}


@reactive_task(task="job", collection="jobs", watch_projection={"do": 1}, debounce=0, retry_policy=quick)
@app.task
def job(ctx):
    match ctx.get_document()["do"]:
        case "fail":
            raise ValueError("always")
        case "kill" if ctx.attempt == 1:
            os.kill(os.getpid(), 9)


@reactive_task(task="limited", collection="limited", debounce=0, retry_policy=quick)
@app.task(time_limit=1)
def limited(ctx):
    time.sleep(30)


@reactive_task(task="idle", collection="others")
@app.task(queue="others")
def idle(ctx):
    pass
