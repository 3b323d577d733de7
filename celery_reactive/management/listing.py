"""Listing and counting records, page by page, over all records collections at once (B-51).

Called by `Reactive.get_tasks` and `Reactive.count_tasks`. Reads only. First the places of the page's records in the
order are found, then those records are read: what is merged here is small, whatever the records hold.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import bson
from bson.datetime_ms import DatetimeMS
from bson.errors import BSONError

from celery_reactive.core.record import CODEC, RecordKey
from celery_reactive.core.states import RecordState
from celery_reactive.core.suggest import did_you_mean, listed, shown
from celery_reactive.errors import ArgumentError, StoreBusyError
from celery_reactive.management.selection import Part, Selection, TaskFilters, select
from celery_reactive.runtime import Runtime
from celery_reactive.store import queries
from celery_reactive.store.queries import Order, Place, Stretch

MAX_LIMIT = 1000
"""Most records on a page; a larger limit is cut to it."""
MAX_SKIP = 10_000
"""Most records passed over by number; deeper pages go by `after`."""
SORTABLE = {
    "nextRunAt": "next_run_at",
    "dueAt": "due_at",
    "createdAt": "created_at",
    "updatedAt": "updated_at",
    "startedAt": "started_at",
    "completedAt": "completed_at",
    "lastFinalizedAt": "last_finalized_at",
    "firstErrorAt": "first_error_at",
    "attempts": "attempts",
    "status": "status",
    "task": "task",
}
"""Fields that a listing may be sorted by, as stored and as `TaskRecord` calls them: the two are equally good."""
MAX_SORTED = 20_000
"""Most records that are sorted for a page where no index has them in order."""
_MAX_RANGES = 200
"""Of an index that the server merges in order; of more than so many it sorts everything instead."""
_MOMENTS = timedelta(milliseconds=100)
_RENAMED = {"scheduledAt": "nextRunAt", "scheduled_at": "nextRunAt", "finishedAt": "lastFinalizedAt"}


@dataclasses.dataclass(frozen=True, slots=True)
class TaskRecord:
    """A record as stored, at the moment it was read: the state of one task for one document. Times are the server's."""

    task: str
    source_doc_id: Any
    """The document's `_id`, any BSON type."""
    collection: str
    """`database.collection` of the document."""
    status: RecordState
    attempts: int
    """So far in this sequence, a running one included."""
    next_run_at: datetime | None
    """Pending: eligible from; running: when the lease would end; completed or failed: None (B-21)."""
    due_at: datetime
    """When the last change was to be handled, before any failure or deferral."""
    last_observed_values: Any
    """What the task watches, as last seen."""
    created_at: datetime
    updated_at: datetime
    """Of the last change that concerned the task."""
    started_at: datetime | None
    completed_at: datetime | None
    last_finalized_at: datetime | None
    """Of the last outcome a worker wrote."""
    first_error_at: datetime | None
    """Of the present sequence of failures."""
    last_error: str | None
    last_error_type: str | None
    last_error_traceback: str | None
    """Shortened."""
    last_success: Mapping[str, Any] | None
    """`{at, durationMs}`."""
    execution_history: tuple[Mapping[str, Any], ...]
    """The newest runs, oldest first: `{at, status, durationMs, error, reason}`."""
    gone: bool
    """Whether the document was seen to be deleted."""
    left: bool
    """Whether the document was seen to match the filter no longer."""
    guarded: bool
    """Whether the loop guard has paused the record (B-64)."""
    celery_id: str
    """Of the Celery task that runs it now, or next: what Flower and logs name it by."""

    @property
    def key(self) -> RecordKey:
        """What identifies the record: its task and its document's id."""
        return RecordKey(self.task, self.source_doc_id)


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing."""

    items: list[TaskRecord]
    total: int
    """How many records the filters select, on all pages."""
    limit: int
    """Most items of the page, as it was applied."""
    skip: int
    next: str | None
    """The key to pass as `after` for the next page; None: this is the last."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Key:
    """The record that a page begins after: its place, and the collection it is in."""

    namespace: str
    place: Place


