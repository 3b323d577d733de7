"""Stored definitions and controls: one document per task in the globals collection.

The leader writes the definition part, naming its term; handlers and operators write the controls.
Workers read the whole document from the primary before each claim, uncached, so that a pause or a
throttle that has returned is in force for every claim that begins after it (B-35).

A document: `{_id: {k: "task", t: name}, task, term, gen, filter, projection (extended JSON text), namespace, group,
past, onDelete, handlerVersion, reconciledGen, reconciledAt, scannedFilter, scannedCollection, needs, paused,
throttledUntil, limits}`. `past` holds the newest earlier generations with their projections, `scannedFilter` is the one
under which every document of `namespace` has been looked at last, `scannedCollection` the id that the server had given
that collection, `needs` counts the reasons for a reconciliation, so that one that began before the last of them does
not count as done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from bson import json_util
from pymongo import ReturnDocument
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from celery_reactive.core.evolution import Lineage
from celery_reactive.core.filters import compile_filter
from celery_reactive.core.limits import Limits, Overrides, Rate
from celery_reactive.core.projection import Projection, compile_projection
from celery_reactive.core.record import EXACT_EJSON
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import TermEndedError
from celery_reactive.store.errors import translated

Globals = Collection[dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Controls:
    """A task's stored definition and the controls in force, as read at one moment."""

    task: str
    generation: int
    filter_text: str
    projection_text: str
    reconciled_generation: int
    paused: bool
    throttled_until: datetime | None
    collated: bool
    """The watched collection compares strings under a collation of its own."""
    is_throttled: bool
    """Whether `throttled_until` lay ahead by the server's clock when this was read."""
    handler_version: int = 0
    """Of the code that the records were last looked at for (B-44); 0: none yet."""
    on_delete: bool = False
    """Whether the leader has deletions run (B-61)."""
    dropped: bool = False
    """Its collection was dropped or renamed since every document was last looked at."""
    needs: int = 0
    """Counts the reasons for a reconciliation; one that began under another number does not count as done."""
    scanned_filter: str = ""
    """Under which every document has been looked at last; empty: they have not been yet."""
    scanned_collection: UUID | None = None
    """What `server.collection_id` said when every document was looked at last; None: not known."""
    past: tuple[tuple[int, str], ...] = ()
    """Earlier generations that are known, each with its projection."""
    reconciled_at: datetime | None = None
    read_at: datetime | None = None
    """By the server's clock; None: nothing is stored."""
    """When every document had last been looked at."""
    overrides: Overrides = dataclasses.field(default_factory=Overrides)
    """Limits and priority that were set by hand."""

    def limits_of(self, task: ReactiveTask) -> Limits:
        """Return the limits in force for the starts of *task* (B-58)."""
        return self.overrides.limits(task.rate_limit, task.max_concurrency)

    def priority_of(self, task: ReactiveTask) -> int:
        """Return the priority in force for the messages of *task*."""
        return task.priority if self.overrides.priority is None else self.overrides.priority

    @property
    def holds_back(self) -> bool:
        """Whether no run of the task may start now."""
        return self.paused or self.is_throttled

    @property
    def seconds_throttled(self) -> float:
        """Return for how long, from when this was read, no run may start because of a throttle."""
        if self.throttled_until is None or self.read_at is None:
            return 0.0
        return max(0.0, (self.throttled_until - self.read_at).total_seconds())

    @property
    def lineage(self) -> Lineage:
        """The generations whose snapshots can be compared."""
        earlier: dict[str, set[int]] = {}
        for generation, text in self.past:
            earlier.setdefault(text, set()).add(generation)
        comparable = earlier.pop(self.projection_text, set())
        return Lineage(
            self.generation,
            frozenset(comparable | {self.generation}),
            tuple((frozenset(generations), _projection(text)) for text, generations in earlier.items()),
        )

    def lineage_under(self, task: ReactiveTask) -> Lineage:
        """Return the lineage as it would be once *task* is stored: what its deployment would compare."""
        if self.generation == 0 or (self.filter_text, self.projection_text) == definition_texts(task):
            return self.lineage
        past = (*self.past, (self.generation, self.projection_text))[-_KNOWN_GENERATIONS:]
        text = definition_texts(task)[1]
        return dataclasses.replace(self, generation=self.generation + 1, projection_text=text, past=past).lineage

    def applied_to(self, task: ReactiveTask) -> ReactiveTask:
        """Return *task* with the stored filter and projection: workers check documents with those (B-43).

        A deletion is the planner's to find where either of the two has deletions run.
        """
        if self.on_delete and not task.on_delete:
            task = dataclasses.replace(task, on_delete=True)
        if not self.filter_text or (self.filter_text, self.projection_text) == definition_texts(task):
            return task
        stored = compile_filter(json_util.loads(self.filter_text, json_options=EXACT_EJSON) or None)
        return dataclasses.replace(task, filter=stored, projection=_projection(self.projection_text))


