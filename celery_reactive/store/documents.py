"""Reading a source document for a run, and checking it in the same statement (B-32)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.client_session import ClientSession
from pymongo.collection import Collection

from celery_reactive.core.record import CODEC, Claim
from celery_reactive.core.task import ReactiveTask
from celery_reactive.store.errors import translated

_SIMPLE = {"locale": "simple"}
_NOTE = "_celery_reactive"
"""Field in which the check's answer travels beside the document's own."""


@dataclasses.dataclass(frozen=True, slots=True)
class Read:
    """The document is the one the run is for."""

    document: dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Gone:
    """There is no such document."""


@dataclasses.dataclass(frozen=True, slots=True)
class Left:
    """The document does not match the filter."""


@dataclasses.dataclass(frozen=True, slots=True)
class MovedOn:
    """The watched values are not those of the run."""

    values: bytes
    """`{"v": watched values}` as BSON."""


@translated
def read(
    source: Collection[Any],
    task: ReactiveTask,
    claim: Claim,
    *,
    projection: Mapping[str, Any] | None,
    session: ClientSession | None,
    collated: bool,
    options: Mapping[str, Any],
) -> Read | Gone | Left | MovedOn:
    """Read the document of *claim* and check it, in one statement.

    Args:
        source: The watched collection, decoding as the user wants it.
        task: The stored definition.
        claim: The run.
        projection: The user's: inclusion, exclusion or computed fields.
        session: Causally after the claim.
        collated: The collection compares strings under a collation of its own; that takes two statements.
        options: Further options of the statement.
    """
    raw = source.with_options(codec_options=CODEC.with_options(document_class=RawBSONDocument))
    own: dict[str, Any] = {"_id": claim.key.doc_id}
    matching = {"$and": [own, task.filter.query]}
    # The filter is asked under the collection's collation, the values are compared under the simple one.
    if not collated or raw.find_one(matching, projection=["_id"], session=session) is not None:
        pipeline = _pipeline(own if collated else matching, task, claim, projection)
        answer = next(raw.aggregate(pipeline, session=session, collation=_SIMPLE, **options), None)
        if answer is not None:
            return _answer(answer, source)
    exists = raw.find_one(own, projection=["_id"], session=session)
    return Gone() if exists is None else Left()


_MOST_BYTES = 8 * 1024 * 1024
"""Of documents that are read together and kept until they are asked for; a reply holds twice that at most."""


@translated
def read_together(
    source: Collection[Any], task: ReactiveTask, claims: Sequence[Claim], *, session: ClientSession
) -> dict[bytes, RawBSONDocument]:
    """Read the documents of several runs in one statement and return those that are what their runs are for.

    Args:
        source: The watched collection, without a collation of its own.
        task: The definition by which all of them are checked.
        claims: The runs.
        session: Causally after the claims.

    Returns:
        Undecoded documents by the `exact` form of their keys. One that is missing is gone, does not match, has other
        watched values or values that only the server can tell to be the same, or was one too many for the memory.
    """
    raw = source.with_options(codec_options=CODEC.with_options(document_class=RawBSONDocument))
    whole = task.projection.whole
    pipeline = [
        {"$match": {"$and": [{"_id": {"$in": [claim.key.doc_id for claim in claims]}}, task.filter.query]}},
        *task.projection.stages(keep={"id": "$_id"} if whole else {"id": "$_id", "doc": "$$ROOT"}),
    ]
    observed = {claim.key.exact: claim.observed.raw for claim in claims}
    found: dict[bytes, RawBSONDocument] = {}
    size = 0
    with raw.aggregate(pipeline, session=session, collation=_SIMPLE, batchSize=len(claims)) as answers:
        for answer in answers:
            exact = bson.encode({"": answer["id"]}, codec_options=CODEC)
            if observed.get(exact) == bson.encode({"v": answer["w"]}, codec_options=CODEC):
                found[exact] = answer["w" if whole else "doc"]
            size += len(answer.raw)
            if size > _MOST_BYTES:
                break
    return found


def decoded(document: RawBSONDocument, source: Collection[Any]) -> dict[str, Any]:
    """Return an undecoded document as the client of *source* decodes."""
    return bson.decode(document.raw, source.codec_options)


def _pipeline(
    matching: dict[str, Any],
    task: ReactiveTask,
    claim: Claim,
    projection: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    snapshot = {"$getField": {"field": "v", "input": {"$literal": claim.observed}}}
    note = {_NOTE: {"same": "$same", "w": {"$cond": ["$same", "$$REMOVE", "$w"]}}}
    stages: list[dict[str, Any]] = [
        {"$match": matching},
        *task.projection.stages(keep={"doc": "$$ROOT"}),
        {"$set": {"same": {"$eq": ["$w", snapshot]}}},
        {"$replaceWith": {"$mergeObjects": [{"$cond": ["$same", "$doc", {}]}, note]}},
    ]
    if projection:
        stages.append({"$project": dict(projection) if _excludes(projection) else {**projection, _NOTE: 1}})
    return stages


def _excludes(projection: Mapping[str, Any]) -> bool:
    """Whether *projection* names what to leave out; `_id` decides only where it stands alone."""
    others = [value for field, value in projection.items() if field != "_id"]
    return not any(map(_includes, others or projection.values()))


def _includes(value: Any) -> bool:
    if isinstance(value, Mapping) and not any(field.startswith("$") for field in value):
        return any(map(_includes, value.values()))
    return bool(value != 0)


def _answer(answer: RawBSONDocument, source: Collection[Any]) -> Read | MovedOn:
    note = answer[_NOTE]
    if not note["same"]:
        return MovedOn(bson.encode({"v": note["w"]}, codec_options=CODEC))
    document = bson.decode(answer.raw, source.codec_options)
    del document[_NOTE]
    return Read(document)
