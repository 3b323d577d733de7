"""Tests of the sync, to copy: `pip install -r requirements.txt`, then `pytest`. The ERP is a real web server."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from erp import Erp
from erp_sync import app
from pymongo.database import Database

from celery_reactive import Reactive
from celery_reactive.testing import assert_no_errors, make_due, wait_until_idle

SYNC = "erp_sync.sync"


@pytest.fixture
def erp() -> Iterator[Erp]:
    """Listens beside the test, its database in memory."""
    with Erp(":memory:") as erp:
        thread = threading.Thread(target=erp.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield erp
        erp.shutdown()
        thread.join()
        erp.database.close()


@pytest.fixture(autouse=True)
def reactive(reactive_inline: Callable[..., Reactive], reactive_database: Database[Any], erp: Erp) -> Reactive:
    """Planner and worker run beside each test."""
    reactive_database.create_collection("journal")
    return reactive_inline(app, erp_url=erp.url)


def test_a_paid_order_gets_to_the_erp(reactive_database: Database[Any], erp: Erp) -> None:
    """As it was paid, and again when it changes; under one number."""
    order = pay(reactive_database)
    reactive_database.orders.update_one({"_id": order}, {"$set": {"status": "cancelled", "amount": 0}})
    wait_until_idle(app)
    (stored,) = erp.orders()
    assert (stored["id"], stored["status"], stored["amount"]) == (str(order), "cancelled", 0)
    assert reactive_database.orders.find_one({"_id": order})["erp_number"] == "SO-00001"
    assert [entry["status"] for entry in reactive_database.journal.find()] == ["paid", "cancelled"]
    assert_no_errors(app)


def test_what_is_noted_runs_nothing(reactive_database: Database[Any], reactive: Reactive) -> None:
    """The number is not watched."""
    order = pay(reactive_database)
    (record,) = reactive.get_tasks(doc_id=order).items
    assert len(record.execution_history) == 1


def test_an_order_waits_for_an_erp_that_is_away(reactive_database: Database[Any], reactive: Reactive, erp: Erp) -> None:
    """And gets there when it is back."""
    erp.closed_for_stocktaking = True
    order = pay(reactive_database)
    (record,) = reactive.get_tasks(doc_id=order).items
    assert "503 Service Unavailable" in str(record.last_error)
    assert reactive_database.journal.count_documents({}) == 0

    erp.closed_for_stocktaking = False
    make_due(app, SYNC, order)
    wait_until_idle(app)
    assert reactive_database.journal.count_documents({"order": order}) == 1
    assert_no_errors(app)


def test_what_fails_half_way_is_noted_once(reactive_database: Database[Any], reactive: Reactive, erp: Erp) -> None:
    """The ERP has the order, the journal refuses its entry: nothing is noted, and the next attempt does all of it."""
    reactive_database.command("collMod", "journal", validator={"number": {"$type": "int"}})
    order = pay(reactive_database)
    (record,) = reactive.get_tasks(doc_id=order).items
    assert (record.status, record.attempts) == ("pending", 1)
    assert "erp_number" not in reactive_database.orders.find_one({"_id": order})

    reactive_database.command("collMod", "journal", validator={})
    make_due(app, SYNC, order)
    wait_until_idle(app)
    assert reactive_database.orders.find_one({"_id": order})["erp_number"] == "SO-00001"
    assert reactive_database.journal.count_documents({}) == 1
    assert len(erp.orders()) == 1
    assert_no_errors(app)


def test_an_order_that_changes_while_it_is_sent_is_sent_again(
    reactive_database: Database[Any], erp: Erp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest state is the one that stays."""
    put = erp.put

    def put_while_the_customer_cancels(order: dict[str, Any]) -> int | None:
        reactive_database.orders.update_one({}, {"$set": {"status": "cancelled", "amount": 0}})
        return put(order)

    monkeypatch.setattr(erp, "put", put_while_the_customer_cancels)
    pay(reactive_database)
    assert [stored["status"] for stored in erp.orders()] == ["cancelled"]
    assert [entry["status"] for entry in reactive_database.journal.find()] == ["paid", "cancelled"]
    assert_no_errors(app)


def test_the_erp_refuses_an_older_run(erp: Erp) -> None:
    """Of a worker that was cut off and comes back."""
    newer = {"id": "17", "status": "cancelled", "amount": 0, "version": 2}
    assert erp.put(newer) == 1
    assert erp.put({**newer, "status": "paid", "amount": 42, "version": 1}) is None
    assert erp.orders() == [{**newer, "number": 1}]


def pay(database: Database[Any]) -> Any:
    """Write a paid order as the shop does, and wait for what follows."""
    order = database.orders.insert_one({"status": "paid", "amount": 42}).inserted_id
    wait_until_idle(app)
    return order
