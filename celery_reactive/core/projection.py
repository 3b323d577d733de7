"""A task's watched values: which part of a document counts as a change (B-11).

Called by the declaration, and by workers on the stored projection. A projection must give the same values for the
same document each time, and two projections that mean the same must take the same way through here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from celery_reactive.core.document import copied
from celery_reactive.core.expressions import UNSTABLE_OPERATORS, Reads
from celery_reactive.core.suggest import shown
from celery_reactive.errors import ConfigurationError

_FIND_ONLY = frozenset({"$elemMatch", "$slice"})


@dataclasses.dataclass(frozen=True, slots=True)
class Projection:
    """What of a document is watched.

    Attributes:
        document: As declared, a private copy that must not be changed; `{}` for the whole document. Compiling it
            again gives an equal projection.
        included: Dotted paths of fields taken as they are.
        computed: Dotted paths with the expression that gives the value.
        paths: Dotted paths of the fields that the values can depend on; None: on any field.
    """

    document: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    included: tuple[str, ...] = ()
    computed: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), hash=False)
    paths: frozenset[str] | None = None

    @property
    def whole(self) -> bool:
        """Whether every field is watched."""
        return not self.document

    @property
    def only_id(self) -> bool:
        """Whether it is exactly `{"_id": 1}`: nothing that could ever change (B-17)."""
        return self.included == ("_id",) and not self.computed

    def stages(self, *, keep: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the stages that turn each document into `{**keep, "w": watched values}`; see `stages_of`."""
        return stages_of({"w": self}, keep=keep)

    def values(self, watched: Mapping[str, Any]) -> dict[str, Any]:
        """Return watched values by dotted path, those of a whole document by its fields; what is missing is left out.

        A path that leads through an array gives a list of what each element has there.
        """
        if self.whole:
            return dict(watched)
        found = ((path, _below(watched, path.split("."))) for path in (*self.included, *dict(self.computed)))
        return {path: value for path, value in found if value is not _MISSING}


_MISSING = object()


def _below(value: Any, segments: Sequence[str]) -> Any:
    match value, segments:
        case _, []:
            return value
        case list(), _:
            elements = (_below(element, segments) for element in value)
            return [element for element in elements if element is not _MISSING]
        case Mapping(), [first, *others] if first in value:
            return _below(value[first], others)
        case _:
            return _MISSING


