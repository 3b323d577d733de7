"""A task's limiter: starts are granted, come to pass, and are forgotten when no window holds them any more (B-58).

Why no window of the period's length holds more starts than the rate allows: from its grant on, each start is counted
under a time that is never earlier than its own. While it may still happen (`open`), that is the latest moment at which
it may; once it has happened (`starts`), a moment after it; and starts that came to be known within a small part of
the period share the latest of theirs. Of the starts in a window, look at the one that was granted last, at *g*, and
happened at *t* ≥ *g*. Any other of them, at *u*, has *u* > *t* − period ≥ *g* − period, and was counted under a
time not earlier than *u*: so it was counted when the last one was granted, which took no more than was left of the
rate. Whether the rate was another when the others were granted does not matter. The documents stay small whatever the
rate: moments that are kept apart were noted a thirty-second of the period from each other.

Times are the server's. Where a failover sets its clock back, what lies too far ahead counts as having just happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from celery_reactive.core.limits import Limits
from celery_reactive.store.pipelines.expressions import NOW, REMOVE, Expression, Stage, if_, literal, milliseconds

_PARTS = 32
"""Starts closer to each other than this part of the period may be kept as one moment."""
_MOMENTS_KEPT = 100
"""Three times as many as a period can hold: a rate may be changed and changed back without forgetting."""
_LEAST_MEMORY = timedelta(hours=1)
_NO_TIME = timedelta(0)


def take(token: str, doc_ids: Sequence[Any], wanted: int, limits: Limits, *, now: Expression = NOW) -> list[Stage]:
    """Return the pipeline that grants up to *wanted* starts, which `last` tells the number of.

    Args:
        token: Of the claims that will use them.
        doc_ids: Documents whose records may be claimed.
        wanted: Most starts.
        limits: In force.
        now: The server's time.
    """
    granted = "$last.n"
    by = {"$add": [now, milliseconds(_start_within(limits))]}
    opened = {"token": literal(token), "n": granted, "by": by}
    slot = {"token": literal(token), "n": granted, "at": now, "docs": literal(list(doc_ids))}
    return [
        {"$set": _remembered(limits, now)},
        {"$set": {"last": {"token": literal(token), "n": _room(wanted, limits, now), "at": now}}},
        {
            "$set": {
                "open": _with("$open", opened, limits.rate is not None),
                "slots": _with("$slots", slot, limits.concurrency is not None),
            },
        },
    ]


def keep(token: str, count: int) -> list[Stage]:
    """Return the pipeline that gives back all of a token's starts and slots but *count*."""
    return [{"$set": {"open": _cut("$open", token, count), "slots": _cut("$slots", token, count)}}]


def settle(token: str, limits: Limits, *, started: int | None, frees: bool, now: Expression = NOW) -> list[Stage]:
    """Return the pipeline that notes that a token's starts are over.

    Args:
        token: Of the claims.
        limits: Under which it was granted.
        started: How many starts there were; None: as many as were granted.
        frees: Whether its runs are over too; `told` says then whether the planner waits for that.
        now: The server's time.
    """
    mine = {"$first": {"$filter": {"input": "$open", "cond": _is_of(token)}}}
    count: Expression = {"$ifNull": ["$mine.n", 0]}
    if started is not None:
        count = {"$min": [count, started]}
    at = {"$min": ["$mine.by", now]}
    freed = {"slots": _others("$slots", token), "told": {"$eq": ["$awaited", True]}, "awaited": REMOVE} if frees else {}
    return [
        {"$set": {"mine": mine}},
        {"$set": {"starts": if_({"$gt": [count, 0]}, _noted(count, at, limits, now), "$starts")}},
        {"$set": {"open": _others("$open", token), **freed}},
        {"$unset": "mine"},
    ]


def await_room(*, now: Expression = NOW) -> list[Stage]:
    """Return the pipeline that asks whoever frees a slot next to tell the planner."""
    return [{"$set": {"awaited": True, "asked": now}}]


