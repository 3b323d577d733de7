"""The tasks of `test_worker.py`: one for each way a run may end, all on the collection `docs`."""

import asyncio
import os
import signal
import sys
import threading
import time

from celery import Celery, Task, shared_task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.signals import task_postrun, task_prerun

from celery_reactive import Reactive, TaskConditionFailedError, reactive_task

app = Celery("proj", broker=os.environ["BROKER_URL"])
app.conf.update(
    reactive_mongodb_url=os.environ["MONGODB_URL"],
    reactive_visibility_timeout="10s",
    reactive_task_caller="proj.noted",
    task_default_queue=os.environ["QUEUE"],
    broker_connection_retry_on_startup=True,
)


def database():
    return Reactive.of(app).runtime.connection.client.get_default_database()


def note(what, **facts):
    database().notes.insert_one({"what": what, **facts})


def noted(call, ctx):
    note("caller", doc=ctx.doc_id)
    try:
        call()
    except Exception:
        if ctx.doc_id == "swallowed by the caller":
            return
        raise


def watching(name, **options):
    """Make a reactive task of the documents that name it, tried twice with a long wait between."""
    return reactive_task(
        **{
            "task": name,
            "collection": "docs",
            "filter": {"task": name},
            "watch_projection": {"v": 1},
            "debounce": 0,
            "retry_policy": {"type": "fixed", "interval": "60s", "max_attempts": 2},
            **options,
        }
    )


def reactive(celery=None, **options):
    """Make a Celery task with the options *celery*, and a reactive one of it."""

    def decorate(function):
        celery_task = app.task(**{"name": function.__name__, **(celery or {})})(function)
        return watching(function.__name__, **options)(celery_task)

    return decorate


@task_prerun.connect
def on_prerun(task_id=None, task=None, args=None, **_):
    if hasattr(task, "reactive"):
        note("prerun", id=task_id, args=list(args))


@task_postrun.connect
def on_postrun(task_id=None, task=None, state=None, **_):
    if hasattr(task, "reactive"):
        note("postrun", id=task_id, state=state)


@reactive({"bind": True})
def succeeds(self, ctx):
    document = ctx.get_document({"v": 1})
    note(
        "ran",
        doc=ctx.doc_id,
        seen=document,
        watched=ctx.watched_values,
        attempt=ctx.attempt,
        id=self.request.id,
        retries=self.request.retries,
    )


@reactive()
def fails(ctx):
    note("ran", doc=ctx.doc_id)
    raise ValueError("$broken")


@reactive(retry_policy={"type": "fixed", "interval": "1s", "max_attempts": 1})
def fails_at_last(ctx):
    raise ValueError("no more")


class OddError(Exception):
    def __init__(self, one, two):
        super().__init__(one)
        self.lock = threading.Lock()

    def __str__(self):
        raise RuntimeError("no text")


@reactive()
def fails_oddly(ctx):
    match ctx.doc_id:
        case "unprintable":
            raise OddError(1, 2)
        case "unpicklable":
            error = ValueError("locked")
            error.lock = threading.Lock()
            raise error
        case "huge":
            raise ValueError("x" * 3_000_000)
        case "surrogate":
            raise ValueError("lone \ud800 surrogate")
        case "memory":
            raise MemoryError("none left")


@reactive()
def defers(ctx):
    ctx.defer_current("1h", hold=ctx.doc_id == "held")


@reactive()
def throttles(ctx):
    ctx.throttle_all("1h")
    raise ValueError("after it")


@reactive()
def reads(ctx):
    """The document changes between observation and read."""
    moved = {"moved": {"v": 2}, "swallowed": {"v": 2}, "raised": {"v": 2}, "ignored": {"v": 2}}
    change = {**moved, "left": {"task": "other"}}.get(ctx.doc_id)
    if ctx.doc_id == "gone":
        database().docs.delete_one({"_id": ctx.doc_id})
    elif change:
        database().docs.update_one({"_id": ctx.doc_id}, {"$set": change})
    try:
        ctx.get_document()
    except TaskConditionFailedError as error:
        note("refused", doc=ctx.doc_id, reason=error.reason)
        if ctx.doc_id in ("swallowed", "swallowed gone"):
            return
        if ctx.doc_id == "raised":
            raise KeyError("mine") from error
        if ctx.doc_id == "ignored":
            raise Ignore("nothing to do") from error
        if ctx.doc_id == "marked":
            ctx.mark_completed()
            return
        raise


