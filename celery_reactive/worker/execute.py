"""One message's records: claim, call the handler, finalize. Read this first in `worker/`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, assert_never

from celery_reactive.core.message import Named
from celery_reactive.core.outcome import Completed, Deferred, Errored, Exhausted, GivenBack, Outcome, Overtaken, Skipped
from celery_reactive.core.record import Claim, RecordKey
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import (
    DocumentInvalidError,
    ReactiveError,
    StatementFailedError,
    StoreUnavailableError,
    TaskConditionFailedError,
)
from celery_reactive.events import ContextMisused, RunStarted
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, documents, records
from celery_reactive.store.definitions import Controls
from celery_reactive.store.documents import Gone, Left, MovedOn, Read
from celery_reactive.worker.batch import finalize_batch
from celery_reactive.worker.company import Company, together
from celery_reactive.worker.context import TaskContext
from celery_reactive.worker.finalize import failed_attempt, finalize
from celery_reactive.worker.heartbeat import HEARTBEAT
from celery_reactive.worker.permits import Permit, permitted
from celery_reactive.worker.read_ahead import ReadAhead
from celery_reactive.worker.run import Run

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

logger = logging.getLogger(__name__)

_CONTROLS_SECONDS = 0.1
"""A pause that begins while a message's records run keeps back those not begun after this at the latest."""

_NO_WAIT = timedelta(0)
_NEWER_CODE_WAIT = timedelta(seconds=5)
_NEWER_CODE_PATIENCE = timedelta(minutes=10)
"""So long after a reset for a newer version of the handler, workers with an older one leave the record to others."""

Body = Callable[[Sequence[Run], Sequence[TaskContext]], Sequence[Outcome]]
"""Calls the handler, in whatever Celery puts around it, and says what each run came to: one, or those of a batch."""


def execute(
    runtime: Runtime,
    task: ReactiveTask,
    named: Sequence[Named],
    body: Body,
    *,
    token: str,
    worker: str,
    one_only: bool = False,
) -> int:
    """Run what is due of the records that one message names.

    Args:
        runtime: The application's parts.
        task: The definition in this process's code.
        named: Records of that task; a message is a hint, so any of them may have nothing to run.
        body: Calls the handler: for each record, or once for all where the task has batches (B-60).
        token: Proves this delivery's claims, also to the parent process.
        worker: Name of this process, for people.
        one_only: Run one of the records and leave the others to further messages: a time limit covers a whole
            message, so that each record needs one of its own (B-30).

    Returns:
        Number of records run.

    Raises:
        StoreUnavailableError: Nothing was run; the planner dispatches the records again.
    """
    with runtime.connection.causal_session() as session:
        controls = definitions.read(runtime.connection.globals(), task.name, session=session)
        if controls.holds_back:
            _send_again_when_due(runtime, task, named, ())
            return 0
        stored = controls.applied_to(task)
        keys = [one.key for one in named]
        wanted = 1 if one_only else len(keys)
        with permitted(runtime, controls.limits_of(task), keys, token=token, wanted=wanted) as permit:
            runs = _claim(
                runtime,
                stored,
                controls,
                keys,
                token=token,
                worker=worker,
                session=session,
                one_only=one_only,
                permit=permit,
                knows_deletions=task.on_delete,
            )
            if len(runs) < len(named):
                _send_again_when_due(runtime, task, named, runs, wait=permit.wait if permit else _NO_WAIT)
            with HEARTBEAT.renewing(runs):
                return _run_batch(runs, body, session) if task.batch else _run_all(runs, body, session)


def _send_again_when_due(
    runtime: Runtime, task: ReactiveTask, named: Sequence[Named], runs: Sequence[Run], *, wait: timedelta = _NO_WAIT
) -> None:
    """Let the planner send what this message named in vain as soon as it is due, not after the dispatch deadline."""
    claimed = {run.claim.key.exact for run in runs}
    left = [one.key for one in named if one.key.exact not in claimed]
    # Where it cannot be written, the deadline passes; what was claimed is run in any case.
    with contextlib.suppress(StoreUnavailableError):
        records.mark_unsent(runtime.connection.records(task), left, wait=wait)


