"""The composition root: the decorator, and the handle to a Celery app's reactive side."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timedelta
from types import EllipsisType
from typing import Any, ClassVar, Self, Unpack

from celery import Celery, Task, _state, shared_task
from celery.local import PromiseProxy, Proxy
from celery.signals import worker_process_shutdown
from kombu.utils.imports import symbol_by_name
from prometheus_client import CollectorRegistry

from celery_reactive.core.declaration import declare
from celery_reactive.core.duration import Duration
from celery_reactive.core.registry import Registry
from celery_reactive.core.suggest import shown
from celery_reactive.core.task import DEFAULT_GROUP, ReactiveTask
from celery_reactive.errors import ConfigurationError, ReactiveError
from celery_reactive.events import Event
from celery_reactive.management import by_hand, cleanup, controls, listing, operations, reconciling
from celery_reactive.management import explain as explaining
from celery_reactive.management import plan as planning
from celery_reactive.management.explain import Explanation
from celery_reactive.management.listing import Page
from celery_reactive.management.locks import Lock
from celery_reactive.management.operations import Action, Operation
from celery_reactive.management.plan import PlanReport
from celery_reactive.management.schedule import ScheduleEntry, entries_of
from celery_reactive.management.selection import TaskFilters
from celery_reactive.management.status import Status, read_planning_failures, read_status
from celery_reactive.metrics.expose import CONTENT_TYPE
from celery_reactive.metrics.serve import Port, listen
from celery_reactive.metrics.system import Metrics
from celery_reactive.metrics.worker import WorkerMetrics
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.signals import SIGNALS
from celery_reactive.store import locks, queries
from celery_reactive.store.connection import Connection
from celery_reactive.store.errors import time_limit
from celery_reactive.store.unplanned import Unplanned
from celery_reactive.worker.celery_task import ReactiveMixin
from celery_reactive.worker.presence import Presence

_HANDLE = "_celery_reactive"
_OPERATIONS_SECONDS = 1.0
"""How often a leader looks for bulk work that nobody runs: one small query."""
_LOCKS_SECONDS = 3600.0
_READY_WITHIN = timedelta(seconds=2)


def reactive_task(*arguments: Any, **options: Any) -> Callable[[Any], Any]:
    """Make a Celery task run for documents of a collection: the write is the trigger.

    Goes on a Celery task (`@app.task`, `@shared_task`) or on a plain function, of which it makes a
    shared task. The task gets one argument, a `TaskContext`, after `self` where it is bound.

    Args:
        arguments: None: options are given by name.
        options: `collection` (required), `task`, `database`, `filter`, `watch_projection`, `backfill`, `debounce`,
            `debounce_max_wait`, `retry_policy`, `cleanup_policy`, `execution_history_limit`, `evolution`, `chunk`,
            `batch`, `group`, `priority`, `rate_limit`, `max_concurrency`, `recheck_interval`, `document_class`.

    Returns:
        A decorator that returns the Celery task; its definition is at `task.reactive`.

    Raises:
        ConfigurationError: Lists everything that is wrong with the declaration; nothing was registered.
    """
    if arguments:
        name = _provisional_name(_function_of(arguments[0])) if callable(arguments[0]) else "reactive task"
        raise ConfigurationError(name, ['expected options by name: @reactive_task(collection="orders")'])

    def decorate(target: Any) -> Any:
        function = _function_of(target)
        declare(_provisional_name(function), options)
        _refuse_what_is_no_handler(target, function)
        task = target if isinstance_unevaluated(target, (Task, Proxy)) else shared_task(target)
        _when_evaluated(task, options)
        return task

    return decorate


def isinstance_unevaluated(thing: object, classes: tuple[type, ...]) -> bool:
    """As `isinstance`, but by the real type: a proxy is not evaluated by being asked."""
    return issubclass(type(thing), classes)


def _function_of(target: Any) -> Callable[..., Any] | None:
    """Return the function behind *target* without evaluating a proxy; None where it cannot be told."""
    if type(target) is PromiseProxy and not target.__evaluated__():
        arguments = object.__getattribute__(target, "_Proxy__args")
        return arguments[0] if arguments and callable(arguments[0]) else None
    if isinstance_unevaluated(target, (Proxy,)) and type(target) is not PromiseProxy:
        return _shared_function(target)
    if isinstance(target, Task):
        wrapped: Callable[..., Any] = getattr(target, "__wrapped__", None) or target.run
        return wrapped
    function: Callable[..., Any] | None = target if callable(target) else None
    return function


def _shared_function(proxy: Proxy) -> Callable[..., Any] | None:
    """Return the function that `shared_task` has wrapped."""
    function: Callable[..., Any] | None = _shared_cells(proxy).get("fun")
    return function


def _shared_cells(proxy: Proxy) -> Mapping[str, Any]:
    """Return what `shared_task` finds its task by, from its closure: the function, and a name if one was given."""
    finder = object.__getattribute__(proxy, "_Proxy__local")
    return inspect.getclosurevars(finder).nonlocals if inspect.isfunction(finder) else {}


def _shared_task_of(app: Celery, proxy: Proxy) -> Task:
    """Return the task that *proxy* stands for in *app*; asking the proxy would tell that of the current app."""
    cells = _shared_cells(proxy)
    function = cells.get("fun")
    if function is None:
        return app.tasks[proxy.name]
    return app.tasks[cells.get("name") or app.gen_task_name(function.__name__, function.__module__)]


def _refuse_what_is_no_handler(target: Any, function: Callable[..., Any] | None) -> None:
    if _wraps_a_task(target):
        problem = "expected @reactive_task next to the decorator that makes the Celery task; move yours below both"
    elif inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        problem = "expected a function or coroutine function, got a generator function"
    elif isinstance_unevaluated(target, (type,)):
        problem = "expected a function or a Celery task, got a class; decorate what app.register_task returns"
    elif not isinstance_unevaluated(target, (Task, Proxy)) and not inspect.isroutine(target):
        problem = f"expected a function or a Celery task, got {shown(target)}"
    else:
        return
    raise ConfigurationError(_provisional_name(function), [problem])


def _wraps_a_task(target: Any) -> bool:
    """Whether *target* is what a decorator of the user's has made of a Celery task: a function, and no task."""
    if isinstance_unevaluated(target, (Task, Proxy)):
        return False
    inner = getattr(target, "__wrapped__", None)
    while inner is not None and not isinstance_unevaluated(inner, (Task, Proxy)):
        inner = getattr(inner, "__wrapped__", None)
    return inner is not None


