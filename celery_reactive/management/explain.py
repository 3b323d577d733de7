"""Why a document ran, will run or will not, in words (B-53).

Called by `Reactive.explain`, the command line and the dashboard. First everything that matters is looked up, then
sentences are made of it; nothing is changed, and what is said is of one moment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, assert_never

from celery_reactive.core.duration import format_duration
from celery_reactive.core.record import RecordKey
from celery_reactive.core.states import RUNNING, RecordState
from celery_reactive.core.task import DEFAULT_GROUP, ReactiveTask
from celery_reactive.management.listing import TaskRecord, record_from
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, inspection, instances, queries
from celery_reactive.store.definitions import Controls
from celery_reactive.store.inspection import Books, DocumentSeen
from celery_reactive.store.unplanned import Reason as Unplannable
from celery_reactive.store.unplanned import Unplanned

_QUIET_LAG = timedelta(seconds=30)
"""In quiet times a position is stored only every 10 s: less says nothing."""
_LONGEST_ERROR = 500


class Outlook(StrEnum):
    """What becomes of the document next."""

    RUNS = "runs"
    """A worker runs it at this moment."""
    WILL_RUN = "will_run"
    """Its time comes, or it is on its way; nobody has to do anything."""
    HELD_BACK = "held_back"
    """It would run, and does not before somebody acts, or before what holds it back ends."""
    WILL_NOT_RUN = "will_not_run"
    """There is nothing to run for it, before it changes or somebody retries it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reason:
    """One thing that is so."""

    code: str
    """Stable, for programs: `paused`, `waits_for_retry` and so on."""
    text: str
    """A sentence for people, with the remedy where there is one."""
    holds_back: bool = False
    """Whether no run can start while it is so."""


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """Why a document ran, will run or will not; `str()` gives the sentences."""

    key: RecordKey
    namespace: str
    """`database.collection` of the document."""
    outlook: Outlook
    reasons: tuple[Reason, ...]
    """What is so, the most telling first."""
    document_exists: bool
    matches: bool | None
    """Whether the filter in force finds the document; None: the filter fails on it."""
    record: TaskRecord | None
    """As stored; None: the task has never met the document, or its record was removed."""

    def __str__(self) -> str:
        head = {
            Outlook.RUNS: "is running now",
            Outlook.WILL_RUN: "will run",
            Outlook.HELD_BACK: "would run, and is held back",
            Outlook.WILL_NOT_RUN: "will not run as things are",
        }[self.outlook]
        return "\n".join([f"{self.key} {head}.", *(reason.text for reason in self.reasons)])


@dataclasses.dataclass(frozen=True, slots=True)
class _Situation:
    """Everything that was looked up."""

    task: ReactiveTask
    """As declared in this code."""
    namespace: str
    queue: str | None
    """None: only the message itself would tell."""
    now: datetime
    document: DocumentSeen
    record: TaskRecord | None
    books: Books | None
    controls: Controls
    unplanned: Unplanned | None
    leader: queries.Leading | None
    leader_ttl: timedelta
    planned: queries.Planned | None
    workers: tuple[str, ...]
    """Live ones that serve the task's queue, or any where the queue is not known."""


def explain(runtime: Runtime, task: str, doc_id: Any, *, queue: str | None = None) -> Explanation:
    """Return why *task* ran, will run or will not for one document.

    Args:
        runtime: The app's parts.
        task: The task's name.
        doc_id: The document's `_id`, taken literally.
        queue: That messages of the task go to, if that is known.

    Raises:
        UnknownTaskError: There is no such task; the message lists the known ones.
        StoreBusyError: Not found out within 10 s.
        StoreUnavailableError: MongoDB does not answer.
        StatementFailedError: The id cannot be sent to the server.
    """
    seen = _look(runtime, runtime.registry.get(task), doc_id, queue)
    reasons = tuple(_reasons(seen))
    return Explanation(
        key=RecordKey(seen.task.name, doc_id),
        namespace=seen.namespace,
        outlook=_outlook(seen, reasons),
        reasons=reasons,
        document_exists=seen.document.exists,
        matches=seen.document.matches,
        record=seen.record,
    )


# --- looking up ---------------------------------------------------------------------------------------


