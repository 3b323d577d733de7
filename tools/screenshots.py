"""Takes the pictures of the dashboard that the documentation shows, of a shop with records in every state.

Needs chromium. Starts a MongoDB of its own, nothing else: what planner and workers would have written is written here.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import socket
import sys
import threading
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvicorn
from bson import ObjectId
from celery import Celery
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from celery_reactive import Reactive, embedded, reactive_task  # noqa: E402 -- the path comes first
from celery_reactive.core.outcome import Completed, Errored, Exhausted, Failure, Outcome  # noqa: E402
from celery_reactive.core.record import id_to_text  # noqa: E402
from celery_reactive.core.totals import FAILED, SUCCESS, Distribution, Totals  # noqa: E402
from celery_reactive.metrics import catalogue  # noqa: E402
from celery_reactive.metrics.counts import Counts  # noqa: E402
from celery_reactive.store import definitions, flow, instances, measures, queries  # noqa: E402
from tests.integration.bench import Bench  # noqa: E402

IMAGES = ROOT / "docs" / "images"
TASKS = {
    "sync_order_to_erp": "orders",
    "send_confirmation": "orders",
    "update_search_index": "products",
    "recalculate_customer": "customers",
}
SEED = 11
DOCUMENTS = 900
BAD_WHILE = timedelta(minutes=20), timedelta(minutes=34)
"""So long ago many runs failed."""
MOST_DRAWN = 200
"""Runs of a step that are drawn; more are multiples of them."""
OPLOG = timedelta(hours=53)
"""What the picture's server would have after some days."""
TRACEBACK = """Traceback (most recent call last):
  File "shop/tasks.py", line 41, in sync_order_to_erp
    erp.post("/orders", order, password='secret')
  File "shop/erp.py", line 17, in post
    response.raise_for_status()
shop.erp.ErpError: 503 Service Unavailable"""


