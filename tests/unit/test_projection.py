"""What counts as a change: B-11, B-17."""

from __future__ import annotations

from typing import Any

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_reactive.core.projection import compile_projection
from celery_reactive.errors import ConfigurationError


@pytest.mark.parametrize("raw", [None, {}])
def test_no_projection_watches_the_whole_document(raw: object) -> None:
    """B-11: None or {}."""
    compiled = compile_projection(raw)
    assert compiled.whole
    assert compiled.paths is None
    assert not compiled.only_id
    assert compiled.stages(keep={"k": "$_id"}) == [{"$replaceWith": {"k": "$_id", "w": "$$ROOT"}}]


@pytest.mark.parametrize(
    ("raw", "included", "computed", "paths"),
    [
        ({"a": 1}, ["a"], {}, {"a"}),
        ({"a": True, "b.c": 1.0}, ["a", "b.c"], {}, {"a", "b.c"}),
        ({"a": {"b": 1, "c": {"d": True}}}, ["a.b", "a.c.d"], {}, {"a.b", "a.c.d"}),
        ({"a": {"b.c": 1}}, ["a.b.c"], {}, {"a.b.c"}),
        ({"_id": 1, "a": 1}, ["_id", "a"], {}, {"_id", "a"}),
        ({"x": "$a.b"}, [], {"x": "$a.b"}, {"a.b"}),
        ({"x": {"$sum": "$items.price"}, "a": 1}, ["a"], {"x": {"$sum": "$items.price"}}, {"a", "items.price"}),
        ({"x": {"y": {"$add": ["$a", 1]}}}, [], {"x.y": {"$add": ["$a", 1]}}, {"a"}),
        ({"x": ["$a", "$b"]}, [], {"x": ["$a", "$b"]}, {"a", "b"}),
        ({"x": {"$slice": ["$items", 3]}}, [], {"x": {"$slice": ["$items", 3]}}, {"items"}),
        ({"x": {"$literal": "$$NOW"}}, [], {"x": {"$literal": "$$NOW"}}, set()),
        ({"x": {"$objectToArray": "$$ROOT"}}, [], {"x": {"$objectToArray": "$$ROOT"}}, None),
    ],
)
def test_a_projection_is_taken_apart(
    raw: dict[str, Any], included: list[str], computed: dict[str, Any], paths: set[str] | None
) -> None:
    """B-11: inclusion, dotted paths, computed expressions."""
    compiled = compile_projection(raw)
    assert list(compiled.included) == included
    assert dict(compiled.computed) == computed
    assert compiled.paths == paths
    assert not compiled.whole
    assert compile_projection(compiled.document) == compiled


def test_only_the_id() -> None:
    """B-17: exactly {"_id": 1}."""
    assert compile_projection({"_id": 1}).only_id
    assert compile_projection({"_id": True}).only_id
    assert not compile_projection({"_id": 1, "a": 1}).only_id
    assert not compile_projection({"_id": 1, "x": "$a"}).only_id


