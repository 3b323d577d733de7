"""From a decorator's options to a checked definition: B-2, B-41, B-43, B-44."""

from __future__ import annotations

import contextlib
import pickle
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_reactive.core.batch import Batch
from celery_reactive.core.declaration import OPTIONS, declare
from celery_reactive.core.limits import Rate
from celery_reactive.core.policies import CleanupPolicy, DeleteWhen, Evolution, OnHandlerVersionChange
from celery_reactive.core.retry import RetryPolicy
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import ConfigurationError, ForeignRecordsError, UnknownTaskError


def problems(**options: Any) -> list[str]:
    """Return what is wrong with a declaration of `shop.sync` with these options."""
    with pytest.raises(ConfigurationError) as caught:
        declare("shop.sync", options)
    assert caught.value.subject == "shop.sync"
    return caught.value.problems


def test_the_defaults() -> None:
    """B-2: only the collection is required."""
    task = declare("shop.sync", {"collection": "orders"})
    assert task == ReactiveTask(name="shop.sync", collection="orders")
    assert task.database is None
    assert task.filter.matches_all
    assert task.projection.whole
    assert task.backfill
    assert task.debounce == timedelta(seconds=1)
    assert task.debounce_max_wait is None
    assert task.retry_policy == RetryPolicy()
    assert task.cleanup_policy == CleanupPolicy(delete_when="source_document_deleted", keep_for="24h")
    assert task.execution_history_limit == 5
    assert task.evolution == Evolution(handler_version=1, on_handler_version_change="none")
    assert task.chunk is None
    assert task.priority == 4
    assert task.rate_limit is None
    assert task.max_concurrency is None
    assert task.paths is None


def test_every_option_is_taken() -> None:
    """B-2: in each form."""
    task = declare(
        "shop.sync",
        {
            "task": "old.name",
            "collection": "orders",
            "database": "shop",
            "filter": {"status": "paid"},
            "watch_projection": {"amount": 1},
            "backfill": False,
            "debounce": "5s",
            "debounce_max_wait": 60,
            "retry_policy": {"type": "exponential", "min": "10s", "max": "1h", "max_duration": "24h"},
            "cleanup_policy": {"deleteWhen": "never", "keepFor": "1h"},
            "execution_history_limit": 0,
            "evolution": {"handlerVersion": 2, "onHandlerVersionChange": "reprocess_failed"},
            "chunk": "auto",
            "priority": 9,
            "rate_limit": "100/m",
            "max_concurrency": 3,
        },
    )
    assert task.name == "old.name"
    assert task.database == "shop"
    assert task.paths == frozenset({"status", "amount"})
    assert not task.backfill
    assert (task.debounce, task.debounce_max_wait) == (timedelta(seconds=5), timedelta(minutes=1))
    assert task.retry_policy == RetryPolicy.exponential("10s", "1h", max_duration="24h")
    assert task.cleanup_policy == CleanupPolicy(delete_when=DeleteWhen.NEVER, keep_for=3600)
    assert task.execution_history_limit == 0
    assert task.evolution.handler_version == 2
    assert task.evolution.on_handler_version_change is OnHandlerVersionChange.REPROCESS_FAILED
    assert task.evolution.reconcile_on_trigger_change
    assert task.chunk == "auto"
    assert (task.rate_limit, task.max_concurrency) == (Rate(100, timedelta(minutes=1)), 3)
    assert task.priority == 9


def test_none_stands_for_the_default_where_there_is_one() -> None:
    """B-2 and B-5: options handed through by the user's own code."""
    optional = ("task", "database", "filter", "watch_projection", "debounce_max_wait", "retry_policy", "cleanup_policy")
    options = {"collection": "orders", "evolution": None, "chunk": None, **dict.fromkeys(optional)}
    assert declare("shop.sync", options) == declare("shop.sync", {"collection": "orders"})


