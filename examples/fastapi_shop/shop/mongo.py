"""The shop's MongoDB, for coroutines of web server and worker alike."""

from typing import Any

from pymongo import AsyncMongoClient

from shop.celery_app import app


def open_client() -> AsyncMongoClient[dict[str, Any]]:
    """Return a client; it connects at its first use, in the process and on the event loop of that."""
    return AsyncMongoClient[dict[str, Any]](app.conf.reactive_mongodb_url)
