"""What is in `changes/` gets into the changelog, and `tools/check_changes.py` refuses what would not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tools import check_changes


def write(changes: Path, name: str, text: str) -> int:
    """Check a folder with one file."""
    (changes / name).write_text(text)
    return check_changes.main(changes)


def test_a_proper_file_passes(tmp_path: Path) -> None:
    """One item or several, each of one line or several."""
    assert write(tmp_path, "+lock.added.md", "- A lock\n  that is held.\n- Another one.\n") == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("+lock.feature.md", "- A lock.\n"),
        ("lock.added.md", "- A lock.\n"),
        ("+lock.added.rst", "- A lock.\n"),
        ("+lock.added.md", ""),
        ("+lock.added.md", "A lock.\n"),
        ("+lock.added.md", "- A lock\nthat is held.\n"),
        ("+lock.added.md", "- A lock\n"),
        ("+lock.added.md", f"- {'A lock. ' * 20}\n"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be overlooked, or read badly."""
    assert write(tmp_path, name, text) == 1
    assert name in capsys.readouterr().err


def test_towncrier_takes_every_file() -> None:
    """The draft of the next release has a heading for each kind, and every item."""
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "1.2.3", "--date", "2026-01-31"]
    draft = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.search(r"^## 1\.2\.3 - 2026-01-31\n\n### \w+\n\n- ", draft, flags=re.MULTILINE)
    files = list(check_changes.CHANGES.glob("+*.md"))
    assert {path.name.split(".")[1] for path in files} == {
        heading.lower() for heading in re.findall(r"^### (\w+)$", draft, flags=re.MULTILINE)
    }
    for path in files:
        assert f"\n{path.read_text().rstrip()}\n" in draft


def test_the_changelog_has_the_place_where_towncrier_writes() -> None:
    """Else it would write above the title."""
    assert "\n<!-- releases -->\n" in (ROOT / "CHANGELOG.md").read_text()
