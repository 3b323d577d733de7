"""The project whose outcomes the matrix compares: the same bodies as reactive tasks and as plain Celery tasks.

A document says in `do` what its run shall do. Whatever goes wrong goes wrong in the first call only, unless it says
otherwise, so that a second call shows that there was one.
"""

import contextlib
import os
import signal
import sys
import threading
import time

from celery import Celery
from celery.app.defaults import NAMESPACES
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from pymongo import MongoClient

from celery_reactive import reactive_task

QUORUM = os.environ.get("QUEUE_TYPE") == "quorum"
SOFT_LIMIT, HARD_LIMIT = 1.0, 2.0
BEYOND_SOFT, BEYOND_HARD = 1.5, 3.0

app = Celery("matrix", broker=os.environ.get("BROKER_URL", "memory://"))
app.conf.update(
    reactive_mongodb_url=os.environ.get("MONGODB_URL", "mongodb://localhost"),
    reactive_instance_id=os.environ.get("INSTANCE"),
    reactive_visibility_timeout="4s",
    reactive_leader_ttl="3s",
    task_default_queue=os.environ.get("QUEUE", "celery"),
    worker_soft_shutdown_timeout=float(os.environ.get("SOFT_SECONDS", "0")),
    worker_proc_alive_timeout=30,
    broker_connection_retry_on_startup=True,
)
if QUORUM:
    # As Celery's documentation has it for quorum queues.
    app.conf.update(
        task_default_queue_type="quorum",
        task_default_exchange=os.environ["QUEUE"],
        task_default_exchange_type="topic",
        task_default_routing_key=os.environ["QUEUE"],
    )
if os.environ.get("START_METHOD") == "spawn":
    if "pool_start_method" in NAMESPACES["worker"]:
        app.conf.worker_pool_start_method = "spawn"
    else:
        import billiard

        os.environ["FORKED_BY_MULTIPROCESSING"] = "1"
        billiard.set_start_method("spawn", force=True)


class AutoError(Exception):
    """What `autoretry_for` names."""


_clients = {}


def database():
    pid = os.getpid()
    if pid not in _clients:
        _clients[pid] = MongoClient(os.environ["MONGODB_URL"])
    return _clients[pid].get_default_database()


def is_at_work(run):
    """Whether the process or thread of a run without an end is still there."""
    if run["pid"] == os.getpid():
        return run["thread"] != threading.get_ident() and any(
            thread.ident == run["thread"] for thread in threading.enumerate()
        )
    try:
        with open(f"/proc/{run['pid']}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def noted(doc, together):
    """Note begin and end of a call, and whether an earlier one was still at work."""
    runs = database().runs
    earlier = list(runs.find({"doc": doc}))
    overlaps = any("end" not in run and is_at_work(run) for run in earlier)
    run = {"doc": doc, "pid": os.getpid(), "thread": threading.get_ident(), "begin": time.time()}
    number = runs.insert_one({**run, "overlaps": overlaps, "together": together, "n": len(earlier) + 1}).inserted_id
    ok = False
    try:
        yield len(earlier) == 0
        ok = True
    finally:
        runs.update_one({"_id": number}, {"$set": {"end": time.time(), "ok": ok}})


def behave(self, doc, do, first, ctx):
    match do:
        case "error_always":
            raise ValueError("always")
        case "ignore":
            raise Ignore("not needed")
        case "reject":
            raise Reject("not wanted")
        case "skip":
            database().docs.update_one({"_id": doc}, {"$set": {"task": "none"}})
            ctx.get_document()
        case "defer" if ctx.deferrals == 0:
            ctx.defer_current("300ms")
        case "limited" | "stubborn" | "overrun" if first:
            overrun(do)
        case _ if first:
            misbehave(self, do)


def overrun(do):
    """Take longer than the soft limit; where that does not end it, longer than the hard one if asked to."""
    try:
        time.sleep(BEYOND_SOFT if do == "limited" else BEYOND_HARD)
    except SoftTimeLimitExceeded:
        if do != "stubborn":
            raise
        time.sleep(BEYOND_HARD)


def misbehave(self, do):
    kind, _, seconds = do.partition(":")
    match kind:
        case "error_once":
            raise ValueError("once")
        case "retry":
            raise self.retry(countdown=1)
        case "autoretry":
            raise AutoError("once")
        case "memory":
            raise MemoryError("none left")
        case "exit":
            sys.exit(3)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(1)
        case "nap":
            time.sleep(float(seconds))


def define(acks, limited):
    """Make the reactive tasks and the plain one of these options."""
    options = {"bind": True, "shared": False, "acks_late": acks == "late", "autoretry_for": (AutoError,)}
    options["retry_kwargs"] = {"countdown": 1}
    if limited:
        options.update(soft_time_limit=SOFT_LIMIT, time_limit=HARD_LIMIT)
    suffix = f"{acks}_limited" if limited else acks

    def handler(self, ctx):
        header = getattr(self.request, "reactive", None) or (self.request.headers or {}).get("reactive") or {}
        with noted(ctx.doc_id, len(header.get("cycles", ()))) as first:
            behave(self, ctx.doc_id, ctx.watched_values["do"], first, ctx)

    def plain(self, doc, do):
        with noted(doc, 0) as first:
            behave(self, doc, do, first, None)

    for company, chunk in (("alone", 1), ("company", 40)):
        name = f"{company}_{suffix}"
        reactive_task(
            task=name,
            collection="docs",
            filter={"task": name},
            watch_projection={"do": 1},
            debounce=0,
            chunk=chunk,
            retry_policy={"type": "fixed", "interval": "300ms", "max_attempts": 2},
        )(app.task(name=name, **options)(handler))
    app.task(name=f"plain_{suffix}", **options)(plain)


for acks in ("early", "late"):
    define(acks, limited=False)
    define(acks, limited=True)
