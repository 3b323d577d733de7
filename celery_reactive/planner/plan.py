"""Planning: lay what has changed over the records, one document's trouble kept to itself.

Called by `watch` with a batch of changes and by `reconcile` with pages of ids. Documents do not
pass through here: ids do, and the server reads, compares and merges.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from bson import Timestamp

from celery_reactive.core.changes import Wrote, concerns
from celery_reactive.core.evolution import Lineage
from celery_reactive.core.record import RecordKey
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import StatementFailedError, StoreBusyError
from celery_reactive.events import DocumentsPlanned, PlanningFailed, PlanningPostponed
from celery_reactive.planner.lay import Lay
from celery_reactive.runtime import Runtime
from celery_reactive.store import records, scans, unplanned
from celery_reactive.store.change_stream import Change, ChangeKind
from celery_reactive.store.errors import time_limit
from celery_reactive.store.scans import Span
from celery_reactive.store.unplanned import Reason, Unplanned

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

T = TypeVar("T")

logger = logging.getLogger(__name__)

_BATCH_LIMIT = timedelta(seconds=2)
_BISECTION_LIMIT = timedelta(milliseconds=150)
_CROWD = 2
"""So many records for each document of a span are too many to read."""


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedTask:
    """A task as the leader plans it."""

    definition: ReactiveTask
    generation: int
    collated: bool
    """The watched collection compares strings under a collation of its own."""
    lineage: Lineage = dataclasses.field(default_factory=lambda: Lineage(0))
    """Earlier generations whose snapshots can still be compared."""


class _Ids:
    """Document ids in order, each once: equal means the same type and the same bytes."""

    def __init__(self) -> None:
        self._ids: dict[bytes, Any] = {}

    def add(self, doc_id: Any) -> None:
        """Add *doc_id* at the end, if it is not there."""
        self._ids.setdefault(RecordKey("", doc_id).exact, doc_id)

    def all(self) -> list[Any]:
        """Return the ids."""
        return list(self._ids.values())

    def within(self, others: _Ids) -> list[Any]:
        """Return the ids that are among *others*, too."""
        return [doc_id for exact, doc_id in self._ids.items() if exact in others._ids]

    def of(self, facts: Mapping[bytes, T]) -> list[T]:
        """Return those of *facts*, by the exact form of an id, that are about one of the ids."""
        return [fact for exact, fact in facts.items() if exact in self._ids]

    def without(self, others: _Ids) -> list[Any]:
        """Return the ids that are not among *others*."""
        return [doc_id for exact, doc_id in self._ids.items() if exact not in others._ids]


@dataclasses.dataclass(frozen=True, slots=True)
class Concern:
    """What a batch of changes means for one task."""

    deleted: list[Any]
    inserted: list[Any]
    """Those of which nothing but an insertion is told: they should have no record."""
    written: list[Any]
    """All others that were written: they may have one."""
    last: list[Wrote]
    """When each of those that were deleted, or may have a record, was last."""


def concern_of(task: ReactiveTask, changes: Iterable[Change]) -> Concern:
    """Return which documents of *changes* must be looked at for *task*."""
    deleted, inserted, written = _Ids(), _Ids(), _Ids()
    last: dict[bytes, Wrote] = {}
    for change in changes:
        if change.kind is ChangeKind.DELETED:
            deleted.add(change.doc_id)
            _note_time(change, last)
        elif change.kind is ChangeKind.WRITTEN and (change.paths is None or concerns(change.paths, task.paths)):
            (inserted if change.inserted else written).add(change.doc_id)
            _note_time(change, last)
    for doc_id in inserted.within(deleted):
        written.add(doc_id)
    may_be_known = _Ids()
    for doc_id in (*deleted.all(), *written.all()):
        may_be_known.add(doc_id)
    return Concern(deleted.all(), inserted.without(written), written.all(), may_be_known.of(last))


def _note_time(change: Change, last: dict[bytes, Wrote]) -> None:
    if change.at is not None:
        last[RecordKey("", change.doc_id).exact] = Wrote(change.doc_id, change.at, change.session)


class Planning:
    """Plans for one leader: knows the tasks of a database and which documents are set aside."""

    def __init__(self, runtime: Runtime, tasks: Sequence[PlannedTask]) -> None:
        self._runtime = runtime
        self.tasks = tuple(tasks)
        self._set_aside: dict[tuple[str, bytes], bool] = {}
        """Documents that could not be planned, and whether their deletion is among what could not."""
        self._adopted: set[str] = set()
        """Tasks whose records all carry the present generation: every document has been looked at under it."""
        self._lock = threading.Lock()
        """Held while a document is set aside or forgotten: several stages do so."""
        self._recall()

    def _recall(self) -> None:
        """Take up what an earlier leader could not plan."""
        names = {task.definition.name for task in self.tasks}
        for entry in unplanned.find(self._runtime.connection.globals()):
            if entry.key.task in names:
                self._set_aside[entry.key.task, entry.key.exact] = entry.gone

    def plan_changes(self, changes: Sequence[Change], *, at: Timestamp) -> frozenset[str]:
        """Plan a batch of changes, all of it durable on return.

        Args:
            changes: In the order of the stream.
            at: Cluster time of the last one; what is read is not older.

        Returns:
            The names of the tasks that anything concerned.
        """
        planned: set[str] = set()
        with self._runtime.connection.causal_session() as session:
            session.advance_operation_time(at)
            for task in self.tasks:
                name = task.definition.collection
                concern = concern_of(task.definition, (change for change in changes if change.collection == name))
                if concern.deleted or concern.inserted or concern.written:
                    planned.add(task.definition.name)
                    self._plan_concern(task, concern, at, session)
        return frozenset(planned)

    def _plan_concern(self, task: PlannedTask, concern: Concern, at: Timestamp, session: ClientSession) -> None:
        at_fault: set[bytes] = set()
        deleted = [*concern.deleted, *self._deletions_set_aside(task, [*concern.inserted, *concern.written])]
        if deleted:
            at_fault |= self.leave(task, deleted, at=at, gone=True, wrote=concern.last, session=session)
        # A document whose deletion could not be planned must not be taken for the one that was handled.
        inserted, written = _without(concern.inserted, at_fault), _without(concern.written, at_fault)
        at_fault |= self.apply(task, written, inserted=inserted, at=at, live=True, wrote=concern.last, session=session)
        may_have_left = _without(written, at_fault)
        if may_have_left:
            at_fault |= self.leave(task, may_have_left, at=at, gone=False, session=session)
        looked_at = [*concern.deleted, *concern.inserted, *concern.written]
        self._forget(task, _without(looked_at, at_fault), at)
        self._runtime.emit(
            DocumentsPlanned(task.definition.name, len(looked_at), len(concern.deleted), set_aside=len(at_fault))
        )

    def note_reconciled(self, task: PlannedTask) -> None:
        """Take note that every document has been looked at under the present definition of *task*."""
        self._adopted.add(task.definition.name)

    def apply(
        self,
        task: PlannedTask,
        whose: Sequence[Any] | Span,
        *,
        inserted: Sequence[Any] = (),
        at: Timestamp,
        live: bool,
        stamps: bool = True,
        wrote: Sequence[Wrote] = (),
        session: ClientSession,
    ) -> set[bytes]:
        """Lay the documents as they are now over their records.

        Args:
            task: Whose records.
            whose: Ids of documents, or a span of them.
            inserted: Further ids, of documents that should have no record.
            at: A cluster time that *session* knew before.
            live: An event told of them; false for a scan.
            stamps: Whether an observation of nothing new moves the records' time.
            wrote: When the stream says that documents were changed last.
            session: Of the planner, causally after *at*.

        Returns:
            The exact ids of those at fault.
        """
        connection = self._runtime.connection
        source, target = connection.source(task.definition), connection.records(task.definition)
        if task.lineage.earlier and task.definition.name not in self._adopted:
            whose = scans.ids_of(source, whose, session=session)
            self._adopt(task, [*whose, *inserted], session)
        elif task.collated or self._is_crowded(task, whose, session):
            whose = scans.ids_of(source, whose, session=session)
        observation = records.Observation(
            task.definition,
            at=at,
            generation=task.generation,
            comparable=task.lineage.comparable,
            live=live,
            stamps=stamps,
            wrote=wrote,
            collated=task.collated,
            session=session,
        )

        def statement(part: Sequence[Any]) -> None:
            records.apply_observations(source, target, observation, part)

        try:
            with time_limit(_BATCH_LIMIT):
                rest = Lay(source, target, observation).over(whose, inserted=inserted)
        except StoreBusyError as error:
            rest = [*scans.ids_of(source, whose, session=session), *inserted]
            return self._halve(task, rest, statement, at, error, gone=False) if rest else set()
        except StatementFailedError:
            rest = [*scans.ids_of(source, whose, session=session), *inserted]
        return self._each(task, rest, statement, at, gone=False) if rest else set()

    def _is_crowded(self, task: PlannedTask, whose: Sequence[Any] | Span, session: ClientSession) -> bool:
        """Whether a span holds the records of many documents that are gone, which planning need not read."""
        if not isinstance(whose, Span):
            return False
        target, name = self._runtime.connection.records(task.definition), task.definition.name
        return scans.has_more_records(target, name, whose, _CROWD * whose.count, session=session)

    def _adopt(
        self, task: PlannedTask, doc_ids: Sequence[Any], session: ClientSession, *, limit: timedelta = _BATCH_LIMIT
    ) -> None:
        """Let documents that have not changed keep their records as they are under a new projection (B-43).

        Where that cannot be told, for an earlier projection fails or somebody holds a record, they count as changed.
        """
        connection = self._runtime.connection
        source, target = connection.source(task.definition), connection.records(task.definition)
        try:
            with time_limit(limit):
                records.adopt_snapshots(source, target, task.definition, doc_ids, lineage=task.lineage, session=session)
        except (StatementFailedError, StoreBusyError):
            if len(doc_ids) > 1:
                middle = len(doc_ids) // 2
                self._adopt(task, doc_ids[:middle], session, limit=_BISECTION_LIMIT)
                self._adopt(task, doc_ids[middle:], session, limit=_BISECTION_LIMIT)

    def leave(
        self,
        task: PlannedTask,
        doc_ids: Sequence[Any],
        *,
        at: Timestamp,
        gone: bool,
        wrote: Sequence[Wrote] = (),
        session: ClientSession,
    ) -> set[bytes]:
        """Mark the records of documents that are gone, or that `apply` with the same time did not find matching.

        *wrote* tells when the stream says that they were deleted.

        Returns:
            The exact ids of those at fault.
        """
        target = self._runtime.connection.records(task.definition)

        def statement(part: Sequence[Any]) -> None:
            records.leave(
                target,
                task.definition,
                part,
                at=at,
                generation=task.generation,
                gone=gone,
                wrote=wrote,
                session=session,
            )

        return self._each(task, doc_ids, statement, at, gone=gone)

    def retry_locked(self) -> int:
        """Plan again the documents whose records somebody's transaction held; return how many that mended."""
        if not self._set_aside:
            return 0
        mended = 0
        tasks = {task.definition.name: task for task in self.tasks}
        for entry in unplanned.find(self._runtime.connection.globals(), reason=Reason.LOCKED):
            task = tasks.get(entry.key.task)
            if task is None:
                continue
            with self._runtime.connection.causal_session() as session:
                session.advance_operation_time(entry.at)
                mended += self._plan_one(task, entry, session)
        return mended

    def _plan_one(self, task: PlannedTask, entry: Unplanned, session: ClientSession) -> bool:
        doc_ids, at = [entry.key.doc_id], entry.at
        mended = (
            not (entry.gone and self.leave(task, doc_ids, at=at, gone=True, session=session))
            and not self.apply(task, doc_ids, at=at, live=True, session=session)
            and not self.leave(task, doc_ids, at=at, gone=False, session=session)
        )
        if mended:
            self._forget(task, doc_ids, at)
        return mended

    def _each(
        self,
        task: PlannedTask,
        doc_ids: Sequence[Any],
        statement: Callable[[Sequence[Any]], None],
        at: Timestamp,
        *,
        gone: bool,
    ) -> set[bytes]:
        """Run *statement* over all *doc_ids*, in halves where it fails; note those at fault (B-20)."""
        limit = _BATCH_LIMIT if len(doc_ids) > 1 else _BISECTION_LIMIT
        try:
            with time_limit(limit):
                statement(doc_ids)
        except (StatementFailedError, StoreBusyError) as error:
            return self._halve(task, doc_ids, statement, at, error, gone=gone)
        return set()

    def _halve(
        self,
        task: PlannedTask,
        doc_ids: Sequence[Any],
        statement: Callable[[Sequence[Any]], None],
        at: Timestamp,
        error: StatementFailedError | StoreBusyError,
        *,
        gone: bool,
    ) -> set[bytes]:
        if len(doc_ids) == 1:
            return {self._note(task, doc_ids[0], at, error, gone=gone)}
        middle = len(doc_ids) // 2
        at_fault: set[bytes] = set()
        for half in (doc_ids[:middle], doc_ids[middle:]):
            try:
                with time_limit(_BISECTION_LIMIT):
                    statement(half)
            except (StatementFailedError, StoreBusyError) as partial:
                at_fault |= self._halve(task, half, statement, at, partial, gone=gone)
        return at_fault

    def _note(
        self,
        task: PlannedTask,
        doc_id: Any,
        at: Timestamp,
        error: StatementFailedError | StoreBusyError,
        *,
        gone: bool,
    ) -> bytes:
        key = RecordKey(task.definition.name, doc_id)
        locked = isinstance(error, StoreBusyError)
        reason = Reason.LOCKED if locked else Reason.FAILED
        with self._lock:
            unplanned.note(self._runtime.connection.globals(), key, at=at, gone=gone, reason=reason, error=str(error))
            self._set_aside[key.task, key.exact] = gone or self._set_aside.get((key.task, key.exact), False)
        told = PlanningPostponed(key.task, str(key)) if locked else PlanningFailed(key.task, str(key), str(error))
        self._runtime.emit(told)
        return key.exact

    def _deletions_set_aside(self, task: PlannedTask, doc_ids: Sequence[Any]) -> list[Any]:
        """Return those of *doc_ids* whose deletion could not be planned before they were inserted again."""
        if not self._set_aside:
            return []
        name = task.definition.name
        return [doc_id for doc_id in doc_ids if self._set_aside.get((name, RecordKey(name, doc_id).exact))]

    def _forget(self, task: PlannedTask, doc_ids: Sequence[Any], at: Timestamp) -> None:
        """Forget the trouble of documents that have now been planned as of *at*."""
        if not self._set_aside:
            return
        for key in (RecordKey(task.definition.name, doc_id) for doc_id in doc_ids):
            with self._lock:
                noted = (key.task, key.exact)
                if noted in self._set_aside and unplanned.clear(self._runtime.connection.globals(), key, up_to=at):
                    del self._set_aside[noted]


def _without(doc_ids: Sequence[Any], at_fault: set[bytes]) -> list[Any]:
    if not at_fault:
        return list(doc_ids)
    return [doc_id for doc_id in doc_ids if RecordKey("", doc_id).exact not in at_fault]
