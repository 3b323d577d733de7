"""Writes like any program of the shop: it knows nothing of tasks."""

import os

from pymongo import MongoClient


def main() -> None:
    """Add a customer and an order, and mark the order as paid."""
    with MongoClient(os.environ.get("MONGODB_URL", "mongodb://localhost:27017/shop?replicaSet=rs0")) as client:
        shop = client.get_default_database("shop")
        customer = shop.customers.insert_one({"name": "Ada"}).inserted_id
        order = shop.orders.insert_one({"customer": customer, "status": "new", "amount": 42}).inserted_id
        shop.orders.update_one({"_id": order}, {"$set": {"status": "paid"}})
        print("order", order, "is paid")


if __name__ == "__main__":
    main()
