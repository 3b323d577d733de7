"""Brings paid orders to the ERP, again whenever one changes, and notes what came of it in one transaction.

`celery -A erp_sync worker` and `celery-reactive -A erp_sync planner` start from here.
"""

import os
from typing import Any

import httpx
from celery import Celery
from pymongo.client_session import ClientSession

from celery_reactive import RetryPolicy, TaskContext, reactive_task

app = Celery("erp_sync")
app.conf.erp_url = os.environ.get("ERP_URL", "http://127.0.0.1:8000")


@reactive_task(
    collection="orders",
    filter={"status": {"$in": ["paid", "cancelled"]}},
    watch_projection={"status": 1, "amount": 1},
    debounce="2s",
    retry_policy=RetryPolicy.exponential(min="10s", max="1h", max_duration="3d"),
)
@app.task(time_limit=60)
def sync(ctx: TaskContext) -> None:
    """Put the order into the ERP, then note the ERP's number: note, journal and completion together or not at all."""
    order = ctx.get_document()
    number = _put(order, ctx.fence)
    shop = ctx.client.get_default_database()

    def note(session: ClientSession) -> None:
        entry = {"order": order["_id"], "status": order["status"], "amount": order["amount"], "number": number}
        shop.orders.update_one({"_id": order["_id"]}, {"$set": {"erp_number": number}}, session=session)
        shop.journal.insert_one(entry, session=session)
        ctx.mark_completed(session)  # last: an open transaction holds the record

    with ctx.client.start_session() as session:
        session.with_transaction(note)


def _put(order: dict[str, Any], version: int) -> str:
    """Store the order's state in the ERP and return its number there.

    Repeated, it changes nothing: the order's id is the key. The version grows with each run, so that the ERP can refuse
    what a worker sends that was cut off meanwhile, and whose order is another's by now.
    """
    state = {"status": order["status"], "amount": order["amount"], "version": version}
    answer = httpx.put(f"{app.conf.erp_url}/orders/{order['_id']}", json=state, timeout=20)
    return str(answer.raise_for_status().json()["number"])
