"""The shop's interface: plain writes to MongoDB. No view knows which tasks there are."""

import json

from bson import ObjectId
from bson.errors import InvalidId
from django.http import Http404, HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from orders.models import Invoice
from orders.mongo import database


@csrf_exempt
@require_POST
def place(request: HttpRequest) -> JsonResponse:
    """Take an order: `{"customer": …, "amount": …}`."""
    wanted = json.loads(request.body)
    order = {"customer": str(wanted["customer"]), "amount": int(wanted["amount"]), "status": "new"}
    order_id = database().orders.insert_one(order).inserted_id
    return JsonResponse({"id": str(order_id)}, status=201)


@csrf_exempt
@require_POST
def pay(_request: HttpRequest, order_id: str) -> JsonResponse:
    """Mark an order as paid. This write is what makes the invoice."""
    found = database().orders.update_one({"_id": _known(order_id)}, {"$set": {"status": "paid"}})
    if not found.matched_count:
        raise Http404
    return JsonResponse({"id": order_id, "status": "paid"})


@require_GET
def show(_request: HttpRequest, order_id: str) -> JsonResponse:
    """Show an order and its invoice, null while there is none."""
    order = database().orders.find_one({"_id": _known(order_id)})
    if order is None:
        raise Http404
    invoice = Invoice.objects.filter(order=order_id, fence__gt=0).values("customer", "amount").first()
    return JsonResponse({"id": order_id, "status": order["status"], "amount": order["amount"], "invoice": invoice})


def _known(order_id: str) -> ObjectId:
    try:
        return ObjectId(order_id)
    except InvalidId as error:
        raise Http404 from error
