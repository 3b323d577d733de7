"""The worker's parent process: what happens to a pool process lands in its records at once.

Celery makes one `Request` per delivery. The parent draws the claim's token here and hands it to the
child with the message, so that it can end the child's runs itself: on a hard time limit, when the
child dies, when somebody terminates the task, when the worker stops cold. No thread is started and no
client kept in this process: a later fork would inherit them broken.

Celery knows one run per message, monitors and remote control are to know each record: what the parent tells of a
message that names several is told of each.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import Terminated
from celery import signals
from celery.app.task import Context
from celery.exceptions import Ignore, Retry, TimeLimitExceeded
from celery.worker import state
from celery.worker.request import Request

from celery_reactive.core.limits import Limits
from celery_reactive.core.loss import after_loss, failed_attempt
from celery_reactive.core.message import MessageError, Named, celery_ids, is_reactive, most_attempts, unpack
from celery_reactive.core.outcome import Errored, Exhausted, Failure, GivenBack, Outcome
from celery_reactive.core.record import Lease, RecordKey, id_to_text
from celery_reactive.core.states import RecordState
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import LeaseLostError
from celery_reactive.events import RunFailed
from celery_reactive.runtime import Runtime
from celery_reactive.store import limiters, records
from celery_reactive.store.wake import wake
from celery_reactive.worker import monitors
from celery_reactive.worker.celery_task import ONE_ONLY, REPORT, TOKEN, NothingRunError
from celery_reactive.worker.finalize import event_of

logger = logging.getLogger(__name__)

_DYING = timedelta(seconds=2)
"""The hooks fire before the child is killed: let it be dead before the next attempt."""

Decision = Callable[[ReactiveTask, Lease], Outcome]


class ReactiveRequest(Request):
    """A delivery of a message to a reactive task; a user's own call behaves as Celery's."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Celery derives a class for each task, with a faster `on_success` that would hide this one."""
        super().__init_subclass__(**options)
        if "on_success" in vars(cls):
            del cls.on_success

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        self._is_reactive = is_reactive(self._request_dict)
        if self._is_reactive:
            # A wake-up does not grow old: what it is for is the record's matter.
            self._expires = self._request_dict["expires"] = None
        self._runs: dict[str, Named] = {}
        """The records named, by their Celery ids."""
        self._ended: dict[str, Outcome] = {}
        """How this process has ended runs, by their Celery ids."""
        self._states: dict[str, RecordState] = {}
        """Where records are that had ended by themselves when this process looked."""
        self._terminated: str | None = None
        """The one record that somebody wants terminated."""
        self._is_batch = False
        """Its records are one call of the handler, and one row (B-60)."""
        self._is_several = False
        """Each of its records is a row of its own."""
        self._has_told = False
        if self._is_reactive:
            self._runs = self._named()
            self._is_batch = self._task.reactive.batch is not None
            self._is_several = len(self._runs) > 1 and not self._is_batch
            self._request_dict[TOKEN] = uuid.uuid4().hex
            self._request_dict[ONE_ONLY] = self._task.limited and not self._is_batch
            self._request_dict[REPORT] = self._is_several and self._is_watched()
        self._tell_of_receipt()

    # --- Celery's hooks, in the order of a delivery's life ---------------------------------------

    def revoked(self) -> bool:
        """As Celery's; of several records that travel together those revoked fail, and the others run (B-40)."""
        if super().revoked():
            return True
        if self._is_several and len(state.revoked):
            self._revoke_some([celery_id for celery_id in self._runs if celery_id in state.revoked])
        return False

    def _revoke_some(self, chosen: Sequence[str]) -> None:
        if chosen:
            self._revoke(Failure("the Celery task was revoked", "TaskRevokedError"), chosen)
        for celery_id in chosen:
            how = {"terminated": False, "signum": None, "expired": False}
            self._tell("task-revoked", uuid=celery_id, **how)
            signals.task_revoked.send(sender=self.task, request=Context(self._own_request(celery_id)), **how)
            del self._runs[celery_id]

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """As Celery's; remote control then finds each record by its own id."""
        if self._is_several:
            state.requests.update((celery_id, OneRun(self, celery_id)) for celery_id in self._runs)
        super().on_accepted(pid, time_accepted)

    def terminate_one(self, celery_id: str, pool: Any, signal: Any) -> None:
        """Terminate one of the records while it runs or waits in this message; the others run again (B-40)."""
        owned: list[RecordKey] = []

        def look(runtime: Runtime, task: ReactiveTask) -> None:
            keys = [self._runs[celery_id].key]
            owned.extend(
                lease.key for lease in records.claimed_with(runtime.connection.records(task), keys, self._token)
            )

        self._briefly(look)
        if owned:
            self._terminated = celery_id
            self.terminate(pool, signal)
        else:
            logger.info("not terminated, the run has ended", extra={"event": "ended_before"})

    def cancel(self, pool: Any, signal: Any = None, **options: Any) -> None:
        """As Celery's at a cold stop; a pool that cannot end a run lets it go on (B-68).

        Solo and threads say so by an error, which on solo would be raised inside the handler.
        """
        try:
            super().cancel(pool, signal, **options)
        except NotImplementedError:
            logger.info("this pool cannot end a run, it goes on", extra={"event": "run_goes_on"})

    def on_success(self, failed__retval__runtime: Any, **options: Any) -> None:
        """As Celery's; what was terminated or given up has been told of already."""
        self._forget_runs()
        if self._has_told:
            state.task_ready(self)
            return
        super().on_success(failed__retval__runtime, **options)

    def on_timeout(self, soft: bool, timeout: float) -> None:  # noqa: FBT001 -- Celery's signature
        """Hard time limit: a failed attempt (B-30)."""
        if soft or not self._is_reactive:
            super().on_timeout(soft, timeout)
            return
        logger.error("hard time limit (%s s) exceeded for %s", timeout, self.humaninfo())
        self._end_dead(TimeLimitExceeded(timeout))

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:  # noqa: FBT001, FBT002 -- Celery's signature
        """What the handler raised; or a child that died with its run: a failed attempt, or another try alone (B-28)."""
        self._forget_runs()
        cause = _unwrapped(exc_info.exception)
        if self._is_reactive and return_ok:
            # Celery says nothing of `Ignore`, and monitors would show the run as started for ever.
            if isinstance(cause, Ignore) and not isinstance(cause, NothingRunError):
                self.send_event("task-skipped", reason=str(cause))
        elif self._is_reactive and not isinstance(cause, Terminated):
            if not isinstance(cause, MemoryError):
                return self._end_dead(cause)
            # Celery's worker ends with it.
            self._end(lambda task, lease: after_loss(task, lease, Failure.of(cause)))
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:  # noqa: FBT001 -- Celery's signature
        """Revoked or terminated: the record fails, or it would be dispatched again for ever (B-40)."""
        if self._is_reactive:
            self._forget_runs()
            self._has_told = True
            error = Failure(f"the Celery task was {reason}", "TaskRevokedError")
            chosen = list(self._runs) if self._terminated is None else [self._terminated]
            documents = {self._document(celery_id) for celery_id in chosen}

            def decide(_task: ReactiveTask, lease: Lease) -> Outcome:
                meant = id_to_text(lease.key.doc_id) in documents
                return Exhausted(error, lease.now - lease.started_at) if meant else GivenBack(wait=_DYING)

            self._end(decide)
            self._revoke(error, chosen)
        super()._announce_revoked(reason, terminated, signum, expired)

    def _announce_cancelled(self, *args: Any, **options: Any) -> None:
        """The worker stops without waiting: the run goes back at once, attempts as before (B-68).

        A soft shutdown says so of runs that have just ended by themselves, too: those are told as they ended.
        """
        if self._is_reactive:
            self._forget_runs()
            self._has_told = True
            self._end(lambda _task, _lease: GivenBack())
            if self._states and not self._ended:
                state.task_ready(self)
                if self._is_batch:
                    self._tell("task-succeeded", uuid=self.id, result=None, runtime=None)
                    return
                for celery_id in self._states:
                    self._tell_as_found(celery_id)
                return
        super()._announce_cancelled(*args, **options)

    # --- what monitors and remote control see ----------------------------------------------------

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 -- Celery's signature
        """As Celery's; of a message that names several records, for each of them."""
        if not self._is_several:
            super().send_event(type, **fields)
            return
        first = next(iter(self._runs), None)
        match type:
            case "task-started":
                # The others' come with their ends. There is none where all have been revoked.
                if first is not None:
                    self._tell(type, uuid=first, **fields)
            case "task-succeeded":
                for kind, told in fields["result"] or ():
                    if (kind, told["uuid"]) != ("task-started", first):
                        self._tell(kind, **told)
            case _:
                for celery_id in self._runs:
                    self._tell_of_end(type, celery_id, fields)

    def _tell_of_end(self, type: str, celery_id: str, fields: dict[str, Any]) -> None:  # noqa: A002 -- Celery's word
        """Tell of one record what happened to its message, unless another's fate was meant."""
        is_meant = self._terminated in (None, celery_id)
        if isinstance(self._ended.get(celery_id), GivenBack) and type == "task-revoked":
            self._tell("task-retried", uuid=celery_id, **monitors.error_fields(None, "another run was terminated"))
        elif celery_id in self._states and not (is_meant and type == "task-revoked"):
            self._tell_as_found(celery_id)
        else:
            self._tell(type, uuid=celery_id, **fields)

    def _tell_as_found(self, celery_id: str) -> None:
        """Tell how a run had ended by itself, by what its record says; nothing where it is in another run."""
        match self._states[celery_id]:
            case RecordState.COMPLETED:
                self._tell("task-succeeded", uuid=celery_id, result=None, runtime=None)
            case RecordState.FAILED:
                self._tell("task-failed", uuid=celery_id, **monitors.error_fields(None, ""))
            case RecordState.PENDING:
                self._tell("task-retried", uuid=celery_id, **monitors.error_fields(None, ""))
            case RecordState.PROCESSING | RecordState.PROCESSING_DIRTY:
                pass

    def _is_watched(self) -> bool:
        """Whether anybody listens to events of tasks."""
        groups = getattr(self._eventer, "groups", None)
        return bool(self._eventer and self._eventer.enabled and self._task.send_events) and (
            not groups or "task" in groups
        )

    def _tell(self, type: str, **fields: Any) -> None:  # noqa: A002 -- Celery's word
        if self._eventer and self._eventer.enabled and self.task.send_events:
            self._eventer.send(type, **fields)

    def _tell_of_receipt(self) -> None:
        # Celery itself does not, see `ReactiveMixin.start_strategy`.
        if not self._is_watched():
            return
        for row in self._rows():
            request = self._own_request(row) if row in self._runs else self._request_dict
            kind, fields = monitors.received(request, self.name)
            self._tell(kind, **fields)

    def _rows(self) -> list[str]:
        """Return the Celery ids that monitors know this delivery by."""
        return list(self._runs) if self._runs and not self._is_batch else [str(self._request_dict["id"])]

    def _own_request(self, celery_id: str) -> dict[str, Any]:
        retries = self._runs[celery_id].attempts
        return monitors.own_request(self._request_dict, celery_id, self._document(celery_id), retries=retries)

    def _document(self, celery_id: str) -> str:
        return id_to_text(self._runs[celery_id].key.doc_id)

    def _forget_runs(self) -> None:
        if self._is_several:
            for celery_id in self._runs:
                state.requests.pop(celery_id, None)

    # --- runs that this process ends -------------------------------------------------------------

    def _end_dead(self, cause: BaseException) -> None:
        """End what a dead or dying child leaves, and tell of it once: as a retry where one follows.

        The message has done its work, whatever `acks_late` says: the records are dispatched again.
        """
        self._forget_runs()
        state.task_ready(self)
        if self._has_told:
            return
        self._has_told = True
        error = Failure.of(cause)
        if isinstance(cause, TimeLimitExceeded):
            self._end(lambda task, lease: failed_attempt(task, lease, error, least_wait=_DYING))
        else:
            self._end(lambda task, lease: after_loss(task, lease, error))
        self.acknowledge()
        if not state.should_terminate:
            logger.error("%s ended with its process: %r", self.humaninfo(), cause, extra={"event": "process_lost"})
            for row in self._rows():
                self._tell_of_loss(row, cause)

    def _tell_of_loss(self, celery_id: str, cause: BaseException) -> None:
        """Tell monitors, signals and the task's own hooks how a run ended whose process did not live to tell."""
        request = self._batch_request() if self._is_batch else self._own_request(celery_id)
        args, info = request["args"], _info_of(cause)
        told = monitors.error_fields(cause, info.traceback)
        context = Context(request)
        self.task.request_stack.push(context)
        try:
            match self._state_of_batch() if self._is_batch else self._state_after(celery_id):
                case RecordState.COMPLETED:
                    self._tell("task-succeeded", uuid=celery_id, result=None, runtime=None)
                case RecordState.FAILED:
                    self._tell("task-failed", uuid=celery_id, **told)
                    self.task.on_failure(cause, celery_id, args, {}, info)
                    signals.task_failure.send(
                        sender=self.task,
                        task_id=celery_id,
                        exception=cause,
                        args=args,
                        kwargs={},
                        traceback=cause.__traceback__,
                        einfo=info,
                    )
                case _:
                    self._tell("task-retried", uuid=celery_id, **told)
                    self.task.on_retry(cause, celery_id, args, {}, info)
                    signals.task_retry.send(sender=self.task, request=context, reason=Retry(exc=cause), einfo=info)
        except Exception:
            logger.exception("the task's own hook raised")
        finally:
            self.task.request_stack.pop()

    def _batch_request(self) -> dict[str, Any]:
        texts = [self._document(celery_id) for celery_id in self._runs]
        return {**self._request_dict, "args": (texts,), "kwargs": {}}

    def _state_of_batch(self) -> RecordState:
        """Return what a batch shows of where its records went: the worst."""
        states = {self._state_after(celery_id) for celery_id in self._runs}
        worst_first = (RecordState.FAILED, RecordState.PENDING)
        return next((state for state in worst_first if state in states), RecordState.COMPLETED)

    def _state_after(self, celery_id: str) -> RecordState:
        """Return where a record went; by the attempts that its message names where MongoDB did not say."""
        match self._ended.get(celery_id):
            case Exhausted():
                return RecordState.FAILED
            case Errored() | GivenBack():
                return RecordState.PENDING
            case _:
                found = self._states.get(celery_id)
        if found is not None:
            return found
        most = most_attempts(self._request_dict)
        spent = most is not None and self._runs[celery_id].attempts + 1 >= most
        return RecordState.FAILED if spent else RecordState.PENDING

    def _end(self, decide: Decision) -> None:
        """End the runs that this delivery's token still owns, and free their slots.

        What cannot be written is left to the rescuer.
        """
        # By their text: ids in a message tell no Int64 from an int.
        ids = {self._document(celery_id): celery_id for celery_id in self._runs}

        def end(runtime: Runtime, task: ReactiveTask) -> None:
            target = runtime.connection.records(task)
            keys = [run.key for run in self._runs.values()]
            for lease in records.claimed_with(target, keys, self._token):
                outcome = decide(task, lease)
                try:
                    settled = records.settle_by_token(target, task, lease.key, lease.token, outcome)
                except LeaseLostError:
                    logger.info("run had ended by itself", extra={"event": "ended_before"})
                else:
                    self._ended[ids[id_to_text(lease.key.doc_id)]] = outcome
                    runtime.emit(event_of(lease.key, lease.attempts, outcome, settled))
            others = [run.key for celery_id, run in self._runs.items() if celery_id not in self._ended]
            found = records.states_of(target, others) if others else {}
            self._states = {ids[id_to_text(key.doc_id)]: where for key, where in found}
            if limiters.settle(runtime.connection.globals(), task.name, self._token, Limits()):
                wake(runtime.connection.globals(), task.name)

        self._briefly(end)

    def _revoke(self, error: Failure, chosen: Sequence[str]) -> None:
        def revoke(runtime: Runtime, task: ReactiveTask) -> None:
            target = runtime.connection.records(task)
            for celery_id in chosen:
                run = self._runs[celery_id]
                if records.revoke(target, task, run.key, error):
                    runtime.emit(RunFailed(run.key.task, str(run.key), run.attempts, error.message, 0.0))

        self._briefly(revoke)

    def _briefly(self, action: Callable[[Runtime, ReactiveTask], None]) -> None:
        """Do something in MongoDB on a connection of its own, of short time-outs; never raise into the worker."""
        if not self._runs:
            return
        try:
            with self.task.reactive_runtime.briefly_connected() as runtime:
                action(runtime, self.task.reactive)
        except Exception:
            logger.exception("records not updated by the parent process; their leases run out")

    def _named(self) -> dict[str, Named]:
        """Return the records that the message names; none if it cannot be read, which the child reports."""
        try:
            named = unpack(self._task.reactive.name, self._request_dict, self._args)
        except MessageError:
            return {}
        return dict(zip(celery_ids(self._request_dict, named), named, strict=True))

    @property
    def _token(self) -> str:
        return str(self._request_dict[TOKEN])


class OneRun:
    """One record of a message that names several, as remote control finds it by its Celery id."""

    def __init__(self, delivery: ReactiveRequest, celery_id: str) -> None:
        self.id = celery_id
        self._delivery = delivery

    @property
    def task(self) -> Any:
        """The Celery task."""
        return self._delivery.task

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the process that runs it; see `ReactiveRequest.terminate_one`."""
        self._delivery.terminate_one(self.id, pool, signal)

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 -- Celery's signature
        """Return what `inspect query_task` shows."""
        return {**self._delivery.info(safe), "id": self.id}

    def __eq__(self, other: object) -> bool:
        # As active as its message.
        return other is self or other is self._delivery

    def __hash__(self) -> int:
        return hash(self._delivery)


def _unwrapped(error: BaseException) -> BaseException:
    """Return what was raised: billiard wraps what it carries between processes."""
    return error.exc if isinstance(error, ExceptionWithTraceback) else error


def _info_of(error: BaseException) -> ExceptionInfo:
    try:
        raise error  # noqa: TRY301 -- an `ExceptionInfo` needs a traceback
    except BaseException:  # noqa: BLE001 -- just raised
        return ExceptionInfo()
