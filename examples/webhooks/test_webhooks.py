"""Tests of the deliveries, to copy: `pip install -r requirements.txt`, then `pytest`.

The partner is a real web server.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from bson import ObjectId
from partner import Answer, Partner
from pymongo.database import Database
from signing import ForgedError, signed, verified
from webhooks import LONGEST_PAUSE, PAUSE, _pause, app

from celery_reactive import Reactive, TaskRecord
from celery_reactive.testing import assert_no_errors, make_due, wait_until, wait_until_idle

DELIVER = "webhooks.deliver"
SECRET = "only for tests"  # noqa: S105 -- none


@pytest.fixture
def answers() -> deque[Answer]:
    """What the partner answers next, in order; afterwards it takes everything."""
    return deque()


@pytest.fixture
def partner(answers: deque[Answer]) -> Iterator[Partner]:
    """Listens beside the test."""
    with Partner(SECRET, lambda: answers.popleft() if answers else (204, {})) as partner:
        thread = threading.Thread(target=partner.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield partner
        partner.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def reactive(reactive_inline: Callable[..., Reactive], partner: Partner) -> Reactive:
    """Planner and worker run beside each test."""
    return reactive_inline(app, webhook_url=partner.url, webhook_secret=SECRET)


def test_an_event_is_delivered(reactive_database: Database[Any], partner: Partner) -> None:
    """Signed, and under its own id."""
    event = ship(reactive_database)
    wait_until_idle(app)
    assert partner.taken[str(event)]["type"] == "order.shipped"
    assert partner.knocks == [str(event)]
    assert_no_errors(app)


def test_one_that_fails_is_tried_again_with_the_same_id(
    reactive_database: Database[Any], reactive: Reactive, partner: Partner, answers: deque[Answer]
) -> None:
    """So the partner can tell that it is no other, also where only the answer was lost."""
    answers.append((502, {}))
    event = ship(reactive_database)
    wait_until_idle(app)
    record = record_of(reactive, event)
    assert (record.status, record.attempts) == ("pending", 1)
    assert "502 Bad Gateway" in str(record.last_error)

    make_due(app, DELIVER, event)
    wait_until_idle(app)
    reactive.retry_tasks(doc_id=event)
    wait_until_idle(app)
    assert partner.knocks == [str(event)] * 3
    assert len(partner.taken) == 1
    assert_no_errors(app)


def test_one_that_is_refused_is_not_tried_again(
    reactive_database: Database[Any], reactive: Reactive, partner: Partner, answers: deque[Answer]
) -> None:
    """It waits among the dead letters for a person."""
    answers.append((422, {}))
    event = ship(reactive_database)
    wait_until_idle(app)
    record = record_of(reactive, event)
    assert (record.status, record.last_error) == ("failed", "422: ")
    assert partner.knocks == [str(event)]


@pytest.mark.parametrize("status", [429, 503])
def test_a_partner_who_wants_a_pause_gets_it(
    reactive_database: Database[Any], reactive: Reactive, partner: Partner, answers: deque[Answer], status: int
) -> None:
    """From all events on all workers, and no attempt is spent."""
    answers.append((status, {"Retry-After": "60"}))
    first = ship(reactive_database)
    wait_until(lambda: record_of(reactive, first).next_run_at)
    second = ship(reactive_database)
    wait_until(lambda: reactive.explain(DELIVER, second).outlook == "held_back", stable_for=0.3)
    assert record_of(reactive, first).attempts == 0
    assert partner.knocks == [str(first)]

    reactive.resume(DELIVER)
    make_due(app, DELIVER, first)
    wait_until_idle(app)
    assert partner.taken.keys() == {str(first), str(second)}
    assert_no_errors(app)


def test_a_pause_is_what_the_partner_says_within_reason() -> None:
    """Seconds, a date, or nonsense."""
    assert _pause("7") == timedelta(seconds=7)
    assert _pause("9" * 20) == LONGEST_PAUSE
    assert _pause("Fri, 31 Dec 9999 23:59:59 GMT") == LONGEST_PAUSE
    assert _pause("Thu, 01 Jan 1970 00:00:00 GMT") == timedelta(seconds=1)
    assert _pause("soon") == _pause("") == PAUSE


def test_a_forged_message_is_turned_away(partner: Partner) -> None:
    """One whose body or id is another, or that has no signature."""
    headers = signed("1", b"{}", SECRET.encode())
    assert verified(headers, b"{}", SECRET.encode()) == "1"
    with pytest.raises(ForgedError):
        verified({**headers, "webhook-id": "2"}, b"{}", SECRET.encode())
    with pytest.raises(ForgedError):
        verified({}, b"{}", SECRET.encode())
    assert httpx.post(partner.url, content=b'{"data": 2}', headers=headers).status_code == 401
    assert partner.taken == {}


def ship(database: Database[Any]) -> ObjectId:
    """Write an event as the shop does."""
    event = {"type": "order.shipped", "at": datetime.now(UTC), "data": {"order": 17}}
    return ObjectId(database.events.insert_one(event).inserted_id)


def record_of(reactive: Reactive, event: ObjectId) -> TaskRecord:
    """Return the record of an event's delivery, once there is one."""
    (record,) = wait_until(lambda: reactive.get_tasks(doc_id=event).items)
    return record
