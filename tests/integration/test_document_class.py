"""What `get_document` makes of a document, and what becomes of one that is not accepted (B-62)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from celery_reactive import DocumentInvalidError
from celery_reactive.core.message import Named
from celery_reactive.core.outcome import Outcome
from celery_reactive.core.registry import Registry
from celery_reactive.core.states import RecordState
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store import definitions
from celery_reactive.store.connection import Connection
from celery_reactive.worker.context import TaskContext
from celery_reactive.worker.execute import execute, outcome_of_error, outcome_of_return
from celery_reactive.worker.run import Run
from tests.integration.bench import Bench, each
from tests.integration.conftest import MakeBench


class Order(BaseModel):
    """An order as a handler wants it."""

    model_config = ConfigDict(extra="forbid")

    id: int = Field(alias="_id")
    on: bool
    v: int


RunAll = Callable[..., list[Any]]


@pytest.fixture
def run_all(connection: Connection, settings: Settings) -> RunAll:
    """Run records as one message; return what each handler read, or what it raised."""

    def run(bench: Bench, *doc_ids: int, projection: Any = None) -> list[Any]:
        definitions.define(connection.globals(), bench.task, namespace="shop.orders", collated=False, term=1)
        got: list[Any] = []

        def body(run: Run, context: TaskContext) -> Outcome:
            try:
                got.append(context.get_document(projection))
            except DocumentInvalidError as error:
                got.append(error)
                return outcome_of_error(run, error)
            return outcome_of_return(run)

        named = [Named(bench.key(doc_id), 0) for doc_id in doc_ids]
        execute(Runtime(settings, Registry(), connection), bench.task, named, each(body), token="t", worker="w")  # noqa: S106
        return got

    return run


def test_a_pydantic_model_is_what_the_handler_gets(make_bench: MakeBench, run_all: RunAll) -> None:
    """B-62: alone, in company, and with a projection."""
    bench = make_bench("typed", document_class=Order)
    bench.plan(*({"_id": doc_id, "on": True, "v": doc_id} for doc_id in range(4)))
    assert run_all(bench, 0, 1) == [Order(_id=0, on=True, v=0), Order(_id=1, on=True, v=1)]
    assert run_all(bench, 2, projection={"on": 1, "v": 1}) == [Order(_id=2, on=True, v=2)]


def test_anything_that_can_be_called_will_do(make_bench: MakeBench, run_all: RunAll) -> None:
    """B-62."""
    bench = make_bench("called", document_class=sorted)
    bench.plan({"_id": 1, "on": True, "v": 1})
    assert run_all(bench, 1) == [["_id", "on", "v"]]


def test_a_document_that_is_not_accepted_fails_without_another_attempt(make_bench: MakeBench, run_all: RunAll) -> None:
    """B-62: only a change of the document can help, and it does."""
    bench = make_bench("typed", document_class=Order)
    bench.plan({"_id": 1, "on": True, "v": "text"}, {"_id": 2, "on": True, "v": 2})
    (error, order) = run_all(bench, 1, 2)
    assert isinstance(error, DocumentInvalidError)
    assert order == Order(_id=2, on=True, v=2)
    record = bench.record(1)
    assert (record["status"], record["attempts"]) == (RecordState.FAILED, 1)
    assert "valid integer" in record["lastError"]
    bench.plan({"_id": 1, "on": True, "v": 3})
    assert run_all(bench, 1) == [Order(_id=1, on=True, v=3)]