@reactive()
def marks(ctx):
    with ctx.client.start_session() as session:
        match ctx.doc_id:
            case "alone":
                ctx.mark_completed()
                ctx.defer_current("1h")
                raise ValueError("ignored")
            case "committed":
                with session.start_transaction():
                    database().out.insert_one({"doc": ctx.doc_id}, session=session)
                    ctx.mark_completed(session=session)
                raise ValueError("ignored")
            case "aborted":
                session.start_transaction()
                database().out.insert_one({"doc": ctx.doc_id}, session=session)
                ctx.mark_completed(session=session)
                session.abort_transaction()
                ctx.defer_current("1h")
            case "repeated":
                attempts = []

                def body(session):
                    attempts.append(1)
                    database().out.insert_one({"doc": ctx.doc_id}, session=session)
                    if len(attempts) == 1:
                        database().client.admin.command(
                            {
                                "configureFailPoint": "failCommand",
                                "mode": {"times": 1},
                                "data": {
                                    "failCommands": ["findAndModify"],
                                    "errorCode": 112,
                                    "errorLabels": ["TransientTransactionError"],
                                },
                            }
                        )
                    ctx.mark_completed(session=session)

                session.with_transaction(body)
                note("repeated", times=len(attempts))


@reactive()
def dies(ctx):
    note("ran", doc=ctx.doc_id)
    match ctx.doc_id.partition("/")[0]:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exits":
            sys.exit(3)


@reactive(retry_policy={"type": "fixed", "interval": "60s", "max_attempts": 1})
def dies_at_last(ctx):
    dies.run(ctx)


@reactive({"time_limit": 2})
def overruns(ctx):
    time.sleep(30)


@reactive({"soft_time_limit": 1})
def overruns_softly(ctx):
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        note("soft", doc=ctx.doc_id)
        raise


@reactive({"bind": True})
def waits(self, ctx):
    note("waiting", doc=ctx.doc_id, id=self.request.id)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not database().go.find_one({"_id": ctx.doc_id}):
        time.sleep(0.05)


@reactive({"bind": True})
def helps(self, ctx):
    raise self.retry(exc=KeyError("its own"), countdown=100)


@reactive()
def asks_for_help(ctx):
    try:
        helps(1)
    except KeyError:
        note("not helped", doc=ctx.doc_id)


@reactive()
def in_company(ctx):
    note("ran", doc=ctx.doc_id)
    if ctx.doc_id % 10 == 3:
        raise ValueError("the third")


@reactive({"bind": True})
def retries(self, ctx):
    match ctx.doc_id.partition("/")[0]:
        case "countdown":
            raise self.retry(countdown=3600)
        case "with exc":
            self.retry(exc=KeyError("asked"), countdown=3600)
        case "unpicklable":
            error = ValueError("locked")
            error.lock = threading.Lock()
            self.retry(exc=error)
        case "enormous":
            self.retry(countdown=float("inf"))
        case "in except":
            try:
                raise LookupError("inner")
            except LookupError:
                self.retry()
        case "spent":
            self.retry(exc=KeyError("spent"), max_retries=0)
        case "ignore":
            raise Ignore("not today")
        case "reject":
            raise Reject("no")
        case "requeue":
            raise Reject("later", requeue=True)
        case "replace":
            self.replace(succeeds.si())


@reactive({"autoretry_for": (LookupError,), "retry_kwargs": {"countdown": 3600}})
def retries_by_itself(ctx):
    raise LookupError("auto")


@reactive()
async def awaits(ctx):
    await asyncio.sleep(0.01)
    note("ran", doc=ctx.doc_id, loop=id(asyncio.get_running_loop()), pid=os.getpid())


@reactive()
async def is_cancelled(ctx):
    note("ran", doc=ctx.doc_id, pid=os.getpid())
    part = asyncio.get_running_loop().create_task(asyncio.sleep(10))
    asyncio.get_running_loop().call_soon(part.cancel, "by itself")
    await part


@reactive(celery={"autoretry_for": (KeyError,), "retry_kwargs": {"countdown": 3600}})
async def awaits_and_retries(ctx):
    await asyncio.sleep(0.01)
    raise KeyError("auto")


class OwnBase(Task):
    abstract = True

    def __call__(self, *args, **kwargs):
        note("own call")
        return super().__call__(*args, **kwargs)

    def on_success(self, retval, task_id, args, kwargs):
        note("on_success", id=task_id, retval=retval)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        note("on_failure", id=task_id, error=str(exc))


@reactive({"base": OwnBase, "bind": True})
def based(self, ctx):
    note("ran", doc=ctx.doc_id, id=self.request.id)
    return "dropped"


@watching("shared")
@shared_task(name="shared")
def shared(ctx):
    note("ran", doc=ctx.doc_id)


@watching("plain")
def plain(ctx):
    note("ran", doc=ctx.doc_id)


@reactive()
def keeps_context(ctx):
    """Use the context from another thread during the run and after its end."""
    ended = threading.Event()

    def use():
        note("in thread", seen=ctx.get_document()["v"])
        ended.wait(10)
        for attempt in range(100):
            try:
                ctx.get_document()
            except Exception as error:
                if type(error).__name__ == "ContextEndedError":
                    note("after", error=str(error))
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=use)
    thread.start()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not database().notes.find_one({"what": "in thread"}):
        time.sleep(0.02)
    ended.set()


@reactive()
def unmanaged(*args, **kwargs):
    note("unmanaged", args=[str(arg) for arg in args], kwargs=kwargs)
