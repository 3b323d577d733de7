"""Whether a record runs because its own last run wrote to its document, and how often in a row (B-64).

A change counts as the run's own when the server logged it between the run's claim and its end, or when it was
committed, perhaps later, in the transaction in which the run was marked as completed. The newest change decides: one
that somebody else made after the run breaks the row. Kept in the bookkeeping are `wrote`, the newest change that
planned the record (`at`, and `by`, the session of a transaction), and `loop`: `n` runs in a row, and of the last run
its end `to`, the session `by` of its transaction, and `again`, if it asked to run at a time that was past.

What others write while a run is under way looks like its own where the next begins at once. So the last run before the
limit waits until the document has been left alone for a while: whoever writes it all the time breaks the row then.
"""

from __future__ import annotations

from collections.abc import Sequence

from bson import Binary, Timestamp

from celery_reactive.core.changes import Wrote
from celery_reactive.store.pipelines.expressions import NOW, REMOVE, Expression, Stage, flag, flag_if, if_, literal

_IN_RUN = {"$gte": ["$_r.wrote.at", "$startedAt"]}
_BEFORE_ITS_END = {"$lte": ["$_r.wrote.at", "$_r.loop.to"]}
_IN_ITS_TRANSACTION = {"$and": [{"$gt": ["$_r.loop.by", None]}, {"$eq": ["$_r.wrote.by", "$_r.loop.by"]}]}
_OWN = {
    "$or": [
        {"$and": [_IN_RUN, {"$or": [_BEFORE_ITS_END, _IN_ITS_TRANSACTION]}]},
        {"$and": [flag("loop.again"), _BEFORE_ITS_END]},
    ],
}
"""Whether a pending record is due for a change that its last run made, or for a deferral to the past."""
_SO_FAR = {"$ifNull": ["$_r.loop.n", 0]}
_QUIET = 3
"""So many times as long as the last run took the document must have been left alone."""
_IS_QUIET_AT = {
    "$add": ["$_r.loop.to", {"$multiply": [_QUIET, {"$subtract": ["$_r.loop.to", "$startedAt"]}]}],
}


def last_written(wrote: Sequence[Wrote], at: Timestamp, *, doc_id: str = "$d") -> Expression:
    """Return what records say of the newest change of a document.

    Args:
        wrote: What is known of each document.
        at: Cluster time of the observation, for all others: whole seconds do.
        doc_id: Where the document's id is.
    """
    otherwise = {"at": {"$toDate": at}}
    if not wrote:
        return otherwise
    known = [{"at": one.at, **({"by": one.by} if one.by else {})} for one in wrote]
    place = {"$indexOfArray": [literal([one.doc_id for one in wrote]), doc_id]}
    # What is not found has the place -1, which is that of the last one.
    return {"$arrayElemAt": [[*known, otherwise], place]}


def counted() -> dict[str, Expression]:
    """Return the fields of a claim that count the run: one more in a row, as many as before, or none."""
    retried = {"$lt": ["$_r.wrote.at", "$startedAt"]}
    number = if_(_OWN, {"$add": [_SO_FAR, 1]}, if_(retried, _SO_FAR, 0))
    # An expression takes the place of what is there; a document would be laid over it.
    return {"_r.loop": {"$mergeObjects": [{"n": number}]}}


def noted(*, again: Expression | None = None, by: Binary | None = None) -> dict[str, Expression]:
    """Return the fields of a record whose run ends.

    Args:
        again: Whether the run asked for another at a time that is past; None: it asked for none.
        by: Id of the session in whose transaction it ends.
    """
    return {
        "_r.loop.to": NOW,
        **({} if again is None else {"_r.loop.again": flag_if(again)}),
        **({} if by is None else {"_r.loop.by": by}),
    }


def is_looped(limit: int) -> Expression:
    """Return whether *limit* runs in a row were a pending record's own doing, and so is the one that is due.

    One run earlier it is, too, as long as nobody can know whether others are still writing.
    """
    unsure = {"$and": [{"$eq": [_SO_FAR, limit - 1]}, {"$lt": [NOW, _IS_QUIET_AT]}]}
    return {"$and": [_OWN, {"$or": [{"$gte": [_SO_FAR, limit]}, unsure]}]}


def guard(limit: int) -> list[Stage]:
    """Return the pipeline that takes a looped record out until somebody resumes it, or lets it wait one run earlier."""
    out = {"$gte": [_SO_FAR, limit]}
    when = if_(out, None, _IS_QUIET_AT)
    return [
        {
            "$set": {
                "nextRunAt": when,
                "_r.wakeAt": when,
                "_r.sent": False,
                "_r.dispatches": 0,
                "_r.guarded": flag_if(out),
                "_r.held": if_(out, REMOVE, "$_r.held"),
            },
        },
    ]


FREE = {"_r.loop.n": 0, "_r.guarded": REMOVE}
"""The fields of a record that may run again, whatever the guard has said."""


def resume() -> list[Stage]:
    """Return the pipeline that lets a guarded record run again at once."""
    return [{"$set": {"dueAt": NOW, "nextRunAt": NOW, "_r.wakeAt": NOW, **FREE}}]
