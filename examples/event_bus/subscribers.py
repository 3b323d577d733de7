"""Three that listen to the shop's events, each for itself, in one Celery app. They could as well be three apps.

`celery -A subscribers worker` and `celery-reactive -A subscribers planner` start from here.
"""

from bus import subscriber
from celery import Celery
from pymongo.client_session import ClientSession

from celery_reactive import RetryPolicy, TaskContext

app = Celery("subscribers")


@subscriber("order.placed", retry_policy=RetryPolicy.exponential(min="1s", max="1h", max_duration="2d"))
@app.task(time_limit=60)
def confirm(ctx: TaskContext) -> None:
    """Send the customer a mail. Under the event's id it is put among the mails once, however often this runs."""
    event = ctx.get_document()
    text = f"Thank you, {event['data']['customer']}!"
    mails = ctx.client.get_default_database().mails
    mails.update_one({"_id": event["_id"]}, {"$setOnInsert": {"text": text}}, upsert=True)
    print(text)


@subscriber("order.placed")
@app.task
def count_revenue(ctx: TaskContext) -> None:
    """Add the order to the revenue of its day: counting is not idempotent, so it completes in its transaction."""
    event = ctx.get_document()
    revenue = ctx.client.get_default_database().revenue

    def add(session: ClientSession) -> None:
        more = {"orders": 1, "amount": event["data"]["amount"]}
        revenue.update_one({"_id": f"{event['at']:%Y-%m-%d}"}, {"$inc": more}, upsert=True, session=session)
        ctx.mark_completed(session)

    with ctx.client.start_session() as session:
        session.with_transaction(add)


@subscriber("order.placed", where={"data.amount": {"$gte": 1000}}, backfill=False)
@app.task
def tell_sales(ctx: TaskContext) -> None:
    """Tell the sales team of large orders, from now on."""
    order = ctx.get_document()["data"]
    print(f"a large order: {order['customer']} pays {order['amount']}")
