"""Reminders: a customer who does not pay hears of it 3, 7 and 14 days after the invoice was due.

`celery -A reminders worker` and `celery-reactive -A reminders planner` start from here. Nothing looks at all invoices
every day: each waits in its record until its next reminder, and payment ends the wait.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery

from celery_reactive import RetryPolicy, TaskContext, reactive_task

app = Celery("reminders")

REMIND_AFTER = (timedelta(days=3), timedelta(days=7), timedelta(days=14))


@reactive_task(
    collection="invoices",
    filter={"status": "open"},
    watch_projection={"due_at": 1},
    debounce=0,
    retry_policy=RetryPolicy.exponential(min="10s", max="1h", max_duration="2d"),
)
@app.task(time_limit=60)
def remind(ctx: TaskContext) -> None:
    """Send the reminder that is due, if any, and come back when the next one is."""
    invoice = ctx.get_document()
    late = now() - invoice["due_at"]
    if due := [after for after in REMIND_AFTER if after <= late]:
        send(ctx, invoice, due[-1])
    if coming := [after for after in REMIND_AFTER if after > late]:
        ctx.defer_current(invoice["due_at"] + coming[0])


def send(ctx: TaskContext, invoice: dict[str, Any], after: timedelta) -> None:
    """Put a reminder among the mails to be sent. Under its key it is put there once, however often this is called."""
    key = {"invoice": invoice["_id"], "due_at": invoice["due_at"], "days": after.days}
    text = f"{invoice['amount']} are due since {invoice['due_at']:%d %B}"
    mails = ctx.client.get_default_database().mails
    mail = {"to": invoice["customer"], "text": text}
    if mails.update_one({"_id": key}, {"$setOnInsert": mail}, upsert=True).upserted_id:
        print(f"to {invoice['customer']}, after {after.days} days: {text}")


def now() -> datetime:
    """Return the time. Tests have another."""
    return datetime.now(UTC)