def _look(runtime: Runtime, task: ReactiveTask, doc_id: Any, queue: str | None) -> _Situation:
    connection, globals_ = runtime.connection, runtime.connection.globals()
    key, namespace = RecordKey(task.name, doc_id), connection.namespace(task)
    source, target = connection.source(task), connection.records(task)
    controls = definitions.read(globals_, task.name)
    found = inspection.read_record(target, key)
    living = [one for one in instances.read(globals_) if one.is_live]
    return _Situation(
        task=task,
        namespace=namespace,
        queue=queue,
        now=queries.server_time(globals_),
        document=inspection.see_document(source, target, controls.applied_to(task), doc_id),
        record=None if found is None else record_from(namespace, found[0]),
        books=None if found is None else found[1],
        controls=controls,
        unplanned=inspection.unplanned_entry(globals_, key),
        leader=queries.leading(globals_, task.group),
        leader_ttl=runtime.settings.leader_ttl,
        planned=queries.planned(globals_, task.group, source.database.name),
        workers=tuple(one.name for one in living if one.kind is instances.Kind.WORKER and _serves(one, queue)),
    )


def _serves(worker: instances.Instance, queue: str | None) -> bool:
    return queue is None or queue in worker.facts.get("queues", ())


# --- what follows -------------------------------------------------------------------------------------


def _outlook(seen: _Situation, reasons: Sequence[Reason]) -> Outlook:
    if seen.record is not None and seen.record.status in RUNNING:
        return Outlook.RUNS
    if not _has_to_run(seen):
        return Outlook.WILL_NOT_RUN
    return Outlook.HELD_BACK if any(reason.holds_back for reason in reasons) else Outlook.WILL_RUN


def _has_to_run(seen: _Situation) -> bool:
    """Whether a run is due now or later, as far as the document's state tells."""
    if seen.record is None:
        return bool(seen.document.matches)
    return seen.record.status is RecordState.PENDING or _is_unseen(seen)


def _is_unseen(seen: _Situation) -> bool:
    """Whether the document is in a state that the planner has not laid over its record, and that would run."""
    if seen.record is None or not seen.document.matches:
        return False
    returns = (seen.record.gone or seen.record.left) and not seen.task.projection.only_id
    return returns or (seen.document.differs is True and not _is_of_older_generation(seen))


def _is_of_older_generation(seen: _Situation) -> bool:
    return seen.books is not None and seen.books.generation < seen.controls.generation


def _reasons(seen: _Situation) -> Iterator[Reason]:
    yield from _of_document(seen)
    yield from _of_planning(seen)
    yield from _of_record(seen)
    if _has_to_run(seen):
        yield from _of_controls(seen)
        yield from _of_workers(seen)
    if _has_to_run(seen) or seen.record is None:
        yield from _of_planner(seen)


def _of_document(seen: _Situation) -> Iterator[Reason]:
    where = seen.namespace
    if not seen.document.exists:
        yield Reason("no_document", f"There is no document with this _id in {where}.")
    elif seen.document.matches is None:
        text = f"Filter or projection fails on the document: {seen.document.error}."
        yield Reason("filter_fails", text, holds_back=True)
    elif not seen.document.matches:
        query = seen.controls.filter_text or seen.task.filter.query
        yield Reason("no_match", f"The document exists in {where} and does not match the task's filter: {query}.")


def _of_planning(seen: _Situation) -> Iterator[Reason]:
    failure = seen.unplanned
    if failure is not None and failure.reason is Unplannable.FAILED:
        text = (
            f"It could not be planned since {_moment(failure.since)} ({failure.tries} tries): {_short(failure.error)}. "
            "It is tried again when the document changes: correct the document, or the filter and projection."
        )
        yield Reason("planning_failed", text, holds_back=True)
    elif failure is not None:
        text = (
            f"Somebody's transaction holds its record since {_moment(failure.since)}; the planner tries every second."
        )
        yield Reason("locked", text, holds_back=True)
    elif seen.record is None and seen.document.matches:
        text = "The document matches and has no record: the planner has not seen it yet, or the record was removed."
        yield Reason("no_record", text)
    elif _is_unseen(seen):
        yield Reason("unseen", "The document has changed since the planner saw it last; it will see that.")
    if _is_of_older_generation(seen):
        text = (
            "The task's definition has changed since the document was seen last; the reconciliation comes by, "
            "and it runs only if the new definition makes a difference."
        )
        yield Reason("older_generation", text)


