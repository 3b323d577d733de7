"""What a reactive Celery task does differently: a planner's message names records, and each is a run of its own.

`ReactiveMixin` is laid over the class of the user's task. A message's records are run by the object
that stands in `__trace__`: it claims them, then calls Celery's own tracer once per record with the
record's own request, so that signals, `on_failure`, log ids and monitors see each of them.
A message without the planner's header is a user's own call and is left to Celery.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from billiard.einfo import ExceptionInfo
from celery import Task
from celery.app.trace import TraceInfo, trace_ok_t
from celery.exceptions import Ignore, ImproperlyConfigured, MaxRetriesExceededError, Reject, Retry
from celery.states import IGNORED
from celery.utils.time import maybe_make_aware

from celery_reactive.core.duration import LONGEST
from celery_reactive.core.message import MessageError, Named, is_reactive, shown_ids, unpack
from celery_reactive.core.outcome import (
    Completed,
    Deferred,
    Errored,
    Exhausted,
    Failure,
    GivenBack,
    Outcome,
    Overtaken,
    Skipped,
)
from celery_reactive.core.record import id_to_text
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import StoreUnavailableError
from celery_reactive.worker.batch import outcomes_of_error
from celery_reactive.worker.context import TaskContext
from celery_reactive.worker.execute import (
    confirm_completion,
    execute,
    outcome_of_error,
    outcome_of_return,
    without_retry,
)
from celery_reactive.worker.monitors import Told, own_request, run_of_record, still_true
from celery_reactive.worker.run import Run

if TYPE_CHECKING:
    from celery_reactive.runtime import Runtime

logger = logging.getLogger(__name__)

TOKEN = "reactive_token"  # noqa: S105 -- a header's name
"""Header in which the worker's parent process passes the claim's token to its child."""
ONE_ONLY = "reactive_one_only"
"""Header by which the parent process says that a time limit is in force, so that one record is run a message."""
REPORT = "reactive_report"
"""Header by which the parent process asks for what monitors are told of each record."""
_PREFORK = "celery.concurrency.prefork"


class RuntimeOf(Protocol):
    """Whoever knows an app's parts: its handle, or what stands for it in a test."""

    @property
    def runtime(self) -> Runtime:
        """The app's parts."""


Tracer = Callable[[str, Any, Any, Any], Any]
Argument = TaskContext | list[TaskContext]
"""What a handler is called with: a context, or those of a batch (B-60)."""
_WORSE = (Completed, Skipped, Deferred, Overtaken, GivenBack, Errored, Exhausted)
"""What a batch shows of its outcomes in Flower is the last of these."""


class _Current(threading.local):
    """What the present thread is about to run, or runs."""

    next: tuple[Sequence[Run], Sequence[TaskContext]] | None = None
    run: Run | None = None
    """The one that runs; of a batch the first."""
    celery_id: str | None = None
    """Of `run`."""
    asked: Retry | None = None
    """What `retry(throw=False)` returned in this run."""
    outcomes: Sequence[Outcome] | None = None


_current = _Current()


