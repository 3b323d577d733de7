"""The formal model's quickest configurations, and a few of its mutants; all of them: `make model`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    """Import `tools/model.py`, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("model_check", ROOT / "tools" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


model = load()
needs_spin = pytest.mark.skipif(not model.is_installed(), reason=model.REMEDY)


@needs_spin
@pytest.mark.parametrize("name", ["reading", "company"])
def test_the_protocol_holds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """B-10: over all schedules of a small configuration the final state is handled."""
    assert model._check(name), capsys.readouterr().out


@needs_spin
@pytest.mark.parametrize("name", ["ORDER", "READ_FIRST", "BEATS", "COMPANY_ALONE"])
def test_a_missing_part_is_missed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """B-10: without it there is a schedule that loses a state, or runs twice at a time."""
    assert model._check(name), capsys.readouterr().out


def test_each_mutant_is_replayed_on_a_real_server() -> None:
    """B-10: a test of the mutant's name is among the counterexamples."""
    replayed = (ROOT / "tests" / "integration" / "test_counterexamples.py").read_text()
    assert [name for name in model.MUTANTS if f"def test_{name.lower()}(" not in replayed] == []


def test_without_spin_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends with 2: nothing was checked."""
    monkeypatch.setattr(model.shutil, "which", lambda _program: None)
    monkeypatch.setattr(sys, "argv", ["model.py"])
    assert model.main() == 2
    assert "apt-get install spin" in capsys.readouterr().err
