"""The app of a shop in one process, for what management and the command line do to its records.

Nothing runs in it: a test moves the records by a `Bench`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery

from celery_reactive import Reactive, reactive_task
from tests.integration.bench import Document


@contextmanager
def shop_app(mongodb_url: str, **watched: str) -> Iterator[Celery]:
    """Yield an app as its module leaves it, not finalized, which works in pages of three.

    Args:
        mongodb_url: Its database.
        watched: By the names of its tasks, the collections that they watch.
    """
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.reactive_mongodb_url = mongodb_url
    app.conf.reactive_batch_size = 3

    def handler(ctx: Any) -> None:
        """Never called."""

    for name, collection in watched.items():
        options: dict[str, Any] = {"filter": {"on": True}, "watch_projection": {"v": 1}, "debounce": 0}
        reactive_task(collection=collection, task=name, **options)(app.task(handler, name=f"shop.{name}", shared=False))
    yield app
    Reactive.of(app).runtime.connection.close()


def on(doc_id: Any, **fields: Any) -> Document:
    """Return a document that its tasks match."""
    return {"_id": doc_id, "on": True, "v": 1, **fields}