def _projection(text: str) -> Projection:
    return compile_projection(json_util.loads(text, json_options=EXACT_EJSON) or None)


def definition_texts(task: ReactiveTask) -> tuple[str, str]:
    """Return filter and projection of *task* as canonical extended JSON: what a generation is told apart by."""
    return (
        json_util.dumps(task.filter.query, json_options=EXACT_EJSON),
        json_util.dumps(task.projection.document, json_options=EXACT_EJSON),
    )


@translated
def read(globals_: Globals, task: str, *, session: ClientSession | None = None) -> Controls:
    """Read definition and controls of *task* from the primary; an undefined task has generation 0.

    Raises:
        StoreUnavailableError: Nothing is known; claim nothing.
    """
    found = list(
        globals_.aggregate(
            [{"$match": {"_id": _id(task)}}, {"$set": {"now": "$$NOW"}}],
            session=session,
        ),
    )
    return _controls(task, found[0] if found else {})


@translated
def read_all(globals_: Globals, tasks: list[str]) -> dict[str, Controls]:
    """Read definition and controls of several tasks in one statement."""
    found = globals_.aggregate(
        [{"$match": {"_id": {"$in": [_id(task) for task in tasks]}}}, {"$set": {"now": "$$NOW"}}],
    )
    stored = {document["_id"]["t"]: document for document in found}
    return {task: _controls(task, stored.get(task, {})) for task in tasks}


def _controls(task: str, stored: Mapping[str, Any]) -> Controls:
    until = stored.get("throttledUntil")
    return Controls(
        task=task,
        generation=int(stored.get("gen", 0)),
        filter_text=stored.get("filter", ""),
        projection_text=stored.get("projection", ""),
        reconciled_generation=int(stored.get("reconciledGen", 0)),
        paused=bool(stored.get("paused")),
        throttled_until=until,
        collated=bool(stored.get("collated")),
        is_throttled=until is not None and until > stored["now"],
        handler_version=int(stored.get("handlerVersion", 0)),
        on_delete=bool(stored.get("onDelete")),
        dropped=bool(stored.get("dropped")),
        needs=int(stored.get("needs", 0)),
        scanned_filter=stored.get("scannedFilter") or "",
        scanned_collection=stored.get("scannedCollection"),
        past=tuple((int(past["gen"]), past["projection"]) for past in stored.get("past") or []),
        reconciled_at=stored.get("reconciledAt"),
        read_at=stored.get("now"),
        overrides=_overrides(stored.get("limits") or {}),
    )


def _overrides(stored: Mapping[str, Any]) -> Overrides:
    rate = stored.get("rate")
    return Overrides(
        rate=Rate(int(rate["n"]), timedelta(milliseconds=int(rate["ms"]))) if isinstance(rate, Mapping) else rate,
        concurrency=stored.get("concurrency"),
        priority=stored.get("priority"),
    )


def _id(task: str) -> dict[str, str]:
    return {"k": "task", "t": task}