def test_computed_fields_are_evaluated_on_the_document() -> None:
    """The stages keep what they are told to, and nothing of the document but the watched values."""
    stages = compile_projection({"status": 1, "total": {"$sum": "$items.p"}}).stages(keep={"d": "$_id"})
    assert stages == [
        {"$replaceWith": {"d": "$_id", "w": "$$ROOT", "w_computed": {"f0": {"$sum": "$items.p"}}}},
        {"$project": {"d": 1, "w.status": 1, "w.total": "$w_computed.f0"}},
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"a": 0}, "a: excludes a field"),
        ({"_id": 0}, "_id: excludes a field"),
        ({"a": False, "b": 1}, "a: excludes a field"),
        ({"a": {"b": 0}}, r"a\.b: excludes a field"),
        ({"a": 2}, "a: expected 1, True, or an expression"),
        ({"a": -1}, "a: expected 1, True"),
        ({"a": float("nan")}, "a: expected 1, True"),
        ({"a": None}, "a: expected 1, True"),
        ({"a": "b"}, "a: expected 1, True"),
        ({"a": {}}, "a: expected 1, True"),
        ({"a": 1, "a.b": 1}, r"a\.b: collides with 'a'"),
        ({"a.b": 1, "a": {"$add": ["$x", 1]}}, r"a\.b: collides with 'a'"),
        ({"a": {"b": 1}, "a.b": 1}, r"a\.b: named twice"),
        ({"_id": "$x"}, "_id: cannot be computed"),
        ({"_id": {"x": {"$add": [1, 2]}}}, r"_id\.x: cannot be computed"),
        ({"a.$": 1}, "without positions"),
        ({"$a": 1}, "without positions"),
        ({"a..b": 1}, "dotted path"),
        ({"": 1}, "dotted path"),
        ({"a.": 1}, "dotted path"),
        ({"a": {"$slice": 2}}, r"a: \$slice of find\(\) is refused"),
        ({"a": {"$slice": [1, 2]}}, r"a: \$slice of find\(\) is refused"),
        ({"a": {"$elemMatch": {"x": 1}}}, r"a: \$elemMatch of find\(\) is refused"),
        ({"a": {"$meta": "textScore"}}, r"a: \$meta is refused"),
        ({"a": {"$rand": {}}}, r"a: \$rand is refused"),
        ({"a": {"$add": [1, {"$sampleRate": 0.5}]}}, r"a: \$sampleRate is refused"),
        ({"a": {"$function": {}}}, r"a: \$function is refused"),
        ({"a": "$$NOW"}, r"a: \$\$NOW is refused"),
        ({"a": {"$subtract": ["$$NOW", "$t"]}}, r"a: \$\$NOW is refused"),
        ({"a": ["$$CLUSTER_TIME"]}, r"a: \$\$CLUSTER_TIME is refused"),
        ({"a": {"$add": [1], "b": 1}}, "a: expected a single operator"),
        ({"a": object()}, "BSON"),
        ([("a", 1)], "expected a dict"),
        ("a", "expected a dict"),
        (1, "expected a dict"),
    ],
)
def test_what_gives_no_stable_values_is_refused(raw: object, message: str) -> None:
    """B-11: exclusion, collisions, other numbers, and another value each time."""
    with pytest.raises(ConfigurationError, match=message):
        compile_projection(raw)


def test_later_changes_by_the_user_do_not_reach_the_projection() -> None:
    """The definition is a value."""
    raw: dict[str, Any] = {"x": {"$add": ["$a", 1]}}
    compiled = compile_projection(raw)
    raw["x"]["$add"].append("$b")
    assert compiled.computed == (("x", {"$add": ["$a", 1]}),)


_values = st.recursive(
    st.one_of(st.none(), st.integers(0, 2), st.booleans(), st.text(), st.sampled_from(["$a", "$$NOW", "$$ROOT"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b", "a.b", "_id", "$add", "$slice", "$literal", ""]), inner, max_size=3),
    ),
    max_leaves=10,
)


@given(_values)
def test_any_value_is_compiled_or_refused(raw: object) -> None:
    """Nothing but a ConfigurationError comes out; what compiles can be sent."""
    try:
        compiled = compile_projection(raw)
    except ConfigurationError:
        return
    assert compile_projection(compiled.document) == compiled
    assert bson.encode({"stages": compiled.stages(keep={"d": "$_id"})})


@pytest.mark.parametrize(
    ("raw", "watched", "values"),
    [
        ({"a": 1, "b.c": 1}, {"a": 1, "b": {"c": 2}}, {"a": 1, "b.c": 2}),
        ({"a": 1, "b.c": 1}, {"b": {}}, {}),
        ({"a.b": 1}, {"a": 1}, {}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"items.price": 1}, {"items": [{"price": 1}, {}, {"price": 3}]}, {"items.price": [1, 3]}),
        ({"total": {"$sum": "$a"}, "x": {"y": "$a"}}, {"total": 6, "x": {"y": [1]}}, {"total": 6, "x.y": [1]}),
        (None, {"_id": 1, "a": {"b": 1}}, {"_id": 1, "a": {"b": 1}}),
    ],
)
def test_values_by_path(raw: object, watched: dict[str, Any], values: dict[str, Any]) -> None:
    """B-63: what is watched, with what is missing left out."""
    assert compile_projection(raw).values(watched) == values
