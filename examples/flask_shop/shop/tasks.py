"""What happens when the shop's data change."""

from celery import shared_task
from flask import current_app, render_template

from celery_reactive import TaskContext, reactive_task


@reactive_task(collection="orders", filter={"status": "paid"}, watch_projection={"item": 1}, debounce="200ms")
@shared_task
def confirm(ctx: TaskContext) -> None:
    """Write the confirmation of a paid order, again when the customer chooses another item."""
    order = ctx.get_document()
    text = render_template("confirmation.txt", order=order)
    ctx.client.get_default_database("shop").orders.update_one({"_id": order["_id"]}, {"$set": {"confirmation": text}})
    current_app.logger.warning("confirmed %s", order["_id"])
