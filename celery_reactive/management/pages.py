"""The records of a selection, page by page, with flat memory, and from where it was left.

Called by `by_hand` and `operations`. Reads ids only; what is done to a page is the caller's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from celery_reactive.core.record import RecordKey
from celery_reactive.core.task import ReactiveTask
from celery_reactive.management.selection import Part, Selection
from celery_reactive.runtime import Runtime
from celery_reactive.store import queries
from celery_reactive.store.queries import Documents, Query, Wanted


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Some records of one task."""

    records: Documents
    task: ReactiveTask
    ids: Sequence[Mapping[str, Any]]
    """The records' `_id`s. There may be no record of some."""
    only: Query
    """What a record was chosen for: demanded again by the statement that changes it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """What is worked on together, between two notes of how far it has come."""

    batches: Sequence[Batch]
    looked: int
    """How many records or, of a source, documents it has."""
    place: Mapping[str, Any]
    """Where the next page begins: to go on with in another process."""


def pages(runtime: Runtime, selection: Selection, *, place: Mapping[str, Any] | None = None) -> Iterator[Page]:
    """Yield the records of *selection*, or those of the documents of its source.

    Args:
        runtime: The app's parts.
        selection: Which records.
        place: Of the last page that was done with, for the same selection; None: from the start.

    Raises:
        StoreBusyError: A page was not found within the time limit.
        StoreUnavailableError: MongoDB does not answer.
        StatementFailedError: The server refuses the query.
    """
    units = _units(selection)
    names = [unit.name for unit in units]
    first = 0 if place is None or place["unit"] not in names else names.index(place["unit"])
    size = runtime.settings.batch_size
    for number, unit in enumerate(units[first:]):
        after = [place["after"]] if place is not None and number == 0 and names[first] == place["unit"] else []
        yield from unit.pages(after, size)


@dataclasses.dataclass(frozen=True, slots=True)
class _Records:
    """The wanted records of one task."""

    part: Part
    task: ReactiveTask

    @property
    def name(self) -> str:
        return self.task.name

    def pages(self, after: Sequence[Any], size: int) -> Iterator[Page]:
        wanted = self.part.wanted
        own = Wanted((self.task.name,), wanted.states, wanted.doc_id, wanted.error, wanted.has_error)
        for ids in queries.pages(self.part.records, own, after=next(iter(after), None), size=size):
            batch = Batch(self.part.records, self.task, ids, wanted.query)
            yield Page([batch], len(ids), {"unit": self.name, "after": ids[-1]})


@dataclasses.dataclass(frozen=True, slots=True)
class _Documents:
    """The documents of one collection that the source's query finds, with the wanted records of each."""

    part: Part
    query: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.part.namespace

    def pages(self, after: Sequence[Any], size: int) -> Iterator[Page]:
        for doc_ids in queries.ordered_document_ids(self.part.source, self.query, after=after, size=size):
            batches = [
                Batch(
                    self.part.records,
                    task,
                    [RecordKey(task.name, doc_id).id for doc_id in doc_ids],
                    self.part.wanted.query,
                )
                for task in self.part.tasks
            ]
            yield Page(batches, len(doc_ids), {"unit": self.name, "after": doc_ids[-1]})


def _units(selection: Selection) -> Sequence[_Records | _Documents]:
    if selection.source is None:
        return [_Records(part, task) for part in selection.parts for task in part.tasks]
    return [_Documents(part, selection.source) for part in selection.parts]
