"""A small shop that writes orders and changes them, as any program would: plain pymongo, nothing else.

Run as a script by the demo: `writer.py URL SECONDS`. Ends by itself after that many seconds. It keeps a tally of
what it did in the collection `tally`, and the time of each write, by the database's clock, in the order itself,
so that the demo can tell how long it took until something came of it.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from typing import Any

from pymongo import MongoClient
from pymongo.database import Database

NEXT_STATUS = {"pending": "paid", "paid": "packed", "packed": "shipped"}
PAUSE_SECONDS = 0.02
OPEN_ORDERS = 40
CUSTOMERS = ("Ada", "Grace", "Linus", "Barbara", "Edsger", "Radia", "Donald", "Frances")


class Shop:
    """Orders at various stages, moved on at random."""

    def __init__(self, database: Database[dict[str, Any]], chance: random.Random) -> None:
        self._database = database
        self._chance = chance
        self._open: dict[int, str] = {}
        self._deleted: list[int] = []
        self._last_number = 0

    def do_something(self) -> None:
        """Do one of the things that happen in a shop."""
        if len(self._open) < OPEN_ORDERS:
            self._receive_order()
            return
        things = (self._receive_order, self._advance, self._rush, self._note, self._delete, self._cancel, self._restore)
        self._chance.choices(things, weights=(30, 60, 8, 10, 4, 4, 2))[0]()

    def _receive_order(self) -> None:
        self._last_number += 1
        self._write(self._last_number, "pending", total=self._price(), customer=self._chance.choice(CUSTOMERS))
        self._count("orders")

    def _advance(self) -> None:
        number = self._chance.choice(list(self._open))
        self._write(number, NEXT_STATUS[self._open[number]])
        self._count("changes")

    def _rush(self) -> None:
        """Change one order several times within milliseconds."""
        number = self._chance.choice(list(self._open))
        while number in self._open:
            self._write(number, NEXT_STATUS[self._open[number]], total=self._price())
            self._count("changes")

    def _note(self) -> None:
        """Change what nobody watches."""
        number = self._chance.choice(list(self._open))
        self._database.orders.update_one({"_id": number}, {"$set": {"note": f"call {self._chance.random():.3f}"}})
        self._count("notes")

    def _delete(self) -> None:
        number = self._chance.choice(list(self._open))
        self._database.orders.delete_one({"_id": number})
        del self._open[number]
        self._deleted.append(number)
        self._count("deleted")

    def _cancel(self) -> None:
        number = self._chance.choice(list(self._open))
        self._write(number, "cancelled")
        self._count("cancelled")

    def _restore(self) -> None:
        """Write an order again that was deleted, under its old number."""
        if self._deleted:
            number = self._deleted.pop()
            self._write(number, "pending", total=self._price(), customer=self._chance.choice(CUSTOMERS))
            self._count("restored")

    def _price(self) -> int:
        return self._chance.randrange(1_000_000)

    def _write(self, number: int, status: str, **fields: Any) -> None:
        change = {"$set": {"status": status, **fields, "writtenAt": "$$NOW"}}
        self._database.orders.update_one({"_id": number}, [change], upsert=True)
        if status in NEXT_STATUS:
            self._open[number] = status
        else:
            self._open.pop(number, None)

    def _count(self, what: str) -> None:
        self._database.tally.update_one({"_id": "shop"}, {"$inc": {what: 1}}, upsert=True)


def main(url: str, seconds: float) -> None:
    """Keep shop for *seconds*."""
    pause = threading.Event()
    with MongoClient[dict[str, Any]](url) as client:
        shop = Shop(client.get_default_database(), random.Random(7))  # noqa: S311 -- a shop's whims
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            shop.do_something()
            pause.wait(PAUSE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