def get_tasks(
    runtime: Runtime,
    filters: TaskFilters,
    *,
    limit: int = 50,
    skip: int = 0,
    after: str | None = None,
    sort: tuple[str, int] = ("nextRunAt", 1),
    enough: int | None = None,
) -> Page:
    """Return a page of the records that *filters* select.

    The order is total: by the sorted field, then by collection, then by task and document id, these two in the
    direction of the field. `nextRunAt`, `dueAt` of pending records, and `lastFinalizedAt` of completed and failed ones
    come from an index; by anything else at most `MAX_SORTED` records are sorted. A record that changes its place while
    somebody pages may be met twice or not at all; every other one is met once.

    Args:
        runtime: The app's parts.
        filters: Which records.
        limit: Most items, at least 1; more than `MAX_LIMIT` means `MAX_LIMIT`.
        skip: Records to pass over, up to `MAX_SKIP`.
        after: `next` of the page before, with the same sort; for deep pages. None: from the start.
        sort: One of `SORTABLE`, and 1 (ascending, null first) or -1.
        enough: Count up to so many, and for moments: a total of *enough* means that there may be more. None: count all.

    Raises:
        UnknownTaskError: A named task does not exist; the message lists the known ones.
        ArgumentError: A filter, `limit`, `skip`, `after` or `sort` has no meaning, or there are too many records
            to sort them so.
        StoreBusyError: Not found within the time limit; narrow the filters.
        StoreUnavailableError: MongoDB does not answer.
        StatementFailedError: The server refuses `source` or the pattern, or a value cannot be sent to it.
    """
    order, most, first = _order(sort), _limit(limit), _skip(skip)
    key = None if after is None else _decoded(after, order)
    selection = select(runtime, filters)
    total = _count(runtime, selection) if enough is None else _count_up_to(enough, runtime, selection)
    _refuse_long_sort(selection, order, total)
    ranked = _ranked(runtime, selection, order, key, first + most + 1)
    shown_places = ranked[first : first + most]
    return Page(
        items=_read(shown_places),
        total=total,
        limit=most,
        skip=first,
        next=_encoded(shown_places[-1], order) if len(ranked) > first + most else None,
    )


def count_tasks(runtime: Runtime, filters: TaskFilters) -> int:
    """Return how many records *filters* select.

    Raises:
        UnknownTaskError: A named task does not exist; the message lists the known ones.
        ArgumentError: A filter has no meaning.
        StoreBusyError: Not counted within the time limit; narrow the filters.
        StoreUnavailableError: MongoDB does not answer.
        StatementFailedError: The server refuses `source` or the pattern, or a value cannot be sent to it.
    """
    return _count(runtime, select(runtime, filters))


def _refuse_long_sort(selection: Selection, order: Order, total: int) -> None:
    """Refuse to sort more than `MAX_SORTED` records; those of a source's documents are sorted in batches."""
    is_indexed = all(order.is_indexed(part.wanted.states) for part in selection.parts)
    if total > MAX_SORTED and not is_indexed and selection.source is None:
        problem = (
            f"expected at most {MAX_SORTED} records to sort by {order.field!r}, got {total}; narrow the filters, or"
            " sort by 'nextRunAt', pending records by 'dueAt', completed and failed ones by 'lastFinalizedAt'"
        )
        raise ArgumentError("sort", [problem])


def _count(runtime: Runtime, selection: Selection) -> int:
    return sum(
        queries.count(part.records, part.wanted, among=among)
        for part in selection.parts
        for among in _batches(runtime, selection, part)
    )


def _count_up_to(enough: int, runtime: Runtime, selection: Selection) -> int:
    """Return how many there are, *enough* where that are more, or where it cannot be told within moments."""
    if selection.source is not None:
        return min(_count(runtime, selection), enough)
    counted = 0
    for part in selection.parts:
        try:
            counted += queries.count(part.records, part.wanted, at_most=enough, within=_MOMENTS)
        except StoreBusyError:
            return enough
        if counted >= enough:
            return enough
    return counted


