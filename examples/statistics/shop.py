"""The shop: writes orders with plain pymongo, and shows its best customers without looking at an order."""

import os
import sys
from datetime import UTC, datetime
from typing import Any

from figures import prepare
from pymongo import MongoClient
from pymongo.database import Database

CUSTOMERS = ("Ada", "Edsger", "Ada", "Grace")


def sell(shop: Database[Any], number: int) -> None:
    """Write orders of three customers, some of which are cancelled."""
    for n in range(number):
        order = {"customer": CUSTOMERS[n % 4], "at": datetime.now(UTC), "status": "paid", "amount": 7 * n % 100}
        order_id = shop.orders.insert_one(order).inserted_id
        if n % 10 == 9:
            shop.orders.update_one({"_id": order_id}, {"$set": {"status": "cancelled"}})


def show(shop: Database[Any]) -> None:
    """Print the customers, best first."""
    for each in shop.customer_figures.find({"orders": {"$exists": True}}).sort("revenue", -1):
        print(f"{each['_id']:10} {each['orders']:4} orders, {each['revenue']:6} in all")


def main(command: str, *arguments: str) -> None:
    """Do what was asked for."""
    with MongoClient[Any](os.environ["CELERY_REACTIVE_MONGODB_URL"]) as client:
        shop = client.get_default_database()
        prepare(shop)
        match (command, *arguments):
            case ("sell", number):
                sell(shop, int(number))
            case ("show",):
                show(shop)
            case _:
                sys.exit("usage: python shop.py sell NUMBER | show")


if __name__ == "__main__":
    main(*(sys.argv[1:] or [""]))