def stages_of(projections: Mapping[str, Projection], *, keep: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the stages that turn each document into `{**keep, name: values}` for each named projection.

    Computed fields are evaluated while the document is still the root, so that paths and `$$ROOT` mean what they
    say; the projection below a name then treats arrays and nested fields as one on the document itself would.

    Args:
        projections: By the field that gets their values.
        keep: Further fields with the expression of each, evaluated on the document; no name of a projection, and
            none with "_computed" behind it.
    """
    replaced = dict(keep)
    shown: dict[str, Any] = dict.fromkeys(keep, 1)
    for name, projection in projections.items():
        replaced[name] = "$$ROOT"
        if projection.whole:
            shown[name] = 1
        shown |= {f"{name}.{path}": 1 for path in projection.included}
        if projection.computed:
            expressions = {f"f{number}": expression for number, (_, expression) in enumerate(projection.computed)}
            replaced[f"{name}_computed"] = expressions
            paths = (path for path, _ in projection.computed)
            shown |= {f"{name}.{path}": f"${name}_computed.f{number}" for number, path in enumerate(paths)}
    if all(projection.whole for projection in projections.values()):
        return [{"$replaceWith": replaced}]
    return [{"$replaceWith": replaced}, {"$project": shown}]


def compile_projection(raw: object) -> Projection:
    """Return the projection that *raw* means.

    Args:
        raw: `{"a": 1, "b.c": True, "total": {"$sum": "$items.price"}}`; None or `{}`: the whole document.

    Raises:
        ConfigurationError: It excludes fields, names a field twice, or uses what is refused; all places are listed.
    """
    if raw is None:
        return Projection()
    if not isinstance(raw, Mapping):
        raise ConfigurationError("watch_projection", [f"expected a dict, got {shown(raw)}"])
    document = copied(raw, name="watch_projection")
    if not document:
        return Projection()
    reading = _Reading()
    reading.fields(document, "")
    reading.check()
    return Projection(document, tuple(reading.included), tuple(reading.computed.items()), reading.paths())


class _Reading:
    """One walk over a projection: what it takes, and what is wrong with it."""

    def __init__(self) -> None:
        self.included: list[str] = []
        self.computed: dict[str, Any] = {}
        self._problems: list[str] = []

    def fields(self, document: dict[str, Any], prefix: str) -> None:
        """Walk the fields below *prefix*."""
        for key, value in document.items():
            path = f"{prefix}{key}"
            if _is_path(key):
                self._field(path, value)
            else:
                self._problems.append(f"{path!r}: expected a dotted path of field names, without positions such as '$'")

    def check(self) -> None:
        """Raise what is wrong."""
        self._check_collisions()
        if self._problems:
            raise ConfigurationError("watch_projection", self._problems)

    def paths(self) -> frozenset[str] | None:
        """Return the fields that the values can depend on."""
        reads = Reads(set(self.included))
        for expression in self.computed.values():
            reads.add(expression)
        return reads.known_paths()

    def _field(self, path: str, value: Any) -> None:
        match value:
            case dict() if not _is_expression(value):
                self._nested(path, value)
            case dict() | list():
                self._compute(path, value)
            case str() if value.startswith("$"):
                self._compute(path, value)
            case bool() | int() | float():
                self._include(path, value)
            case _:
                self._problems.append(f"{path}: {_expected(value)}")

    def _nested(self, path: str, value: dict[str, Any]) -> None:
        if value:
            self.fields(value, f"{path}.")
        else:
            self._problems.append(f"{path}: {_expected(value)}")

    def _include(self, path: str, value: float) -> None:
        if value == 1:
            self._once(path)
            self.included.append(path)
        elif value == 0:
            self._problems.append(f"{path}: excludes a field; name those to watch instead, each with 1")
        else:
            self._problems.append(f"{path}: {_expected(value)}")

    def _compute(self, path: str, expression: Any) -> None:
        problem = _why_not_computed(path, expression)
        if problem:
            self._problems.append(f"{path}: {problem}")
        else:
            self._once(path)
            self.computed[path] = expression

    def _once(self, path: str) -> None:
        if path in self.included or path in self.computed:
            self._problems.append(f"{path}: named twice")

    def _check_collisions(self) -> None:
        named = [*self.included, *self.computed]
        for path in named:
            parents = [other for other in named if path.startswith(f"{other}.")]
            self._problems.extend(f"{path}: collides with {parent!r}, which contains it" for parent in parents)


def _is_path(key: str) -> bool:
    return all(segment and not segment.startswith("$") for segment in key.split("."))


def _is_expression(value: dict[str, Any]) -> bool:
    return any(key.startswith("$") for key in value)


def _why_not_computed(path: str, expression: Any) -> str | None:
    if path == "_id" or path.startswith("_id."):
        return "cannot be computed; give the value another name"
    if isinstance(expression, dict):
        if len(expression) > 1:
            return f"expected a single operator, got {shown(list(expression))}"
        ((operator, argument),) = expression.items()
        if operator in _FIND_ONLY and not _is_call(operator, argument):
            return f"{operator} of find() is refused; write an expression, for example {_SLICE}"
    return _why_unstable(expression)


_SLICE = '{"$slice": ["$items", 3]}'


def _is_call(operator: str, argument: Any) -> bool:
    """Whether `$slice` is the expression, which names its array, and not the operator of find()."""
    if operator != "$slice" or not isinstance(argument, list):
        return False
    return bool(argument) and not isinstance(argument[0], (int, float))


def _why_unstable(expression: Any) -> str | None:
    reads = Reads()
    reads.add(expression)
    reasons = [f"{operator} is refused: {UNSTABLE_OPERATORS[operator]}" for operator in sorted(reads.unstable)]
    reasons += [f"{variable} is refused: it gives another value each time" for variable in sorted(reads.time)]
    return ", ".join(reasons) or None


def _expected(value: Any) -> str:
    return f'expected 1, True, or an expression such as "$field" or {{"$sum": "$items.price"}}, got {shown(value)}'
