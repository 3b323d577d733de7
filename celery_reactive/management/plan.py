"""A dry run of a deployment: what this code's definition would create, run again and skip (B-53).

Called by `Reactive.plan` and the command line. Goes through documents and records as a reconciliation would, page by
page with flat memory, and writes nothing, anywhere. What changes meanwhile may be counted either way.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from celery_reactive.core.evolution import Lineage
from celery_reactive.core.policies import OnHandlerVersionChange
from celery_reactive.core.record import RecordKey
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import StatementFailedError
from celery_reactive.management import renames
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, forecast, records, scans, server
from celery_reactive.store.definitions import Controls
from celery_reactive.store.forecast import SAMPLES, Fate, Fates

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

LARGE_DOCUMENT_BYTES = 4 * 1024
"""A document larger than that on average is better watched by a projection: the record holds what is watched."""


@dataclasses.dataclass(frozen=True, slots=True)
class PlanReport:
    """What a deployment of this code would do for one task. Nothing was written."""

    task: str
    namespace: str
    """`database.collection` that it watches."""
    is_new: bool
    """Whether no planner has seen the task yet."""
    changes: tuple[str, ...]
    """What differs from the stored definition: `filter`, `projection`, `handler_version`."""
    documents: int
    """Documents looked at."""
    create: int
    """Documents that match and would get a record."""
    rerun: int
    """Records that would become pending."""
    skip: int
    """Records that wait to run, and would be completed without a run."""
    unchanged: int
    """Documents that match and for which nothing would run."""
    failing: int
    """Documents on which filter or projection fails: they could not be planned."""
    samples: Mapping[str, tuple[Any, ...]]
    """Ids of a few documents of each, by the name of the count."""
    notes: tuple[str, ...]
    """What else is worth knowing before the deployment, in sentences."""


@dataclasses.dataclass(slots=True)
class _Tally:
    """What has been counted so far."""

    documents: int = 0
    failing: int = 0
    counts: Counter[Fate] = dataclasses.field(default_factory=Counter)
    samples: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

    def add(self, fates: Fates) -> None:
        self.counts.update(fates.counts)
        for fate, ids in fates.samples.items():
            self.show(fate.value, ids)

    def show(self, name: str, ids: Sequence[Any]) -> None:
        shown = self.samples.setdefault(name, [])
        shown += ids[: SAMPLES - len(shown)]


@dataclasses.dataclass(frozen=True, slots=True)
class _Deployment:
    """The definition that would be deployed, beside what is stored."""

    task: ReactiveTask
    stored: Controls
    lineage: Lineage
    resets: OnHandlerVersionChange
    collated: bool

    @property
    def is_new(self) -> bool:
        return self.stored.generation == 0

    @property
    def changes(self) -> tuple[str, ...]:
        if self.is_new:
            return ()
        filter_text, projection_text = definitions.definition_texts(self.task)
        differences = {
            "filter": filter_text != self.stored.filter_text,
            "projection": projection_text != self.stored.projection_text,
            "handler_version": self.task.evolution.handler_version != self.stored.handler_version,
        }
        return tuple(name for name, differs in differences.items() if differs)


OnProgress = Callable[[int, int], object]
"""Called with how many documents have been looked at, and about how many there are."""


def plan(runtime: Runtime, task: str, *, on_progress: OnProgress | None = None) -> PlanReport:
    """Return what a deployment of this code would do for *task*; nothing is written.

    Args:
        runtime: The app's parts.
        task: The task's name.
        on_progress: Called after each page of documents.

    Raises:
        UnknownTaskError: There is no such task; the message lists the known ones.
        ConfigurationError: The server cannot compile filter or projection, or the collection cannot be watched.
        StoreUnavailableError: MongoDB does not answer.
    """
    definition = runtime.registry.get(task)
    source, target = runtime.connection.source(definition), runtime.connection.records(definition)
    server.check_collection(source.database, source.name)
    server.check_definition(source, definition)
    deployment = _deployment(runtime, definition)
    tally = _Tally()
    total = scans.estimate(source)
    with runtime.connection.causal_session() as session:
        for span in _spans(runtime, source, session):
            tally.documents += span.count
            _count(tally, deployment, source, target, span, session)
            if on_progress is not None:
                on_progress(tally.documents, max(total, tally.documents))
        _count_skips(runtime, tally, deployment, session)
    return _report(runtime, deployment, tally)


def _deployment(runtime: Runtime, task: ReactiveTask) -> _Deployment:
    stored = definitions.read(runtime.connection.globals(), task.name)
    evolution = task.evolution
    is_newer = 0 < stored.handler_version < evolution.handler_version
    return _Deployment(
        task=task,
        stored=stored,
        lineage=stored.lineage_under(task),
        resets=evolution.on_handler_version_change if is_newer else OnHandlerVersionChange.NONE,
        collated=server.has_collation(runtime.connection.database(task.database), task.collection),
    )


def _spans(runtime: Runtime, source: forecast.Documents, session: ClientSession) -> Iterator[scans.Span]:
    after: Any = scans.START
    while span := scans.next_documents(source, after, limit=runtime.settings.batch_size, session=session):
        yield span
        after = span.until


def _count(
    tally: _Tally,
    deployment: _Deployment,
    source: forecast.Documents,
    target: forecast.Documents,
    whose: scans.Span | Sequence[Any],
    session: ClientSession,
) -> None:
    """Count the fates of some documents; those on which the definition fails are found by halves."""
    try:
        tally.add(
            forecast.of_documents(
                source,
                target,
                deployment.task,
                whose,
                lineage=deployment.lineage,
                resets=deployment.resets,
                collated=deployment.collated,
                session=session,
            )
        )
    except StatementFailedError:
        ids = scans.ids_of(source, whose, session=session)
        if len(ids) <= 1:
            tally.failing += len(ids)
            tally.show("failing", ids)
            return
        middle = len(ids) // 2
        for half in (ids[:middle], ids[middle:]):
            _count(tally, deployment, source, target, half, session)


def _count_skips(runtime: Runtime, tally: _Tally, deployment: _Deployment, session: ClientSession) -> None:
    """Count the records that wait to run and whose document is off."""
    task = deployment.task
    source, target = runtime.connection.source(task), runtime.connection.records(task)
    after: Any = scans.START
    while span := scans.next_records(target, task.name, after, limit=runtime.settings.batch_size, session=session):
        after = span.until
        waiting = forecast.pending_of(target, task.name, span, session=session)
        matching = _matching(source, task, waiting, session) if waiting else []
        found = {RecordKey("", doc_id).exact for doc_id in matching}
        tally.counts[Fate.SKIP] += len(waiting) - len(matching)
        tally.show(Fate.SKIP.value, [one for one in waiting if RecordKey("", one).exact not in found])


def _matching(
    source: forecast.Documents, task: ReactiveTask, doc_ids: Sequence[Any], session: ClientSession
) -> list[Any]:
    """Return those of *doc_ids* that match; one on which the filter fails is left as it is, and counts as matching."""
    try:
        return records.find_matching(source, task, doc_ids, session=session)
    except StatementFailedError:
        if len(doc_ids) == 1:
            return list(doc_ids)
        middle = len(doc_ids) // 2
        return [
            *_matching(source, task, doc_ids[:middle], session),
            *_matching(source, task, doc_ids[middle:], session),
        ]


def _report(runtime: Runtime, deployment: _Deployment, tally: _Tally) -> PlanReport:
    task = deployment.task
    return PlanReport(
        task=task.name,
        namespace=runtime.connection.namespace(task),
        is_new=deployment.is_new,
        changes=deployment.changes,
        documents=tally.documents,
        create=tally.counts[Fate.CREATE],
        rerun=tally.counts[Fate.RERUN],
        skip=tally.counts[Fate.SKIP],
        unchanged=tally.counts[Fate.UNCHANGED],
        failing=tally.failing,
        samples={name: tuple(ids) for name, ids in tally.samples.items() if ids},
        notes=tuple(_notes(runtime, deployment, tally)),
    )


def _notes(runtime: Runtime, deployment: _Deployment, tally: _Tally) -> Iterator[str]:
    task, stored = deployment.task, deployment.stored
    former = renames.former_name(runtime, task)
    if former is not None:
        yield (
            f"It looks like {former.task!r} under another name, whose {former.records:,} records would stay behind: "
            f'to keep them, declare it with task="{former.task}".'
        )
    if tally.counts[Fate.CREATE] and not task.backfill and ("filter" in deployment.changes or deployment.is_new):
        yield "With backfill=False the records that would be created are completed: they run at their first change."
    if deployment.changes and not task.evolution.reconcile_on_trigger_change:
        yield "With reconcile_on_trigger_change=False the counts come true only as documents change, or are reconciled."
    if task.evolution.handler_version < stored.handler_version:
        yield f"Its handler_version is below the stored {stored.handler_version}: nothing is reset for it."
    if tally.failing:
        yield "Documents on which filter or projection fails could not be planned: `failures` would list them."
    size = forecast.average_size(runtime.connection.source(task))
    if task.projection.whole and size is not None and size > LARGE_DOCUMENT_BYTES:
        yield (
            f"It watches whole documents of {size / 1024:.1f} KiB on average, which are copied into the records: "
            "name the fields that matter in watch_projection."
        )