def _batches(runtime: Runtime, selection: Selection, part: Part) -> Iterator[list[dict[str, Any]] | None]:
    """Yield the record ids of one batch of the source's documents after the other, None once where none is asked."""
    if selection.source is None:
        yield None
        return
    for doc_ids in queries.document_ids(part.source, selection.source, size=runtime.settings.batch_size):
        yield [RecordKey(task.name, doc_id).id for task in part.tasks for doc_id in doc_ids]


# --- one order over all collections ---------------------------------------------------------------


def _ranked(
    runtime: Runtime,
    selection: Selection,
    order: Order,
    key: _Key | None,
    count: int,
) -> list[tuple[Part, Place]]:
    """Return where the first *count* records after *key* stand, in order over all collections.

    Those of each collection come from the server in their order, a group of tasks after the other; sorting here is
    stable, so that equal ones stay so.
    """
    found = [
        (part, place)
        for whole in selection.parts
        for part in _groups(whole, order)
        for place in _places(runtime, selection, part, order, key, count)
    ]
    return sorted(found, key=lambda each: _rank(each[1].value), reverse=order.descending)[:count]


def _groups(part: Part, order: Order) -> Iterator[Part]:
    """Yield *part* by groups of tasks, so few that the server merges their records in order."""
    size = max(1, _MAX_RANGES // max(1, len(part.wanted.states)))
    groups = [part.tasks[first : first + size] for first in range(0, len(part.tasks), size)]
    for tasks in reversed(groups) if order.descending else groups:
        wanted = dataclasses.replace(part.wanted, tasks=tuple(task.name for task in tasks))
        yield dataclasses.replace(part, tasks=tasks, wanted=wanted)


def _rank(value: Any) -> tuple[bool, Any]:
    """Return what Python sorts as the server sorts the value: null is the least, and times may be beyond `datetime`."""
    if value is None:
        return (False, 0)
    return (True, int(DatetimeMS(value)) if isinstance(value, datetime) else value)


def _places(
    runtime: Runtime,
    selection: Selection,
    part: Part,
    order: Order,
    key: _Key | None,
    count: int,
) -> list[Place]:
    """Return the first *count* places of one collection, never holding more than those and one batch.

    Ids of any type are compared by the server alone: what earlier batches brought is asked for again with the next.
    """
    best: list[Place] = []
    for batch in _batches(runtime, selection, part):
        among = None if batch is None else [*(place.record_id for place in best), *batch]
        best = []
        for stretch in _stretches(key, part, order):
            limit = count - len(best)
            best += queries.find_places(part.records, part.wanted, order, stretch=stretch, among=among, limit=limit)
            if len(best) == count:
                break
    return best


def _stretches(key: _Key | None, part: Part, order: Order) -> list[Stretch]:
    """Return what of *order* the records of *part* after *key* are in, one stretch after the other.

    Equal ones go by collection, then by id. Each is a range of an index: a deep page costs what the first does.
    """
    if key is None:
        return [order.whole()]
    value = key.place.value
    if part.namespace == key.namespace:
        return [order.beyond_equal(value, key.place.record_id), order.beyond_all(value)]
    if part.namespace < key.namespace:
        return [order.beyond_all(value)]
    return [order.from_all(value)]


def _read(places: Sequence[tuple[Part, Place]]) -> list[TaskRecord]:
    """Return the records at these places, in their order; one that was removed meanwhile is left out."""
    stored: dict[tuple[str, bytes], TaskRecord] = {}
    for part in {part.namespace: part for part, _ in places}.values():
        ids = [place.record_id for of_part, place in places if of_part.namespace == part.namespace]
        for record in queries.read_records(part.records, ids):
            stored[part.namespace, _exact(record["_id"])] = record_from(part.namespace, record)
    keys = [(part.namespace, _exact(place.record_id)) for part, place in places]
    return [stored[key] for key in keys if key in stored]


def _exact(record_id: Mapping[str, Any]) -> bytes:
    return bson.encode(record_id, codec_options=CODEC)


def record_from(namespace: str, stored: Mapping[str, Any]) -> TaskRecord:
    """Return the record that a stored document of the tasks of *namespace* is."""
    books = stored["_r"]
    error = books.get("error") or {}
    return TaskRecord(
        task=stored["task"],
        source_doc_id=stored["sourceDocId"],
        collection=namespace,
        status=RecordState(stored["status"]),
        attempts=int(stored["attempts"]),
        next_run_at=stored["nextRunAt"],
        due_at=stored["dueAt"],
        last_observed_values=stored["lastObservedValues"],
        created_at=stored["createdAt"],
        updated_at=stored["updatedAt"],
        started_at=stored["startedAt"],
        completed_at=stored["completedAt"],
        last_finalized_at=stored["lastFinalizedAt"],
        first_error_at=stored["firstErrorAt"],
        last_error=stored["lastError"],
        last_error_type=error.get("type"),
        last_error_traceback=error.get("traceback"),
        last_success=stored["lastSuccess"],
        execution_history=tuple(stored["executionHistory"]),
        gone=bool(books.get("gone")),
        left=bool(books.get("left")),
        guarded=bool(books.get("guarded")),
        celery_id=RecordKey(stored["task"], stored["sourceDocId"]).celery_id(namespace, int(books["cycle"])),
    )


# --- what the caller wrote --------------------------------------------------------------------------


def _order(sort: object) -> Order:
    match sort:
        case (str(field), 1 | -1 as direction) if not isinstance(direction, bool):
            return Order(_sortable(field), descending=direction == -1)
        case _:
            raise ArgumentError("sort", [f"expected a field and 1 or -1, as ('nextRunAt', 1), got {shown(sort)}"])


def _sortable(field: str) -> str:
    if field in SORTABLE:
        return field
    for stored, name in SORTABLE.items():
        if field == name:
            return stored
    renamed = _RENAMED.get(field)
    meant = f"; did you mean {renamed!r}?" if renamed else did_you_mean(field, SORTABLE)
    raise ArgumentError("sort", [f"expected one of {listed(SORTABLE)}, got {shown(field)}{meant}"])


def _limit(limit: object) -> int:
    if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
        return min(limit, MAX_LIMIT)
    raise ArgumentError("limit", [f"expected a number of 1 or more, got {shown(limit)}"])


def _skip(skip: object) -> int:
    if isinstance(skip, int) and not isinstance(skip, bool) and 0 <= skip <= MAX_SKIP:
        return skip
    problem = f"expected a number from 0 to {MAX_SKIP}, got {shown(skip)}; go deeper with after=page.next"
    raise ArgumentError("skip", [problem])


def _encoded(last: tuple[Part, Place], order: Order) -> str:
    """Return the key of the page after *last*, as text: its values keep their types."""
    part, place = last
    key = {"s": order.field, "d": order.descending, "n": part.namespace, "v": place.value, "i": place.record_id}
    return base64.urlsafe_b64encode(bson.encode(key, codec_options=CODEC)).decode("ascii")


def _decoded(after: object, order: Order) -> _Key:
    problem = f"expected the `next` of a page, got {shown(after)}"
    try:
        key = bson.decode(base64.b64decode(str(after).encode(), altchars=b"-_", validate=True), CODEC)
    except (binascii.Error, BSONError, UnicodeError) as error:
        raise ArgumentError("after", [problem]) from error
    match key:
        case {"s": str(field), "d": bool(descending), "n": str(namespace), "v": value, "i": dict(record_id)}:
            pass
        case _:
            raise ArgumentError("after", [problem])
    if (field, descending) != (order.field, order.descending):
        asked = (order.field, -1 if order.descending else 1)
        raise ArgumentError("after", [f"expected a key made under sort={asked}, got one made under another sort"])
    return _Key(namespace, Place(value, record_id))
