"""What processes have counted for Prometheus: one document for each that lives, one for all that are gone (B-55).

A process writes its own document: `{_id: {k: "counted", n: name}, seq, pushEverySeconds, pushedAt, ended, entries}`,
the entries being its totals since it began (`core/totals.py`). Totals, not differences: a write that is repeated
changes nothing. The leader adds the documents of processes that are gone to `{_id: {k: "counted_retired"}, entries,
rounds}`, and leaves of each a tombstone `{_id, seq, retiredAt}`, in one transaction: whoever adds everything up finds
each count exactly once. A process that was taken for gone finds its tombstone, which tells what has been added, and
goes on under a new name.

The sum of all must never go back, or Prometheus takes it for a restart: it is read at majority, after the primary's
present time, and once more where documents were retired meanwhile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bson import MaxKey, MinKey
from pymongo import ReadPreference
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from celery_reactive.core.totals import Totals
from celery_reactive.errors import StoreBusyError
from celery_reactive.store.errors import time_limit, translated

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

Globals = Collection[dict[str, Any]]

_RETIRED: dict[str, str] = {"k": "counted_retired"}
_LIVE: dict[str, Any] = {
    "_id": {"$gte": {"k": "counted", "n": MinKey()}, "$lte": {"k": "counted", "n": MaxKey()}},
    "retiredAt": None,
}
_KEEP_TOMBSTONES = timedelta(hours=6)
_RETIRE_LIMIT = timedelta(seconds=5)
_MOST_RETIRED_AT_ONCE = 100
_READINGS = 20
_PRIMARY_IS_ENOUGH = frozenset({"secondaryPreferred", "nearest"})
_SECONDARY_LIMIT = timedelta(seconds=2)
"""So long an answer waits for a secondary to catch up with the primary."""
_PREFERENCES: dict[str, Any] = {
    "primary": ReadPreference.PRIMARY,
    "primaryPreferred": ReadPreference.PRIMARY_PREFERRED,
    "secondary": ReadPreference.SECONDARY,
    "secondaryPreferred": ReadPreference.SECONDARY_PREFERRED,
    "nearest": ReadPreference.NEAREST,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Counted:
    """The document of a process, without what it has counted."""

    name: str
    seq: int
    """Grows with each push."""
    push_every: timedelta
    ended: bool
    """The process has ended in good order: nothing more comes."""


def preferring(collection: Collection[dict[str, Any]], preference: str) -> Collection[dict[str, Any]]:
    """Return *collection* as it is read from where a setting says, such as `secondaryPreferred`."""
    return collection.with_options(read_preference=_PREFERENCES[preference])


@translated
def push(
    globals_: Globals, name: str, totals: Totals, *, seq: int, push_every: timedelta, first: bool, ended: bool = False
) -> bool:
    """Write what a process has counted since it began; repeating it changes nothing.

    Args:
        globals_: The globals collection.
        name: Of the process, its own.
        totals: All of it.
        seq: One more than that of the push before.
        push_every: How soon another push may be expected.
        first: Whether no push under this name was acknowledged.
        ended: Whether none follows.

    Returns:
        False: the process was taken for gone and nothing was written; ask `retired_seq` what has been added.
    """
    document = {
        "seq": seq,
        "pushEverySeconds": push_every.total_seconds(),
        "ended": ended,
        "entries": {"$literal": totals.to_entries()},
        "pushedAt": "$$NOW",
    }
    mine = {"_id": _id(name), "retiredAt": None}
    try:
        result = globals_.update_one(mine, [{"$set": document}], upsert=first)
    except DuplicateKeyError:
        # The tombstone of a first push whose answer was lost.
        return False
    return bool(result.matched_count or result.upserted_id)


@translated
def retired_seq(globals_: Globals, name: str) -> int | None:
    """Return the last push of a process that has been added to the retired; None: its tombstone is gone, too."""
    found = globals_.find_one({"_id": _id(name)}, projection=["seq"])
    return None if found is None else int(found["seq"])


@translated
def live(globals_: Globals) -> list[Counted]:
    """Return the documents of processes that have not been retired."""
    found = globals_.find(_LIVE, projection=["seq", "pushEverySeconds", "ended"])
    return [
        Counted(
            one["_id"]["n"], int(one["seq"]), timedelta(seconds=float(one["pushEverySeconds"])), bool(one.get("ended"))
        )
        for one in found
    ]


@translated
def retire(globals_: Globals, gone: Sequence[Counted]) -> int:
    """Add what processes have counted to the retired, and leave their tombstones, all or nothing.

    Args:
        globals_: The globals collection.
        gone: Documents as read; one that has been written since is left alone.

    Returns:
        Number of documents retired.

    Raises:
        StoreBusyError: Another leader retires at the same time. Nothing was changed.
        StoreUnavailableError: All of it was done, or nothing.
    """
    if not gone:
        return 0
    with time_limit(_RETIRE_LIMIT), globals_.database.client.start_session() as session:
        return session.with_transaction(
            lambda inner: _retire(globals_, gone[:_MOST_RETIRED_AT_ONCE], inner),
            read_concern=ReadConcern("snapshot"),
            write_concern=WriteConcern("majority"),
        )


def _retire(globals_: Globals, gone: Iterable[Counted], session: ClientSession) -> int:
    unchanged = [{"_id": _id(one.name), "seq": one.seq, "retiredAt": None} for one in gone]
    found = list(globals_.find({"$or": unchanged}, session=session))
    if not found:
        return 0
    retired = globals_.find_one({"_id": _RETIRED}, session=session) or {"entries": []}
    totals = Totals.from_entries(retired["entries"])
    for one in found:
        totals = totals.plus(Totals.from_entries(one["entries"]))
    globals_.update_one(
        {"_id": _RETIRED},
        {"$set": {"entries": totals.to_entries()}, "$inc": {"rounds": 1}},
        upsert=True,
        session=session,
    )
    globals_.update_many(
        {"_id": {"$in": [one["_id"] for one in found]}},
        {"$currentDate": {"retiredAt": True}, "$unset": {"entries": "", "pushedAt": "", "pushEverySeconds": ""}},
        session=session,
    )
    return len(found)


@translated
def forget_tombstones(globals_: Globals) -> int:
    """Delete tombstones that nobody comes back to; return how many."""
    old = {"$lt": ["$retiredAt", {"$subtract": ["$$NOW", _KEEP_TOMBSTONES // timedelta(milliseconds=1)]}]}
    return globals_.delete_many({"_id": _LIVE["_id"], "retiredAt": {"$type": "date"}, "$expr": old}).deleted_count


def read(globals_: Globals, *, preference: str) -> Totals:
    """Return what all processes together have counted; never less than an earlier call has returned, anywhere.

    Args:
        globals_: The globals collection.
        preference: Which member of the replica set is read from, as the setting says.

    Raises:
        StoreBusyError: Documents were retired all the while, or only a secondary may be read and it has fallen behind.
        StoreUnavailableError: MongoDB does not answer.
    """
    if preference in _PRIMARY_IS_ENOUGH:
        try:
            with time_limit(_SECONDARY_LIMIT):
                return _read(globals_, preferring(globals_, preference))
        except StoreBusyError:
            # A member that is far behind, such as one that is being made anew.
            return _read(globals_, globals_)
    return _read(globals_, preferring(globals_, preference))


@translated
def _read(globals_: Globals, member: Globals) -> Totals:
    with globals_.database.client.start_session(causal_consistency=True) as session:
        # What is read from a secondary after this is not older than what the primary has now.
        globals_.database.command("ping", session=session)
        for _ in range(_READINGS):
            before = member.find_one({"_id": _RETIRED}, session=session)
            totals = Totals.from_entries((before or {}).get("entries", []))
            for one in member.find(_LIVE, projection=["entries"], session=session):
                totals = totals.plus(Totals.from_entries(one["entries"]))
            after = member.find_one({"_id": _RETIRED}, projection=["rounds"], session=session)
            if (before or {}).get("rounds") == (after or {}).get("rounds"):
                return totals
    raise StoreBusyError("counters were being moved all the while")


def _id(name: str) -> dict[str, str]:
    return {"k": "counted", "n": name}
