"""The shop: writes orders and publishes events with plain pymongo. It knows no subscriber, and no Celery."""

import os
import sys
from typing import Any

from bus import prepare, publish
from pymongo import MongoClient
from pymongo.client_session import ClientSession


def place_order(client: MongoClient[Any], database: str, customer: str, amount: int) -> Any:
    """Store an order and publish that it was placed; return its id."""
    shop = client[database]

    def place(session: ClientSession) -> Any:
        order = {"customer": customer, "amount": amount}
        order_id = shop.orders.insert_one(order, session=session).inserted_id
        publish(shop, "order.placed", {"order": order_id, "customer": customer, "amount": amount}, session)
        return order_id

    with client.start_session() as session:
        return session.with_transaction(place)


def main(customer: str, amount: int) -> None:
    """Place an order."""
    with MongoClient[Any](os.environ["CELERY_REACTIVE_MONGODB_URL"]) as client:
        shop = client.get_default_database()
        prepare(shop)
        print("placed", place_order(client, shop.name, customer, amount))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
