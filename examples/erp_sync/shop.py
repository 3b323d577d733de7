"""The shop: writes orders with plain pymongo, and knows of no ERP."""

import os
import sys
from typing import Any

from bson import ObjectId
from pymongo import MongoClient


def main(command: str, *arguments: str) -> None:
    """Do what was asked for."""
    with MongoClient[Any](os.environ["CELERY_REACTIVE_MONGODB_URL"]) as client:
        shop = client.get_default_database()
        match (command, *arguments):
            case ("pay", amount):
                print(shop.orders.insert_one({"status": "paid", "amount": int(amount)}).inserted_id)
            case ("cancel", order):
                shop.orders.update_one({"_id": ObjectId(order)}, {"$set": {"status": "cancelled", "amount": 0}})
            case ("show",):
                for order in shop.orders.find():
                    print(order["_id"], order["status"], order["amount"], order.get("erp_number", "not in the ERP yet"))
            case _:
                sys.exit("usage: python shop.py pay AMOUNT | cancel ORDER | show")


if __name__ == "__main__":
    main(*(sys.argv[1:] or [""]))