def _of_record(seen: _Situation) -> Iterator[Reason]:
    record, books = seen.record, seen.books
    if record is None or books is None:
        return
    match record.status:
        case RecordState.PENDING:
            if record.gone and seen.task.on_delete:
                yield Reason("deleted", "Its document was deleted, and the task is told of that by a run of its own.")
            yield _guarded(seen) if books.is_guarded else _waiting(record, books)
        case RecordState.PROCESSING | RecordState.PROCESSING_DIRTY:
            yield from _running(record, books)
        case RecordState.COMPLETED:
            yield _completed(record, books)
        case RecordState.FAILED:
            attempts = "1 attempt" if record.attempts == 1 else f"{record.attempts} attempts"
            text = (
                f"It failed after {attempts} at {_moment(record.last_finalized_at)}: "
                f"{_short(record.last_error)}. It runs again when the document changes, or is retried by hand."
            )
            yield Reason("failed", text)
        case _:
            assert_never(record.status)
    if record.status is not RecordState.PENDING or record.last_error is None:
        yield from _past(record)


def _guarded(seen: _Situation) -> Reason:
    text = (
        f"The loop guard has paused it: {seen.task.loop_guard} runs in a row were caused by what its own handler wrote "
        f"to the document. Mend the handler, then `resume {seen.task.name}` with this document's id."
    )
    return Reason("loop_guarded", text, holds_back=True)


def _waiting(record: TaskRecord, books: Books) -> Reason:
    """Say what a pending record waits for."""
    if record.next_run_at is not None and record.next_run_at > books.now:
        return _not_due(record, books, record.next_run_at)
    if books.sent and books.wake_at is not None and books.wake_at > books.now:
        times = "" if books.dispatches <= 1 else f", the message number {books.dispatches} in a row that nobody took"
        text = (
            f"It is due, and its message is with the broker since {_moment(books.sent_at)}{times}. If no worker has "
            f"taken it by {_moment(books.wake_at)}, it is sent again."
        )
        return Reason("with_broker", text)
    if not books.sent and books.wake_at is not None and books.wake_at > books.now:
        text = f"It is due, and was put off until {_moment(books.wake_at)}: a limit or a control of the task held it."
        return Reason("put_off", text)
    since = format_duration(_whole(books.now - (record.next_run_at or books.now)))
    return Reason("due", f"It has been due for {since}, and its message is not sent yet.")


def _not_due(record: TaskRecord, books: Books, when: datetime) -> Reason:
    left = format_duration(_whole(when - books.now))
    if books.deferrals:
        held = " also if the document changes" if books.is_held else " unless the document changes before"
        text = f"Its handler deferred it ({books.deferrals} times) until {_moment(when)}, in {left},{held}."
        return Reason("deferred", text)
    if record.last_error is not None and record.attempts:
        text = (
            f"Attempt {record.attempts} failed: {_short(record.last_error)}. The next one begins at {_moment(when)}, "
            f"in {left}."
        )
        return Reason("waits_for_retry", text)
    if books.has_change:
        return Reason(
            "debounced", f"It waits for the document to be quiet (debounce) until {_moment(when)}, in {left}."
        )
    return Reason("waits", f"It waits until {_moment(when)}, in {left}.")


def _running(record: TaskRecord, books: Books) -> Iterator[Reason]:
    # A change that came in during the run has set the attempts back.
    what = f"attempt {record.attempts}" if record.attempts else "it"
    yield Reason("running", f"{books.worker} runs {what} since {_moment(record.started_at)}.")
    if record.next_run_at is not None and record.next_run_at < books.now:
        text = (
            f"Its lease ended at {_moment(record.next_run_at)} without being renewed: the worker has vanished or is "
            "cut off. The leading planner ends the run, and it counts as a failed attempt."
        )
        yield Reason("lease_over", text)
    if record.status is RecordState.PROCESSING_DIRTY:
        cause = "It was retried by hand" if books.is_forced else "The document has changed"
        yield Reason("runs_again", f"{cause} since the run began: it runs once more after it.")


