"""The composition root: the decorator on every kind of task, and one handle an app."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task, _state, shared_task

from celery_reactive import ConfigurationError, Reactive, reactive_task
from celery_reactive.core.task import ReactiveTask
from celery_reactive.worker.celery_task import ReactiveMixin

MakeApp = Callable[..., Celery]


@pytest.fixture(autouse=True)
def only_own_shared_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A shared task belongs to every app of the process: to a test's own apps only, and it ends with the test."""
    monkeypatch.setattr(_state, "_apps", weakref.WeakSet())
    before = set(_state._on_app_finalizers)
    _state._on_app_finalizers.clear()
    yield
    _state._on_app_finalizers.clear()
    _state._on_app_finalizers.update(before)


@pytest.fixture
def new_app() -> Iterator[Callable[..., Celery]]:
    """Make apps that talk to nobody and end with the test."""
    apps: list[Celery] = []

    def make(**conf: Any) -> Celery:
        app = Celery("proj", broker="memory://", set_as_current=False)
        app.conf.update(conf)
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()


def handle(ctx: object) -> object:
    """Return the context."""
    return ctx


def test_each_app_has_one_handle(new_app: MakeApp) -> None:
    """Public surface: and two apps share nothing."""
    one, two = new_app(), new_app()
    assert Reactive(one) is Reactive.of(one)
    assert Reactive.of(one) is not Reactive.of(two)
    reactive_task(collection="docs")(one.task(name="same")(handle))
    reactive_task(collection="docs")(two.task(name="same")(handle))
    one.finalize()
    two.finalize()
    assert [task.name for task in Reactive.of(one).registry] == ["same"]
    assert Reactive.of(one).registry is not Reactive.of(two).registry


def test_a_task_keeps_what_it_was(new_app: MakeApp) -> None:
    """B-1: its base, its binding, its name and its documentation; the definition is beside them."""
    app = new_app()

    class Own(Task):
        abstract = True

    @reactive_task(collection="docs", task="old.name")
    @app.task(name="new.name", base=Own, bind=True)
    def handler(self: Any, ctx: Any) -> tuple[Any, Any]:
        """What it does."""
        return self, ctx

    app.finalize()
    task = app.tasks["new.name"]
    assert isinstance(task, Own)
    assert isinstance(task, ReactiveMixin)
    assert isinstance(task.reactive, ReactiveTask)
    assert (task.name, task.reactive.name) == ("new.name", "old.name")
    assert task.__doc__ == "What it does."
    assert handler.reactive is task.reactive
    assert task("given") == (task, "given")


@pytest.mark.parametrize("finalized", [False, True])
def test_shared_tasks_and_plain_functions_reach_every_app(new_app: MakeApp, finalized: bool) -> None:  # noqa: FBT001 -- a case
    """B-1: whether an app is finalized before or after the declaration."""
    app = new_app()
    if finalized:
        app.finalize()

    @reactive_task(collection="docs")
    @shared_task(name="shared")
    def shared(ctx: Any) -> None:
        """Do nothing."""

    @reactive_task(collection="docs", task="plain")
    def plain(ctx: Any) -> None:
        """Do nothing."""

    app.finalize()
    assert {task.name for task in Reactive.of(app).registry} == {"shared", "plain"}
    assert isinstance(app.tasks["shared"], ReactiveMixin)


def test_two_tasks_cannot_have_one_name(new_app: MakeApp) -> None:
    """B-2: an error at declaration that names both."""
    app = new_app()
    app.finalize()
    reactive_task(collection="docs", task="same")(app.task(name="one")(handle))
    with pytest.raises(ConfigurationError, match=r"same.*one"):
        reactive_task(collection="docs", task="same")(app.task(name="two")(handle))


@pytest.mark.parametrize("argument", [handle, "orders"])
def test_options_are_given_by_name(argument: Any) -> None:
    """B-2: also where the parentheses were forgotten."""
    with pytest.raises(ConfigurationError, match="expected options by name"):
        reactive_task(argument)


def test_a_task_is_declared_once(new_app: MakeApp) -> None:
    """B-2: a second declaration is an error, not ignored."""
    app = new_app()
    app.finalize()
    task = reactive_task(collection="docs")(app.task(name="one")(handle))
    with pytest.raises(ConfigurationError, match="one: expected one @reactive_task on a Celery task, got two"):
        reactive_task(collection="others")(task)


def test_a_shared_task_that_cannot_be_declared_stops_what_starts(new_app: MakeApp) -> None:
    """B-2: Celery's signals swallow the error; whatever needs the app's parts raises it."""

    @shared_task(name="one")
    def one(ctx: Any) -> None:
        """Do nothing."""

    @shared_task(name="two")
    def two(ctx: Any) -> None:
        """Do nothing."""

    reactive_task(collection="docs", task="same")(one)
    reactive_task(collection="docs", task="same")(two)
    app = new_app()
    app.finalize()
    with pytest.raises(ConfigurationError, match="same"):
        _ = Reactive.of(app).runtime


