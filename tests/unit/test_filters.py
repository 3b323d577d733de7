"""Which documents concern a task: B-5 to B-7, B-9."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from typing import Any

import bson
import pytest
from bson.regex import Regex
from hypothesis import given
from hypothesis import strategies as st

from celery_reactive.core.changes import concerns
from celery_reactive.core.filters import compile_filter
from celery_reactive.errors import ConfigurationError


@pytest.mark.parametrize("raw", [None, {}])
def test_no_filter_matches_every_document(raw: object) -> None:
    """B-5: none, None or {}."""
    compiled = compile_filter(raw)
    assert compiled.matches_all
    assert compiled.query == {}
    assert compiled.paths == frozenset()


@pytest.mark.parametrize(
    ("raw", "paths"),
    [
        ({"status": "paid"}, {"status"}),
        ({"a.b": {"$gt": 1, "$lt": 5}}, {"a.b"}),
        ({"a": {"b": 1, "c": 2}}, {"a"}),
        ({"a": "$b"}, {"a"}),
        ({"a": {"$eq": "$$NOW"}}, {"a"}),
        ({"a": {"$in": ["$b", {"$where": "data"}]}}, {"a"}),
        ({"tags": {"$all": ["x", {"$elemMatch": {"k": 1}}]}}, {"tags", "tags.k"}),
        (
            {"items": {"$elemMatch": {"price": {"$gt": 1}, "$or": [{"q": 1}, {"r": 2}]}}},
            {"items", "items.price", "items.q", "items.r"},
        ),
        ({"a": {"$not": {"$regex": "^x", "$options": "i"}}}, {"a"}),
        ({"a": {"$type": "string"}, "b": {"$mod": [2, 0]}, "c": {"$exists": False}}, {"a", "b", "c"}),
        ({"$or": [{"a": 1}, {"$and": [{"b": 1}, {"c": 2}]}], "$nor": [{"d": 1}]}, {"a", "b", "c", "d"}),
        ({"loc": {"$geoWithin": {"$centerSphere": [[0, 0], 1]}}}, {"loc"}),
        ({"link": {"$ref": "x", "$id": 1}}, {"link"}),
        ({"$jsonSchema": {"required": ["a"]}}, None),
        ({"$comment": "why", "a": 1}, {"a"}),
        ({"a": None, "_id": {"$gt": 5}}, {"a", "_id"}),
    ],
)
def test_query_syntax_is_left_as_it_is(raw: dict[str, Any], paths: object) -> None:
    """B-5: it means what find means; B-7: constants are data."""
    compiled = compile_filter(raw)
    assert compiled.query == raw
    assert list(compiled.query) == list(raw)
    assert compiled.paths == paths
    assert not compiled.time_dependent


@pytest.mark.parametrize(
    ("expression", "paths"),
    [
        ({"$eq": ["$status", "x"]}, {"status"}),
        ({"$gt": ["$end.at", "$start"]}, {"end.at", "start"}),
        ({"$not": ["$done"]}, {"done"}),
        ({"$in": ["$a", ["x", "y"]]}, {"a"}),
        ({"$eq": ["$a", {"$literal": "$b"}]}, {"a"}),
        ({"$eq": [{"$getField": "a.b"}, 1]}, {"a.b"}),
        ({"$eq": [{"$getField": {"$literal": "$x"}}, 1]}, {"$x"}),
        ({"$eq": [{"$getField": {"field": "b", "input": "$a"}}, 1]}, {"a"}),
        ({"$eq": [{"$getField": {"field": "b", "input": "$$ROOT"}}, 1]}, {"b"}),
        ({"$eq": [{"$getField": "$name"}, 1]}, None),
        ({"$eq": ["$$ROOT.a", "$$CURRENT.b"]}, {"a", "b"}),
        ({"$gt": [{"$bsonSize": "$$ROOT"}, 100]}, None),
        ({"$let": {"vars": {"x": "$a"}, "in": {"$gt": ["$$x.y", "$b"]}}}, {"a", "b"}),
        ({"$let": {"vars": {"CURRENT": "$a"}, "in": "$b"}}, None),
        ({"$anyElementTrue": {"$map": {"input": "$a", "as": "CURRENT", "in": "$b"}}}, None),
        ({"$anyElementTrue": {"$map": {"input": "$a", "in": {"$gt": ["$$this.x", "$b"]}}}}, {"a", "b"}),
        ({"$cond": {"if": "$a", "then": "$b", "else": False}}, {"a", "b"}),
        ({"$switch": {"branches": [{"case": "$a", "then": "$b"}], "default": "$c"}}, {"a", "b", "c"}),
        ({"$eq": ["$a", {"$someday": "$b"}]}, None),
        ({"$eq": ["$a", "$$USER_ROLES"]}, None),
    ],
)
def test_a_single_operator_is_an_expression(expression: dict[str, Any], paths: object) -> None:
    """B-6: alone or below $expr, it is the same filter."""
    compiled = compile_filter(expression)
    assert compiled.query == {"$expr": expression}
    assert compile_filter({"$expr": expression}) == compiled
    assert compiled.paths == paths


@pytest.mark.parametrize("variable", ["$$NOW", "$$CLUSTER_TIME"])
def test_the_server_time_makes_a_filter_depend_on_any_change(variable: str) -> None:
    """B-7 and B-9: it may match because time has passed."""
    compiled = compile_filter({"$or": [{"a": 1}, {"$expr": {"$lt": ["$due", variable]}}]})
    assert compiled.time_dependent
    assert compiled.paths is None


def test_now_as_data_is_no_time() -> None:
    """B-7: constants are data, whatever they contain."""
    compiled = compile_filter({"$eq": ["$a", {"$literal": {"x": "$$NOW", "$rand": {}}}]})
    assert not compiled.time_dependent
    assert compiled.paths == frozenset({"a"})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"$where": "this.a"}, r"\$where is refused: it runs JavaScript; use \$expr"),
        ({"$and": [{"$or": [{"$where": "1"}]}]}, r"\$where is refused"),
        ({"$text": {"$search": "x"}}, r"\$text is refused"),
        ({"loc": {"$near": [0, 0]}}, r"loc: \$near is refused.*use \$geoWithin"),
        ({"loc": {"$nearSphere": [0, 0], "$maxDistance": 1}}, r"\$nearSphere is refused"),
        ({"$sampleRate": 0.5}, r"\$sampleRate is refused"),
        ({"$expr": {"$lt": [{"$rand": {}}, 0.5]}}, r"\$rand is refused"),
        ({"$expr": {"$function": {"body": "", "args": [], "lang": "js"}}}, r"\$function is refused"),
        ({"$function": {"body": ""}}, r"\$function is refused"),
        ({"$accumulator": {}}, r"\$accumulator is refused"),
        ({"$and": [{"a": 1}, {"$gt": ["$b", 1]}]}, r"\{'\$expr': \{'\$gt': \['\$b', 1\]\}\}"),
        ({"a": 1, "$gt": ["$b", 1]}, r"mixture.*'\$expr': \{'\$gt'"),
        ({"$gt": ["$b", 1], "$lt": ["$b", 5]}, r"mixture.*\{'\$expr': \{'\$and'"),
        ({"$exists": True}, r"\$exists must stand below a field"),
        ({"$eqq": ["$a", 1]}, r"unknown operator '\$eqq'; did you mean '\$eq'\?"),
        ({"$qqwwzz": 1}, r"unknown operator '\$qqwwzz'$"),
        ({"a": {"$gtt": 1}}, r"a: unknown operator '\$gtt'; did you mean '\$gte?'\?"),
        ({"a": {"$expr": {"$gt": ["$a", 1]}}}, r"a: \$expr is no query operator"),
        ({"a": {"$concat": ["$a", "b"]}}, r"\$concat is no query operator of a field; write"),
        ({"$and": []}, r"\$and: expected a list"),
        ({"$or": {"a": 1}}, r"\$or: expected a list"),
        ({"$or": [1]}, r"\$or: expected filters"),
        ({"a": object()}, "BSON"),
        ({"a": {1, 2}}, "expected a list where"),
        ({"a": 2**70}, "BSON"),
        ({1: "a"}, "BSON"),
        ({"a": "\ud800"}, "BSON"),
        ("status", "expected a dict"),
        ([{"a": 1}], "expected a dict"),
        (0, "expected a dict"),
    ],
)
def test_what_cannot_be_promised_is_refused_with_the_reason(raw: object, message: str) -> None:
    """B-5 and B-6."""
    with pytest.raises(ConfigurationError, match=message):
        compile_filter(raw)


def test_everything_wrong_is_listed() -> None:
    """B-2: one error for all."""
    with pytest.raises(ConfigurationError) as caught:
        compile_filter({"$where": "1", "a": {"$near": 1}, "$and": [{"$eq": ["$a", 1]}]})
    assert len(caught.value.problems) == 3


def test_a_document_that_holds_itself_is_refused() -> None:
    """No declaration ends in a RecursionError."""
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(ConfigurationError, match="levels"):
        compile_filter(endless)


def test_later_changes_by_the_user_do_not_reach_the_filter() -> None:
    """The definition is a value."""
    raw: dict[str, Any] = {"a": {"$in": [1]}}
    compiled = compile_filter(raw)
    raw["a"]["$in"].append(2)
    assert compiled.query == {"a": {"$in": [1]}}


def test_every_value_encodes_without_codec_options() -> None:
    """B-19: also UUIDs, and patterns stay regular expressions."""
    raw = {"u": uuid.uuid4(), "r": re.compile("^x", re.IGNORECASE), "d": datetime(2024, 1, 1, tzinfo=UTC), "t": (1, 2)}
    compiled = compile_filter(raw)
    assert bson.encode(compiled.query)
    assert compiled.query["r"] == Regex.from_native(raw["r"])  # type: ignore[arg-type]
    assert compile_filter(compiled.query) == compiled


@pytest.mark.parametrize(
    ("changed", "paths", "answer"),
    [
        ({"status"}, {"status"}, True),
        ({"status"}, {"statusText"}, False),
        ({"a"}, {"a.b"}, True),
        ({"a.b.c"}, {"a.b"}, True),
        ({"a.c"}, {"a.b"}, False),
        ({"items.3.price"}, {"items.price"}, True),
        ({"items.price"}, {"items.0.price"}, True),
        ({"items.3.name"}, {"items.price"}, False),
        ({"x", "a"}, {"b", "a"}, True),
        ({"x"}, set(), False),
        (set(), {"a"}, False),
        ({"5"}, {"a"}, True),
    ],
)
def test_an_update_concerns_a_task_if_paths_meet(changed: set[str], paths: set[str], answer: object) -> None:
    """One is a prefix of the other, array positions ignored."""
    assert concerns(changed, frozenset(paths)) is answer


def test_any_update_concerns_a_task_that_reads_anything() -> None:
    """None: whatever changed."""
    assert concerns(set(), None)


_paths = st.lists(st.sampled_from(["a", "b", "c", "0", "7"]), min_size=1, max_size=4).map(".".join)


@given(st.sets(_paths), st.frozensets(_paths))
def test_meeting_is_symmetric_and_grows(changed: set[str], paths: frozenset[str]) -> None:
    """More changed paths never concern a task less."""
    assert concerns(changed, paths) == concerns(paths, frozenset(changed))
    if concerns(changed, paths):
        assert concerns({*changed, "zzz"}, paths)


@given(_paths, st.lists(st.sampled_from(["x", "1"]), max_size=3))
def test_a_change_below_or_above_always_concerns(path: str, below: list[str]) -> None:
    """A path meets each of its prefixes."""
    deeper = ".".join([path, *below])
    assert concerns({deeper}, frozenset({path}))
    assert concerns({path}, frozenset({deeper}))


_values = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(), st.sampled_from(["$a", "$$NOW", "$$ROOT", ""])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.text(), st.sampled_from(["$and", "$expr", "$eq", "$let", "$getField", "$not", "$elemMatch"])),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=12,
)


@given(_values)
def test_any_value_is_compiled_or_refused(raw: object) -> None:
    """Nothing but a ConfigurationError comes out; what compiles, compiles again to the same."""
    try:
        compiled = compile_filter(raw)
    except ConfigurationError:
        return
    assert compile_filter(compiled.query) == compiled
