"""Tests of the confirmations, to copy: `pip install 'celery-reactive[embedded]' pytest`, then `pytest`."""

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from flask import Flask
from pymongo.database import Database
from shop import create_app

from celery_reactive import Reactive
from celery_reactive.testing import assert_no_errors, wait_until_idle


@pytest.fixture
def flask_app(reactive_database_url: str, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """An application whose pages and tasks use the test's database."""
    monkeypatch.setenv("MONGODB_URL", reactive_database_url)
    return create_app()


@pytest.fixture
def celery_app(flask_app: Flask, reactive_inline: Callable[..., Reactive]) -> Celery:
    """Its Celery app, with planner and worker beside the test."""
    return reactive_inline(flask_app.extensions["celery"]).app


def test_a_paid_order_is_confirmed(flask_app: Flask, celery_app: Celery, reactive_database: Database[Any]) -> None:
    """The customer orders and pays over the pages; the task follows."""
    browser = flask_app.test_client()
    placed = browser.post("/", data={"item": "tea"})
    wait_until_idle(celery_app)
    assert "confirmation" not in reactive_database.orders.find_one()

    browser.post(f"{placed.location}/pay")
    wait_until_idle(celery_app)
    assert "The corner shop" in reactive_database.orders.find_one()["confirmation"]
    assert_no_errors(celery_app)
