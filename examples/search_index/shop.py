"""The shop: writes products with plain pymongo, deletes them by marking them, and searches in the index."""

import os
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from index import opened
from pymongo import MongoClient
from pymongo.database import Database

KEPT_FOR = timedelta(days=30)
"""How long a deleted product stays in the collection: longer than the longest outage of the index."""


def prepare(database: Database[Any]) -> None:
    """Let the server remove what was deleted long ago. Once is enough, again does nothing."""
    database.products.create_index("deleted_at", expireAfterSeconds=int(KEPT_FOR.total_seconds()))


def delete(database: Database[Any], product: str) -> None:
    """Mark a product as deleted: a change, which takes it out of the index. Only the server removes documents."""
    database.products.update_one({"_id": product}, {"$set": {"deleted_at": datetime.now(UTC)}})


def main(command: str, *arguments: str) -> None:
    """Do what was asked for."""
    with MongoClient[Any](os.environ["CELERY_REACTIVE_MONGODB_URL"]) as client:
        shop = client.get_default_database()
        prepare(shop)
        match (command, *arguments):
            case ("add", product, name, *text):
                written = {"_id": product, "name": name, "text": " ".join(text)}
                shop.products.replace_one({"_id": product}, written, upsert=True)
            case ("delete", product):
                delete(shop, product)
            case ("search", *words):
                with opened(os.environ.get("SEARCH_INDEX", "products.sqlite")) as index:
                    print(*index.search(" ".join(words)), sep="\n")
            case _:
                sys.exit("usage: python shop.py add ID NAME [TEXT] | delete ID | search WORDS")


if __name__ == "__main__":
    main(*(sys.argv[1:] or [""]))
