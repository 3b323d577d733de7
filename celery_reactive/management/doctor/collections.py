"""Watched collections and records collections: whether they are what they should be."""

from __future__ import annotations

from collections.abc import Iterator

from celery_reactive.core.record import id_to_text
from celery_reactive.management.doctor.case import Case
from celery_reactive.management.doctor.finding import Finding, error, note, warning
from celery_reactive.management.plan import LARGE_DOCUMENT_BYTES
from celery_reactive.store import examination, forecast

SUFFIX_CLASH = error(
    "suffix_clash", "choose another reactive_records_suffix: records of one task would be documents of another"
)
FOREIGN_RECORDS = error("foreign_records", "rename that collection, or set reactive_records_suffix")
NOT_WATCHABLE = error("not_watchable", "watch the collection that the view or series is made from")
COLLECTION_MISSING = note(
    "collection_missing", "nothing, if it is made by its first document; else correct collection= or database="
)
MISSING_INDEX = warning("missing_index", "restart the planner, which makes them; without them each look reads all")
WHOLE_LARGE_DOCUMENTS = warning(
    "whole_large_documents",
    "name the fields that matter in watch_projection: what is watched is copied into the record",
)


def names(case: Case) -> Iterator[Finding]:
    """Whether a records collection is watched itself."""
    connection = case.runtime.connection
    homes = {f"{connection.records(task).full_name}": task.name for task in case.tasks}
    for task in case.tasks:
        owner = homes.get(connection.namespace(task))
        suffix = case.runtime.settings.records_suffix
        if owner is not None:
            yield SUFFIX_CLASH.on(task.name, f"it watches {connection.namespace(task)}, which holds records of {owner}")
        elif task.collection.endswith(suffix):
            yield SUFFIX_CLASH.on(task.name, f"it watches {task.collection!r}, which ends as records collections do")


def watched(case: Case) -> Iterator[Finding]:
    """Whether there is something to watch."""
    for task in case.tasks:
        namespace = case.runtime.connection.namespace(task)
        kind = examination.kind_of(case.runtime.connection.database(task.database), task.collection)
        if kind is None:
            yield COLLECTION_MISSING.on(task.name, f"there is no collection {namespace}")
        elif kind != "collection":
            yield NOT_WATCHABLE.on(task.name, f"{namespace} is a {kind}, which has no change stream")


def records(case: Case) -> Iterator[Finding]:
    """Whether records collections hold records, with the indexes that find them."""
    homes = {case.runtime.connection.records(task).full_name: task for task in case.tasks}
    for name, task in homes.items():
        target = case.runtime.connection.records(task)
        foreign = examination.foreign_record(target)
        if foreign is not None:
            yield FOREIGN_RECORDS.on(
                name, f"it holds documents that are no records, as _id {id_to_text(foreign)[:100]}"
            )
            continue
        missing = examination.missing_indexes(target)
        if missing:
            yield MISSING_INDEX.on(name, f"it lacks {', '.join(missing)}")


def documents(case: Case) -> Iterator[Finding]:
    """Whether large documents are watched as a whole."""
    for task in case.tasks:
        if not task.projection.whole:
            continue
        size = forecast.average_size(case.runtime.connection.source(task))
        if size is not None and size > LARGE_DOCUMENT_BYTES:
            problem = f"it watches whole documents of {size / 1024:.1f} KiB on average"
            yield WHOLE_LARGE_DOCUMENTS.on(task.name, problem)
