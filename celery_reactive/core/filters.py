"""A task's filter: checked, copied, and brought into the one form that `$match` understands (B-5 to B-7).

Called by the declaration, and by workers on the stored filter. The meaning must never differ from that of
`db.C.find(filter)`: constants are left as they are, and what cannot be promised is refused with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from celery_reactive.core.document import copied
from celery_reactive.core.expressions import EXPRESSION_OPERATORS, UNSTABLE_OPERATORS, Reads
from celery_reactive.core.suggest import did_you_mean, shown
from celery_reactive.errors import ConfigurationError

_BRANCHES = frozenset({"$and", "$nor", "$or"})
_TOP_LEVEL = _BRANCHES | {"$alwaysFalse", "$alwaysTrue", "$comment", "$expr", "$jsonSchema"}
_FIELD_NAMES = (
    "all bitsAllClear bitsAllSet bitsAnyClear bitsAnySet comment elemMatch encryptedBetween eq exists "
    "geoIntersects geoWithin gt gte in lt lte mod ne nin not options regex size type within"
)
_FIELD_OPERATORS = frozenset(f"${name}" for name in _FIELD_NAMES.split())
_REFUSED = {
    "$geoNear": "it sorts, and needs an index of its own",
    "$near": "it sorts, and needs an index of its own",
    "$nearSphere": "it sorts, and needs an index of its own",
    "$text": "it needs an index of its own",
    "$where": "it runs JavaScript",
    **UNSTABLE_OPERATORS,
}
_ANOTHER_WAY = {"$near": "$geoWithin", "$nearSphere": "$geoWithin", "$geoNear": "$geoWithin", "$where": "$expr"}
_REFERENCE = frozenset({"$ref", "$id", "$db"})


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """Which documents concern a task.

    Attributes:
        query: For `$match` and `find`; a private copy that must not be changed. Compiling it again gives an equal
            filter.
        paths: Dotted paths of the fields that the answer can depend on; None: on any field, or on time.
        time_dependent: Whether it may come to match only because time passes (B-9).
    """

    query: dict[str, Any] = dataclasses.field(hash=False)
    paths: frozenset[str] | None = frozenset()
    time_dependent: bool = False

    @property
    def matches_all(self) -> bool:
        """Whether every document matches."""
        return not self.query


def compile_filter(raw: object) -> Filter:
    """Return the filter that *raw* means: query syntax, or a single expression operator (B-6).

    Args:
        raw: As for `find`, or an aggregation expression. None or `{}`: every document.

    Raises:
        ConfigurationError: It is no filter, a mixture of both, or uses what is refused; every such place is listed.
    """
    if raw is None:
        return Filter({})
    if not isinstance(raw, Mapping):
        raise ConfigurationError("filter", [f"expected a dict, got {shown(raw)}"])
    query = _as_query(copied(raw, name="filter"))
    reading = _Reading()
    reading.query(query, "")
    problems = reading.problems + [_refusal(operator) for operator in sorted(reading.reads.unstable)]
    if problems:
        raise ConfigurationError("filter", problems)
    return Filter(query, reading.reads.known_paths(), time_dependent=bool(reading.reads.time))


def _as_query(document: dict[str, Any]) -> dict[str, Any]:
    return {"$expr": document} if len(document) == 1 and _is_expression(document) else document


def _is_expression(document: Any) -> bool:
    return isinstance(document, dict) and any(key in EXPRESSION_OPERATORS and key not in _BRANCHES for key in document)


class _Reading:
    """One walk over a query: what is wrong with it, and what it reads."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.reads = Reads()

    def query(self, query: dict[str, Any], prefix: str) -> None:
        """Walk a query on the document, or under `$elemMatch` on the elements of *prefix*."""
        if _is_expression(query):
            self._refuse_mixture(query)
            return
        for key, value in query.items():
            if key.startswith("$"):
                self._top_level(key, value, prefix)
            else:
                self._field(f"{prefix}{key}", value)

    def _top_level(self, key: str, value: Any, prefix: str) -> None:
        match key:
            case "$and" | "$or" | "$nor":
                self._branches(key, value, prefix)
            case "$expr":
                self.reads.add(value)
            case "$jsonSchema":
                self.reads.everything = True
            case "$comment" | "$alwaysTrue" | "$alwaysFalse":
                pass
            case _:
                self.problems.append(_why_not_top_level(key, value))

    def _branches(self, key: str, branches: Any, prefix: str) -> None:
        if not isinstance(branches, list) or not branches:
            self.problems.append(f"{key}: expected a list of at least one filter, got {shown(branches)}")
            return
        for branch in branches:
            if not isinstance(branch, dict):
                self.problems.append(f"{key}: expected filters, got {shown(branch)} among them")
            elif len(branch) == 1 and _is_expression(branch):
                wrapped = shown({"$expr": branch})
                self.problems.append(f"{key}: got the expression {shown(branch)} among its filters; write {wrapped}")
            else:
                self.query(branch, prefix)

    def _field(self, path: str, condition: Any) -> None:
        self.reads.paths.add(path)
        if isinstance(condition, dict):
            first = next(iter(condition), "")
            if first.startswith("$") and first not in _REFERENCE:
                self._condition(path, condition)

    def _condition(self, path: str, condition: dict[str, Any]) -> None:
        refused = [operator for operator in condition if operator in _REFUSED]
        if refused:
            self.problems.extend(f"{path}: {_refusal(operator)}" for operator in refused)
            return
        for operator, argument in condition.items():
            if operator not in _FIELD_OPERATORS:
                self.problems.append(f"{path}: {_why_not_operator(operator, argument)}")
            elif operator == "$not":
                self._field(path, argument)
            elif operator == "$elemMatch" and isinstance(argument, dict):
                self._elements(path, argument)
            elif operator == "$all" and isinstance(argument, list):
                for each in argument:
                    self._field(path, each)

    def _elements(self, path: str, argument: dict[str, Any]) -> None:
        first = next(iter(argument), "")
        if first.startswith("$") and first not in _TOP_LEVEL | _REFERENCE:
            self._condition(path, argument)
        else:
            self.query(argument, f"{path}.")

    def _refuse_mixture(self, query: dict[str, Any]) -> None:
        expressions = [{key: value} for key, value in query.items() if _is_expression({key: value})]
        rest = {key: value for key, value in query.items() if not _is_expression({key: value})}
        expression = expressions[0] if len(expressions) == 1 else {"$and": expressions}
        self.problems.append(
            f"expected query syntax or a single expression, got a mixture of {shown(list(query))}; "
            f"write {shown({**rest, '$expr': expression})}"
        )


def _why_not_top_level(key: str, value: Any) -> str:
    if key in _REFUSED:
        return _refusal(key)
    if key in _FIELD_OPERATORS:
        return f"{key} must stand below a field; write {shown({'field': {key: value}})}"
    return f"unknown operator {key!r}{did_you_mean(key, _TOP_LEVEL | EXPRESSION_OPERATORS)}"


def _why_not_operator(operator: str, argument: Any) -> str:
    if operator in EXPRESSION_OPERATORS or operator in _TOP_LEVEL:
        return f"{operator} is no query operator of a field; write {shown({'$expr': {operator: argument}})}"
    return f"unknown operator {operator!r}{did_you_mean(operator, _FIELD_OPERATORS)}"


def _refusal(operator: str) -> str:
    instead = f"; use {_ANOTHER_WAY[operator]}" if operator in _ANOTHER_WAY else ""
    return f"{operator} is refused: {_REFUSED[operator]}{instead}"
