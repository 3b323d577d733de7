"""Bookkeeping: writes invoices with plain pymongo, and knows nothing of reminders."""

import os
import sys
from datetime import UTC, datetime, timedelta

from pymongo import MongoClient


def main(command: str) -> None:
    """Write an invoice that is due today and one that is five days late (`issue`), or have all paid (`pay`)."""
    with MongoClient(os.environ["CELERY_REACTIVE_MONGODB_URL"]) as client:
        invoices = client.get_default_database().invoices
        match command:
            case "issue":
                today = datetime.now(UTC)
                invoices.insert_one({"customer": "Ada", "amount": 42, "status": "open", "due_at": today})
                late = {"customer": "Grace", "amount": 17, "status": "open", "due_at": today - timedelta(days=5)}
                invoices.insert_one(late)
            case "pay":
                invoices.update_many({"status": "open"}, {"$set": {"status": "paid"}})
            case _:
                sys.exit("usage: python invoices.py issue|pay")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else "")
