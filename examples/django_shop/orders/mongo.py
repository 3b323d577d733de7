"""The shop's MongoDB: one client per process, opened when it is first asked for."""

import functools
from typing import Any

from django.conf import settings
from pymongo import MongoClient
from pymongo.database import Database


@functools.cache
def database() -> Database[dict[str, Any]]:
    """Return the database that holds the orders; called in a request, so after the web server has forked."""
    return MongoClient[dict[str, Any]](settings.CELERY_REACTIVE_MONGODB_URL).get_default_database("shop")
