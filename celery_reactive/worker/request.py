"""The worker's parent process: what happens to a pool process lands in its records at once.

Celery makes one `Request` per delivery. The parent draws the claim's token here and hands it to the
child with the message, so that it can end the child's runs itself: on a hard time limit, when the
child dies, when somebody terminates the task, when the worker stops cold. No thread is started and no
client kept in this process: a later fork would inherit them broken.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import Ignore, TimeLimitExceeded
from celery.worker.request import Request
from celery.worker.state import revoked

from celery_reactive.core.loss import after_loss, failed_attempt
from celery_reactive.core.message import MessageError, celery_ids, is_reactive, unpack
from celery_reactive.core.outcome import Exhausted, Failure, GivenBack, Outcome
from celery_reactive.core.record import Lease, RecordKey
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import LeaseLostError
from celery_reactive.runtime import Runtime
from celery_reactive.store import records
from celery_reactive.worker.celery_task import ONE_ONLY, TOKEN, NothingRunError

logger = logging.getLogger(__name__)

_DYING = timedelta(seconds=2)
"""The hook of the hard time limit fires before the child is killed: let it be dead before the next attempt."""

Decision = Callable[[ReactiveTask, Lease], Outcome]


class ReactiveRequest(Request):
    """A delivery of a message to a reactive task; a user's own call behaves as Celery's."""

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        self._is_reactive = is_reactive(self._request_dict)
        if self._is_reactive:
            self._request_dict[TOKEN] = uuid.uuid4().hex
            self._request_dict[ONE_ONLY] = self._task.limited

    def revoked(self) -> bool:
        """As Celery's; of several records that travel together those revoked fail, and the others run (B-40)."""
        if super().revoked():
            return True
        if self._is_reactive and len(revoked):
            self._revoke_in_company()
        return False

    def _revoke_in_company(self) -> None:
        try:
            named = unpack(self.task.reactive.name, self._request_dict, self._args)
        except MessageError:
            return
        ids = celery_ids(self._request_dict, named) if len(named) > 1 else []
        chosen = [one.key for one, celery_id in zip(named, ids, strict=False) if celery_id in revoked]
        if chosen:
            self._revoke(Failure("the Celery task was revoked", "TaskRevokedError"), only=chosen)

    def on_timeout(self, soft: bool, timeout: float) -> None:  # noqa: FBT001 -- Celery's signature
        """Hard time limit: a failed attempt (B-30)."""
        if self._is_reactive and not soft:
            error = Failure(f"hard time limit ({timeout} s) exceeded", "TimeLimitExceeded")
            self._end(lambda task, lease: failed_attempt(task, lease, error, least_wait=_DYING))
        super().on_timeout(soft, timeout)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:  # noqa: FBT001, FBT002 -- Celery's signature
        """A child that died with its run: a failed attempt, or another try alone (B-28)."""
        if self._is_reactive and not return_ok:
            # billiard wraps what it carries between processes.
            cause = getattr(exc_info.exception, "exc", exc_info.exception)
            error = Failure.of(cause)
            if isinstance(cause, TimeLimitExceeded):
                self._end(lambda task, lease: failed_attempt(task, lease, error, least_wait=_DYING))
            else:
                self._end(lambda task, lease: after_loss(task, lease, error))
        if self._is_reactive and return_ok:
            self._tell_of_skip(exc_info.exception)
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _tell_of_skip(self, told: BaseException) -> None:
        """Celery says nothing of `Ignore`, and monitors would show the run as started for ever."""
        # What has not crossed to another process is still wrapped.
        cause = told.exc if isinstance(told, ExceptionWithTraceback) else told
        if isinstance(cause, Ignore) and not isinstance(cause, NothingRunError):
            self.send_event("task-skipped", reason=str(cause))

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:  # noqa: FBT001 -- Celery's signature
        """Revoked or terminated: the record fails, or it would be dispatched again for ever (B-40)."""
        if self._is_reactive:
            error = Failure(f"the Celery task was {reason}", "TaskRevokedError")
            self._end(lambda _task, lease: Exhausted(error, lease.now - lease.started_at))
            self._revoke(error)
        super()._announce_revoked(reason, terminated, signum, expired)

    def _announce_cancelled(self, *args: Any, **options: Any) -> None:
        """The worker stops without waiting: the run goes back at once, attempts as before (B-68)."""
        if self._is_reactive:
            self._end(lambda _task, _lease: GivenBack())
        super()._announce_cancelled(*args, **options)

    def _end(self, decide: Decision) -> None:
        """End the runs that this delivery's token still owns; what cannot be written is left to the rescuer."""

        def end(runtime: Runtime, task: ReactiveTask, keys: list[RecordKey]) -> None:
            target = runtime.connection.records(task)
            for lease in records.claimed_with(target, keys, self._request_dict[TOKEN]):
                try:
                    records.settle_by_token(target, task, lease.key, lease.token, decide(task, lease))
                except LeaseLostError:
                    logger.info("run had ended by itself", extra={"event": "ended_before"})

        self._briefly(end)

    def _revoke(self, error: Failure, *, only: Sequence[RecordKey] | None = None) -> None:
        def revoke(runtime: Runtime, task: ReactiveTask, keys: list[RecordKey]) -> None:
            target = runtime.connection.records(task)
            for key in keys if only is None else only:
                records.revoke(target, task, key, error)

        self._briefly(revoke)

    def _briefly(self, action: Callable[[Runtime, ReactiveTask, list[RecordKey]], None]) -> None:
        """Do something in MongoDB on a connection of its own, of short time-outs; never raise into the worker."""
        definition: ReactiveTask = self.task.reactive
        try:
            named = unpack(definition.name, self._request_dict, self._args)
            with self.task.reactive_runtime.briefly_connected() as runtime:
                action(runtime, definition, [one.key for one in named])
        except MessageError:
            return
        except Exception:
            logger.exception("records not updated by the parent process; their leases run out")
