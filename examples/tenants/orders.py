"""A tenant's program: writes paid orders to the tenant's database, and knows nothing of tasks."""

import os
import sys
from typing import Any

from pymongo import MongoClient


def main(tenant: str, number: int) -> None:
    """Write so many orders."""
    with MongoClient[Any](os.environ["CELERY_REACTIVE_MONGODB_URL"]) as client:
        client[f"tenant_{tenant}"].orders.insert_many({"status": "paid", "amount": n + 1} for n in range(number))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