def _claim(
    runtime: Runtime,
    task: ReactiveTask,
    controls: Controls,
    keys: Sequence[RecordKey],
    *,
    token: str,
    worker: str,
    session: ClientSession,
    one_only: bool,
    permit: Permit | None,
    knows_deletions: bool,
) -> list[Run]:
    """Claim what is due of *keys*, and no more than *permit* has starts for."""
    until = None if permit is None else permit.claim_until
    target, lease = runtime.connection.records(task), runtime.settings.visibility_timeout

    def claim(keys: Sequence[RecordKey]) -> list[Claim]:
        try:
            return records.claim(
                target,
                keys,
                token=token,
                worker=worker,
                lease=lease,
                session=session,
                until=until,
                track=task.track_changes,
            )
        except StoreUnavailableError:
            # What was claimed without an answer is this worker's, and nobody else can run it.
            return records.find_claims(target, keys, token=token, session=session)

    sent = time.monotonic()
    if permit is not None and not permit.starts:
        return []
    if one_only:
        claims = next(filter(None, (claim([key]) for key in keys)), [])
    else:
        claims = claim(keys if permit is None else keys[: permit.starts])
    if permit is not None:
        permit.claimed(len(claims))
    lineage = controls.lineage

    def run_of(claim: Claim) -> Run:
        # Asked about by the stored filter, compared by the projection of its own snapshot (B-43).
        projection = lineage.projection_of(claim.generation)
        return Run(
            runtime,
            task if projection is None else dataclasses.replace(task, projection=projection),
            claim,
            sent=sent,
            collated=controls.collated,
            outdated=claim.generation < controls.generation,
            generation=controls.generation if projection is None else claim.generation,
            permit=permit,
            knows_deletions=knows_deletions,
        )

    return [run_of(claim) for claim in claims]


def _run_batch(runs: Sequence[Run], body: Body, session: ClientSession) -> int:
    _read_ahead(runs, session)
    return _run(_owned(runs), body, session, None)


def _run_all(runs: Sequence[Run], body: Body, session: ClientSession) -> int:
    if len(runs) < 2:  # noqa: PLR2004 -- nobody to wait for
        return _run(_owned(runs), body, session, None)
    done = 0
    _read_ahead(runs, session)
    with together(runs) as company:
        looked = time.monotonic()
        while (run := company.next()) is not None:
            done += _run(_owned([run]), body, session, company)
            is_old = time.monotonic() - looked > _CONTROLS_SECONDS
            if run.throttled or (is_old and _is_held_back(run)):
                break
            looked = time.monotonic() if is_old else looked
    return done


def _read_ahead(runs: Sequence[Run], session: ClientSession) -> None:
    ahead = ReadAhead(runs, session)
    for run in runs:
        run.ahead = ahead


