"""The guards that `make mutants` removes are there, and removing one changes the statement."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools" / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The program behind `make mutants`."""
    return _load()


def test_every_condition_is_found_once_and_removed(tool: ModuleType) -> None:
    """A condition that was rewritten must be listed anew, or it would not be tried any more."""
    found = list(tool.mutants())
    assert {mutant.name for mutant in found} >= set(tool.CONDITIONS)
    for mutant in found:
        original = ast.unparse(ast.parse((ROOT / mutant.file).read_text()))
        assert mutant.source != original, mutant.name
        ast.parse(mutant.source)


def test_every_guarded_statement_is_among_them(tool: ModuleType) -> None:
    """Found in the source: whoever writes a new one need not list it."""
    tried = {mutant.name.partition(":")[0] for mutant in tool.mutants()}
    for function in ("claim", "renew", "_settle", "rescue", "mark_sent", "mark_unsent", "discard", "revoke", "leave"):
        assert f"records.{function}" in tried
    assert {"leadership.renew", "positions.store", "definitions._update", "checkpoints.store"} <= tried


def test_the_page_tells_of_every_mutant(tool: ModuleType) -> None:
    """And that it died."""
    page = (ROOT / "docs" / "evidence" / "mutants.md").read_text()
    missing = [mutant.name for mutant in tool.mutants() if f"`{mutant.name}`".replace("|", "\\|") not in page]
    assert not missing, f"not in {tool.PAGE}, run `make mutants`: {missing}"
    assert "`survives`" not in page
