"""Documents of a message's records are read together, and each is checked as a read of its own would check it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_reactive.core.message import Named
from celery_reactive.core.outcome import Outcome
from celery_reactive.core.registry import Registry
from celery_reactive.core.states import RecordState
from celery_reactive.errors import TaskConditionFailedError
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store import definitions, documents
from celery_reactive.store.connection import Connection
from celery_reactive.worker import read_ahead
from celery_reactive.worker.context import TaskContext
from celery_reactive.worker.execute import execute, outcome_of_error, outcome_of_return
from celery_reactive.worker.run import Run
from tests.integration.bench import Bench, each
from tests.integration.conftest import MakeBench

RunAll = Callable[..., dict[Any, Any]]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The reads of documents, `together` or `alone`, in their order."""
    made: list[str] = []
    for name, function in (("together", documents.read_together), ("alone", documents.read)):

        def noted(*args: Any, _name: str = name, _function: Any = function, **options: Any) -> Any:
            made.append(_name)
            return _function(*args, **options)

        monkeypatch.setattr(documents, function.__name__, noted)
    return made


@pytest.fixture
def run_all(connection: Connection, settings: Settings) -> RunAll:
    """Run all of a workbench's records as one message; return what the handler got, by document."""

    def run(
        bench: Bench,
        *doc_ids: Any,
        handler: Callable[[TaskContext], Any] = TaskContext.get_document,
        collated: bool = False,
    ) -> dict[Any, Any]:
        definitions.define(connection.globals(), bench.task, namespace="shop.orders", collated=collated, term=1)
        got: dict[Any, Any] = {}

        def body(run: Run, context: TaskContext) -> Outcome:
            try:
                got[context.doc_id] = handler(context)
            except TaskConditionFailedError as error:
                got[context.doc_id] = str(error)
                return outcome_of_error(run, error)
            return outcome_of_return(run)

        named = [Named(bench.key(doc_id), 0) for doc_id in doc_ids]
        execute(Runtime(settings, Registry(), connection, ()), bench.task, named, each(body), token="t", worker="w")  # noqa: S106
        return got

    return run


def documents_of(number: int) -> list[dict[str, Any]]:
    """Return documents with more than is watched."""
    return [{"_id": doc_id, "on": True, "v": doc_id, "more": "x" * doc_id} for doc_id in range(number)]


def test_the_documents_of_a_message_are_read_in_one_statement(bench: Bench, run_all: RunAll, reads: list[str]) -> None:
    """B-32: each handler gets its own document, whole."""
    bench.plan(*documents_of(5))
    assert run_all(bench, *range(5)) == {document["_id"]: document for document in documents_of(5)}
    assert reads == ["together"]
    assert {bench.state(doc_id) for doc_id in range(5)} == {RecordState.COMPLETED}


def test_a_whole_document_that_is_watched_is_read_once(
    make_bench: MakeBench, run_all: RunAll, reads: list[str]
) -> None:
    """B-11: without a projection the watched values are the document."""
    bench = make_bench("whole", watch_projection=None)
    bench.plan(*documents_of(3))
    assert run_all(bench, *range(3)) == {document["_id"]: document for document in documents_of(3)}
    assert reads == ["together"]


def test_nothing_is_read_ahead_for_one_record_or_a_read_with_options(
    bench: Bench, run_all: RunAll, reads: list[str]
) -> None:
    """B-32: a projection is the user's own statement."""
    bench.plan(*documents_of(3))
    run_all(bench, 0)
    run_all(bench, 1, 2, handler=lambda context: context.get_document(["v"]))
    assert reads == ["alone"] * 3


def test_nothing_is_read_for_handlers_that_ask_for_nothing(bench: Bench, run_all: RunAll, reads: list[str]) -> None:
    """What is not asked for costs nothing."""
    bench.plan(*documents_of(3))
    run_all(bench, *range(3), handler=lambda context: context.attempt)
    assert reads == []


def test_documents_that_are_gone_have_left_or_moved_on_are_found_out(
    bench: Bench, run_all: RunAll, reads: list[str]
) -> None:
    """B-32, B-33: as a read of its own says, and the newer state gets its run."""
    bench.plan(*documents_of(5))
    bench.delete(1)
    bench.put({"_id": 2, "on": False, "v": 2})
    bench.put({"_id": 3, "on": True, "v": "newer"})
    got = run_all(bench, *range(5))
    assert [got[doc_id] for doc_id in (1, 2, 3)] == [
        "the document was deleted",
        "the document no longer matches the filter",
        "the watched values have moved on",
    ]
    assert (got[0]["v"], got[4]["v"]) == (0, 4)
    assert reads == ["together", "alone", "alone", "alone"]
    assert bench.state(3) is RecordState.PENDING
    assert bench.record(3)["lastObservedValues"] == {"v": "newer"}


def test_values_that_only_the_server_knows_to_be_the_same_are_read_again(
    bench: Bench, run_all: RunAll, reads: list[str]
) -> None:
    """B-13: 1 equals 1.0."""
    bench.plan(*documents_of(2))
    bench.put({"_id": 1, "on": True, "v": 1.0})
    assert run_all(bench, 0, 1)[1]["v"] == 1.0
    assert reads == ["together", "alone"]


def test_what_was_read_is_handed_out_for_a_moment_only(
    bench: Bench, run_all: RunAll, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that took its time is followed by another read, in which the change since is seen."""
    bench.plan(*documents_of(3))

    def slow(context: TaskContext) -> Any:
        document = context.get_document()
        bench.put({"_id": 2, "on": True, "v": 2, "more": "newer"})
        return document

    monkeypatch.setattr(read_ahead, "_FRESH_SECONDS", 0.0)
    got = run_all(bench, *range(3), handler=slow)
    assert got[2]["more"] == "newer"
    assert reads == ["together", "together", "alone"]


def test_a_handler_that_reads_twice_reads_again(bench: Bench, run_all: RunAll, reads: list[str]) -> None:
    """B-32: who asks a second time wants to know what is there now."""
    bench.plan(*documents_of(2))

    def twice(context: TaskContext) -> Any:
        context.get_document()
        return context.get_document()

    assert run_all(bench, 0, 1, handler=twice)[1] == documents_of(2)[1]
    assert reads == ["together", "alone", "alone"]


def test_a_collection_with_a_collation_is_read_one_by_one(bench: Bench, run_all: RunAll, reads: list[str]) -> None:
    """B-13: filter and values are compared under different collations there."""
    bench.plan(*documents_of(2))
    run_all(bench, 0, 1, collated=True)
    assert reads == ["alone", "alone"]


def test_memory_for_what_is_read_ahead_is_bounded(
    bench: Bench, run_all: RunAll, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit is read when it is asked for."""
    monkeypatch.setattr(documents, "_MOST_BYTES", 1)
    bench.plan(*documents_of(3))
    assert run_all(bench, *range(3)) == {document["_id"]: document for document in documents_of(3)}
    assert reads == ["together", "alone", "alone"]