def test_the_definition_is_readable() -> None:
    """What a user sees of `task.reactive`."""
    task = declare("shop.sync", {"collection": "orders", "database": "shop", "filter": {"a": 1}, "debounce": "90s"})
    expected = "<ReactiveTask 'shop.sync' on shop.orders: filter {'a': 1}, watches the whole document, debounce 1m 30s>"
    assert repr(task) == expected


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("task", "", "task: expected a string with text"),
        ("task", 5, "task: expected a string"),
        ("task", "a\0b", "task: expected a string with text and without NUL"),
        ("collection", None, "collection: expected a string"),
        ("collection", "", "collection: expected a string with text"),
        ("collection", "a$b", "collection: expected the name of a collection"),
        ("collection", "a..b", "collection: expected the name of a collection"),
        ("collection", ".a", "collection: expected the name of a collection"),
        ("collection", "x" * 300, "collection: expected the name of a collection"),
        ("collection", "a\0", "collection: expected a string with text and without NUL"),
        ("collection", "\ud800", "collection: expected a string with text"),
        ("collection", "system.views", "collection: expected a collection of yours, got the system's 'system.views'"),
        ("database", "a.b", "database: expected the name of a database"),
        ("database", "x" * 64, "database: expected the name of a database"),
        ("database", "local", "database: expected a database of yours"),
        ("database", 1, "database: expected a string"),
        ("filter", [], "filter: expected a dict"),
        ("filter", {"$where": "1"}, "filter: $where is refused"),
        ("watch_projection", {"a": 0}, "watch_projection: a: excludes a field"),
        ("watch_projection", "a", "watch_projection: expected a dict"),
        ("backfill", 1, "backfill: expected True or False, got 1 (int)"),
        ("backfill", None, "backfill: expected True or False, got None"),
        ("debounce", None, "debounce: expected a timedelta"),
        ("debounce", "-1s", "debounce: expected a timedelta"),
        ("debounce", True, "debounce: expected a timedelta"),
        ("debounce_max_wait", "x", "debounce_max_wait: expected a timedelta"),
        ("retry_policy", "fixed", "retry_policy: expected a RetryPolicy or a dict"),
        ("retry_policy", {"type": "fixed"}, "retry_policy: interval: missing"),
        ("cleanup_policy", "never", "cleanup_policy: expected a dict, got 'never'"),
        (
            "cleanup_policy",
            {"delete_when": "nevr"},
            (
                "cleanup_policy: delete_when: expected one of 'source_document_deleted', "
                "'source_document_deleted_or_no_longer_matching', 'never', got 'nevr'; did you mean 'never'?"
            ),
        ),
        ("cleanup_policy", {"keepFor": 86400000}, "cleanup_policy: keep_for: got the bare number 86400000 (int)"),
        ("cleanup_policy", {"keep": 1}, "cleanup_policy: unknown option 'keep'"),
        ("execution_history_limit", -1, "execution_history_limit: expected an integer from 0 to"),
        ("execution_history_limit", 2.5, "execution_history_limit: expected an integer from 0 to"),
        ("execution_history_limit", 2**40, "execution_history_limit: expected an integer from 0 to"),
        ("evolution", {"handlerVersion": 0}, "evolution: handler_version: expected an integer from 1 to"),
        ("evolution", {"handler_version": True}, "evolution: handler_version: expected an integer from 1 to"),
        (
            "evolution",
            {"on_handler_version_change": "reprocess"},
            "evolution: on_handler_version_change: expected one of 'none', 'reprocess_failed', 'reprocess_all'",
        ),
        ("evolution", {"reconcileOnTriggerChange": "no"}, "evolution: reconcile_on_trigger_change: expected True"),
        ("recheck_interval", "0.5s", "recheck_interval: expected at least 1 s"),
        ("recheck_interval", "CRON x", "recheck_interval: "),
        ("recheck_interval", [], "recheck_interval: "),
        ("document_class", "Order", "document_class: expected a Pydantic model or a callable"),
        ("batch", 0, "batch: size: expected an integer from 1 to 1000, got 0"),
        ("batch", (5, "x"), "batch: wait: "),
        ("batch", "5", "batch: expected a size, (size, wait) or a dict, got '5'"),
        ("batch", {"wait": "1s"}, "batch: size: missing"),
        ("batch", {"size": 5, "weight": 1}, "batch: unknown option 'weight'"),
        ("chunk", 0, "chunk: expected an integer from 1 to"),
        ("chunk", True, "chunk: expected an integer from 1 to"),
        ("chunk", "all", "chunk: expected \"auto\" or a positive integer, got 'all'"),
        ("priority", 10, "priority: expected an integer from 0 to 9, got 10"),
        ("priority", -1, "priority: expected an integer from 0 to 9, got -1"),
        ("priority", "9", "priority: expected an integer from 0 to 9, got '9'"),
        ("chunk", 1.0, 'chunk: expected "auto" or a positive integer'),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(option: str, value: object, expected: str) -> None:
    """B-2: expected, got, remedy."""
    with pytest.raises(ConfigurationError) as caught:
        declare("shop.sync", {"collection": "orders", option: value})
    (problem,) = caught.value.problems
    assert problem.startswith(expected)