def _start_within(limits: Limits) -> timedelta:
    return _NO_TIME if limits.rate is None else limits.rate.start_within


def _period(limits: Limits) -> timedelta:
    return _NO_TIME if limits.rate is None else limits.rate.period


def _remembered(limits: Limits, now: Expression) -> dict[str, Expression]:
    """What may still be in a window, under times that this server's clock can have given."""
    since = {"$subtract": [now, milliseconds(max(_period(limits), _LEAST_MEMORY))]}
    latest = {"$add": [now, milliseconds(_start_within(limits))]}
    starts = _each("$starts", since="$$this.since", at={"$min": ["$$this.at", now]}, n="$$this.n")
    opened = _each("$open", token="$$this.token", n="$$this.n", by={"$min": ["$$this.by", latest]})  # noqa: S106
    return {
        "starts": {"$slice": [_filtered(starts, {"$gte": ["$$this.at", since]}), -_MOMENTS_KEPT]},
        "open": _filtered(opened, {"$gte": ["$$this.by", since]}),
        "slots": _list("$slots"),
    }


def _room(wanted: int, limits: Limits, now: Expression) -> Expression:
    """How many of the starts wanted the limits leave room for."""
    most: list[Expression] = [wanted]
    if limits.rate is not None:
        since = {"$subtract": [now, milliseconds(limits.rate.period)]}
        known = _sum(_filtered("$starts", {"$gte": ["$$this.at", since]}))
        expected = _sum(_filtered("$open", {"$gte": ["$$this.by", since]}))
        most.append({"$subtract": [limits.rate.starts, {"$add": [known, expected]}]})
    if limits.concurrency is not None:
        most.append({"$subtract": [limits.concurrency, _sum("$slots")]})
    return {"$max": [0, {"$min": most}]}


def _noted(count: Expression, at: Expression, limits: Limits, now: Expression) -> Expression:
    """The moments with *count* starts more, in the last of them if that is hardly begun."""
    width = milliseconds(_period(limits) / _PARTS)
    merges = {"$and": [{"$gt": ["$$last.n", 0]}, {"$lt": [{"$subtract": [now, "$$last.since"]}, width]}]}
    merged = {"since": "$$last.since", "at": {"$max": ["$$last.at", at]}, "n": {"$add": ["$$last.n", count]}}
    others = {"$slice": ["$starts", {"$subtract": [{"$size": "$starts"}, 1]}]}
    starts = if_(
        merges,
        {"$concatArrays": [others, [merged]]},
        {"$concatArrays": ["$starts", [{"since": now, "at": at, "n": count}]]},
    )
    return {"$let": {"vars": {"last": {"$last": "$starts"}}, "in": starts}}


def _is_of(token: str) -> Expression:
    return {"$eq": ["$$this.token", literal(token)]}


def _others(field: str, token: str) -> Expression:
    return _filtered(_list(field), {"$ne": ["$$this.token", literal(token)]})


def _cut(field: str, token: str, count: int) -> Expression:
    cut = {"$mergeObjects": ["$$this", {"n": if_(_is_of(token), {"$min": ["$$this.n", count]}, "$$this.n")}]}
    return _filtered({"$map": {"input": _list(field), "in": cut}}, {"$gt": ["$$this.n", 0]})


def _with(field: str, entry: dict[str, Expression], wanted: bool) -> Expression:  # noqa: FBT001 -- reads as said
    if not wanted:
        return field
    return if_({"$gt": ["$last.n", 0]}, {"$concatArrays": [field, [entry]]}, field)


def _list(field: str) -> Expression:
    return {"$ifNull": [field, []]}


def _each(field: str, **fields: Expression) -> Expression:
    return {"$map": {"input": _list(field), "in": fields}}


def _filtered(entries: Expression, condition: Expression) -> Expression:
    return {"$filter": {"input": entries, "cond": condition}}


def _sum(entries: Expression) -> Expression:
    return {"$sum": {"$map": {"input": entries, "in": "$$this.n"}}}
