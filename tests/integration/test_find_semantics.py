"""A filter means what `find` means, and a change is what the server calls one: generated cases (B-5, B-13).

The server is the judge in both: what is planned is compared with what `find` returns for the same query, and whether
a record ran again with the server's own comparison of the two projections, each made apart.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest
from bson import Decimal128, Int64, ObjectId
from bson.regex import Regex
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from pymongo.errors import OperationFailure

from celery_reactive.core.filters import compile_filter
from celery_reactive.core.projection import compile_projection
from celery_reactive.core.states import RecordState
from tests.integration.bench import Bench
from tests.integration.conftest import MakeBench

EXAMPLES = settings(
    max_examples=150,
    deadline=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.sampled_from(["a", "b", "c", "a.b", "b.a", "a.0", "a.b.c", "a.0.b", "c.1", "a.b.0"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.sampled_from([0.0, 1.0, 2.5, -0.0, float("nan"), float("inf")]),
    st.sampled_from([Int64(2), Decimal128("1"), Decimal128("2.5"), Decimal128("NaN")]),
    st.sampled_from(["", "a", "A", "ab", "$a", "$$NOW", "é"]),
    st.sampled_from([b"", b"\x01", ObjectId("65a000000000000000000001"), dt.datetime(1960, 1, 1, tzinfo=dt.UTC)]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
DOCUMENTS = st.lists(st.dictionaries(NAMES, VALUES, max_size=3), min_size=4, max_size=9)

TYPES = st.sampled_from(["double", "string", "object", "array", "bool", "null", "int", "number", "date", 16, "decimal"])


def operators(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return conditions of one operator."""
    return st.one_of(
        *(values.map(lambda value, name=name: {name: value}) for name in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte")),  # type: ignore[misc]
        st.lists(values, max_size=3).map(lambda chosen: {"$in": chosen}),
        st.lists(values, max_size=3).map(lambda chosen: {"$nin": chosen}),
        st.lists(values, max_size=2).map(lambda chosen: {"$all": chosen}),
        st.booleans().map(lambda there: {"$exists": there}),
        st.lists(TYPES, min_size=1, max_size=2).map(lambda types: {"$type": types}),
        st.sampled_from(["^a", "b$", "", "A|é"]).map(lambda pattern: {"$regex": pattern}),
        st.sampled_from(["^a", "b"]).map(lambda pattern: {"$regex": Regex(pattern, "i")}),
        st.sampled_from(["^a", "b"]).map(lambda pattern: {"$regex": pattern, "$options": "i"}),
        st.tuples(st.integers(1, 3), st.integers(0, 2)).map(lambda pair: {"$mod": list(pair)}),
        st.integers(0, 3).map(lambda size: {"$size": size}),
        st.sampled_from(["$bitsAllSet", "$bitsAnyClear", "$bitsAllClear", "$bitsAnySet"]).map(lambda name: {name: 1}),
    )


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one condition of several operators."""
    return {name: value for part in parts for name, value in part.items()}


CONDITIONS: st.SearchStrategy[Any] = st.recursive(
    operators(VALUES) | st.lists(operators(VALUES), min_size=1, max_size=2).map(merged),
    lambda inner: (
        inner.map(lambda condition: {"$not": condition})
        | inner.map(lambda condition: {"$elemMatch": condition})
        | st.tuples(PATHS, inner).map(lambda pair: {"$elemMatch": {pair[0]: pair[1]}})
        | inner.map(lambda condition: {"$all": [{"$elemMatch": condition}]})
    ),
    max_leaves=3,
)
OPERANDS = PATHS.map(lambda path: f"${path}") | SCALARS.map(lambda value: {"$literal": value})
EXPRESSIONS = st.tuples(st.sampled_from(["$eq", "$gt", "$lt", "$ne"]), OPERANDS, OPERANDS).map(
    lambda parts: {parts[0]: [parts[1], parts[2]]}
)
FIELDS = st.tuples(PATHS, CONDITIONS | VALUES).map(lambda pair: {pair[0]: pair[1]})
QUERIES = st.recursive(
    FIELDS | st.lists(FIELDS, min_size=1, max_size=2).map(merged) | EXPRESSIONS.map(lambda each: {"$expr": each}),
    lambda inner: st.tuples(st.sampled_from(["$and", "$or", "$nor"]), st.lists(inner, min_size=1, max_size=3)).map(
        lambda pair: {pair[0]: pair[1]}
    ),
    max_leaves=4,
)


@pytest.fixture
def whole(make_bench: MakeBench) -> Bench:
    """A bench whose collection is filled anew for each example."""
    return make_bench()


@EXAMPLES
@given(documents=DOCUMENTS, query=QUERIES)
def test_what_is_planned_is_what_find_returns(whole: Bench, documents: list[dict[str, Any]], query: Any) -> None:
    """B-5: query syntax means exactly what `db.C.find(filter)` means."""
    whole.source.delete_many({})
    whole.source.insert_many({"_id": number, **document} for number, document in enumerate(documents))
    try:
        found = {document["_id"] for document in whole.source.find(query)}
    except OperationFailure:
        assume(False)  # noqa: FBT003 -- the server refuses it
        raise
    bench = Bench(whole.connection, dataclasses.replace(whole.task, filter=compile_filter(query)))
    bench.records.delete_many({})
    bench.observe(*range(len(documents)))
    assert {record["sourceDocId"] for record in bench.records.find()} == found


@EXAMPLES
@given(documents=DOCUMENTS, expression=EXPRESSIONS)
def test_an_expression_alone_is_that_expression(whole: Bench, documents: list[dict[str, Any]], expression: Any) -> None:
    """B-6: a top level that is one expression operator means `$expr`."""
    whole.source.delete_many({})
    whole.source.insert_many({"_id": number, **document} for number, document in enumerate(documents))
    bench = Bench(whole.connection, dataclasses.replace(whole.task, filter=compile_filter(expression)))
    bench.records.delete_many({})
    bench.observe(*range(len(documents)))
    found = {document["_id"] for document in whole.source.find({"$expr": expression})}
    assert {record["sourceDocId"] for record in bench.records.find()} == found


PROJECTIONS = st.sampled_from(
    [
        None,
        {"a": 1},
        {"a": 1, "b": 1},
        {"a.b": 1},
        {"a.b": 1, "a.c": 1, "c": 1},
        {"_id": 1, "c": 1},
        {"x": "$a.b"},
        {"x": "$a", "b": 1},
        {"x": {"$ifNull": ["$a", "$b"]}},
        {"x": {"$cond": [{"$isArray": "$a"}, {"$size": {"$ifNull": ["$a", []]}}, "$a"]}},
        {"x": ["$a", "$b.a", {"$type": "$c"}]},
        {"a": {"y": "$b"}, "c": 1},
    ]
)


def differ(bench: Bench, projection: dict[str, Any] | None, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether the server calls the projections of two documents different; each is made by itself."""
    made: list[dict[str, Any]] = [{"$project": {"_id": 0, **projection}}] if projection else []
    apart = [*made, {"$replaceWith": {"w": "$$ROOT"}}]
    database = bench.connection.database()
    for name, document in (("one", one), ("other", other)):
        database[name].replace_one({"_id": 1}, document, upsert=True)
    comparison = {"$project": {"differs": {"$ne": ["$w", {"$first": "$other.w"}]}}}
    pipeline = [*apart, {"$lookup": {"from": "other", "pipeline": apart, "as": "other"}}, comparison]
    return bool(next(database["one"].aggregate(pipeline, collation={"locale": "simple"}))["differs"])


@settings(EXAMPLES, max_examples=60)
@given(one=st.dictionaries(NAMES, VALUES, max_size=3), data=st.data(), projection=PROJECTIONS)
def test_a_record_runs_again_when_the_server_calls_its_values_different(
    whole: Bench, one: dict[str, Any], data: st.DataObject, projection: dict[str, Any] | None
) -> None:
    """B-13, B-14: missing and null, numbers of other types, order of keys, arrays: the server decides."""
    changed = st.dictionaries(NAMES, VALUES, max_size=3)
    reordered = st.just(dict(reversed(one.items())))
    partly = changed.map(lambda values: {**one, **values})
    other = data.draw(st.one_of(changed, reordered, partly, st.just(one)))
    bench = Bench(whole.connection, dataclasses.replace(whole.task, projection=compile_projection(projection)))
    bench.records.delete_many({})
    bench.handle({"_id": 1, **one})
    expected = differ(bench, projection, {"_id": 1, **one}, {"_id": 1, **other})
    bench.plan({"_id": 1, **other})
    assert bench.state(1) is (RecordState.PENDING if expected else RecordState.COMPLETED)
