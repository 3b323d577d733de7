"""Tests of the figures, to copy: `pip install -r requirements.txt`, then `pytest`."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from figures import NONE, app, prepare
from pymongo.database import Database

from celery_reactive import Reactive
from celery_reactive.testing import assert_no_errors, run_inline, wait_until_idle

AT = datetime(2026, 5, 4, tzinfo=UTC)


@pytest.fixture
def shop(reactive_database: Database[Any]) -> Database[Any]:
    """The shop's database, with its index."""
    prepare(reactive_database)
    return reactive_database


@pytest.fixture
def reactive(reactive_inline: Callable[..., Reactive]) -> Reactive:
    """Planner and worker run beside the test, without debounce."""
    return reactive_inline(app)


@pytest.mark.usefixtures("reactive")
def test_figures_follow_the_orders(shop: Database[Any]) -> None:
    """Orders that come, change and are cancelled."""
    shop.orders.insert_many(order("Ada", amount) for amount in (10, 20, 60))
    shop.orders.insert_one(order("Grace", 5))
    wait_until_idle(app)
    assert figures(shop, "Ada") == {"orders": 3, "revenue": 90, "average": 30, "last_order_at": AT}
    assert figures(shop, "Grace")["revenue"] == 5

    shop.orders.update_one({"amount": 60}, {"$set": {"status": "cancelled"}})
    shop.orders.update_one({"amount": 20}, {"$set": {"amount": 25}})
    wait_until_idle(app)
    assert figures(shop, "Ada") == {"orders": 2, "revenue": 35, "average": 17.5, "last_order_at": AT}
    assert_no_errors(app)


@pytest.mark.usefixtures("reactive")
def test_an_order_moves_and_is_deleted(shop: Database[Any]) -> None:
    """The customer who loses it is computed as well as the one who gets it."""
    shop.orders.insert_many(order("Ada", amount) for amount in (10, 20))
    wait_until_idle(app)
    shop.orders.update_one({"amount": 20}, {"$set": {"customer": "Grace"}})
    wait_until_idle(app)
    assert [figures(shop, name)["revenue"] for name in ("Ada", "Grace")] == [10, 20]
    shop.orders.delete_one({"customer": "Grace"})
    wait_until_idle(app)
    assert [figures(shop, name)["revenue"] for name in ("Ada", "Grace")] == [10, 0]
    assert_no_errors(app)


@pytest.mark.usefixtures("reactive")
def test_a_customer_whose_orders_are_all_cancelled_has_none(shop: Database[Any]) -> None:
    """Figures go back, too."""
    shop.orders.insert_one(order("Ada", 10))
    wait_until_idle(app)
    shop.orders.update_one({}, {"$set": {"status": "cancelled"}})
    wait_until_idle(app)
    assert figures(shop, "Ada") == NONE
    assert_no_errors(app)


def test_a_run_more_changes_nothing(shop: Database[Any], reactive: Reactive) -> None:
    """After a crash, say."""
    shop.orders.insert_one(order("Ada", 10))
    wait_until_idle(app)
    before = figures(shop, "Ada")
    reactive.retry_tasks(all=True)
    wait_until_idle(app)
    assert figures(shop, "Ada") == before
    assert_no_errors(app)


@pytest.mark.usefixtures("reactive")
def test_a_late_run_overwrites_nothing_newer(shop: Database[Any]) -> None:
    """Its fence is older than the one that is stored."""
    shop.customer_figures.insert_one({"_id": "Ada", "revenue": 1000, "fence": 2**62})
    shop.orders.insert_one(order("Ada", 10))
    wait_until_idle(app)
    assert shop.customer_figures.find_one({"_id": "Ada"})["revenue"] == 1000


def test_many_orders_are_computed_together(shop: Database[Any], reactive_app: Callable[..., Reactive]) -> None:
    """The customer's debounce, which this test waits for, holds for all of the customer's orders."""
    reactive = reactive_app(app)
    with run_inline(app):
        for _ in range(50):
            shop.orders.insert_one(order("Ada", 1))
        wait_until_idle(app)
        assert figures(shop, "Ada")["orders"] == 50
        (record,) = reactive.get_tasks(task="figures.compute").items
        assert len(record.execution_history) <= 2
        assert_no_errors(app)


def order(customer: str, amount: int) -> dict[str, Any]:
    """Return an order as the shop writes it."""
    return {"customer": customer, "at": AT, "status": "paid", "amount": amount}


def figures(shop: Database[Any], customer: str) -> dict[str, Any]:
    """Return what is known of a customer."""
    stored: dict[str, Any] = shop.customer_figures.find_one({"_id": customer}, dict.fromkeys(NONE, 1) | {"_id": 0})
    return stored
