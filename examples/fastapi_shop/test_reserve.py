"""Tests of the reservations, to copy: `pip install 'celery-reactive[embedded]' pytest`, then `pytest`."""

from collections.abc import Callable
from typing import Any

import pytest
from pymongo.database import Database
from shop import tasks
from shop.celery_app import app
from shop.mongo import open_client

from celery_reactive import Reactive
from celery_reactive.testing import assert_no_errors, wait_until_idle


@pytest.fixture(autouse=True)
def reactive(reactive_inline: Callable[..., Reactive], monkeypatch: pytest.MonkeyPatch) -> Reactive:
    """Planner and worker run beside each test; the coroutines' client goes to the test's database too."""
    handle = reactive_inline(app)
    monkeypatch.setattr(tasks, "client", open_client())
    return handle


def test_what_is_ordered_is_reserved_and_what_is_no_longer_ordered_is_released(
    reactive_database: Database[Any],
) -> None:
    """Each change of the lines is a run."""
    order = reactive_database.orders.insert_one({"status": "open", "lines": [{"item": "tea", "quantity": 2}]})
    wait_until_idle(app)
    assert _reserved(reactive_database, order.inserted_id) == {"tea": 2}

    changed = {"$set": {"lines": [{"item": "milk", "quantity": 1}]}}
    reactive_database.orders.update_one({"_id": order.inserted_id}, changed)
    wait_until_idle(app)
    assert _reserved(reactive_database, order.inserted_id) == {"milk": 1}
    assert_no_errors(app)


def _reserved(database: Database[Any], order: object) -> dict[str, int]:
    items = database.stock.find({f"reserved.{order}": {"$exists": True}})
    return {item["_id"]: item["reserved"][str(order)] for item in items}
