"""What an aggregation expression reads, found without running it.

Called by the filters and projections, which need to know the fields an expression can depend on. Must never leave out
a field that matters: whatever is not understood counts as reading the whole document.
"""

from __future__ import annotations

import dataclasses
from typing import Any

_NAMES = (
    # Arithmetic
    "abs add ceil divide exp floor ln log log10 mod multiply pow round sigmoid sqrt subtract trunc "
    # Arrays
    "arrayElemAt arrayToObject concatArrays filter first firstN in indexOfArray isArray last lastN map maxN minN "
    "objectToArray range reduce reverseArray size slice sortArray zip "
    # Bits and booleans
    "bitAnd bitNot bitOr bitXor and not or "
    # Comparison and conditions
    "cmp eq gt gte lt lte ne cond ifNull switch "
    # Sizes, accumulating forms and variables
    "binarySize bsonSize avg max median min percentile stdDevPop stdDevSamp sum let "
    # Dates
    "dateAdd dateDiff dateFromParts dateFromString dateSubtract dateToParts dateToString dateTrunc dayOfMonth "
    "dayOfWeek dayOfYear hour isoDayOfWeek isoWeek isoWeekYear millisecond minute month second tsIncrement "
    "tsSecond week year "
    # Literals, objects and sets
    "const literal getField mergeObjects setField unsetField allElementsTrue anyElementTrue setDifference "
    "setEquals setIntersection setIsSubset setUnion "
    # Strings
    "concat encStrContains encStrEndsWith encStrNormalizedEq encStrStartsWith indexOfBytes indexOfCP ltrim "
    "regexFind regexFindAll regexMatch replaceAll replaceOne rtrim split strLenBytes strLenCP strcasecmp substr "
    "substrBytes substrCP toLower toUpper trim "
    # Trigonometry
    "acos acosh asin asinh atan atan2 atanh cos cosh degreesToRadians radiansToDegrees sin sinh tan tanh "
    # Types and hashes
    "convert deserializeEJSON hash hexHash isNumber serializeEJSON toArray toBool toDate toDecimal toDouble "
    "toHashedIndexKey toInt toLong toObject toObjectId toString toUUID type similarityCosine "
    "similarityDotProduct similarityEuclidean subtype"
)
EXPRESSION_OPERATORS = frozenset(f"${name}" for name in _NAMES.split())
"""MongoDB 6 to 8. Those of UNSTABLE_OPERATORS are refused and stand there instead."""

UNSTABLE_OPERATORS = {
    "$accumulator": "it runs JavaScript",
    "$createObjectId": "it gives another value each time",
    "$function": "it runs JavaScript",
    "$meta": "it depends on how the document was found",
    "$rand": "it gives another value each time",
    "$sampleRate": "it gives another value each time",
}
"""Expression operators that no declaration may use, and why."""

_TIME = frozenset({"NOW", "CLUSTER_TIME"})
_HARMLESS = frozenset({"REMOVE"})
_ROOT = frozenset({"ROOT", "CURRENT"})


@dataclasses.dataclass(slots=True)
class Reads:
    """What is known so far of what expressions read.

    Attributes:
        paths: Dotted paths of the fields read.
        everything: Whether they may read any field.
        time: The time variables used, as `$$NOW`.
        unstable: The refused operators used.
    """

    paths: set[str] = dataclasses.field(default_factory=set)
    everything: bool = False
    time: set[str] = dataclasses.field(default_factory=set)
    unstable: set[str] = dataclasses.field(default_factory=set)

    def known_paths(self) -> frozenset[str] | None:
        """Return the paths, or None if any field, or time alone, may change the result."""
        return None if self.everything or self.time else frozenset(self.paths)

    def add(self, expression: Any) -> None:
        """Take in what *expression* reads."""
        match expression:
            case str():
                self._add_text(expression)
            case list():
                for each in expression:
                    self.add(each)
            case dict():
                self._add_object(expression)
            case _:
                pass  # a constant

    def _add_text(self, text: str) -> None:
        if text.startswith("$$"):
            self._add_variable(text[2:])
        elif text.startswith("$"):
            self.paths.add(text[1:])

    def _add_variable(self, reference: str) -> None:
        variable, _, path = reference.partition(".")
        if variable in _TIME:
            self.time.add(f"$${variable}")
        elif variable in _ROOT and path:
            self.paths.add(path)
        elif not (variable in _HARMLESS or variable[:1].islower()):
            self.everything = True

    def _add_object(self, expression: dict[str, Any]) -> None:
        for key, value in expression.items():
            if key in {"$literal", "$const"}:
                continue
            if key in UNSTABLE_OPERATORS:
                self.unstable.add(key)
            elif key == "$getField":
                self._add_get_field(value)
            else:
                self.everything = self.everything or self._is_obscure(key, value)
                self.add(value)

    def _is_obscure(self, key: str, value: Any) -> bool:
        """Whether the call may read what its arguments do not show: an unknown operator, or another `$$CURRENT`."""
        if key == "$let":
            variables = value.get("vars") if isinstance(value, dict) else None
            return not isinstance(variables, dict) or "CURRENT" in variables
        if key == "as":
            return bool(value == "CURRENT")
        return key.startswith("$") and key not in EXPRESSION_OPERATORS

    def _add_get_field(self, argument: Any) -> None:
        """Take in a field got by name: of the document itself if no other input is given."""
        named = argument if isinstance(argument, dict) and "field" in argument else {"field": argument}
        field, source = _constant(named["field"]), named.get("input", "$$CURRENT")
        if source not in ("$$CURRENT", "$$ROOT"):
            self.add(source)
            if field is None:
                self.add(named["field"])
        elif field is None:
            self.everything = True
        else:
            self.paths.add(field)


def _constant(expression: Any) -> str | None:
    if isinstance(expression, dict) and len(expression) == 1:
        ((operator, value),) = expression.items()
        return value if operator in {"$literal", "$const"} and isinstance(value, str) else None
    return expression if isinstance(expression, str) and not expression.startswith("$") else None