@translated
def define(
    globals_: Globals, task: ReactiveTask, *, namespace: str, collated: bool, term: int, after: int = 0
) -> Controls:
    """Store the leader's definition of *task*; a changed filter or projection is a new generation (B-43).

    Args:
        globals_: The globals collection.
        task: Definition of the leader's code.
        namespace: `database.collection` it watches.
        collated: That collection compares strings under a collation of its own.
        term: The leader's term.
        after: A generation that records speak of although no definition is stored; the new one comes after it.

    Returns:
        Definition and controls as stored now.

    Raises:
        TermEndedError: A newer leader has defined it. Nothing was written.
    """
    filter_text, projection_text = definition_texts(task)
    same_place = {"$eq": ["$namespace", {"$literal": namespace}]}
    same = {
        "$and": [
            {"$eq": ["$filter", {"$literal": filter_text}]},
            {"$eq": ["$projection", {"$literal": projection_text}]},
            same_place,
        ],
    }
    defined = {
        "task": {"$literal": task.name},
        "term": term,
        "group": {"$literal": task.group},
        "gen": {"$cond": [same, "$gen", {"$add": [{"$max": ["$gen", after]}, 1]}]},
        "filter": {"$literal": filter_text},
        "projection": {"$literal": projection_text},
        "namespace": {"$literal": namespace},
        "collated": collated,
        "onDelete": task.on_delete,
        "handlerVersion": {"$ifNull": ["$handlerVersion", task.evolution.handler_version]},
        "past": {"$cond": [same, "$past", _with_present_generation()]},
        "scannedFilter": {"$cond": [same_place, "$scannedFilter", "$$REMOVE"]},
        "scannedCollection": {"$cond": [same_place, "$scannedCollection", "$$REMOVE"]},
    }
    if not task.evolution.reconcile_on_trigger_change:
        # What was looked at stays so; a scan that has not come to its end, and another collection, are still wanted.
        scanned = {"$and": [{"$eq": ["$reconciledGen", "$gen"]}, same_place]}
        defined["reconciledGen"] = {"$cond": [scanned, defined["gen"], "$reconciledGen"]}
    # Terms of two planner groups do not compare: a task that has come from another is this one's now (B-65).
    from_elsewhere = {"group": {"$exists": True, "$ne": task.group}}
    _update(globals_, task.name, term, [{"$set": defined}], unless=from_elsewhere)
    return read(globals_, task.name)


def _with_present_generation() -> dict[str, Any]:
    """Return the expression for the known generations once the present one has become an earlier one."""
    known = {"$ifNull": ["$past", []]}
    present = {"$cond": [{"$gt": ["$gen", 0]}, [{"gen": "$gen", "projection": "$projection"}], []]}
    return {"$slice": [{"$concatArrays": [known, present]}, -_KNOWN_GENERATIONS]}


@translated
def mark_reconciled(
    globals_: Globals, task: str, *, generation: int, needs: int, term: int, collection: UUID | None = None
) -> None:
    """Note that every document has been looked at under *generation* of *task*, unless that is needed once more.

    What earlier generations watched is forgotten then: no record speaks of it any more.

    Args:
        globals_: The globals collection.
        task: Its name.
        generation: Of the definition that was reconciled.
        needs: The count of reasons as read before the reconciliation began.
        term: The leader's term.
        collection: What `server.collection_id` said then.

    Raises:
        TermEndedError: A newer leader plans. Nothing was written.
    """
    done = {"$eq": [{"$ifNull": ["$needs", 0]}, needs]}
    of_use = {"$filter": {"input": "$past", "cond": {"$eq": ["$$this.projection", "$projection"]}}}
    marks = {
        "reconciledGen": generation,
        "reconciledAt": "$$NOW",
        "scannedFilter": "$filter",
        "scannedCollection": collection,
        "past": of_use,
        "dropped": False,
    }
    fields = {name: {"$cond": [done, value, f"${name}"]} for name, value in marks.items()}
    _update(globals_, task, term, [{"$set": fields}])