def _completed(record: TaskRecord, books: Books) -> Reason:
    if books.is_unrun:
        text = "It matched when the task was deployed, and the task takes no back-fill: it runs at its first change."
        return Reason("not_backfilled", text)
    last = record.execution_history[-1] if record.execution_history else {}
    if books.was_skipped or last.get("status") in {"skipped", "discarded"}:
        how = (
            "discarded by hand" if last.get("status") == "discarded" else f"skipped: {last.get('reason', 'no reason')}"
        )
        return Reason("skipped", f"It ended at {_moment(record.completed_at)} without a run, {how}.")
    if record.gone or record.left:
        how = "was deleted" if record.gone else "left the filter"
        return Reason("gone" if record.gone else "left", f"Its document {how} after it was handled.")
    text = (
        f"Its present state was handled at {_moment(record.completed_at)}; the watched values are the same since. "
        "It runs again when they change."
    )
    return Reason("handled", text)


def _past(record: TaskRecord) -> Iterator[Reason]:
    if record.last_success is not None and record.status is not RecordState.COMPLETED:
        yield Reason("last_success", f"It last ran well at {_moment(record.last_success['at'])}.")


def _of_controls(seen: _Situation) -> Iterator[Reason]:
    if seen.controls.paused:
        text = f"The task is paused: nothing of it runs before `resume {seen.task.name}`."
        yield Reason("paused", text, holds_back=True)
    if seen.controls.is_throttled:
        until = _moment(seen.controls.throttled_until)
        yield Reason("throttled", f"The task is throttled until {until}.", holds_back=True)


def _of_workers(seen: _Situation) -> Iterator[Reason]:
    if seen.workers:
        return
    where = "" if seen.queue is None else f" on its queue {seen.queue!r}"
    option = "" if seen.queue is None else f" -Q {seen.queue}"
    text = f"No worker is alive{where}: start one with `celery -A … worker{option}`."
    yield Reason("no_worker", text, holds_back=True)


def _of_planner(seen: _Situation) -> Iterator[Reason]:
    if _nobody_leads(seen):
        group = "" if seen.task.group == DEFAULT_GROUP else f" --group {seen.task.group}"
        text = (
            "Nobody leads the planners, so that no change is seen and nothing is sent: start "
            f"`celery-reactive -A … planner{group}`."
        )
        yield Reason("no_leader", text, holds_back=True)
    elif seen.controls.generation == 0:
        text = "The leading planner does not know the task: it runs older code, or has refused the task in its log."
        yield Reason("not_defined", text, holds_back=True)
    elif seen.controls.reconciled_generation != seen.controls.generation:
        text = "The planner is going through all documents (reconciliation), and may not have come to this one."
        yield Reason("reconciling", text)
    texts = (seen.controls.filter_text, seen.controls.projection_text)
    if seen.controls.generation and texts != definitions.definition_texts(seen.task):
        text = (
            "The leading planner runs another definition of the task than this code: its filter and projection count."
        )
        yield Reason("other_definition", text)
    if seen.planned is not None:
        lag = seen.now - datetime.fromtimestamp(seen.planned.at.time, seen.now.tzinfo)
        if lag > _QUIET_LAG:
            text = f"The planner is behind: changes up to {format_duration(_whole(lag))} ago have been planned."
            yield Reason("planner_lag", text)


def _nobody_leads(seen: _Situation) -> bool:
    lock = seen.leader
    if lock is None or lock.holder is None:
        return True
    return lock.renewed_at is not None and lock.now - lock.renewed_at > seen.leader_ttl


# --- words ------------------------------------------------------------------------------------------


def _moment(when: datetime | None) -> str:
    return "an unknown time" if when is None else f"{when:%Y-%m-%d %H:%M:%S} UTC"


def _whole(span: timedelta) -> timedelta:
    return timedelta(seconds=max(round(span.total_seconds()), 0))


def _short(text: str | None) -> str:
    words = " ".join((text or "no message").split())
    return words if len(words) <= _LONGEST_ERROR else f"{words[:_LONGEST_ERROR]}…"