def _refuse_other_arguments(task: Task) -> None:
    """Refuse a handler that cannot be called with a context alone.

    Raises:
        ConfigurationError: It takes more, or less.
    """
    try:
        signature = inspect.signature(task.run)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None)
    except TypeError as error:
        problem = (
            f"expected a handler of one argument, the context (after `self` with bind=True), got {signature}: {error}"
        )
        raise ConfigurationError(task.name, [problem]) from error


def _refuse_a_limit_per_worker(task: Task) -> None:
    """Refuse Celery's own `rate_limit` of a task: it holds for each worker by itself (B-58).

    The app's `task_default_rate_limit`, which a task has taken over by now, is not its own.

    Raises:
        ConfigurationError: The task has one.
    """
    limit = task.rate_limit
    if limit is not None and limit != task.app.conf.task_default_rate_limit:
        problem = (
            f"rate_limit: expected it at @reactive_task, for all workers together, got {shown(limit)} at the Celery "
            "task, where it would be for each worker by itself and keep messages back in it"
        )
        raise ConfigurationError(task.name, [problem])


def _provisional_name(function: Callable[..., Any] | None) -> str:
    """Return the name by which an error at declaration names a task that Celery has not named yet."""
    if function is None:
        return "reactive task"
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', function)}"


def _when_evaluated(task: Any, options: dict[str, Any]) -> None:
    """Make *task* reactive as soon as Celery has made it: in each app that gets it, now where it has it already."""
    if type(task) is PromiseProxy:
        task.__then__(lambda: _make_reactive(task._get_current_object(), options))  # noqa: SLF001 -- the proxy's own way
    elif isinstance_unevaluated(task, (Task,)):
        _make_reactive(task, options)
    else:
        _in_every_app(lambda app: _make_reactive(_shared_task_of(app, task), options))


def _in_every_app(upgrade: Callable[[Celery], None]) -> None:
    """Call *upgrade* with each app that is finalized, now or later: a shared task belongs to all of them."""

    def once_finalized(app: Celery) -> None:
        # Callbacks are called in no order, so that the shared task itself may not be there yet.
        app.on_after_finalize.connect(lambda **_: upgrade_or_refuse(app), sender=app, weak=False)

    def upgrade_or_refuse(app: Celery) -> None:
        try:
            upgrade(app)
        except ConfigurationError as error:
            # Celery's signals swallow what their receivers raise.
            Reactive.of(app).refuse(error)

    _state.connect_on_app_finalize(once_finalized)
    for app in list(_state._get_active_apps()):  # noqa: SLF001 -- as Celery's own shared_task does
        if app.finalized:
            upgrade(app)


