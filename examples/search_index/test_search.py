"""Tests of the index, to copy: `pip install -r requirements.txt`, then `pytest`. SQLite is a real search engine."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from index import Index, Put, Remove, opened
from pymongo.database import Database
from search import Map, declare, mapping
from shop import delete, prepare

from celery_reactive import Reactive
from celery_reactive.testing import assert_no_errors, configured, fast, run_inline, wait_until_idle

Deployed = Callable[..., AbstractContextManager[Celery]]

TEA = {"_id": "tea", "name": "Green tea", "text": "picked in spring", "tags": ["organic"]}
MUG = {"_id": "mug", "name": "Mug", "text": "for tea and coffee"}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An empty index."""
    with opened(str(tmp_path / "products.sqlite")) as index:
        yield index


@pytest.fixture
def deployed(reactive_database_url: str, tmp_path: Path) -> Deployed:
    """A release with a mapping: planner and worker run inside the block, and what is to be done is done."""

    @contextmanager
    def deploy(mapping: Map = mapping, version: int = 1) -> Iterator[Celery]:
        app = Celery("search", set_as_current=False)
        app.conf.search_index = str(tmp_path / "products.sqlite")
        declare(app, mapping, version)
        with configured(app, reactive_mongodb_url=reactive_database_url), fast(), run_inline(app):
            wait_until_idle(app)
            yield app

    return deploy


def test_products_are_found_as_they_are(deployed: Deployed, reactive_database: Database[Any], index: Index) -> None:
    """Those that were there before the first deployment, and those that come or change."""
    reactive_database.products.insert_one(TEA)
    with deployed() as app:
        assert index.search("teas") == ["tea"]
        reactive_database.products.insert_one(MUG)
        wait_until_idle(app)
        assert index.search("tea") == ["tea", "mug"]

        reactive_database.products.update_one({"_id": "mug"}, {"$set": {"text": "for coffee"}})
        wait_until_idle(app)
        assert index.search("tea") == ["tea"]
        assert_no_errors(app)


def test_a_deleted_product_is_found_no_more(deployed: Deployed, reactive_database: Database[Any], index: Index) -> None:
    """Until it comes back."""
    reactive_database.products.insert_one(TEA)
    with deployed() as app:
        delete(reactive_database, "tea")
        wait_until_idle(app)
        assert index.search("tea") == []

        reactive_database.products.update_one({"_id": "tea"}, {"$unset": {"deleted_at": ""}})
        wait_until_idle(app)
        assert index.search("tea") == ["tea"]
        assert_no_errors(app)


def test_the_server_removes_what_was_deleted_a_month_ago(reactive_database: Database[Any]) -> None:
    """By then the index has long forgotten it."""
    prepare(reactive_database)
    assert reactive_database.products.index_information()["deleted_at_1"]["expireAfterSeconds"] == 30 * 24 * 3600


def test_one_that_cannot_be_mapped_keeps_none_of_its_batch(
    deployed: Deployed, reactive_database: Database[Any], index: Index
) -> None:
    """It fails alone, and is indexed when it was mended."""
    reactive_database.products.insert_many([{"_id": "nameless"}, TEA, MUG])
    with deployed() as app:
        assert index.search("tea") == ["tea", "mug"]
        (record,) = Reactive.of(app).get_tasks(has_error=True).items
        assert (record.source_doc_id, record.last_error) == ("nameless", "'name'")

        reactive_database.products.update_one({"_id": "nameless"}, {"$set": {"name": "Cup"}})
        wait_until_idle(app)
        assert index.search("cup") == ["nameless"]
        assert_no_errors(app)


def test_a_new_mapping_is_applied_to_all(deployed: Deployed, reactive_database: Database[Any], index: Index) -> None:
    """Once: the next deployment of the same version leaves the index alone."""
    calls = []

    def with_brand(product: dict[str, Any]) -> tuple[str, str]:
        calls.append(product["_id"])
        title, body = mapping(product)
        return title, f"{body} {product['brand']}"

    reactive_database.products.insert_one({**TEA, "brand": "Acme"})
    with deployed():
        assert index.search("acme") == []
    for _ in range(2):
        with deployed(with_brand, 2) as app:
            assert index.search("acme") == ["tea"]
            assert calls == ["tea"]
            assert_no_errors(app)


def test_an_older_write_does_nothing(index: Index) -> None:
    """Of a worker that was cut off and comes back: neither over a newer text, nor over a deletion."""
    index.write([Put("tea", 2, "Black tea", ""), Put("tea", 1, "Green tea", "")])
    assert index.search("green") == []
    index.write([Remove("tea", 4), Put("tea", 3, "Red tea", "")])
    assert index.search("tea") == []
