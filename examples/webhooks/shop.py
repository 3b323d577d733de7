"""The shop: writes events with plain pymongo, and knows of no webhook."""

import os
import sys
from datetime import UTC, datetime
from typing import Any

from pymongo import MongoClient


def main(number: int) -> None:
    """Ship some orders."""
    with MongoClient[Any](os.environ["CELERY_REACTIVE_MONGODB_URL"]) as client:
        events = client.get_default_database().events
        for order in range(1, number + 1):
            events.insert_one({"type": "order.shipped", "at": datetime.now(UTC), "data": {"order": order}})
            print("shipped", order)


if __name__ == "__main__":
    main(int(sys.argv[1]))