def _refuse_tasks_around(tasks: Iterable[Task]) -> None:
    """Refuse `@app.task` above `@reactive_task`: it makes a second task, whose options count for no run.

    Raises:
        ConfigurationError: There is such a task.
    """
    for task in tasks:
        if isinstance_unevaluated(task.run, (Proxy,)):
            problem = "expected @reactive_task above the decorator that makes the Celery task, got it below"
            raise ConfigurationError(task.name, [problem])


def _make_reactive(task: Task, options: dict[str, Any]) -> None:
    """Lay the mixin over the class of *task*: a base of its own would lose the user's.

    Raises:
        ConfigurationError: The declaration is wrong, its name is taken, or the task has been declared before.
    """
    if isinstance(task, ReactiveMixin):
        if task.reactive_options is options:
            return
        raise ConfigurationError(task.reactive.name, ["expected one @reactive_task on a Celery task, got two"])
    definition = declare(task.name, options)
    _refuse_other_arguments(task)
    _refuse_a_limit_per_worker(task)
    handle = Reactive.of(task.app)
    handle.registry.add(definition, celery_name=task.name)
    tracer = task.__dict__.pop("__trace__", None)
    task.__class__ = type(
        type(task).__name__,
        (ReactiveMixin, type(task)),
        {
            "__module__": type(task).__module__,
            "__doc__": type(task).__doc__,
            "reactive": definition,
            "reactive_options": options,
            "reactive_parts": handle,
        },
    )
    task.__trace__ = tracer
    task.retry_coroutines()


