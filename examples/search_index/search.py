"""Keeps the search index as the products are, batch by batch.

`celery -A search worker` and `celery-reactive -A search planner` start from here.
"""

import os
from collections.abc import Callable
from typing import Any

from celery import Celery
from index import Put, Remove, opened

from celery_reactive import Batch, Evolution, TaskContext, reactive_task

Map = Callable[[dict[str, Any]], tuple[str, str]]
"""From a product to title and body: the words that it is found by, those of the title first."""

MAPPING_VERSION = 1
"""Raise it with every change of `mapping`: all products are then put into the index once more."""


def mapping(product: dict[str, Any]) -> tuple[str, str]:
    """Return what a product is found by."""
    return product["name"], " ".join([product.get("text", ""), *product.get("tags", [])])


def declare(app: Celery, mapping: Map, version: int) -> None:
    """Declare the task of an app that indexes by a mapping."""

    @reactive_task(
        task="index_products",
        collection="products",
        watch_projection={"name": 1, "text": 1, "tags": 1, "deleted_at": 1},
        debounce="500ms",
        debounce_max_wait="10s",
        batch=Batch(200, wait="1s"),
        evolution=Evolution(handler_version=version, on_handler_version_change="reprocess_all"),
    )
    @app.task(name="index_products", shared=False, time_limit=120)
    def index_products(contexts: list[TaskContext]) -> None:
        """Bring some products to the index by one write; one that cannot be mapped fails for itself."""
        changes = []
        for ctx in contexts:
            try:
                changes.append(_change(ctx, mapping))
            except (KeyError, TypeError) as error:
                ctx.fail(error)
        with opened(app.conf.search_index) as index:
            index.write(changes)


def _change(ctx: TaskContext, mapping: Map) -> Put | Remove:
    """Return what is to be written of a product: its id is the key, the fence its version."""
    product = ctx.get_document()
    if product.get("deleted_at"):
        return Remove(str(ctx.doc_id), ctx.fence)
    title, body = mapping(product)
    return Put(str(ctx.doc_id), ctx.fence, title, body)


app = Celery("search")
app.conf.search_index = os.environ.get("SEARCH_INDEX", "products.sqlite")
declare(app, mapping, MAPPING_VERSION)
