"""Tells which rules of behaviour no test names, and fails when one that was covered is covered no more.

Run by `make check`. A test names a rule by `B-17` in its docstring, or `b17` as a word of its name. The list of covered
rules can only grow: take a rule out of UNTESTED when its first test is written, and never put one in.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
RULES = (*range(1, 54), 55, 65, 66, 67, 68)
UNTESTED: frozenset[int] = frozenset()
"""Rules that no test names yet. The set can only shrink."""
IN_A_DOCSTRING = re.compile(r"\bB-(\d+)\b")
IN_A_NAME = re.compile(r"_b(\d+)(?=_|$)")

Test = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def main() -> int:
    """Print the rules without a test; 1 if one of them had a test before."""
    named = {rule for path in sorted((ROOT / "tests").rglob("test_*.py")) for rule in rules_named_in(path)}
    missing = [rule for rule in RULES if rule not in named]
    lost = [rule for rule in missing if rule not in UNTESTED]
    found = sorted(named & UNTESTED)
    print(f"{len(RULES) - len(missing)} of {len(RULES)} rules are named by a test")
    if missing:
        print(f"no test names {listed(missing)}")
    if found:
        print(f"named now, take out of UNTESTED in {Path(__file__).name}: {listed(found)}")
    if lost:
        print(f"no test names any more: {listed(lost)}; expected a docstring with the rule in a test", file=sys.stderr)
    return 1 if lost else 0


def rules_named_in(path: Path) -> set[int]:
    """Return the numbers of the rules that the tests of a module name."""
    module = ast.parse(path.read_text(), str(path))
    texts = [(test.name, ast.get_docstring(test) or "") for test in tests_of(module)]
    found = [number for name, said in texts for number in IN_A_NAME.findall(name) + IN_A_DOCSTRING.findall(said)]
    return {int(number) for number in found}


def tests_of(module: ast.Module) -> Iterator[Test]:
    """Yield test functions, and classes of tests."""
    for node in ast.walk(module):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name.startswith("test_"):
                yield node
            case ast.ClassDef(name=name) if name.startswith("Test"):
                yield node
            case _:
                pass


def listed(rules: list[int]) -> str:
    """Return the rules as one reads them."""
    return ", ".join(f"B-{rule}" for rule in rules)


if __name__ == "__main__":
    sys.exit(main())