def _owned(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that are still owned: a process that was frozen must not go on with what it may have lost."""
    for run in runs:
        if run.lease_lost:
            HEARTBEAT.settled(run)
    return [run for run in runs if not run.lease_lost]


def _is_held_back(run: Run) -> bool:
    try:
        return definitions.read(run.runtime.connection.globals(), run.task.name).holds_back
    except StoreUnavailableError:
        return True


def _run(runs: Sequence[Run], body: Body, session: ClientSession, company: Company | None) -> int:
    """Call the handler once for *runs* and end them; return for how many it was called."""
    runs = [run for run in runs if not _has_ended_unseen(run, session)]
    if not runs:
        return 0
    for run in runs:
        run.runtime.emit(_started(run))
        run.began = time.monotonic()
    try:
        outcomes = body(runs, [TaskContext(run, session) for run in runs])
    except BaseException as error:
        for run in runs:
            run.ended = True
        if _is_stopped(error):
            _finalize(runs, [GivenBack()] * len(runs))
        elif not _is_ended_by_signal(error):
            # What ends the process (SystemExit, MemoryError) is a failed attempt first.
            _finalize(runs, [failed_attempt(run, error) for run in runs])
        raise
    finally:
        for run in runs:
            run.ended = True
    first, outcome = runs[0], outcomes[0]
    if company is not None and isinstance(outcome, Completed) and not first.completing and not first.completed:
        company.completed(first, outcome)
    else:
        _finalize_uninterrupted(runs, outcomes)
    return len(runs)


def _has_ended_unseen(run: Run, session: ClientSession) -> bool:
    """End *run* where its handler is not to be called; whether that was so."""
    is_unsure = run.outdated and not run.deleted
    unseen = (
        _left_to_newer_code(run)
        or _not_told_of_deletion(run)
        or (_ended_unseen(run, session) if is_unsure else None)
        or _too_late(run)
    )
    if unseen is None:
        return False
    HEARTBEAT.settled(run)
    finalize(run, unseen)
    return True


def _finalize(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> None:
    if len(runs) > 1:
        finalize_batch(runs, outcomes)
        return
    finalize(runs[0], outcomes[0])
    HEARTBEAT.settled(runs[0])


def _started(run: Run) -> RunStarted:
    claim = run.claim
    waited = claim.started_at - claim.due_at if claim.attempt == 1 and not claim.deferrals else None
    seconds = None if waited is None else max(waited.total_seconds(), 0.0)
    return RunStarted(claim.key.task, str(claim.key), claim.attempt, seconds)


def _is_ended_by_signal(error: BaseException) -> bool:
    """Whether a pool process ends because of a signal: its parent knows why, and ends the run (B-28, B-68).

    Celery's pool exits with the signal's number minus 256 then.
    """
    return isinstance(error, SystemExit) and isinstance(error.code, int) and error.code < 0


def _is_stopped(error: BaseException) -> bool:
    """Whether the worker stops cold or somebody ends this run, where the worker's own process executes it (B-68).

    On the solo pool Celery raises its own order to stop inside the handler, on gevent the run's greenlet is killed.
    """
    return type(error).__name__ in {"WorkerTerminate", "WorkerShutdown", "GreenletExit"}


def _finalize_uninterrupted(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> None:
    """Finalize, also where a soft time limit strikes after the handler has ended (B-29)."""
    try:
        _finalize(runs, outcomes)
    except ReactiveError:
        raise
    except Exception:  # noqa: BLE001 -- Celery raises its signal's exception at any line
        for run in runs:
            run.in_doubt = True
        _finalize(runs, outcomes)


def _left_to_newer_code(run: Run) -> GivenBack | None:
    """Leave a record that was reset for a newer version of the handler to workers that have it, for a while (B-44)."""
    claim = run.claim
    if claim.reset_at is None or claim.reset_for <= run.task.evolution.handler_version:
        return None
    return GivenBack(wait=_NEWER_CODE_WAIT) if claim.started_at - claim.reset_at < _NEWER_CODE_PATIENCE else None


def _not_told_of_deletion(run: Run) -> GivenBack | Skipped | None:
    """Keep a deletion from a handler that knows of none: another's code does, or nobody's does any more (B-61)."""
    if run.knows_deletions or not run.claim.deleted:
        return None
    is_wanted = run.task.on_delete
    return GivenBack(wait=_NEWER_CODE_WAIT) if is_wanted else Skipped("the document was deleted", gone=True)


def _too_late(run: Run) -> GivenBack | None:
    """Give back a run whose start was granted for an earlier time (B-58)."""
    return None if run.permit is None or run.permit.start() else GivenBack()


def _ended_unseen(run: Run, session: ClientSession) -> Outcome | None:
    """Ask the stored filter about a record observed under an older one; outside it no handler is called (B-32)."""
    try:
        found = documents.read(
            run.runtime.connection.documents(run.task),
            run.task,
            run.claim,
            projection={"_id": 1},
            session=session,
            collated=run.collated,
            options={},
        )
    except StoreUnavailableError:
        return GivenBack()
    except StatementFailedError as error:
        return failed_attempt(run, error)
    match found:
        case Read() | MovedOn():
            return None
        case Gone():
            return Skipped("the document was deleted", gone=True)
        case Left():
            return Skipped(
                "the document does not match the filter of the newer definition", left=True, generation=run.generation
            )
        case _:
            assert_never(found)


def confirm_completion(run: Run) -> None:
    """Find out whether the transaction in which the handler completed its record was committed (B-36).

    Where MongoDB does not answer it stays unknown, and the statement that ends the run finds out.
    """
    if not run.completing or run.completed:
        return
    target = run.runtime.connection.records(run.task)
    with contextlib.suppress(StoreUnavailableError):
        run.completed = records.was_settled_by(target, run.claim.key, run.claim.token)


def outcome_of_return(run: Run) -> Outcome:
    """Return the outcome of a handler that returned: what it asked of its context decides."""
    if run.completed:
        if run.deferral is not None:
            run.runtime.emit(ContextMisused(str(run.claim.key), "defer_current beside mark_completed is ignored"))
        return Completed(run.took, document_checked=run.document_checked)
    if run.overtaken is not None:
        return Overtaken(run.overtaken, run.generation, run.took)
    if run.failure is not None:
        return failed_attempt(run, run.failure)
    if run.deferral is not None:
        return Deferred(run.deferral.until, hold=run.deferral.hold, duration=run.took)
    return Completed(run.took, document_checked=run.document_checked)


def outcome_of_error(run: Run, error: BaseException, *, retry_in: timedelta | None = None) -> Outcome:
    """Return the outcome of a handler that raised; a read that found the values moved on still counts (B-33)."""
    if run.completed:
        return Completed(run.took, document_checked=run.document_checked)
    if run.overtaken is not None:
        return Overtaken(run.overtaken, run.generation, run.took)
    if run.completes:
        return Completed(run.took, document_checked=run.document_checked)
    if run.failure is not None:
        return failed_attempt(run, run.failure)
    if isinstance(error, TaskConditionFailedError):
        return Skipped(str(error), run.took, gone=run.gone, left=run.left, generation=run.generation)
    outcome = failed_attempt(run, error, retry_in=retry_in)
    return without_retry(outcome) if isinstance(error, DocumentInvalidError) else outcome


def without_retry(outcome: Outcome) -> Outcome:
    """A failed attempt that is to be the last, whatever the policy says."""
    return Exhausted(outcome.error, outcome.duration) if isinstance(outcome, Errored) else outcome
