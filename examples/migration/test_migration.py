"""Tests of the migration, to copy: `pip install -r requirements.txt`, then `pytest`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from celery import Celery
from migration import declare
from pymongo.database import Database
from shapes import STEPS, Customer, current

from celery_reactive import Reactive
from celery_reactive.testing import assert_no_errors, configured, fast, make_due, run_inline, wait_until_idle

Steps = Sequence[Callable[[Customer], Customer]]
Deployed = Callable[[Steps], AbstractContextManager[Celery]]

OLD = {"_id": 1, "name": "Ada King", "email": "Ada@Example.com"}
NEW = {"_id": 1, "name": {"first": "Ada", "last": "King"}, "email": "ada@example.com", "schema": 2}


@pytest.fixture
def deployed(reactive_database_url: str) -> Deployed:
    """A release that has some steps: planner and worker run inside the block, and what is to be done is done."""

    @contextmanager
    def deploy(steps: Steps) -> Iterator[Celery]:
        app = Celery("migration", set_as_current=False)
        declare(app, steps)
        with configured(app, reactive_mongodb_url=reactive_database_url), fast(), run_inline(app):
            wait_until_idle(app)
            yield app

    return deploy


def test_the_steps_lead_to_the_newest_shape() -> None:
    """From each shape on, and no further."""
    assert current(OLD) == NEW
    assert current(current(OLD, STEPS[:1])) == NEW
    assert current(NEW) == NEW


def test_all_customers_are_migrated_once(deployed: Deployed, reactive_database: Database[Any]) -> None:
    """Those that are there and those that an old program still writes; the migration's own write runs nothing."""
    reactive_database.customers.insert_one(OLD)
    with deployed(STEPS) as app:
        reactive_database.customers.insert_one({**OLD, "_id": 2})
        wait_until_idle(app)
        assert list(reactive_database.customers.find()) == [NEW, {**NEW, "_id": 2}]
        assert runs(app) == {1: 1, 2: 1}
        assert_no_errors(app)


def test_a_further_step_is_taken_by_all(deployed: Deployed, reactive_database: Database[Any]) -> None:
    """It raises the handler's version, so each customer runs once more."""
    reactive_database.customers.insert_one(OLD)
    with deployed(STEPS[:1]):
        assert reactive_database.customers.find_one({"schema": 1})
    with deployed(STEPS) as app:
        assert reactive_database.customers.find_one() == NEW
        assert runs(app) == {1: 2}
    with deployed(STEPS) as app:
        assert runs(app) == {1: 2}
        assert_no_errors(app)


def test_what_the_application_writes_meanwhile_is_kept(deployed: Deployed, reactive_database: Database[Any]) -> None:
    """A customer that changes between the migration's read and its write is read again."""
    calls = []

    def slow_step(customer: Customer) -> Customer:
        calls.append(customer)
        if len(calls) == 1:
            reactive_database.customers.update_one({"_id": 1}, {"$set": {"phone": "1815"}})
        return customer

    reactive_database.customers.insert_one(OLD)
    with deployed([slow_step, *STEPS]) as app:
        assert reactive_database.customers.find_one() == {**OLD, "phone": "1815"}
        make_due(app, "migrate", 1)
        wait_until_idle(app)
        assert reactive_database.customers.find_one() == {**NEW, "phone": "1815", "schema": 3}
        assert_no_errors(app)


def test_one_that_cannot_be_migrated_is_found(deployed: Deployed, reactive_database: Database[Any]) -> None:
    """It stops nobody, and is done after it was mended."""
    reactive_database.customers.insert_many([{"_id": 0, "email": "nobody@example.com"}, OLD])
    with deployed(STEPS) as app:
        assert reactive_database.customers.find_one({"_id": 1}) == NEW
        (record,) = Reactive.of(app).get_tasks(has_error=True).items
        assert (record.source_doc_id, record.last_error) == (0, "'name'")

        reactive_database.customers.update_one({"_id": 0}, {"$set": {"name": "No Body"}})
        Reactive.of(app).retry_tasks(has_error=True)
        wait_until_idle(app)
        assert reactive_database.customers.count_documents({"schema": 2}) == 2
        assert_no_errors(app)


def runs(app: Celery) -> dict[Any, int]:
    """Return how often each customer's handler has run."""
    return {record.source_doc_id: len(record.execution_history) for record in Reactive.of(app).get_tasks().items}
