"""The repository's own pages and files agree with one another."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


def project() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    """Whoever follows a link finds a file."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    missing = [target for target in LINK.findall(prose) if not (page.parent / target).exists()]
    assert missing == []


def test_decision_records_are_numbered_without_gaps_and_say_their_status() -> None:
    """A record is cited by its number and read for whether it holds."""
    records = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        text = record.read_text()
        assert text.startswith(f"# {int(record.name[:4])}. ")
        assert "\nStatus: " in text


def test_make_targets_that_are_documented_exist() -> None:
    """CONTRIBUTING names commands to type."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"^\$ make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE))
    assert named
    assert named <= targets


def test_every_extra_brings_something() -> None:
    """An extra that installs nothing promises a feature that is not there."""
    assert all(project()["project"]["optional-dependencies"].values())


def test_no_index_is_hard_wired() -> None:
    """Packages come from where pip's configuration says."""
    for name in ("Makefile", ".ci/run", "pyproject.toml"):
        assert not re.search(r"index-url|--index|find-links|PIP_INDEX", (ROOT / name).read_text()), name