class ReactiveMixin(Task):
    """Laid over the class of a reactive task."""

    abstract = True
    Request = "celery_reactive.worker.request:ReactiveRequest"

    reactive: ClassVar[ReactiveTask]
    """The definition."""
    reactive_options: ClassVar[Mapping[str, Any]]
    """As written in the decorator: tells a declaration seen again from a second one."""
    reactive_parts: ClassVar[RuntimeOf]
    """Makes the app's parts at the first use."""

    send_events: bool
    limited = False
    """Whether a time limit is in force on this worker's pool."""

    @property
    def reactive_runtime(self) -> Runtime:
        """The app's parts."""
        return self.reactive_parts.runtime

    @property
    def __trace__(self) -> Tracer | None:
        """What Celery calls for each message."""
        return self._trace_message if self._celery_tracer is not None else None

    @__trace__.setter
    def __trace__(self, tracer: Tracer | None) -> None:
        self._celery_tracer = tracer

    _celery_tracer: Tracer | None = None

    def start_strategy(self, app: Any, consumer: Any, **kwargs: Any) -> Any:
        """As Celery's, when a worker starts: note whether time limits are in force on its pool (B-30).

        Raises:
            ConfigurationError: A setting or a declaration is wrong; the worker does not start.
        """
        _ = self.reactive_runtime
        worker = consumer.controller
        hard, soft = self.time_limit or worker.time_limit, self.soft_time_limit or worker.soft_time_limit
        self.limited = limits_in_force(hard, soft, consumer.pool)
        if (hard or soft) and not self.limited:
            logger.warning(
                "time limits are not in force on this pool, a run may take as long as it likes",
                extra={"event": "time_limits_ignored", "task": self.name},
            )
        if self.rate_limit:
            logger.warning(
                "task_default_rate_limit keeps messages back in each worker by itself; for all workers together set "
                "rate_limit at @reactive_task",
                extra={"event": "rate_limit_per_worker", "task": self.name},
            )
        # What tells of a message's receipt is Celery's strategy; the Request does it, for each record.
        tells: bool = self.send_events
        self.send_events = False
        try:
            return super().start_strategy(app, consumer, **kwargs)
        finally:
            self.send_events = tells

    def retry_coroutines(self) -> None:
        """Let `autoretry_for` see what a coroutine raises: Celery's wrapper only sees that one was returned."""
        wrapped = getattr(self, "_orig_run", None)
        if wrapped is None or not inspect.iscoroutinefunction(wrapped):
            return

        def run(*args: Any, **kwargs: Any) -> Any:
            result = wrapped(*args, **kwargs)
            return result if self.request.called_directly else _complete(result)

        self._orig_run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one record if that is what this call is for; otherwise what the user asked for."""
        following, _current.next = _current.next, None
        if following is None:
            return self._call_as_celery_would(*args, **kwargs)
        return self._run_records(*following)

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,  # noqa: FBT001, FBT002 -- Celery's signature
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """As Celery's, but through the record: a failed attempt with that countdown, no second message (B-40)."""
        run = self._own_run()
        if run is None:
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
        cause = exc or sys.exception()
        if max_retries is not None and run.claim.attempt > max_retries:
            run.given_up = True
            raise cause or MaxRetriesExceededError(f"can't retry {run.claim.key} more than {max_retries} times")
        signal = Retry(exc=cause, when=countdown if eta is None else eta)
        # Celery has replaced what does not pickle; the record keeps the error itself.
        signal.exc = cause
        if throw:
            raise signal
        _current.asked = signal
        return signal

    def replace(self, sig: Any) -> Any:
        """Refused while a record is run: the task that took its place would not end the record (B-40)."""
        run = self._own_run()
        if run is not None:
            raise ImproperlyConfigured(f"{run.claim.key}: a reactive run cannot be replaced by another task")
        return super().replace(sig)

    def add_to_chord(self, sig: Any, lazy: bool = False) -> Any:  # noqa: FBT001, FBT002 -- Celery's signature
        """Refused while a record is run: a record's run belongs to no chord (B-40)."""
        run = self._own_run()
        if run is not None:
            raise ImproperlyConfigured(f"{run.claim.key}: a reactive run cannot add to a chord")
        return super().add_to_chord(sig, lazy)

    def _own_run(self) -> Run | None:
        """Return the run that this task is in; None in a call of the user's, also where another run makes that call."""
        run = _current.run
        return run if run is not None and self.request.id == _current.celery_id else None

    # --- one message -----------------------------------------------------------------------------

    def _trace_message(self, uuid_: str, args: Any, kwargs: Any, request: dict[str, Any]) -> Any:
        tracer = self._celery_tracer
        assert tracer is not None  # noqa: S101 -- see __trace__
        if not is_reactive(request):
            return tracer(uuid_, args, kwargs, request)
        results: list[Any] = []
        told: list[Told] = []
        named: list[Named] = []

        def body(runs: Sequence[Run], contexts: Sequence[TaskContext]) -> Sequence[Outcome]:
            started = time.time()
            own = self._own_request(request, runs)
            result, outcomes = self._trace_call(tracer, own, runs, contexts)
            if request.get(REPORT):
                (run,), (outcome,) = runs, outcomes
                told.append(run_of_record(own["id"], result, outcome, started=started, now=run.server_time()))
            results.append(result)
            return outcomes

        try:
            named = unpack(self.reactive.name, request, args)
            execute(
                self.reactive_runtime,
                self.reactive,
                named,
                body,
                token=request.get(TOKEN) or uuid.uuid4().hex,
                worker=request.get("hostname") or socket.gethostname(),
                one_only=bool(request.get(ONE_ONLY)),
            )
        except MessageError as error:
            logger.error("%s", error, extra={"event": "message_unreadable"})  # noqa: TRY400 -- no traceback helps
        except StoreUnavailableError as error:
            logger.warning("nothing claimed, MongoDB does not answer: %s", error, extra={"event": "claim_failed"})
        if len(named) > 1 and not self.reactive.batch:
            return trace_ok_t(None, None, 0.0, still_true(told))
        return results[0] if results else _nothing_to_tell()

    def _own_request(self, request: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
        """Return the Celery request of a call: of its record, or of its message for a batch (B-60)."""
        texts = [id_to_text(run.claim.key.doc_id) for run in runs]
        claim = runs[0].claim
        if self.reactive.batch:
            return {**request, "args": (texts,), "argsrepr": shown_ids(texts), "kwargsrepr": "{}"}
        celery_id = claim.key.celery_id(runs[0].runtime.connection.namespace(runs[0].task), claim.cycle)
        return own_request(request, celery_id, texts[0], retries=claim.attempt - 1)

    def _trace_call(
        self,
        tracer: Tracer,
        own: dict[str, Any],
        runs: Sequence[Run],
        contexts: Sequence[TaskContext],
    ) -> tuple[Any, Sequence[Outcome]]:
        """Call the handler through Celery's tracer; return Celery's result and what the runs came to."""
        _current.next, _current.outcomes = (runs, contexts), None
        try:
            result = tracer(own["id"], own["args"], {}, own)
        finally:
            _current.next = None
        outcomes, _current.outcomes = _current.outcomes, None
        if outcomes is None:
            # Celery failed before the handler was called, e.g. in `before_start`.
            error = getattr(result.info, "retval", None) or RuntimeError("Celery did not call the handler")
            outcomes = self._outcomes_of_error(runs, error)
        return result, outcomes

    # --- one call --------------------------------------------------------------------------------

    def _run_records(self, runs: Sequence[Run], contexts: Sequence[TaskContext]) -> None:
        """Call the handler; tell the tracer, by what is raised, what Celery shall make of it."""
        outer, outer_id = _current.run, _current.celery_id
        _current.run, _current.celery_id, _current.asked = runs[0], self.request.id, None
        cause: BaseException | None = None
        try:
            self._call_handler(runs[0].runtime, list(contexts) if self.reactive.batch else contexts[0])
            # The same end as with `throw=True`.
            cause = _current.asked
        except MemoryError:
            raise
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 -- the user's code may raise anything
            cause = error
        finally:
            _current.run, _current.celery_id = outer, outer_id
            for run in runs:
                run.ended = True
        for run in runs:
            confirm_completion(run)
        if cause is None:
            outcomes: Sequence[Outcome] = [outcome_of_return(run) for run in runs]
        else:
            outcomes = self._outcomes_of_error(runs, cause)
        _current.outcomes = outcomes
        self._tell_celery(*self._shown(runs, outcomes, cause))

    def _outcomes_of_error(self, runs: Sequence[Run], error: BaseException) -> Sequence[Outcome]:
        def of_one(run: Run) -> Outcome:
            return self._outcome_of(run, error)[1]

        return outcomes_of_error(runs, error, of_one) if self.reactive.batch else [of_one(runs[0])]

    def _shown(
        self, runs: Sequence[Run], outcomes: Sequence[Outcome], cause: BaseException | None
    ) -> tuple[Outcome, BaseException | None]:
        """Return what Celery is told of: the outcome of a record; of a batch one that failed, if any has."""
        if len(runs) == 1:
            return outcomes[0], cause if cause is None else self._outcome_of(runs[0], cause)[0]
        worst = max(range(len(runs)), key=lambda place: _WORSE.index(type(outcomes[place])))
        return outcomes[worst], runs[worst].failure or cause

    def _outcome_of(self, run: Run, error: BaseException) -> tuple[BaseException, Outcome]:
        match error:
            case Retry():
                cause = error.exc if isinstance(error.exc, BaseException) else error
                return cause, outcome_of_error(run, cause, retry_in=self._wait_asked_for(run, error.when))
            case Ignore() if run.overtaken is None and not run.completed:
                return error, Skipped(str(error) or "the handler raised Ignore", run.took)
            case Reject(requeue=True):
                return error, _with_reason(outcome_of_error(run, error, retry_in=timedelta(0)), error)
            case Reject():
                return error, without_retry(_with_reason(outcome_of_error(run, error), error))
            case _:
                outcome = outcome_of_error(run, error)
                return error, without_retry(outcome) if run.given_up else outcome

    def _wait_asked_for(self, run: Run, when: float | datetime | None) -> timedelta | None:
        """Return the wait that Celery's `retry` asked for, at most a century; None: the policy's."""
        if when is None:
            return None
        if isinstance(when, datetime):
            at: datetime = maybe_make_aware(when, self.app.timezone)
            return min(max(timedelta(0), at - run.server_time()), LONGEST)
        return timedelta(seconds=min(when, LONGEST.total_seconds()))

    def _tell_celery(self, outcome: Outcome, cause: BaseException | None) -> None:
        match outcome:
            case Completed():
                return
            case Skipped(reason=reason):
                raise Ignore(reason) from cause
            case Deferred() | Overtaken() | GivenBack():
                raise Retry("deferred" if isinstance(outcome, Deferred) else "the watched values have moved on")
            case Errored(retry_in=wait):
                raise Retry(exc=_plain(cause), when=wait.total_seconds()) from cause
            case Exhausted():
                raise _plain(cause) or RuntimeError(outcome.error.message)

    def _call_handler(self, runtime: Runtime, context: Argument) -> None:
        caller = runtime.task_caller
        call = self._handler_call(context)
        if caller is None:
            call()
        else:
            _call_through(caller, call, context)

    def _handler_call(self, context: Argument) -> Callable[[], None]:
        def call() -> None:
            _complete(super(ReactiveMixin, self).__call__(context) if self._has_own_call() else self.run(context))

        return call

    def _call_as_celery_would(self, *args: Any, **kwargs: Any) -> Any:
        """A user's own call: in a worker the tracer has pushed a request, elsewhere Celery pushes a blank one."""
        if self.request.called_directly:
            return super().__call__(*args, **kwargs)
        return _complete(super().__call__(*args, **kwargs) if self._has_own_call() else self.run(*args, **kwargs))

    def _has_own_call(self) -> bool:
        """Whether the user's base class defines `__call__`, as Flask's context tasks do."""
        after = type(self).__mro__[type(self).__mro__.index(ReactiveMixin) + 1 :]
        return any("__call__" in vars(base) for base in after if base is not Task and base is not object)


def limits_in_force(hard: float | None, soft: float | None, pool: Any) -> bool:
    """Whether a hard or soft time limit of a task ends its runs on *pool* (B-30)."""
    prefork = any(base.__module__ == _PREFORK for base in type(pool).__mro__)
    return bool((hard or soft) if prefork else (hard and pool.is_green))


def _call_through(caller: Callable[..., Any], call: Callable[[], None], context: Argument) -> None:
    """Call the handler through `reactive_task_caller`, which cannot turn its error into a success (B-37)."""
    raised: list[BaseException] = []

    def noted() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)
            raise

    caller(noted, context)
    if raised:
        raise raised[-1]


