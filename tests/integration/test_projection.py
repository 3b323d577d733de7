"""Watched values are those of `$project` on the document itself (B-11)."""

from __future__ import annotations

from typing import Any

import bson
import pytest
from bson import Decimal128, Int64
from pymongo.database import Database

from celery_reactive.core.projection import compile_projection

DOCUMENTS: list[dict[str, Any]] = [
    {"_id": 1},
    {"_id": 2, "z": 1, "a": 2, "b": 3},
    {"_id": 3, "b": None, "a": {"c": None, "b": 1}},
    {"_id": 4, "a": [{"b": 1, "c": 2}, {"c": 3}, 5, [{"b": 6}], None]},
    {"_id": 5, "a": [], "b": {}},
    {"_id": 6, "a": {"b": {"c": 1, "d": [1, 2]}, "e": 2}, "items": [{"p": 1, "q": 2}, {"p": Decimal128("2.5")}, {}]},
    {"_id": 7, "a": "$z", "b": {"$x": 1, "y.z": 2}, "z": "$$NOW"},
    {"_id": 8, "w": {"a": 1}, "c": {"f0": 1}, "d": 9, "a": Int64(4)},
    {"_id": {"x": 1, "y": 2}, "a": {"b": [{"c": 1, "d": 2}]}},
]

PROJECTIONS: list[dict[str, Any]] = [
    {"a": 1},
    {"b": 1, "z": 1, "a": 1},
    {"a.b": 1},
    {"a": {"b": 1, "c": True}},
    {"a.b.c": 1, "b": 1},
    {"_id": 1},
    {"_id": 1, "a": 1},
    {"_id.x": 1, "z": 1},
    {"missing": 1},
    {"x": "$a"},
    {"x": "$missing"},
    {"x": "$a.b"},
    {"a.x": "$z"},
    {"a.x": "$z", "a.b": 1},
    {"a": {"x": {"$ifNull": ["$b", "none"]}, "c": 1}},
    {"total": {"$sum": "$items.p"}, "a": 1},
    {"list": ["$a", "$missing", 1, {"k": "$z"}]},
    {"all": {"$objectToArray": "$$ROOT"}},
    {"size": {"$bsonSize": "$$ROOT"}, "b": 1},
    {"w": 1, "c": 1, "d": 1},
    {"w": "$c.f0", "c": "$w.a", "d": "$d"},
    {"x": {"$literal": "$a"}},
    {"x": {"$cond": [{"$gt": ["$z", 0]}, "$z", "$$REMOVE"]}, "a": 1},
    {"first": {"$map": {"input": {"$ifNull": ["$items", []]}, "in": "$$this.p"}}},
]


@pytest.fixture
def filled(database: Database[dict[str, Any]]) -> Database[dict[str, Any]]:
    """A database whose collection `docs` holds documents of every shape."""
    database["docs"].insert_many(DOCUMENTS)
    return database


def _without_implied_id(document: dict[str, Any], projection: dict[str, Any]) -> dict[str, Any]:
    named = any(path.split(".")[0] == "_id" for path in projection)
    return document if named else {key: value for key, value in document.items() if key != "_id"}


@pytest.mark.parametrize("projection", PROJECTIONS, ids=str)
def test_watched_values_are_what_project_gives(filled: Database[dict[str, Any]], projection: dict[str, Any]) -> None:
    """B-11: arrays, missing and null, nesting and the order of keys, to the byte."""
    ordered = {"$sort": {"_id": 1}}
    stages = compile_projection(projection).stages(keep={"d": "$_id", "t": {"$literal": "$task"}})
    observed = list(filled["docs"].aggregate([ordered, *stages]))
    expected = list(filled["docs"].aggregate([ordered, {"$project": projection}]))
    assert [bson.encode(each["w"]) for each in observed] == [
        bson.encode(_without_implied_id(each, projection)) for each in expected
    ]
    assert [each["d"] for each in observed] == [each["_id"] for each in filled["docs"].aggregate([ordered])]
    assert all(each.keys() == {"d", "t", "w"} and each["t"] == "$task" for each in observed)


def test_the_whole_document_is_kept_as_it_is(filled: Database[dict[str, Any]]) -> None:
    """B-11 and B-19: also keys with dots and dollars."""
    stages = compile_projection(None).stages(keep={"d": "$_id"})
    observed = list(filled["docs"].aggregate([{"$sort": {"_id": 1}}, *stages]))
    assert [bson.encode(each["w"]) for each in observed] == [bson.encode(each) for each in DOCUMENTS]
