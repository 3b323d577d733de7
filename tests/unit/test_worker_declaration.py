"""What the decorator refuses to run, and by which name it says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task, shared_task

from celery_reactive import reactive_task
from celery_reactive.errors import ConfigurationError

app = Celery("refusals", broker="memory://", set_as_current=False)


def yields(ctx: Any) -> Iterator[Any]:
    """A generator function."""
    yield ctx


async def yields_later(ctx: Any) -> AsyncIterator[Any]:
    """An asynchronous one."""
    yield ctx


@pytest.mark.parametrize("function", [yields, yields_later])
@pytest.mark.parametrize("made_a_task_by", [app.task, shared_task, lambda function: function])
def test_a_generator_function_is_refused(made_a_task_by: Callable[[Any], Any], function: Any) -> None:
    """B-1: its body would never run."""
    with pytest.raises(ConfigurationError, match=f"{function.__name__}: .*generator function"):
        reactive_task(collection="orders")(made_a_task_by(function))


def test_a_class_is_refused() -> None:
    """B-1: of a class-based task the registered instance is decorated."""
    with pytest.raises(ConfigurationError, match=r"ByClass: .*register_task"):

        @reactive_task(collection="orders")
        class ByClass(Task):  # type: ignore[misc] -- Celery carries no types
            pass


def test_an_error_names_a_shared_task_by_its_function() -> None:
    """B-2: Celery has not named it yet."""

    def sync_order(ctx: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"sync_order: .*did you mean 'collection'"):
        reactive_task(colection="orders")(shared_task(sync_order))
