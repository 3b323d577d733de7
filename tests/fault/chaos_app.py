"""The user's project under chaos: two tasks whose handlers do all that handlers do, and write down each of their runs.

Loaded by the planners and workers of `stage` (`-A tests.fault.chaos_app`). What a run does is drawn from the seed, its
document and its attempt. A run is written down before and after its work, with majority, by the database's clock for
people and by the machine's monotonic clock, which all processes share, for `audit`.

`sync` reads its document and watches `v`; `tally` goes by its watched values alone and travels in company.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from bson import ObjectId
from celery import Celery
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from celery_reactive import TaskConditionFailedError, TaskContext, reactive_task
from celery_reactive.planner import dispatch
from tests.fault.audit import LEASE_SECONDS, MAX_ATTEMPTS

SEED = os.environ["CHAOS_SEED"]
POISON_EVERY = 50

app = Celery("chaos", broker=os.environ["CHAOS_BROKER_URL"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    reactive_instance_id=os.environ["CHAOS_INSTANCE"],
    reactive_leader_ttl="3s",
    reactive_mongodb_url=os.environ["CHAOS_MONGODB_URL"],
    reactive_visibility_timeout=f"{LEASE_SECONDS}s",
    worker_hijack_root_logger=False,
)
# A lost message is sent again after seconds instead of a minute, so that much happens.
dispatch._FIRST_DEADLINE = timedelta(seconds=4)
dispatch._LONGEST_DEADLINE = timedelta(seconds=8)


class ChaosError(Exception):
    """What a handler of this project raises."""


@reactive_task(
    task="sync",
    collection="orders",
    filter={"open": True},
    watch_projection={"v": 1},
    debounce=0,
    retry_policy={"type": "fixed", "interval": "300ms", "max_attempts": MAX_ATTEMPTS},
)
@app.task(name="chaos.sync")
def sync(ctx: TaskContext) -> None:
    """Read the document, and do one of the things that handlers do."""
    with written_down(ctx) as run:
        chance = random.Random(f"{SEED} sync {ctx.doc_id} {ctx.watched_values} {ctx.attempt} {ctx.deferrals}")
        what = chance.choices(
            ["quick", "fail", "defer", "slow", "very slow", "read late"], weights=[74, 6, 5, 5, 2, 8]
        )[0]
        if what == "read late":
            work(chance.uniform(0.1, 0.6))
        document = ctx.get_document()
        if what == "fail" or document["v"] % POISON_EVERY == POISON_EVERY - 1:
            raise ChaosError(f"attempt {ctx.attempt}")
        if what == "defer" and ctx.deferrals == 0:
            ctx.defer_current("300ms")
            run["outcome"] = "deferred"
            return
        work({"slow": chance.uniform(0.5, 2), "very slow": chance.uniform(3, 6)}.get(what, chance.uniform(0, 0.06)))
        run["saw"] = {"v": document["v"], "w": document["w"]}


@reactive_task(
    task="tally",
    collection="orders",
    filter={"open": True},
    watch_projection={"v": 1, "w": 1},
    debounce="200ms",
    chunk=8,
    retry_policy={"type": "fixed", "interval": "200ms", "max_attempts": -1},
)
@app.task(name="chaos.tally")
def tally(ctx: TaskContext) -> None:
    """Go by the watched values, quickly, now and then failing."""
    with written_down(ctx) as run:
        chance = random.Random(f"{SEED} tally {ctx.doc_id} {ctx.watched_values} {ctx.attempt}")
        work(chance.uniform(0, 0.03))
        if chance.random() < 0.05:
            raise ChaosError(f"attempt {ctx.attempt}")
        run["saw"] = ctx.watched_values


@contextmanager
def written_down(ctx: TaskContext) -> Iterator[dict[str, Any]]:
    """Write down a run's start and its end; the body says what it saw, and what came of it if it was not handled."""
    one = {"_id": ObjectId()}
    facts = ctx._run
    begun = {
        "task": ctx.task,
        "doc": {"$literal": ctx.doc_id},
        "attempt": ctx.attempt,
        "fence": ctx.fence,
        "token": facts.claim.token,
        "worker": os.environ["CHAOS_INSTANCE"],
        "pid": os.getpid(),
        "watched": {"$literal": ctx.watched_values},
        "started": "$$NOW",
        "startedMono": time.monotonic(),
    }
    write(lambda runs: runs.update_one(one, [{"$set": begun}], upsert=True))
    said: dict[str, Any] = {"outcome": "handled"}
    try:
        yield said
    except BaseException as error:
        gone_on = isinstance(error, TaskConditionFailedError)
        said["outcome"] = f"condition: {error}" if gone_on else type(error).__name__
        raise
    finally:
        ended = {
            **{name: {"$literal": value} for name, value in said.items()},
            "finished": "$$NOW",
            "finishedMono": time.monotonic(),
            "renewed": facts.renewed,
            "leaseLost": ctx.lease_lost,
        }
        write(lambda runs: runs.update_one(one, [{"$set": ended}]))


def work(seconds: float) -> None:
    """Stand for work."""
    threading.Event().wait(seconds)


_clients: dict[int, MongoClient[dict[str, Any]]] = {}


def write(statement: Callable[[Any], object]) -> None:
    """Write to `runs` until it has been acknowledged, however long the database is away."""
    client = _clients.get(os.getpid())
    if client is None:
        client = _clients[os.getpid()] = MongoClient(
            os.environ["CHAOS_MONGODB_URL"], appname="chaos-audit", serverSelectionTimeoutMS=2000, socketTimeoutMS=2000
        )
    runs = client.get_default_database().get_collection("runs", write_concern=WriteConcern("majority"))
    while True:
        try:
            statement(runs)
        except PyMongoError:
            threading.Event().wait(0.1)
        else:
            return