class Reactive:
    """The handle to a Celery app's reactive side: its settings, tasks and connection.

    `Reactive.of(app)` returns the one handle of an app; two apps in one process share nothing.
    """

    METRICS_CONTENT_TYPE: ClassVar[str] = CONTENT_TYPE
    """The content type of what `metrics` returns."""

    def __new__(cls, app: Celery) -> Self:
        """Return the handle of *app*, made at the first call."""
        known: Self | None = app.__dict__.get(_HANDLE)
        if known is not None:
            return known
        handle = super().__new__(cls)
        handle._initialize(app)
        # Of two threads that come here at once, one makes the handle that both get.
        first: Self = app.__dict__.setdefault(_HANDLE, handle)
        return first

    def _initialize(self, app: Celery) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None
        self._registry = Registry()
        self._refused: ConfigurationError | None = None
        self._imported_all = False
        self._metrics: Metrics | None = None
        app.steps["consumer"].add(Presence)
        app.steps["consumer"].add(
            type("WorkerMetrics", (WorkerMetrics,), {"parts": staticmethod(self._worker_metrics)})
        )

    @classmethod
    def of(cls, app: Celery) -> Reactive:
        """Return the handle of *app*."""
        return cls(app)

    @property
    def app(self) -> Celery:
        """The Celery app."""
        return self._app

    @property
    def registry(self) -> Registry:
        """The reactive tasks declared so far."""
        return self._registry

    def refuse(self, error: ConfigurationError) -> None:
        """Keep an error of a declaration that could not be raised where it was made; `runtime` raises it."""
        self._refused = self._refused or error

    @property
    def runtime(self) -> Runtime:
        """Settings, tasks and connection, made from the app's configuration at the first call.

        Raises:
            ConfigurationError: A setting is wrong or unknown, or a task could not be declared.
        """
        if self._refused is not None:
            raise self._refused
        if self._runtime is None:
            with self._lock:
                if self._runtime is None:
                    self._runtime = self._make_runtime()
        return self._runtime

    def _make_runtime(self) -> Runtime:
        if self._app.finalized:
            _refuse_tasks_around(self._app.tasks.values())
        conf = self._app.conf
        settings = Settings.load(conf.get, conf, namespace=self._app.namespace)
        connection = Connection(settings)
        self._metrics = Metrics(settings, self._registry, connection, queue_of=self._queue_of)
        # A pool process; of other processes whoever runs them says when they end.
        worker_process_shutdown.connect(self._finish_metrics)
        return Runtime(
            settings=settings,
            registry=self._registry,
            connection=connection,
            listeners=(*self._metrics.listeners, self._send_signal),
            task_caller=_imported("reactive_task_caller", settings.task_caller),
            task_filter=_imported("reactive_task_filter", settings.task_filter),
        )

    @contextmanager
    def made_anew(self) -> Iterator[None]:
        """Have the parts made of the configuration as it is inside the block; those of before are back after it.

        For tests, which give an app another database. Nothing of the app may run when it begins or ends.
        """
        former = self._runtime, self._metrics
        self._runtime = self._metrics = None
        try:
            yield
        finally:
            inside: Runtime | None = self._runtime
            self._runtime, self._metrics = former
            if inside is not None:
                inside.connection.close()

    def _counting(self) -> Metrics:
        """Return the metrics' parts, made with the runtime; raises what `runtime` does."""
        _ = self.runtime
        assert self._metrics is not None  # noqa: S101 -- see `_make_runtime`
        return self._metrics

    def _worker_metrics(self) -> Metrics | None:
        return self._counting() if len(self._registry) else None

    def _finish_metrics(self, **_facts: Any) -> None:
        self._counting().finish()

    def _send_signal(self, event: Event) -> None:
        signal = SIGNALS[event.code]
        if signal.receivers:
            signal.send(sender=self._app, event=event, **event.facts())

    def run_planner(self, stop: threading.Event | None = None, *, group: str = "default", beat: bool = False) -> None:
        """Run a planner in this process until *stop* is set, for small installations and tests.

        Args:
            stop: Ends it in good order; None: it runs for ever.
            group: The planner group.
            beat: While it leads, it also runs Celery beat's schedule (B-67).

        Raises:
            ConfigurationError: Settings, tasks or server are not fit, or Celery is eager; nothing was started.
            BrokerUnavailableError: The broker does not answer at the start.
        """
        from celery_reactive.planner import process  # noqa: PLC0415 -- workers need no planner
        from celery_reactive.planner.beat import Beat  # noqa: PLC0415 -- workers need no planner
        from celery_reactive.planner.publish import Publisher  # noqa: PLC0415 -- workers need no planner

        self._app.loader.import_default_modules()
        self._app.finalize()
        if self._app.conf.task_always_eager:
            problem = "expected False where a planner runs: every handler would run inside of it"
            raise ConfigurationError("task_always_eager", [problem])
        runtime = self.runtime
        publisher, ends = Publisher(self._app, runtime), stop or threading.Event()
        metrics = self._counting()
        duties = [
            process.Duty("operations", lambda _, ended: _go_on_with_operations(runtime, ended)),
            process.Duty("locks", lambda _, ended: _forget_old_locks(runtime, ended)),
        ]
        if beat:
            duties.append(process.Duty("beat", lambda _, ended: Beat(self._app, runtime, ended).step))
        if metrics.enabled:
            duties.append(process.Duty("metrics", lambda term, ended: metrics.chores(group, term, ended)))
        try:
            process.run(runtime, publisher, ends, group=group, duties=duties)
        finally:
            metrics.finish()

    # --- metrics ---------------------------------------------------------------------------------

    def metrics(self) -> bytes:
        """Return the metrics in Prometheus' text format, for a route of your own (B-55).

        In `cluster` mode those of the whole system, in `local` mode those of this process.

        Raises:
            ConfigurationError: `reactive_metrics_enabled` is off.
            StoreUnavailableError: MongoDB does not answer: answer 503, so that Prometheus knows.
        """
        self._knowing_all_tasks()
        return self._counting().exposition.text()

    def metrics_registry(self) -> CollectorRegistry:
        """Return a registry of `prometheus_client` that holds the metrics, to expose beside others.

        Where MongoDB does not answer its series are missing, and the others are not.

        Raises:
            ConfigurationError: `reactive_metrics_enabled` is off.
        """
        self._knowing_all_tasks()
        return self._counting().registry()

    def serve_planner(
        self, port: int | None, *, host: str | None = None, group: str = DEFAULT_GROUP
    ) -> AbstractContextManager[Port | None]:
        """Serve `/metrics`, `/healthz` and `/readyz` inside the block, beside a planner in this process.

        Args:
            port: 0: a free one; None: nothing is served.
            host: None: as `reactive_metrics_host` says, loopback by default.
            group: The planner's group.

        Raises:
            ConfigurationError: The address cannot be had.
        """
        if port is None:
            return nullcontext()
        counting = self._counting()
        text = counting.exposition.text if counting.enabled else None
        listening = listen(host or counting.host, port)
        return Port(listening, text=text, is_ready=lambda: self._is_planner_ready(group))

    def _is_planner_ready(self, group: str) -> bool:
        """Whether a planner of *group* runs in this process and its database answers: it leads, or stands by."""
        if group not in self._counting().standing.groups:
            return False
        try:
            with time_limit(_READY_WITHIN):
                queries.server_time(self.runtime.connection.globals())
        except ReactiveError:
            return False
        return True

    # --- management ------------------------------------------------------------------------------

    def _knowing_all_tasks(self) -> Runtime:
        """Return the parts once every module of tasks is imported: what is not declared cannot be found."""
        if not self._imported_all:
            self._app.loader.import_default_modules()
            self._app.finalize()
            self._imported_all = True
        return self.runtime

    def get_tasks(
        self,
        *,
        limit: int = 50,
        skip: int = 0,
        after: str | None = None,
        sort: tuple[str, int] = ("nextRunAt", 1),
        **filters: Unpack[TaskFilters],
    ) -> Page:
        """Return a page of records, over all collections, in a total order (B-51).

        Args:
            limit: Most items, at least 1; more than 1000 means 1000.
            skip: Records to pass over, up to 10,000.
            after: `next` of the page before, made with the same sort; for deep pages.
            sort: A field, as stored or in snake_case, and 1 (ascending, null first) or -1: `nextRunAt`, `dueAt`,
                `createdAt`, `updatedAt`, `startedAt`, `completedAt`, `lastFinalizedAt`, `firstErrorAt`, `attempts`,
                `status` or `task`.
            filters: Which records, all of them narrowing together. `task`, `status`, `collection`: a string or a list.
                `doc_id`: any value, taken literally, None too. `source`: a query on the watched collection, any that
                `find` takes; needs `task` or `collection` where several collections are watched. `error`: in the last
                error, a plain string or a `re.Pattern`. `has_error`: whether there is one.

        Returns:
            The page: `items`, `total` of all pages, `limit`, `skip` and `next`.

        Raises:
            UnknownTaskError: A named task does not exist; the message lists the known ones.
            ConfigurationError: An argument has no meaning.
            StoreBusyError: Not found within 10 s; narrow the filters.
            StoreUnavailableError: MongoDB does not answer.
            StatementFailedError: The server refuses `source` or the pattern, or a value cannot be sent to it.
        """
        runtime = self._knowing_all_tasks()
        return listing.get_tasks(runtime, filters, limit=limit, skip=skip, after=after, sort=sort)

    def count_tasks(self, **filters: Unpack[TaskFilters]) -> int:
        """Return how many records there are (B-51).

        Args:
            filters: Which records, as for `get_tasks`; none: all.

        Raises:
            UnknownTaskError: A named task does not exist; the message lists the known ones.
            ConfigurationError: A filter has no meaning.
            StoreBusyError: Not counted within 10 s; narrow the filters.
            StoreUnavailableError: MongoDB does not answer.
            StatementFailedError: The server refuses `source` or the pattern, or a value cannot be sent to it.
        """
        return listing.count_tasks(self._knowing_all_tasks(), filters)

    def retry_tasks(self, *, all: bool = False, **filters: Unpack[TaskFilters]) -> int:  # noqa: A002 -- reads as said
        """Make records pending now; a running one runs again at once after (B-52).

        `attempts`, `dueAt` and `lastError` are kept, so that a record out of attempts gets one more.

        Args:
            all: Must be true where no filter is given; it does not widen any.
            filters: Which records, as for `get_tasks`.

        Returns:
            Number of records changed.

        Raises:
            UnknownTaskError: A named task does not exist; the message lists the known ones. Nothing was changed.
            ConfigurationError: A filter has no meaning, or there is none. Nothing was changed.
            StoreBusyError: A page was not found within 10 s; a part may have been changed.
            StoreUnavailableError: MongoDB does not answer; a part may have been changed. Doing it again is harmless.
            StatementFailedError: The server refuses `source` or the pattern, or a value cannot be sent to it.
        """
        return by_hand.retry_tasks(self._knowing_all_tasks(), filters, everything=all)

    def discard_tasks(self, *, all: bool = False, **filters: Unpack[TaskFilters]) -> int:  # noqa: A002 -- reads as said
        """End pending and failed records without a run: `completed`, with a history entry `discarded` (B-52).

        Args:
            all: Must be true where no filter is given; it does not widen any.
            filters: Which records, as for `get_tasks`; those in other states are left alone.

        Returns:
            Number of records changed.

        Raises:
            UnknownTaskError: A named task does not exist; the message lists the known ones. Nothing was changed.
            ConfigurationError: A filter has no meaning, or there is none. Nothing was changed.
            StoreBusyError: A page was not found within 10 s; a part may have been changed.
            StoreUnavailableError: MongoDB does not answer; a part may have been changed. Doing it again is harmless.
            StatementFailedError: The server refuses `source` or the pattern, or a value cannot be sent to it.
        """
        return by_hand.discard_tasks(self._knowing_all_tasks(), filters, everything=all)

    def trigger(self, task: str, doc_id: Any) -> bool:
        """Run *task* for one document now; make its record if there is none and the document matches (B-52).

        Args:
            task: The task's name.
            doc_id: The document's `_id`, taken literally.

        Returns:
            Whether there is anything to run: false where there is no record, and no document that matches.

        Raises:
            UnknownTaskError: There is no such task; the message lists the known ones. Nothing was changed.
            ForeignRecordsError: What would be the records collection holds other documents; it was left untouched.
            StoreBusyError: A transaction holds the record. Nothing was changed.
            StoreUnavailableError: MongoDB does not answer; the record may have been made or retried.
            StatementFailedError: The document cannot be planned, or its id cannot be sent to the server.
        """
        return by_hand.trigger(self._knowing_all_tasks(), task, doc_id)

    def cleanup(self, *tasks: str) -> int:
        """Remove the records that nobody needs now, as the planner does from time to time (B-42).

        Args:
            tasks: Names of tasks; none: all. Those whose policy is `never` keep their records.

        Returns:
            Number of records removed.

        Raises:
            UnknownTaskError: A task does not exist; the message lists the known ones. Nothing was removed.
            StoreUnavailableError: MongoDB does not answer; a part may have been removed. Doing it again is harmless.
        """
        return cleanup.cleanup(self._knowing_all_tasks(), *tasks)

    def purge(self, task: str, *, gone: bool = False, left: bool = False, older_than: Duration | None = None) -> int:
        """Remove records of *task* by hand, also where its policy is `never`, also when it is no longer declared.

        With neither *gone* nor *left*, all records of a task that is no longer declared go, and what is stored about
        it; a declared one needs one of them (B-4, B-41). A running record stays in any case.

        Args:
            task: Name of a task that is declared, or was.
            gone: Records whose document was deleted.
            left: Records whose document no longer matches the filter.
            older_than: Only those not updated and not run for so long; None: whatever their age.

        Returns:
            Number of records removed.

        Raises:
            UnknownTaskError: No task of this name is declared or was; the message lists those there are.
            ConfigurationError: Neither *gone* nor *left* for a declared task, or *older_than* is no duration. Nothing
                was removed.
            StoreUnavailableError: MongoDB does not answer; a part may have been removed. Doing it again is harmless.
        """
        return cleanup.purge(self._knowing_all_tasks(), task, gone=gone, left=left, older_than=older_than)

    def explain(self, task: str, doc_id: Any) -> Explanation:
        """Return why *task* ran, will run or will not for one document (B-53); `str()` gives the sentences.

        Args:
            task: The task's name.
            doc_id: The document's `_id`, taken literally.

        Raises:
            UnknownTaskError: There is no such task; the message lists the known ones.
            StoreBusyError: Not found out within 10 s.
            StoreUnavailableError: MongoDB does not answer.
            StatementFailedError: The id cannot be sent to the server.
        """
        runtime = self._knowing_all_tasks()
        return explaining.explain(runtime, task, doc_id, queue=self._queue_of(runtime.registry.get(task)))

    def plan(self, task: str) -> PlanReport:
        """Return what a deployment of this code would do for *task*: a dry run that writes nothing (B-53).

        It reads every document of the watched collection once, with flat memory.

        Args:
            task: The task's name.

        Raises:
            UnknownTaskError: There is no such task; the message lists the known ones.
            ConfigurationError: The server cannot compile filter or projection, or the collection cannot be watched.
            StoreUnavailableError: MongoDB does not answer.
        """
        return planning.plan(self._knowing_all_tasks(), task)

    def _queue_of(self, task: ReactiveTask) -> str | None:
        """Return the name of the queue that messages of *task* go to; None where only the message would tell."""
        from celery_reactive.planner.publish import Publisher  # noqa: PLC0415 -- workers need no planner

        queue = Publisher(self._app, self.runtime).queue_of(task)
        return None if queue is None else queue.name

    def start_operation(
        self,
        action: Action | str,
        *,
        all: bool = False,  # noqa: A002 -- reads as said
        limit: int | None = None,
        by: str | None = None,
        **asked: Any,
    ) -> Operation:
        """Have many records changed by the leading planner; how far it has come is seen by everybody.

        Args:
            action: `"retry"`, `"discard"` or `"purge"`.
            all: Must be true for a retry or discard without a filter.
            limit: Most records changed; None: all.
            by: Who asks, for people; None: this process's user and host.
            asked: For a retry or discard which records, as for `get_tasks`; for a purge `task`, `gone`, `left`,
                `older_than`.

        Returns:
            The operation; `operation(its id)` tells how far it has come.

        Raises:
            UnknownTaskError: A named task does not exist; the message lists the known ones. Nothing was begun.
            ConfigurationError: The action, a filter or an option has no meaning. Nothing was begun.
            StoreUnavailableError: MongoDB does not answer; it may have been begun.
            StatementFailedError: The server refuses the query. Nothing was begun.
        """
        runtime = self._knowing_all_tasks()
        return operations.start(runtime, action, asked, everything=all, limit=limit, by=by)

    def operations(self, *, running: bool = False, limit: int = 50) -> list[Operation]:
        """Return the operations of the last week, the newest first.

        Args:
            running: Only those that have not ended.
            limit: Most of them, at least 1; more than 1000 means 1000.

        Raises:
            ConfigurationError: The limit has no meaning.
            StoreUnavailableError: MongoDB does not answer.
        """
        return operations.find(self.runtime, running=running, limit=limit)

    def operation(self, operation: str) -> Operation:
        """Return an operation as it is now.

        Args:
            operation: Its id.

        Raises:
            ConfigurationError: There is none of this id.
            StoreUnavailableError: MongoDB does not answer.
        """
        return operations.get(self.runtime, operation)

    def cancel_operation(self, operation: str) -> bool:
        """Stop an operation after the page it works at; what it has changed stays changed.

        Args:
            operation: Its id.

        Returns:
            Whether it was still running.

        Raises:
            ConfigurationError: There is none of this id.
            StoreUnavailableError: It may have been cancelled.
        """
        return operations.cancel(self.runtime, operation)

    def lock(self, key: str, *, wait: Duration = "3s", expire: Duration = "15s") -> Lock:
        """Return a lock in MongoDB, to be held by `with`: one holder at a time among all processes.

        It is renewed while it is held. `with reactive.lock("nightly") as held:` gives `held.fence`, which grows with
        each holder, and `held.lost`, which is true when somebody else may hold it. It is not entered twice.

        Args:
            key: Its name, 1 to 500 characters.
            wait: How long to wait for it; zero: one try.
            expire: How long it outlives a holder that has vanished; at least a second.

        Returns:
            A context manager; entering it raises `LockAlreadyAcquiredError` where somebody else holds the lock.

        Raises:
            ConfigurationError: An argument has no meaning.
        """
        return Lock(self.runtime, key, wait=wait, expire=expire)

    def pause(self, task: str) -> None:
        """Start no run of *task*, anywhere, until it is resumed; its documents are planned meanwhile (B-53).

        Raises:
            UnknownTaskError: There is no such task; the message lists the known ones. Nothing was changed.
            StoreUnavailableError: The pause may be in force or not.
        """
        controls.pause(self._knowing_all_tasks(), task)

    def resume(self, task: str, doc_id: Any = ...) -> bool:
        """End the pause of *task*, and a throttle too (B-53); or let a record run that the loop guard paused (B-64).

        Args:
            task: The task's name.
            doc_id: The document's `_id`, taken literally. Without it the whole task is meant, and no record.

        Returns:
            Whether anything could be resumed: false where the loop guard has not paused that record.

        Raises:
            UnknownTaskError: There is no such task; the message lists the known ones. Nothing was changed.
            StoreUnavailableError: The pause may be in force or not.
            StatementFailedError: The id cannot be sent to the server. Nothing was changed.
        """
        return controls.resume(self._knowing_all_tasks(), task, doc_id)

    def throttle(self, task: str, delay: Duration | datetime) -> datetime:
        """Start no run of *task*, anywhere, until a time; a longer throttle that is in force stays (B-35).

        Args:
            task: The task's name.
            delay: A duration from now by the server's clock, or an aware datetime.

        Returns:
            The time in force now.

        Raises:
            UnknownTaskError: There is no such task; the message lists the known ones. Nothing was changed.
            ConfigurationError: A negative duration or a naive datetime. Nothing was changed.
            StoreUnavailableError: The throttle may be in force or not.
        """
        return controls.throttle(self._knowing_all_tasks(), task, delay)

    def limit(
        self,
        task: str,
        *,
        rate: str | float | EllipsisType | None = ...,
        concurrency: int | str | EllipsisType | None = ...,
        priority: int | EllipsisType | None = ...,
    ) -> None:
        """Set limits and priority of *task* that count instead of the declared ones, everywhere at once (B-58).

        In force for every claim that begins after this has returned, until set again; what is not named stays as it is.

        Args:
            task: The task's name.
            rate: Instead of `rate_limit`: as that is written, `"unlimited"` for none, None for what is declared.
            concurrency: Instead of `max_concurrency`: likewise.
            priority: Instead of `priority`, for messages sent from now on: 0 to 9, None for what is declared.

        Raises:
            UnknownTaskError: There is no such task; the message lists the known ones. Nothing was changed.
            ConfigurationError: A value has no meaning, or none is named. Nothing was changed.
            StoreUnavailableError: The limits may be in force or not.
        """
        given = {"rate": rate, "concurrency": concurrency, "priority": priority}
        changes = {name: value for name, value in given.items() if value is not ...}
        controls.limit(self._knowing_all_tasks(), task, changes)

    def reconcile(self, *tasks: str) -> None:
        """Have every document of *tasks* compared with its record, of all tasks if none is named (B-48).

        The leading planner does it, beside its other work; `status().reconciliations` tells how far it has come.

        Raises:
            UnknownTaskError: A named task does not exist; the message lists the known ones. Nothing was asked for.
            StoreUnavailableError: It may have been asked for of some of them.
        """
        reconciling.request(self._knowing_all_tasks(), tasks)

    def planning_failures(self, task: str | None = None, *, limit: int = 1000) -> list[Unplanned]:
        """Return the documents that could not be planned (B-20).

        Args:
            task: Only this task's; None: all.
            limit: Most documents returned.

        Raises:
            UnknownTaskError: There is no such task; the message lists the known ones.
            StoreUnavailableError: MongoDB does not answer.
        """
        return read_planning_failures(self._knowing_all_tasks(), task=task, limit=limit)

    def status(self, *, group: str = "default") -> Status:
        """Return who leads, how far behind the planner is, what waits and what is held back.

        The broker is not asked, so that `workers` is None.

        Args:
            group: The planner group.

        Raises:
            StoreUnavailableError: MongoDB does not answer; nothing is known.
        """
        return read_status(self._knowing_all_tasks(), group=group)

    def dashboard(self, **options: Any) -> Any:
        """Return the web dashboard as an ASGI application, to be served or mounted in another.

        It may be made before the app's tasks are imported. Without `users`, `tokens` or `authorize` it answers only
        requests that come from this machine, at `localhost`.

        Args:
            options: `users` (passwords by name), `tokens` (of bearers, in a list or by name), `authorize` (called with
                each request, returns `"all"`, `"read-only"`, names of actions, or None), `read_only`, `redact` (names
                of fields), `flower_url`, `title`, `group`, `refresh_seconds`, `deadline_seconds`.

        Raises:
            ConfigurationError: An option is wrong, or the extra `dashboard` is not installed.
        """
        try:
            from celery_reactive.dashboard.application import make_application  # noqa: PLC0415 -- an extra
            from celery_reactive.dashboard.site import Source  # noqa: PLC0415 -- an extra
        except ModuleNotFoundError as error:
            raise _extra_missing(error) from error
        source = Source(self._knowing_all_tasks, self._queue_of, self.metrics, self._schedule, self._send_entry)
        return make_application(source, options)

    def _schedule(self) -> list[ScheduleEntry]:
        """Return the entries of Celery beat's schedule."""
        from celery_reactive.planner.beat import scheduler_seen  # noqa: PLC0415 -- workers need no planner

        return entries_of(scheduler_seen(self._app, self._knowing_all_tasks()).schedule)

    def _send_entry(self, name: str) -> str:
        """Send the task of an entry of the schedule once, now; return the id of the message.

        Raises:
            ArgumentError: There is no such entry.
            ReactiveError: It could not be sent: the broker does not answer, or the task refuses its arguments.
        """
        from celery_reactive.planner.beat import send_now  # noqa: PLC0415 -- workers need no planner

        return send_now(self._app, self._knowing_all_tasks(), name)

    def dashboard_wsgi(self, **options: Any) -> Any:
        """Return the web dashboard as a WSGI application, for Django, Flask and the like.

        Args:
            options: As for `dashboard`.

        Raises:
            ConfigurationError: An option is wrong, or the extra `dashboard` is not installed.
        """
        try:
            from a2wsgi import ASGIMiddleware  # noqa: PLC0415 -- an extra
        except ModuleNotFoundError as error:
            raise _extra_missing(error) from error
        return ASGIMiddleware(self.dashboard(**options))


def _go_on_with_operations(runtime: Runtime, ended: threading.Event) -> Callable[[], None]:
    """Return the step of a leader that goes on with bulk work that nobody runs."""

    def step() -> None:
        if not ended.wait(_OPERATIONS_SECONDS):
            operations.resume_stalled(runtime, ended.is_set)

    return step


def _extra_missing(error: ModuleNotFoundError) -> ConfigurationError:
    problem = f"expected the extra of this name, {error.name} is missing: pip install 'celery-reactive[dashboard]'"
    return ConfigurationError("dashboard", [problem])


def _forget_old_locks(runtime: Runtime, ended: threading.Event) -> Callable[[], None]:
    """Return the step of a leader that removes what vanished holders of locks have left."""

    def step() -> None:
        if not ended.wait(_LOCKS_SECONDS):
            locks.forget_expired(runtime.connection.globals())

    return step


def _imported(key: str, named: Any) -> Any:
    """Return the callable that a setting holds or names."""
    if not isinstance(named, str):
        return named
    try:
        return symbol_by_name(named)  # type: ignore[no-untyped-call]
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(key, [f"expected the import path of a callable, got {named!r}: {error}"]) from error
