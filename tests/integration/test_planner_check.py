"""What the planner checks before it starts: a task that cannot work is refused by name, and the others run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from celery_reactive.core.declaration import declare
from celery_reactive.core.registry import Registry
from celery_reactive.errors import ConfigurationError
from celery_reactive.planner import process
from celery_reactive.planner.dispatch import Publisher
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store.connection import Connection

CANNOT_COMPILE: Mapping[str, Mapping[str, Any]] = {
    "a pattern": {"filter": {"v": {"$regex": "("}}},
    "an operand of the wrong type": {"filter": {"v": {"$in": 1}}},
    "an expression": {"filter": {"$expr": {"$divide": ["$a"]}}},
    "a schema": {"filter": {"$jsonSchema": {"bsonType": "nothing"}}},
    "a computed field": {"watch_projection": {"v": {"$dateToString": {}}}},
}

Check = Callable[..., list[str]]


class Reachable(Publisher):
    """A broker that answers."""

    def __init__(self) -> None:
        """Need no app."""

    def check(self) -> None:
        """Find nothing wrong."""


@pytest.fixture
def check(connection: Connection, settings: Settings) -> Check:
    """Check tasks with the given options as a starting planner does; return the names of the fit ones."""

    def run(*, group: str = "default", **tasks: Mapping[str, Any]) -> list[str]:
        registry = Registry()
        for name, options in tasks.items():
            registry.add(declare(name, {"collection": "orders", **options}), celery_name=name)
        runtime = Runtime(settings, registry, connection)
        return [task.name for task in process.check(runtime, Reachable(), group=group)]

    return run


@pytest.mark.parametrize("options", CANNOT_COMPILE.values(), ids=list(CANNOT_COMPILE))
def test_a_task_that_cannot_compile_is_refused_and_the_others_run(
    check: Check, options: Mapping[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """B-3: with its name and the server's message."""
    assert check(broken=options, fine={}) == ["fine"]
    (refused,) = [record for record in caplog.records if getattr(record, "event", "") == "task_refused"]
    assert refused.getMessage().startswith("task refused: broken: the server refuses its filter or watch_projection: ")


def test_a_planner_without_a_fit_task_does_not_start(check: Check) -> None:
    """B-3: the one error names every task."""
    with pytest.raises(ConfigurationError, match=r"every task was refused: one: .*; two: "):
        check(one=CANNOT_COMPILE["a pattern"], two=CANNOT_COMPILE["a schema"])


@pytest.mark.parametrize("kind", ["view", "time series"])
def test_what_cannot_be_watched_is_refused(check: Check, connection: Connection, kind: str) -> None:
    """B-4: a view has no changes of its own, a time series no documents that change."""
    how: dict[str, Any] = {"viewOn": "orders"} if kind == "view" else {"timeseries": {"timeField": "at"}}
    connection.database().create_collection("odd", **how)
    with pytest.raises(ConfigurationError, match="odd: expected a collection that can be watched"):
        check(odd={"collection": "odd"})


def test_a_records_collection_cannot_be_watched(check: Check) -> None:
    """B-4: it would feed on itself."""
    with pytest.raises(ConfigurationError, match=r"got 'orders_tasks', a records collection"):
        check(odd={"collection": "orders_tasks"})


def test_a_foreign_collection_in_the_place_of_the_records_is_left_untouched(
    check: Check, connection: Connection
) -> None:
    """B-4: refused by name; not even an index is made."""
    foreign = connection.database()["orders_tasks"]
    foreign.insert_one({"_id": 1, "mine": True})
    with pytest.raises(ConfigurationError, match="orders_tasks"):
        check(sync={})
    assert list(foreign.find()) == [{"_id": 1, "mine": True}]
    assert list(foreign.index_information()) == ["_id_"]


def test_each_group_has_its_tasks(check: Check) -> None:
    """B-65: a planner of a group plans the tasks of that group."""
    tasks = {"usual": {}, "heavy": {"group": "night"}}
    assert check(**tasks) == ["usual"]
    assert check(group="night", **tasks) == ["heavy"]
    with pytest.raises(ConfigurationError, match=r"group 'day': .* one of 'default', 'night'"):
        check(group="day", **tasks)
