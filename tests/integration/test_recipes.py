"""The recipes work: each handler of the page runs on a real MongoDB, with the world outside played."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Any

import httpx
import pytest
from celery import Celery, _state
from pymongo.database import Database

import celery_reactive
from celery_reactive import Reactive, TaskRecord
from celery_reactive.testing import wait_until
from tests.docs.pages import ROOT, blocks_of

PAGE = ROOT / "docs" / "recipes.md"
Inline = Callable[..., Reactive]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, reactive_inline: Inline) -> Callable[[str], Reactive]:
    """A function that runs planner and worker with the block of the page that holds a handler."""
    monkeypatch.setattr(_state, "_apps", weakref.WeakSet())
    monkeypatch.setattr(_state, "_on_app_finalizers", set())
    monkeypatch.setattr(_state._tls, "current_app", None)

    def run(handler: str) -> Reactive:
        [code] = [block.code for block in blocks_of(PAGE) if f"def {handler}(" in block.code]
        app = Celery("proj")
        public = {name: getattr(celery_reactive, name) for name in celery_reactive.__all__}
        exec(compile(code, PAGE.name, "exec"), {"__name__": "proj", "app": app, **public})  # noqa: S102 -- our own page
        return reactive_inline(app)

    return run


def answer(status: int, *, headers: dict[str, str] | None = None, body: Any = None) -> httpx.Response:
    """Return what a server says."""
    request = httpx.Request("POST", "https://example.com")
    return httpx.Response(status, headers=headers, json=body, request=request)


def completed(reactive: Reactive, records: int) -> list[TaskRecord]:
    """Wait until so many records are completed, and return all there are."""
    wait_until(lambda: reactive.count_tasks(status="completed") == records, timeout=20)
    return reactive.get_tasks().items


def test_a_webhook_that_answers_429_is_called_again_after_the_time_it_says(
    recipe: Callable[[str], Reactive], reactive_database: Database[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-34, B-35: no attempt is spent."""
    answers = [answer(429, headers={"Retry-After": "1"}), answer(200)]
    monkeypatch.setattr(httpx, "post", lambda *_, **__: answers.pop(0))
    reactive = recipe("deliver")
    reactive_database.events.insert_one({"webhook": "https://example.com", "body": "news"})
    [record] = completed(reactive, 1)
    assert not answers
    assert record.last_error is None
    assert record.attempts == 1


def test_an_order_is_sent_once_and_noted_with_its_completion(
    recipe: Callable[[str], Reactive], reactive_database: Database[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-36: the handler's write to the order runs nothing."""
    sent: list[str] = []

    def put(url: str, **_: Any) -> httpx.Response:
        sent.append(url)
        return answer(200, body={"number": 17})

    monkeypatch.setattr(httpx, "put", put)
    reactive = recipe("sync_to_erp")
    reactive_database.orders.insert_one({"_id": "A-1", "status": "paid", "lines": []})
    completed(reactive, 1)
    assert reactive_database.orders.find_one({"erp_number": 17})
    assert reactive_database.erp_log.count_documents({}) == 1
    assert sent == ["https://erp.example.com/orders/A-1"]


def test_reviews_rate_their_product(recipe: Callable[[str], Reactive], reactive_database: Database[Any]) -> None:
    """B-60: a batch of reviews is one note for each product."""
    recipe("note_reviews")
    reactive_database.products.insert_one({"_id": "p"})
    reactive_database.reviews.insert_many([{"product": "p", "stars": stars} for stars in (3, 4, 5)])
    wait_until(lambda: reactive_database.products.find_one({"rating": 4.0, "reviews": 3}), timeout=20)


def test_an_event_is_heard_by_every_listener_once(
    recipe: Callable[[str], Reactive], reactive_database: Database[Any]
) -> None:
    """B-17: each listener has a record of its own."""
    reactive = recipe("send_welcome")
    reactive_database.app_events.insert_one({"type": "user-registered", "email": "ada@example.com"})
    heard = completed(reactive, 2)
    assert {record.task for record in heard} == {"proj.send_welcome", "proj.open_trial"}


def test_a_reminder_waits_for_its_time(recipe: Callable[[str], Reactive], reactive_database: Database[Any]) -> None:
    """B-34: the first run defers, the second reminds."""
    reactive = recipe("remind_of_appointment")
    now = reactive_database.client.admin.command("hello")["localTime"].replace(tzinfo=UTC)
    at = now + timedelta(seconds=2)
    reactive_database.appointments.insert_one({"at": at})
    [record] = completed(reactive, 1)
    assert record.completed_at is not None
    assert record.completed_at >= at


def test_a_product_that_the_search_engine_refuses_fails_alone(
    recipe: Callable[[str], Reactive], reactive_database: Database[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-60: the others of its batch are done."""

    def bulk(_url: str, *, content: str, **_: Any) -> httpx.Response:
        actions = [json.loads(line) for line in content.splitlines() if '"_index"' in line]
        named = [next(iter(action.items())) for action in actions]
        return answer(200, body={"items": [{name: {"status": STATUS[one["_id"]]}} for name, one in named]})

    monkeypatch.setattr(httpx, "post", bulk)
    reactive = recipe("index")
    reactive_database.products.insert_many(
        [
            {"_id": "good", "name": "a", "text": "b"},
            {"_id": "gone", "name": "a", "text": "b", "deleted": True},
            {"_id": "bad", "name": "a", "text": "b"},
        ]
    )
    completed(reactive, 2)
    [failed] = wait_until(lambda: reactive.get_tasks(has_error=True).items, timeout=20)
    assert failed.source_doc_id == "bad"


STATUS = {"good": 201, "gone": 404, "bad": 400}


def test_a_migration_handles_what_is_there_and_what_comes(
    recipe: Callable[[str], Reactive], reactive_database: Database[Any]
) -> None:
    """B-8: what is done leaves the filter."""
    reactive_database.users.insert_one({"name": "Ada Lovelace"})
    reactive = recipe("migrate")
    reactive_database.users.insert_one({"name": "Alan Turing"})
    completed(reactive, 2)
    assert reactive_database.users.count_documents({"schema": 3, "last": {"$in": ["Lovelace", "Turing"]}}) == 2


def test_each_class_of_tenants_has_its_task(
    recipe: Callable[[str], Reactive], reactive_database: Database[Any]
) -> None:
    """B-5: the filter says whose a job is."""
    reactive = recipe("work_for_gold")
    reactive_database.jobs.insert_many([{"plan": "gold", "tenant": "a"}, {"plan": "free", "tenant": "b"}])
    assert {record.task for record in completed(reactive, 2)} == {"proj.work_for_gold", "proj.work_for_free"}
