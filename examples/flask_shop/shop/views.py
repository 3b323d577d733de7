"""The shop's pages: plain writes to MongoDB, and a page that shows what became of an order."""

from typing import Any

from bson import ObjectId
from flask import Blueprint, abort, current_app, redirect, render_template, request, url_for
from pymongo.collection import Collection
from werkzeug import Response

from celery_reactive import Reactive

blueprint = Blueprint("shop", __name__)


@blueprint.get("/")
def index() -> str:
    """Show a form to order with."""
    return render_template("shop.html")


@blueprint.post("/")
def place() -> Response:
    """Take an order."""
    placed = _orders().insert_one({"item": request.form["item"], "status": "new"})
    return redirect(url_for("shop.show", order_id=placed.inserted_id), 303)


@blueprint.post("/orders/<id:order_id>/pay")
def pay(order_id: ObjectId) -> Response:
    """Mark an order as paid. This write is what confirms it."""
    if not _orders().update_one({"_id": order_id}, {"$set": {"status": "paid"}}).matched_count:
        abort(404)
    return redirect(url_for("shop.show", order_id=order_id), 303)


@blueprint.get("/orders/<id:order_id>")
def show(order_id: ObjectId) -> str:
    """Show an order, its confirmation, and the records of its tasks."""
    order = _orders().find_one({"_id": order_id})
    if order is None:
        abort(404)
    page = Reactive.of(current_app.extensions["celery"]).get_tasks(doc_id=order_id)
    return render_template("order.html", order=order, runs=page.items)


def _orders() -> Collection[dict[str, Any]]:
    orders: Collection[dict[str, Any]] = current_app.extensions["mongo"].get_default_database("shop").orders
    return orders