def test_settings_come_from_the_app_in_any_spelling(new_app: MakeApp) -> None:
    """Public surface: also under Django's namespace."""
    app = new_app(reactive_batch_size=5)
    assert Reactive.of(app).runtime.settings.batch_size == 5
    django = new_app()
    django.config_from_object({"CELERY_REACTIVE_BATCH_SIZE": 7}, namespace="CELERY")
    assert Reactive.of(django).runtime.settings.batch_size == 7


def test_an_unknown_setting_is_refused_with_a_suggestion(new_app: MakeApp) -> None:
    """Public surface: nothing is silently ignored, under a namespace neither."""
    with pytest.raises(ConfigurationError, match="did you mean 'reactive_batch_size'"):
        _ = Reactive.of(new_app(reactive_batch_sise=5)).runtime
    django = new_app()
    django.config_from_object({"CELERY_REACTIVE_BATCH_SISE": 7}, namespace="CELERY")
    with pytest.raises(ConfigurationError, match="did you mean 'CELERY_REACTIVE_BATCH_SIZE'"):
        _ = Reactive.of(django).runtime


def test_a_setting_may_name_its_callable(new_app: MakeApp) -> None:
    """B-37: an import path, or the callable itself."""
    runtime = Reactive.of(new_app(reactive_task_caller="operator.call", reactive_task_filter=bool)).runtime
    assert runtime.task_caller is not None
    assert runtime.task_caller(lambda: "called") == "called"
    assert runtime.task_filter is bool
    with pytest.raises(ConfigurationError, match="reactive_task_caller"):
        _ = Reactive.of(new_app(reactive_task_caller="no.such.thing")).runtime


def test_eager_mode_with_a_planner_is_refused(new_app: MakeApp) -> None:
    """B-40: before anything is connected to."""
    with pytest.raises(ConfigurationError, match="task_always_eager: expected False"):
        Reactive.of(new_app(task_always_eager=True)).run_planner()


def test_reactive_below_the_celery_task_is_refused(new_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-1: two tasks would come of it, and the options of the outer one would count for no run."""
    app = new_app()

    def own(ctx: Any) -> None:
        """Do nothing."""

    # Celery looks at what it is given, and so asks for it in the current app.
    monkeypatch.setattr(_state._tls, "current_app", app)
    app.task(name="its.own", time_limit=5)(reactive_task(collection="orders")(own))
    app.finalize()
    with pytest.raises(ConfigurationError, match=r"its\.own: expected @reactive_task above the decorator"):
        _ = Reactive.of(app).runtime


def test_a_decorator_between_is_refused(new_app: MakeApp) -> None:
    """B-1: what it makes of a Celery task is a function; a second task would come of it, with none of the options."""
    app = new_app()
    task = app.task(name="one")(handle)

    @functools.wraps(task)
    def audited(ctx: Any) -> None:
        task(ctx)

    with pytest.raises(ConfigurationError, match="expected @reactive_task next to the decorator"):
        reactive_task(collection="docs")(audited)


def test_a_limit_for_each_worker_is_refused(new_app: MakeApp) -> None:
    """B-58: Celery's own `rate_limit` of the task; what the app sets for all its tasks is not the task's."""
    app = new_app(task_default_rate_limit="100/s")
    reactive_task(collection="docs")(app.task(name="usual")(handle))
    app.finalize()
    task = app.task(name="limited", rate_limit="10/m")(handle)
    with pytest.raises(ConfigurationError, match="limited: rate_limit: expected it at @reactive_task"):
        reactive_task(collection="docs")(task)


def takes_nothing() -> None:
    """Do nothing."""


def takes_two(one: object, ctx: object) -> tuple[object, object]:
    """Return both."""
    return one, ctx


def wants_more(ctx: object, *, how: str) -> tuple[object, str]:
    """Return both."""
    return ctx, how


@pytest.mark.parametrize(
    ("function", "bind"), [(takes_nothing, False), (takes_two, False), (handle, True), (wants_more, False)]
)
def test_a_handler_takes_the_context_alone(new_app: MakeApp, function: Any, *, bind: bool) -> None:
    """B-31: one that cannot be called is refused at once, and not with each message."""
    app = new_app()
    app.finalize()
    task = app.task(name="one", bind=bind)(function)
    with pytest.raises(ConfigurationError, match="one: expected a handler of one argument, the context"):
        reactive_task(collection="docs")(task)


@pytest.mark.parametrize("target", [5, None, functools.partial(handle, 1)], ids=["a number", "nothing", "a partial"])
def test_what_is_no_function_is_refused(target: Any) -> None:
    """B-2: with what was expected."""
    with pytest.raises(ConfigurationError, match="expected a function or a Celery task, got"):
        reactive_task(collection="orders")(target)
