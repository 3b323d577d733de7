"""Tests of the shop's tasks, to copy: `pip install 'celery-reactive[embedded]' pytest`, then `pytest`."""

from collections.abc import Callable
from typing import Any

import pytest
from pymongo.database import Database
from shop.celery_app import app

from celery_reactive import Reactive
from celery_reactive.testing import assert_no_errors, wait_until_idle


@pytest.fixture(autouse=True)
def reactive(reactive_inline: Callable[..., Reactive]) -> Reactive:
    """Planner and worker run beside each test, on a database of its own."""
    return reactive_inline(app)


def test_a_paid_order_gets_to_the_erp(reactive_database: Database[Any]) -> None:
    """As it was paid, and again when it changes."""
    order = reactive_database.orders.insert_one({"status": "new", "amount": 42}).inserted_id
    wait_until_idle(app)
    assert reactive_database.erp.find_one({"_id": order}) is None

    for amount in (42, 43):
        reactive_database.orders.update_one({"_id": order}, {"$set": {"status": "paid", "amount": amount}})
        wait_until_idle(app)
        assert reactive_database.erp.find_one({"_id": order, "amount": amount})
    assert_no_errors(app)


def test_a_customer_is_welcomed_once(reactive_database: Database[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """However often the customer changes."""
    customer = reactive_database.customers.insert_one({"name": "Ada"}).inserted_id
    wait_until_idle(app)
    reactive_database.customers.update_one({"_id": customer}, {"$set": {"name": "Ada L."}})
    wait_until_idle(app)
    assert capsys.readouterr().out.count("Welcome") == 1
    assert_no_errors(app)
