"""The shop's interface: `uvicorn shop.api:api`. It writes orders, and shows what became of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from bson import ObjectId
from bson.errors import InvalidId
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel
from pymongo.asynchronous.database import AsyncDatabase

from celery_reactive import Reactive
from shop.celery_app import app
from shop.mongo import open_client


@asynccontextmanager
async def lifespan(api: FastAPI) -> AsyncIterator[None]:
    """Open MongoDB's client on the server's event loop, and close it with the server."""
    async with open_client() as client:
        api.state.shop = client.get_default_database("shop")
        yield


api = FastAPI(title="Shop", lifespan=lifespan)


class Line(BaseModel):
    """An item of an order."""

    item: str
    quantity: int


class Order(BaseModel):
    """What a customer orders."""

    lines: list[Line]


class Run(BaseModel):
    """What became of a task for an order."""

    task: str
    status: str
    attempts: int
    last_error: str | None


def shop_of(request: Request) -> AsyncDatabase[dict[str, Any]]:
    """Return the shop's database."""
    database: AsyncDatabase[dict[str, Any]] = request.app.state.shop
    return database


def known(order_id: str) -> ObjectId:
    """Return the order's id as it is stored."""
    try:
        return ObjectId(order_id)
    except InvalidId as error:
        raise HTTPException(404) from error


Shop = Annotated[AsyncDatabase[dict[str, Any]], Depends(shop_of)]
OrderId = Annotated[ObjectId, Depends(known)]


@api.post("/orders", status_code=201)
async def place(order: Order, shop: Shop) -> dict[str, str]:
    """Take an order. This write is what reserves its lines."""
    placed = await shop.orders.insert_one({**order.model_dump(), "status": "open"})
    return {"id": str(placed.inserted_id)}


@api.put("/orders/{order_id}/lines")
async def change(lines: list[Line], order_id: OrderId, shop: Shop) -> dict[str, str]:
    """Change an order's lines: its task runs again."""
    written = {"$set": {"lines": [line.model_dump() for line in lines]}}
    found = await shop.orders.update_one({"_id": order_id, "status": "open"}, written)
    if not found.matched_count:
        raise HTTPException(404)
    return {"id": str(order_id)}


# No coroutine: `Reactive` waits for MongoDB, and FastAPI calls plain functions in a thread.
@api.get("/orders/{order_id}/runs")
def runs(order_id: OrderId) -> list[Run]:
    """Show what became of an order: one entry per task."""
    page = Reactive.of(app).get_tasks(doc_id=order_id)
    return [
        Run(task=record.task, status=record.status, attempts=record.attempts, last_error=record.last_error)
        for record in page.items
    ]
