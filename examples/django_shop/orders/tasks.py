"""What happens when the orders change. Celery finds this module by its name: `app.autodiscover_tasks()`."""

from celery import shared_task
from django.core.mail import send_mail

from celery_reactive import TaskContext, reactive_task
from orders.models import Invoice


@reactive_task(
    collection="orders",
    filter={"status": "paid"},
    watch_projection={"customer": 1, "amount": 1},
    debounce="200ms",
)
@shared_task
def write_invoice(ctx: TaskContext) -> None:
    """Keep the invoice of a paid order as the order is; the fence refuses a late, older run."""
    order = ctx.get_document()
    invoice, _ = Invoice.objects.get_or_create(order=str(order["_id"]), defaults={"customer": order["customer"]})
    Invoice.objects.filter(pk=invoice.pk, fence__lt=ctx.fence).update(
        customer=order["customer"],
        amount=order["amount"],
        fence=ctx.fence,
    )


@reactive_task(collection="orders", watch_projection={"_id": 1}, debounce=0)
@shared_task
def confirm(ctx: TaskContext) -> None:
    """Send one mail per order, however often the order changes."""
    order = ctx.get_document(projection={"customer": 1, "confirmed": 1})
    if order.get("confirmed"):
        return
    send_mail("Your order", f"Thank you, {order['customer']}!", None, [f"{order['customer']}@example.com"])
    ctx.client.get_default_database("shop").orders.update_one({"_id": ctx.doc_id}, {"$set": {"confirmed": True}})