def _plain(cause: BaseException | None) -> BaseException | None:
    """Return what Celery shall take for a plain failure, as the record decides here.

    A rejected message would be put back on the queue, and a coroutine's cancellation would end the pool process.
    """
    match cause:
        case Reject(reason=reason):
            return RuntimeError(f"rejected: {reason!r}")
        case asyncio.CancelledError():
            return RuntimeError(f"cancelled: {cause!r}")
        case _:
            return cause


def _with_reason(outcome: Outcome, error: Reject) -> Outcome:
    """Keep what a rejection says for its reason: Celery's own text of it is a tuple."""
    if error.reason is None or not isinstance(outcome, Errored | Exhausted):
        return outcome
    message = Failure.of(RuntimeError(error.reason)).message
    return dataclasses.replace(outcome, error=dataclasses.replace(outcome.error, message=message))


def _nothing_to_tell() -> Any:
    """Celery's result for a message that leaves nothing to report: no event, no result, acknowledged."""
    try:
        raise _NOTHING  # an `ExceptionInfo` needs a traceback
    except NothingRunError:
        return trace_ok_t(ExceptionInfo(internal=True), TraceInfo(IGNORED, _NOTHING), 0.0, None)


class NothingRunError(Ignore):
    """A message woke nobody: its records were not due, or somebody else's."""


_NOTHING = NothingRunError("nothing to report for this message")


class _Loop:
    """The event loop of this process, on which coroutine handlers run one at a time (B-1).

    One loop, so that an asynchronous client made at import serves every handler; one at a time, as a coroutine
    runs in the thread of its run, where Celery keeps the request.
    """

    def __init__(self) -> None:
        self._make()
        os.register_at_fork(after_in_child=self._make)

    def _make(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = threading.RLock()

    def complete(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run *coroutine* to its end; return its result or raise what it raises."""
        with self._turn:
            if self._loop is None or self._loop.is_closed():
                self._loop = asyncio.new_event_loop()
            task = self._loop.create_task(coroutine)
            try:
                return self._loop.run_until_complete(task)
            finally:
                if not task.done():
                    self._cancel(self._loop, task)

    def _cancel(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
        """End what a time limit has interrupted: the next handler must not find it on the loop."""
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            loop.run_until_complete(task)


_LOOP = _Loop()


def _complete(result: Any) -> Any:
    """Return what a handler returned; a coroutine is run to its end first."""
    return _LOOP.complete(result) if inspect.iscoroutine(result) else result
