"""Tests of the orders' tasks, to copy: `pip install 'celery-reactive[embedded]' pytest-django`, then `pytest`."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core import mail
from django.test import Client
from orders.models import Invoice
from orders.mongo import database
from pymongo.database import Database
from shop.celery import app

from celery_reactive import Reactive
from celery_reactive.testing import assert_no_errors, wait_until_idle

# The handlers run in a thread with a connection of its own: it sees what is committed.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def reactive(reactive_inline: Callable[..., Reactive], reactive_database_url: str, settings: Any) -> Reactive:
    """Planner and worker run beside each test; the views use the test's database too."""
    settings.CELERY_REACTIVE_MONGODB_URL = reactive_database_url
    database.cache_clear()
    return reactive_inline(app)


def test_a_paid_order_gets_an_invoice(client: Client) -> None:
    """And one that is not paid gets none."""
    order = _place(client)
    assert not Invoice.objects.exists()
    client.post(f"/orders/{order}/pay/")
    wait_until_idle(app)
    assert Invoice.objects.get(order=order).amount == 42
    assert_no_errors(app)


def test_one_mail_is_sent_for_an_order(client: Client, reactive_database: Database[Any]) -> None:
    """However often the order changes."""
    order = _place(client)
    client.post(f"/orders/{order}/pay/")
    reactive_database.orders.update_one({}, {"$set": {"amount": 43}})
    wait_until_idle(app)
    assert [message.to for message in mail.outbox] == [["Grace@example.com"]]
    assert_no_errors(app)


def _place(client: Client) -> str:
    wanted = {"customer": "Grace", "amount": 42}
    placed = client.post("/orders/", wanted, content_type="application/json").json()["id"]
    wait_until_idle(app)
    return str(placed)