@translated
def mark_unreconciled(globals_: Globals, task: str, *, dropped: bool = False, term: int) -> None:
    """Note that *task* must be reconciled: history was lost, or its collection dropped (B-49).

    Raises:
        TermEndedError: A newer leader plans. Nothing was written.
    """
    _update(globals_, task, term, [_NEEDED, *([{"$set": {"dropped": True}}] if dropped else [])])


@translated
def request_reconciliation(globals_: Globals, task: str) -> None:
    """Note that somebody wants *task* reconciled, whoever leads (B-48)."""
    globals_.update_one({"_id": _id(task)}, [{"$set": {"task": {"$literal": task}}}, _NEEDED], upsert=True)


@translated
def store_handler_version(globals_: Globals, task: str, version: int, *, term: int) -> None:
    """Note that the records of *task* have been looked at for *version* of its code (B-44).

    Raises:
        TermEndedError: A newer leader plans. Nothing was written.
    """
    _update(globals_, task, term, [{"$set": {"handlerVersion": {"$max": ["$handlerVersion", version]}}}])


_NEEDED = {"$set": {"reconciledGen": 0, "needs": {"$add": [{"$ifNull": ["$needs", 0]}, 1]}}}
_KNOWN_GENERATIONS = 10


def _update(
    globals_: Globals, task: str, term: int, pipeline: list[dict[str, Any]], *, unless: dict[str, Any] | None = None
) -> None:
    """Change the definition part, unless a newer term has written it; with *unless* it does not matter which has."""
    free = [{"term": {"$lte": term}}, {"term": {"$exists": False}}, *([] if unless is None else [unless])]
    mine = {"_id": _id(task), "$or": free}
    try:
        globals_.update_one(mine, [{"$set": {"task": {"$literal": task}}}, *pipeline], upsert=True)
    except DuplicateKeyError:
        raise TermEndedError(term) from None


# --- controls ------------------------------------------------------------------------------------


@translated
def throttle(globals_: Globals, task: str, until: datetime) -> datetime:
    """Pause all future runs of *task* until a server time; a longer pause is never shortened (B-35).

    Returns:
        The time in force now.
    """
    stored: Any = globals_.find_one_and_update(
        {"_id": _id(task)},
        [{"$set": {"task": {"$literal": task}, "throttledUntil": {"$max": ["$throttledUntil", until]}}}],
        upsert=True,
        return_document=ReturnDocument.AFTER,
    )
    found: datetime = stored["throttledUntil"]
    return found


@translated
def set_paused(globals_: Globals, task: str, *, paused: bool) -> None:
    """Pause or resume *task*; resuming ends a throttle too (B-53)."""
    change: dict[str, Any] = {"task": {"$literal": task}, "paused": paused}
    if not paused:
        change["throttledUntil"] = None
    globals_.update_one({"_id": _id(task)}, [{"$set": change}], upsert=True)


@translated
def set_limits(globals_: Globals, task: str, limits: Mapping[str, Rate | int | str | None]) -> Overrides:
    """Set limits and priority of *task* by hand (B-58).

    Args:
        globals_: The globals collection.
        task: Its name.
        limits: By `rate`, `concurrency`, `priority`; None lets the declared one count again. What is not there stays.

    Returns:
        Everything that is set by hand now.
    """
    given = {f"limits.{name}": _stored(value) for name, value in limits.items() if value is not None}
    taken_back = {f"limits.{name}": "" for name, value in limits.items() if value is None}
    stored: Any = globals_.find_one_and_update(
        {"_id": _id(task)},
        {"$set": {"task": task, **given}, **({"$unset": taken_back} if taken_back else {})},
        projection={"limits": 1},
        upsert=True,
        return_document=ReturnDocument.AFTER,
    )
    return _overrides(stored.get("limits") or {})


def _stored(value: Rate | int | str) -> object:
    return {"n": value.starts, "ms": value.period // timedelta(milliseconds=1)} if isinstance(value, Rate) else value
