"""What happens when the shop's data change."""

from celery_reactive import RetryPolicy, TaskContext, reactive_task
from shop.celery_app import app


@reactive_task(
    collection="orders",
    filter={"status": {"$in": ["paid", "shipped"]}},
    watch_projection={"status": 1, "amount": 1},
    debounce="200ms",
    retry_policy=RetryPolicy.exponential(min="1s", max="1h", max_duration="24h"),
)
@app.task
def sync_order(ctx: TaskContext) -> None:
    """Send the order to the ERP, here a collection of its own; the fence refuses a late, older run."""
    order = ctx.get_document()
    ctx.client.get_default_database().erp.update_one(
        {"_id": order["_id"]},
        [
            {
                "$set": {
                    "status": {"$cond": [{"$gt": [ctx.fence, "$fence"]}, order["status"], "$status"]},
                    "amount": {"$cond": [{"$gt": [ctx.fence, "$fence"]}, order["amount"], "$amount"]},
                    "fence": {"$max": [ctx.fence, "$fence"]},
                },
            },
        ],
        upsert=True,
    )


@reactive_task(collection="customers", watch_projection={"_id": 1}, debounce=0)
@app.task
def welcome(ctx: TaskContext) -> None:
    """Send one welcome mail per customer."""
    customer = ctx.get_document(projection={"name": 1, "welcomed": 1})
    if customer.get("welcomed"):
        return
    print("Welcome,", customer["name"])
    ctx.client.get_default_database().customers.update_one({"_id": ctx.doc_id}, {"$set": {"welcomed": True}})
