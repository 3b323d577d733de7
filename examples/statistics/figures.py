"""Keeps figures of each customer beside the orders: computed anew when orders change, never counted up.

`celery -A figures worker` and `celery-reactive -A figures planner` start from here. The application reads
`customer_figures` and never writes to it.
"""

from typing import Any

from bson import ObjectId
from celery import Celery
from pymongo import UpdateOne
from pymongo.database import Database

from celery_reactive import Batch, TaskContext, reactive_task

app = Celery("figures")

NONE = {"orders": 0, "revenue": 0, "average": None, "last_order_at": None}
"""Of a customer who has no orders that count."""


@reactive_task(
    collection="orders",
    filter={"customer": {"$exists": True}},
    watch_projection={"customer": 1, "status": 1, "amount": 1},
    track_changes=True,
    on_delete=True,
    debounce=0,
    batch=200,
)
@app.task
def note(contexts: list[TaskContext]) -> None:
    """Note whose orders have changed: this makes the customer's document change, however many orders did.

    An order that is given to another customer concerns both, and one that is deleted the last it had.
    """
    customers = {customer for ctx in contexts for customer in ctx.changes["customer"] if customer is not None}
    _figures(contexts).bulk_write(
        [UpdateOne({"_id": customer}, {"$inc": {"changes": 1}}, upsert=True) for customer in customers],
        ordered=False,
    )


@reactive_task(
    collection="customer_figures",
    filter={"changes": {"$exists": True}},
    watch_projection={"changes": 1},
    debounce="2s",
    debounce_max_wait="30s",
    batch=Batch(50, wait="1s"),
)
@app.task
def compute(contexts: list[TaskContext]) -> None:
    """Compute the figures of many customers by one query. The fence keeps a late, older run from overwriting them."""
    orders = contexts[0].client.get_default_database().orders
    figures = figures_of(orders.database, [ctx.doc_id for ctx in contexts])
    _figures(contexts).bulk_write(
        [
            UpdateOne(
                {"_id": ctx.doc_id, "fence": {"$not": {"$gt": ctx.fence}}},
                {"$set": {**figures[ctx.doc_id], "fence": ctx.fence}},
            )
            for ctx in contexts
        ],
        ordered=False,
    )


def figures_of(database: Database[Any], customers: list[ObjectId]) -> dict[ObjectId, dict[str, Any]]:
    """Return the figures of some customers, by customer. Cancelled orders do not count."""
    stages: list[dict[str, Any]] = [
        {"$match": {"customer": {"$in": customers}, "status": {"$ne": "cancelled"}}},
        {
            "$group": {
                "_id": "$customer",
                "orders": {"$sum": 1},
                "revenue": {"$sum": "$amount"},
                "average": {"$avg": "$amount"},
                "last_order_at": {"$max": "$at"},
            },
        },
    ]
    found = {each.pop("_id"): each for each in database.orders.aggregate(stages)}
    return {customer: found.get(customer, NONE) for customer in customers}


def prepare(database: Database[Any]) -> None:
    """Make the index by which a customer's orders are found. Called by whoever deploys; again does nothing."""
    database.orders.create_index("customer")


def _figures(contexts: list[TaskContext]) -> Any:
    return contexts[0].client.get_default_database().customer_figures
