"""How much was run, how long it waited and how long it took, in steps of time: kept for a day, for charts (B-57).

What processes count only grows (`counters`). The leader looks at it at the end of each step and keeps what has come
since: `{_id: {k: "flow", i: pace, at: end}, since, all: [entries], tasks: [entries]}`, entries as in `core/totals.py`,
`all` being the sum over the tasks. What it compares with is `{_id: {k: "flow_base", i: pace}, at, entries}`, written
in the same transaction: whoever leads, each run is in exactly one step. Read by `management`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from bson import MaxKey
from pymongo import ReturnDocument
from pymongo.collection import Collection
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from celery_reactive.core.totals import DURATION, WAIT, Distribution, Series, Totals
from celery_reactive.store.errors import time_limit, translated

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

Globals = Collection[dict[str, Any]]

_LIMIT = timedelta(seconds=5)
_ALL = ""
"""In the place of a task's name, for all together."""


class Pace(StrEnum):
    """How long the steps are."""

    MINUTE = "minute"
    """Kept for two hours."""
    TEN_MINUTES = "ten minutes"
    """Kept for a day."""

    @property
    def step(self) -> timedelta:
        """Length of a step."""
        return timedelta(minutes=1 if self is Pace.MINUTE else 10)

    @property
    def kept(self) -> timedelta:
        """How long steps are kept."""
        return timedelta(hours=2 if self is Pace.MINUTE else 25)


@dataclasses.dataclass(frozen=True, slots=True)
class Flow:
    """What was counted within a step."""

    since: datetime
    until: datetime
    totals: Totals


@translated
def due(globals_: Globals) -> list[Pace]:
    """Return the paces whose present step was not begun yet, by the server's clock."""
    wanted = {"_id": {"$in": [_base(pace) for pace in Pace]}}
    found = globals_.aggregate([{"$match": wanted}, {"$project": {"at": 1, "now": "$$NOW"}}])
    begun = {
        pace
        for pace, one in ((Pace(one["_id"]["i"]), one) for one in found)
        if _number(one["at"], pace) >= _number(one["now"], pace)
    }
    return [pace for pace in Pace if pace not in begun]


@translated
def keep(globals_: Globals, pace: Pace, totals: Totals) -> bool:
    """Keep what was counted since the step before, and forget what is older than a chart reaches.

    Args:
        globals_: The globals collection.
        pace: Which steps.
        totals: What all processes together have counted up to now.

    Returns:
        False: nothing was kept, as nothing had been seen before to compare with.

    Raises:
        StoreBusyError: Another leader does it at the same time. Nothing was changed.
        StoreUnavailableError: It was done, or nothing.
    """
    seen = _charted(totals)
    with time_limit(_LIMIT), globals_.database.client.start_session() as session:
        return session.with_transaction(
            lambda inner: _keep(globals_, pace, seen, inner),
            read_concern=ReadConcern("snapshot"),
            write_concern=WriteConcern("majority"),
        )


def _keep(globals_: Globals, pace: Pace, seen: Totals, session: ClientSession) -> bool:
    before = globals_.find_one({"_id": _base(pace)}, session=session)
    following = {"at": "$$NOW", "entries": {"$literal": seen.to_entries()}}
    written = globals_.find_one_and_update(
        {"_id": _base(pace)},
        [{"$set": following}],
        projection=["at"],
        upsert=True,
        return_document=ReturnDocument.AFTER,
        session=session,
    )
    now: datetime = (written or {})["at"]
    globals_.delete_many({"_id": _steps(pace, until=now - pace.kept)}, session=session)
    come = None if before is None else _since(seen, Totals.from_entries(before["entries"]))
    if before is None or come is None:
        return False
    step = {
        "_id": {"k": "flow", "i": pace.value, "at": now},
        "since": before["at"],
        "all": _summed(come).to_entries(),
        "tasks": come.to_entries(),
    }
    globals_.replace_one({"_id": step["_id"]}, step, upsert=True, session=session)
    return True


@translated
def read(globals_: Globals, pace: Pace, *, since: datetime, task: str | None = None) -> list[Flow]:
    """Return the steps that have ended since a time, the oldest first.

    Args:
        globals_: The globals collection.
        pace: Which steps.
        since: From when on.
        task: Only what was counted of this task; None: the sum over all.

    Raises:
        StoreUnavailableError: MongoDB does not answer.
    """
    if task is None:
        entries: Any = "$all"
    else:
        is_of_it = {"$eq": [{"$arrayElemAt": ["$$one.l", 0]}, {"$literal": task}]}
        entries = {"$filter": {"input": "$tasks", "as": "one", "cond": is_of_it}}
    stages: Sequence[dict[str, Any]] = [
        {"$match": {"_id": _steps(pace, since=since)}},
        {"$sort": {"_id": 1}},
        {"$project": {"since": 1, "entries": entries}},
    ]
    found = globals_.aggregate(stages)
    return [Flow(one["since"], one["_id"]["at"], Totals.from_entries(one["entries"])) for one in found]


def _charted(totals: Totals) -> Totals:
    """Return of totals what charts show."""
    shown = {series: one for series, one in totals.distributions.items() if series[0] in (DURATION, WAIT)}
    return Totals({}, shown)


def _since(now: Totals, before: Totals) -> Totals | None:
    """Return what has come since *before*, without what has not changed; None: these are not its successors."""
    come = {series: one for series, one in now.minus(before).distributions.items() if any(one.numbers)}
    if any(number < 0 for one in come.values() for number in one.numbers):
        return None
    return Totals({}, come)


def _summed(come: Totals) -> Totals:
    """Return the sum over all tasks, whose name is the first label."""
    summed: dict[Series, Distribution] = {}
    for (name, (_, *labels)), one in come.distributions.items():
        series = name, (_ALL, *labels)
        summed[series] = summed[series].plus(one) if series in summed else one
    return Totals({}, summed)


def _number(moment: datetime, pace: Pace) -> int:
    """Return the number of the step that a time is in."""
    return int(moment.timestamp() // pace.step.total_seconds())


def _base(pace: Pace) -> dict[str, str]:
    return {"k": "flow_base", "i": pace.value}


def _steps(pace: Pace, *, since: datetime | None = None, until: Any = None) -> dict[str, Any]:
    kind: dict[str, Any] = {"k": "flow", "i": pace.value}
    first = kind if since is None else {**kind, "at": since}
    return {"$gte": first, "$lte": {**kind, "at": MaxKey() if until is None else until}}
