"""The tasks of a project whose users have the shipped roles only: handlers that write nothing of their own."""

import os

from celery import Celery

from celery_reactive import CleanupPolicy, reactive_task

app = Celery("proj", broker=os.environ["BROKER_URL"])
app.conf.reactive_mongodb_url = os.environ["MONGODB_URL"]
app.conf.reactive_instance_id = os.environ.get("INSTANCE")
app.conf.reactive_leader_ttl = "3s"
app.conf.reactive_visibility_timeout = "1s"
app.conf.reactive_metrics_push_interval = "1s"
app.conf.broker_connection_retry_on_startup = True

quick = {"type": "fixed", "interval": "200ms", "max_attempts": 2}


@reactive_task(
    task="job",
    collection="jobs",
    watch_projection={"do": 1},
    debounce=0,
    retry_policy=quick,
    cleanup_policy=CleanupPolicy(keep_for=0),
)
@app.task
def job(ctx):
    match ctx.get_document()["do"]:
        case "fail":
            raise ValueError("always")
        case "kill" if ctx.attempt == 1:
            os.kill(os.getpid(), 9)
        case "defer" if ctx.deferrals == 0:
            ctx.defer_current("300ms")
        case "throttle":
            ctx.throttle_all("500ms")
        case "mark":
            with ctx.client.start_session() as session:
                session.with_transaction(lambda session: ctx.mark_completed(session=session))


@reactive_task(task="limited", collection="limited", debounce=0, rate_limit="50/s", max_concurrency=2)
@app.task
def limited(ctx):
    ctx.get_document()


@reactive_task(task="batched", collection="batched", debounce=0, batch=10)
@app.task
def batched(contexts):
    for ctx in contexts:
        ctx.get_document()
