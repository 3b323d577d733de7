"""Tests of the bus and its subscribers, to copy: `pip install -r requirements.txt`, then `pytest`."""

from collections.abc import Callable
from typing import Any

import pytest
from bus import prepare, publish
from pymongo.database import Database
from pymongo.errors import PyMongoError
from shop import place_order
from subscribers import app

from celery_reactive import Reactive, TaskContext
from celery_reactive.testing import assert_no_errors, make_due, wait_until_idle


@pytest.fixture
def shop(reactive_database: Database[Any]) -> Database[Any]:
    """The shop's database, ready for events."""
    prepare(reactive_database)
    return reactive_database


@pytest.fixture
def accidents() -> set[str]:
    """Names of the tasks whose runs break after they have done their work."""
    return set()


@pytest.fixture(autouse=True)
def reactive(shop: Database[Any], accidents: set[str], reactive_inline: Callable[..., Reactive]) -> Reactive:
    """Ada orders while nobody listens; then planner and worker run beside each test."""

    def run(call: Callable[[], None], ctx: TaskContext) -> None:
        call()
        if ctx.task in accidents:
            raise ConnectionError("after the work was done")

    place_order(shop.client, shop.name, "Ada", 2000)
    reactive = reactive_inline(app, reactive_task_caller=run)
    wait_until_idle(app)
    return reactive


def test_each_subscriber_hears_of_each_event_it_wants(
    shop: Database[Any], reactive: Reactive, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that take older events heard of Ada's, too."""
    for customer, amount in [("Grace", 42), ("Edsger", 1500)]:
        place_order(shop.client, shop.name, customer, amount)
    wait_until_idle(app)
    assert {mail["text"] for mail in shop.mails.find()} == {f"Thank you, {who}!" for who in ("Ada", "Grace", "Edsger")}
    (day,) = shop.revenue.find()
    assert (day["orders"], day["amount"]) == (3, 3542)
    said = capsys.readouterr().out
    assert "a large order: Edsger pays 1500" in said
    assert "a large order: Ada" not in said
    assert reactive.count_tasks(task="subscribers.tell_sales", doc_id=_event_of(shop, "Grace")) == 0
    assert_no_errors(app)


def test_one_that_fails_holds_up_nobody(shop: Database[Any], reactive: Reactive) -> None:
    """It is tried again, and the others do not run again."""
    shop.command("collMod", "mails", validator={"mails are": "refused"})
    place_order(shop.client, shop.name, "Grace", 42)
    wait_until_idle(app)
    event = _event_of(shop, "Grace")
    statuses = {record.task: record.status.value for record in reactive.get_tasks(doc_id=event).items}
    assert statuses == {"subscribers.confirm": "pending", "subscribers.count_revenue": "completed"}

    shop.command("collMod", "mails", validator={})
    make_due(app, "subscribers.confirm", event)
    wait_until_idle(app)
    assert shop.mails.find_one({"_id": event})
    (day,) = shop.revenue.find()
    assert day["orders"] == 2
    assert_no_errors(app)


def test_what_is_rolled_back_was_not_published(shop: Database[Any]) -> None:
    """An order that is refused has no event, and nor has a transaction that somebody gives up."""
    shop.command("collMod", "orders", validator={"amount": {"$gt": 0}})
    with pytest.raises(PyMongoError):
        place_order(shop.client, shop.name, "Grace", -1)
    with shop.client.start_session() as session, session.start_transaction():
        publish(shop, "order.placed", {"customer": "Grace"}, session)
        session.abort_transaction()
    assert _event_of(shop, "Grace") is None


def test_a_run_that_breaks_after_its_work_does_it_once(
    shop: Database[Any], reactive: Reactive, accidents: set[str]
) -> None:
    """The mail has a key; revenue was completed together with what it has added."""
    accidents.update({"subscribers.confirm", "subscribers.count_revenue"})
    place_order(shop.client, shop.name, "Grace", 42)
    wait_until_idle(app)
    (broken,) = reactive.get_tasks(status="pending").items
    assert broken.task == "subscribers.confirm"

    accidents.clear()
    make_due(app, broken.task, broken.source_doc_id)
    wait_until_idle(app)
    assert shop.mails.count_documents({}) == 2
    (day,) = shop.revenue.find()
    assert (day["orders"], day["amount"]) == (2, 2042)
    assert_no_errors(app)


def test_records_go_with_their_events(shop: Database[Any], reactive: Reactive) -> None:
    """The server removes an event after a week; here the test does."""
    assert reactive.count_tasks() == 3
    assert shop.events.index_information()["at_1"]["expireAfterSeconds"] == 7 * 24 * 3600
    shop.events.delete_many({})
    wait_until_idle(app)
    assert reactive.count_tasks() == 0


def _event_of(shop: Database[Any], customer: str) -> Any:
    """Return the id of the event that tells of a customer's order, None if there is none."""
    event = shop.events.find_one({"data.customer": customer})
    return event and event["_id"]
