"""The tasks of the acceptance tests' project: each document says what its run shall do."""

import asyncio
import os
import sys
import time

from celery import Celery

from celery_reactive import TaskConditionFailedError, reactive_task

app = Celery("proj", broker=os.environ["BROKER_URL"])
app.conf.reactive_mongodb_url = os.environ["MONGODB_URL"]
app.conf.reactive_instance_id = os.environ.get("INSTANCE")
app.conf.reactive_leader_ttl = "3s"
app.conf.reactive_visibility_timeout = "30s"
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_soft_shutdown_timeout = float(os.environ.get("SOFT_SECONDS", "0"))

quick = {"type": "fixed", "interval": "200ms", "max_attempts": 2}


@reactive_task(task="job", collection="jobs", watch_projection={"do": 1, "n": 1}, debounce=0, retry_policy=quick)
@app.task(bind=True)
def job(self, ctx):
    document = ctx.get_document()
    database = ctx.client.get_default_database()
    database.runs.insert_one({"doc": ctx.doc_id, "n": document.get("n"), "celery": self.request.id})
    first = ctx.attempt == 1
    match document["do"]:
        case "fail":
            raise ValueError("$always")
        case "fail once" if first:
            raise ValueError("once")
        case "kill" if first:
            os.kill(os.getpid(), 9)
        case "exit" if first:
            sys.exit(3)
        case "defer" if ctx.deferrals == 0:
            ctx.defer_current("300ms")
        case "retry" if first:
            raise self.retry(countdown=0.3, exc=KeyError("asked"))
        case "slow":
            time.sleep(1.5)
        case "throttle":
            ctx.throttle_all("2s")
        case "mark":
            ctx.mark_completed()
            raise ValueError("too late")
        case "transaction":
            with ctx.client.start_session() as session:
                session.with_transaction(
                    lambda session: (
                        database.out.insert_one({"fence": ctx.fence}, session=session),
                        ctx.mark_completed(session=session),
                    )
                )
            raise ValueError("too late")
        case "abort" if first:
            with ctx.client.start_session() as session:
                session.start_transaction()
                ctx.mark_completed(session=session)
                session.abort_transaction()
            raise ValueError("aborted")
        case "move on" if document["n"] == 1:
            database.jobs.update_one({"_id": ctx.doc_id}, {"$set": {"n": 2}})
            try:
                ctx.get_document()
            except TaskConditionFailedError:
                return
        case _:
            return


@reactive_task(task="limited", collection="limited", debounce=0, retry_policy=quick)
@app.task(time_limit=2)
def limited(ctx):
    if ctx.attempt == 1:
        time.sleep(30)


@reactive_task(task="coroutine", collection="jobs", watch_projection={"_id": 1}, debounce=0)
@app.task
async def coroutine(ctx):
    await asyncio.sleep(0.001)