def main() -> None:
    """Fill a shop, serve its dashboard, take the pictures."""
    measures.oplog_window = lambda globals_: OPLOG  # noqa: ARG005 -- as it is called
    with embedded.mongodb() as mongodb:
        reactive = _app(mongodb.url_of("shop"))
        failed = _fill(reactive)
        listener = socket.create_server(("127.0.0.1", 0))
        application = reactive.dashboard(title="Shop", flower_url="https://flower.example")
        server = uvicorn.Server(uvicorn.Config(application, log_level="error", proxy_headers=False, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            _shoot(f"http://localhost:{listener.getsockname()[1]}", failed)
        finally:
            server.should_exit = True
            thread.join()


def _app(url: str) -> Reactive:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.reactive_mongodb_url = url

    def handler(ctx: Any) -> None:
        """Never called here."""

    for name, collection in TASKS.items():
        limits = {"rate_limit": "100/m"} if name == "sync_order_to_erp" else {}
        options = {"watch_projection": {"status": 1, "total": 1, "customer": 1}, "debounce": 0, **limits}
        reactive_task(collection=collection, task=name, **options)(app.task(handler, name=f"shop.{name}", shared=False))
    app.finalize()
    return Reactive.of(app)


def _fill(reactive: Reactive) -> Any:
    """Write what planner and workers would have written; return the id of a document whose run has failed."""
    chance = random.Random(SEED)  # noqa: S311 -- pictures, no secrets
    failed = None
    for number, task in enumerate(reactive.registry):
        connection = reactive.runtime.connection
        bench = Bench(connection, task)
        namespace = connection.namespace(task)
        definitions.define(connection.globals(), task, namespace=namespace, collated=False, term=1)
        found = _run_some(bench, chance, share_failed=0.006 * (3 - number))
        failed = failed or found
    _age(reactive, chance)
    _attend(reactive)
    _flow(reactive, chance)
    reactive.pause("recalculate_customer")
    reactive.throttle("send_confirmation", "20m")
    reactive.start_operation("retry", by="ops (dashboard)", task="send_confirmation", status="failed")
    reactive.runtime.connection.database().orders.update_one({"_id": failed}, {"$set": {"status": "shipped"}})
    return failed


def _run_some(bench: Bench, chance: random.Random, *, share_failed: float) -> Any:
    documents = [_document(bench, number, chance) for number in range(DOCUMENTS)]
    bench.source.insert_many(documents)
    ids = [document["_id"] for document in documents]
    bench.observe(*ids)
    failed = None
    for first in range(0, len(ids) - 20, 100):
        for claim in bench.claim(*ids[first : first + 90]):
            outcome = _outcome(chance, share_failed)
            bench.settle(claim, outcome)
            failed = claim.key.doc_id if isinstance(outcome, Exhausted) else failed
    bench.claim(*ids[-6:])
    return failed if bench.source.name == "orders" else None


def _document(bench: Bench, number: int, chance: random.Random) -> dict[str, Any]:
    doc_id: Any = f"C-{number:05}" if bench.source.name == "customers" else ObjectId()
    customer = {"name": "Ada", "email": "ada@example.org", "password": "secret"}
    return {"_id": doc_id, "status": "paid", "total": chance.randint(10, 900), "customer": customer}


def _outcome(chance: random.Random, share_failed: float) -> Outcome:
    took = timedelta(milliseconds=chance.lognormvariate(3, 0.6))
    number = chance.random()
    if number < share_failed:
        message = f"order {chance.randint(1000, 9999)} refused after {chance.randint(2, 9)} tries: Service Unavailable"
        return Exhausted(Failure(message, "ErpError", TRACEBACK), took)
    if number < 2 * share_failed:
        missing = f"customer {uuid.UUID(int=chance.getrandbits(128))} not found"
        return Errored(Failure(missing, "LookupError", ""), took, timedelta(minutes=chance.randint(2, 50)))
    return Completed(took, document_checked=False)


def _age(reactive: Reactive, chance: random.Random) -> None:
    """Let the runs lie within the last hour and a half, rather than all in this second."""
    ago = {"$toLong": {"$multiply": [{"$rand": {}}, 5_400_000]}}
    waited = {"$toLong": {"$multiply": [{"$rand": {}}, {"$rand": {}}, chance.randint(90, 110)]}}
    database = reactive.runtime.connection.database()
    for collection in set(TASKS.values()):
        steps: list[dict[str, Any]] = [
            {"$set": {"lastFinalizedAt": {"$subtract": ["$lastFinalizedAt", ago]}}},
            {"$set": {"dueAt": {"$subtract": ["$lastFinalizedAt", 60]}}},
            {"$set": {"startedAt": {"$add": ["$dueAt", waited]}, "createdAt": "$dueAt", "updatedAt": "$dueAt"}},
            {"$set": {"firstErrorAt": {"$cond": ["$firstErrorAt", "$lastFinalizedAt", None]}}},
        ]
        database[f"{collection}_tasks"].update_many({"status": {"$in": ["completed", "failed"]}}, steps)


def _attend(reactive: Reactive) -> None:
    """Let a planner lead and workers live."""
    globals_ = reactive.runtime.connection.globals()
    facts = {"queues": ["celery", "erp"], "slots": 8, "pool": "prefork"}
    for worker in ("celery@worker-1", "celery@worker-2"):
        instances.announce(globals_, instances.Kind.WORKER, worker, facts)
    for planner in ("planner-1", "planner-2"):
        instances.announce(globals_, instances.Kind.PLANNER, planner, {})
    led = (("planner-2", 261, 170), ("planner-1", 170, 169.99), ("planner-2", 169.98, 93), ("planner-1", 93, None))
    terms = [
        {"term": number, "holder": name, "since": _ago(begun)} | ({"releasedAt": _ago(ended)} if number == 1 else {})
        for number, (name, begun, ended) in enumerate(led, 1)
    ]
    lock = {"holder": "planner-1", "term": 4, "since": _ago(93), "renewedAt": "$$NOW", "terms": terms}
    globals_.update_one({"_id": {"k": "leader", "g": "default"}}, [{"$set": lock}], upsert=True)
    position = {"at": "$$CLUSTER_TIME", "storedAt": "$$NOW"}
    globals_.update_one({"_id": {"k": "position", "g": "default", "db": "shop"}}, [{"$set": position}], upsert=True)
    names = {"_id": {"$in": [{"k": "task", "t": task} for task in TASKS]}}
    globals_.update_many(names, [{"$set": {"reconciledGen": "$gen"}}])


def _ago(thousands_of_seconds: float | None) -> dict[str, Any]:
    return {"$subtract": ["$$NOW", int((thousands_of_seconds or 0) * 1_000_000)]}


def _flow(reactive: Reactive, chance: random.Random) -> None:
    """Let the leader have kept what was run within the last day: more by day than by night."""
    globals_ = reactive.runtime.connection.globals()
    now = queries.server_time(globals_)
    for pace in flow.Pace:
        steps = pace.kept // pace.step
        begin = now.replace(second=5, microsecond=0) - steps * pace.step
        for number in range(steps):
            since = begin + number * pace.step
            busy = (140 + 110 * math.sin(number / steps * 9)) * chance.uniform(0.8, 1.2)
            runs = int(busy * pace.step.total_seconds() / 60)
            is_bad = BAD_WHILE[0] <= now - since <= BAD_WHILE[1]
            entries = _counted(chance, runs, failed=runs // (4 if is_bad else 60)).to_entries()
            step = {"k": "flow", "i": pace.value, "at": since + pace.step}
            globals_.insert_one({"_id": step, "since": since, "all": entries, "tasks": []})


def _counted(chance: random.Random, runs: int, *, failed: int) -> Totals:
    """Return what workers would have counted of so many runs."""
    counts = Counts()
    for _ in range(min(runs, MOST_DRAWN)):
        counts.observe(catalogue.DURATION, "", SUCCESS, value=chance.lognormvariate(-3.4, 0.7))
        counts.observe(catalogue.WAIT, "", value=chance.lognormvariate(-4.2, 0.8))
    for _ in range(failed):
        counts.observe(catalogue.DURATION, "", FAILED, value=chance.lognormvariate(-1, 0.5))
    seen = counts.totals().distributions
    scale = max(1, runs // MOST_DRAWN)
    scaled = {
        name: Distribution(one.bounds, tuple(scale * number for number in one.numbers), one.sum * scale)
        for name, one in seen.items()
    }
    return Totals({}, scaled)


def _shoot(address: str, failed: Any) -> None:
    record = f"/record?task=sync_order_to_erp&doc_id={quote(id_to_text(failed))}"
    pages = {
        "dashboard-overview": ("/", "light", 1280, 880),
        "dashboard-record-dark": (record, "dark", 1280, 880),
        "dashboard-errors": ("/errors", "light", 1280, 430),
        "dashboard-planner": ("/planner", "light", 1280, 1030),
        "dashboard-phone": ("/", "dark", 390, 800),
    }
    with sync_playwright() as playwright:
        program = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, (path, scheme, width, height) in pages.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(address + path)
            page.wait_for_load_state("networkidle")
            page.screenshot(path=IMAGES / f"{name}.png")
            print(IMAGES / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
