"""Tests of the reminders, to copy: `pip install -r requirements.txt`, then `pytest`. Two weeks take no time."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import reminders
from pymongo.database import Database
from reminders import app

from celery_reactive import Reactive
from celery_reactive.testing import assert_no_errors, make_due, wait_until_idle

DUE_AT = datetime(2100, 1, 1, tzinfo=UTC)
"""Later than any run of this test, so that a deferred reminder waits until the test says that it is time."""


class Calendar:
    """The day on which the handler believes to be; it begins when the invoices are due."""

    def __init__(self) -> None:
        self.day = 0

    def now(self) -> datetime:
        """Return the time, for the handler."""
        return DUE_AT + timedelta(days=self.day)

    def turn_to(self, day: int, invoice: Any) -> None:
        """Let days pass, and the invoice's wait end if it waits."""
        self.day = day
        make_due(app, "reminders.remind", invoice)
        wait_until_idle(app)


@pytest.fixture(autouse=True)
def reactive(reactive_inline: Callable[..., Reactive]) -> Reactive:
    """Planner and worker run beside each test, on a database of its own."""
    return reactive_inline(app)


@pytest.fixture(autouse=True)
def calendar(monkeypatch: pytest.MonkeyPatch) -> Calendar:
    """A calendar that the test turns."""
    calendar = Calendar()
    monkeypatch.setattr(reminders, "now", calendar.now)
    return calendar


@pytest.fixture
def invoice(reactive_database: Database[Any]) -> Any:
    """An invoice that is due on day 0 of the calendar."""
    wanted = {"customer": "Grace", "amount": 42, "status": "open", "due_at": DUE_AT}
    invoice = reactive_database.invoices.insert_one(wanted).inserted_id
    wait_until_idle(app)
    return invoice


def test_reminders_are_sent_on_their_days(
    calendar: Calendar, invoice: Any, reactive: Reactive, reactive_database: Database[Any]
) -> None:
    """And the record tells when the next one is due, until there is none."""
    expected = {0: ([], 3), 2: ([], 3), 3: ([3], 7), 7: ([3, 7], 14), 14: ([3, 7, 14], None)}
    for day, (sent, coming) in expected.items():
        calendar.turn_to(day, invoice)
        (record,) = reactive.get_tasks(doc_id=invoice).items
        assert reminded(reactive_database) == sent
        assert record.next_run_at == (DUE_AT + timedelta(days=coming) if coming else None)
    assert_no_errors(app)


def test_nobody_is_reminded_of_what_is_paid(
    calendar: Calendar, invoice: Any, reactive: Reactive, reactive_database: Database[Any]
) -> None:
    """Payment ends the wait."""
    calendar.turn_to(3, invoice)
    reactive_database.invoices.update_one({"_id": invoice}, {"$set": {"status": "paid"}})
    wait_until_idle(app)
    assert reactive.count_tasks(status="completed") == 1
    calendar.turn_to(7, invoice)
    assert reminded(reactive_database) == [3]


def test_more_time_starts_the_reminders_anew(
    calendar: Calendar, invoice: Any, reactive_database: Database[Any]
) -> None:
    """Three days after the new date, not before."""
    calendar.turn_to(3, invoice)
    reactive_database.invoices.update_one({"_id": invoice}, {"$set": {"due_at": DUE_AT + timedelta(days=10)}})
    wait_until_idle(app)
    calendar.turn_to(12, invoice)
    assert reminded(reactive_database) == [3]
    calendar.turn_to(13, invoice)
    assert reminded(reactive_database) == [3, 3]


def test_after_a_long_silence_the_customer_gets_one_mail(
    calendar: Calendar, invoice: Any, reactive_database: Database[Any]
) -> None:
    """The newest of those that are due."""
    calendar.turn_to(8, invoice)
    assert reminded(reactive_database) == [7]


def test_a_run_that_repeats_sends_nothing_twice(
    calendar: Calendar, invoice: Any, reactive: Reactive, reactive_database: Database[Any]
) -> None:
    """Whatever repeats it."""
    calendar.turn_to(3, invoice)
    reactive.retry_tasks(doc_id=invoice, task="reminders.remind")
    reactive.trigger("reminders.remind", invoice)
    wait_until_idle(app)
    assert reminded(reactive_database) == [3]


def reminded(database: Database[Any]) -> list[int]:
    """Return after how many days the customer was reminded, in the order of the mails."""
    return [mail["_id"]["days"] for mail in database.mails.find()]
