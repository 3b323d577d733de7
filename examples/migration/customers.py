"""The application: writes customers of an old shape, and tells how many there are of each."""

import os
import sys
from typing import Any

from pymongo import MongoClient
from pymongo.database import Database


def write(database: Database[Any], number: int) -> None:
    """Write customers as the first release did."""
    database.customers.insert_many({"name": f"Ada {n}", "email": f"Ada.{n}@Example.com"} for n in range(number))


def count(database: Database[Any]) -> None:
    """Print how many customers there are of each shape."""
    for shape in database.customers.aggregate([{"$sortByCount": "$schema"}]):
        print(f"{shape['count']:7} of shape {shape['_id'] or 0}")


def main(command: str, *arguments: str) -> None:
    """Do what was asked for."""
    with MongoClient[Any](os.environ["CELERY_REACTIVE_MONGODB_URL"]) as client:
        database = client.get_default_database()
        match (command, *arguments):
            case ("write", number):
                write(database, int(number))
            case ("count",):
                count(database)
            case _:
                sys.exit("usage: python customers.py write NUMBER | count")


if __name__ == "__main__":
    main(*(sys.argv[1:] or [""]))