def test_everything_wrong_is_one_error() -> None:
    """B-2: every wrong option, the unknown and the missing included."""
    found = problems(filtr={}, debounce=-1, backfill="yes", evolution={"handlerVersion": 0}, chunk=0)
    assert [problem.split(":")[0] for problem in found] == [
        "unknown option 'filtr'; did you mean 'filter'?",
        "collection",
        "backfill",
        "debounce",
        "evolution",
        "chunk",
    ]


@pytest.mark.parametrize(
    ("unknown", "suggestion"),
    [
        ("watchProjection", "watch_projection"),
        ("colection", "collection"),
        ("retryPolicy", "retry_policy"),
        ("debounceMaxWait", "debounce_max_wait"),
    ],
)
def test_an_unknown_option_is_refused_with_a_suggestion(unknown: str, suggestion: str) -> None:
    """B-2: did you mean."""
    assert problems(collection="orders", **{unknown: 1}) == [
        f"unknown option {unknown!r}; did you mean {suggestion!r}?"
    ]


def test_the_error_names_the_task_by_its_stable_name() -> None:
    """B-2: that is the name the user knows it by."""
    with pytest.raises(ConfigurationError, match=r"^old\.name: collection: missing"):
        declare("shop.sync", {"task": "old.name"})


_anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.builds(object)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)


@given(st.one_of(_anything, st.dictionaries(st.one_of(st.sampled_from(OPTIONS), st.text(), st.integers()), _anything)))
def test_nothing_but_a_configuration_error_comes_out(options: Any) -> None:
    """B-2: whatever the types."""
    with contextlib.suppress(ConfigurationError):
        declare("shop.sync", options)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("source_document_deleted", DeleteWhen.SOURCE_DOCUMENT_DELETED),
        ("sourceDocumentDeleted", DeleteWhen.SOURCE_DOCUMENT_DELETED),
        (
            "sourceDocumentDeletedOrNoLongerMatching",
            DeleteWhen.SOURCE_DOCUMENT_DELETED_OR_NO_LONGER_MATCHING,
        ),
        ("never", DeleteWhen.NEVER),
        pytest.param(DeleteWhen.NEVER, DeleteWhen.NEVER, id="member"),
    ],
)
def test_enum_values_in_both_spellings(written: str, meant: DeleteWhen) -> None:
    """B-41: mongodash's camelCase values are accepted too."""
    assert CleanupPolicy(delete_when=written).delete_when is meant
    assert CleanupPolicy.parse({"delete_when": written}).delete_when is meant


def test_typed_policies_are_kept_and_refuse_like_dicts() -> None:
    """Typed forms of the options."""
    policy, evolution = CleanupPolicy(keep_for=0), Evolution(handler_version=3)
    assert CleanupPolicy.parse(policy) is policy
    assert Evolution.parse(evolution) is evolution
    with pytest.raises(ConfigurationError, match="cleanup_policy: keep_for: expected a timedelta"):
        CleanupPolicy(keep_for="soon")
    with pytest.raises(ConfigurationError, match="evolution: handler_version: expected an integer"):
        Evolution(handler_version=0)


def test_an_unknown_task_is_answered_with_the_known() -> None:
    """B-52: an error that lists the known, and the one probably meant."""
    error = UnknownTaskError("shop.snyc", ["shop.sync", "shop.bill"])
    assert str(error) == "no reactive task 'shop.snyc'; did you mean 'shop.sync'? (known: shop.bill, shop.sync)"
    assert str(UnknownTaskError("x", [])) == "no reactive task 'x' (known: none is declared)"


@pytest.mark.parametrize(
    "error",
    [ConfigurationError("a", ["b", "c"]), UnknownTaskError("a", ["b"]), ForeignRecordsError("orders_tasks")],
)
def test_errors_travel_between_processes(error: Exception) -> None:
    """Celery pickles what a task raises."""
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 -- our own bytes


@pytest.mark.parametrize("batch", [5, (5, "2s"), {"size": 5, "wait": 2}, Batch(5, "2s")])
def test_a_batch_is_a_size_or_a_size_and_a_wait(batch: object) -> None:
    """B-60: also as a typed object."""
    task = declare("task", {"collection": "orders", "batch": batch})
    assert task.batch is not None
    assert task.batch.size == 5
    assert task.batch.wait == timedelta(seconds=0 if batch == 5 else 2)


def test_a_batch_has_no_chunk() -> None:
    """B-60: its size says how many documents a message names."""
    with pytest.raises(ConfigurationError, match="chunk: expected none beside batch"):
        declare("task", {"collection": "orders", "batch": 5, "chunk": 2})
