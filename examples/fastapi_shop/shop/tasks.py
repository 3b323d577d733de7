"""What happens when the shop's data change."""

import asyncio
from typing import Any

from pymongo.asynchronous.collection import AsyncCollection

from celery_reactive import TaskContext, reactive_task
from shop.celery_app import app
from shop.mongo import open_client

# The coroutine handlers of a worker process run on one event loop, so that one client serves them all.
client = open_client()


@reactive_task(collection="orders", filter={"status": "open"}, watch_projection={"lines": 1}, debounce="200ms")
@app.task
async def reserve(ctx: TaskContext) -> None:
    """Reserve an order's lines, all at once. Done twice, it reserves the same."""
    order = ctx.get_document()
    stock = client.get_default_database("shop").stock
    reservation = f"reserved.{order['_id']}"
    await asyncio.gather(
        _release_others(stock, reservation, [line["item"] for line in order["lines"]]),
        *(_reserve(stock, reservation, line) for line in order["lines"]),
    )


async def _reserve(stock: AsyncCollection[dict[str, Any]], reservation: str, line: dict[str, Any]) -> None:
    await stock.update_one({"_id": line["item"]}, {"$set": {reservation: line["quantity"]}}, upsert=True)


async def _release_others(stock: AsyncCollection[dict[str, Any]], reservation: str, items: list[str]) -> None:
    await stock.update_many({"_id": {"$nin": items}, reservation: {"$exists": True}}, {"$unset": {reservation: ""}})
