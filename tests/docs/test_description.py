"""What an index shows as description: the README without links that lead nowhere there (`hatch_build.py`)."""

from __future__ import annotations

import re

import pytest

import hatch_build
from tests.docs.pages import ROOT

README = (ROOT / "README.md").read_text()
LINKS = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


@pytest.mark.parametrize("repository", ["", "https://git.example.com/team/repo/blob/main"])
def test_no_link_is_relative(repository: str) -> None:
    """An index would resolve it against its own address."""
    text = hatch_build.described(README, repository)
    links = [target or source for target, source in LINKS.findall(text)]
    assert [link for link in links if not link.startswith("https://")] == []


def test_links_lead_to_files_of_the_repository() -> None:
    """With their anchors; a picture is the file itself, not the page that shows it."""
    repository = "https://git.example.com/team/repo/blob/main"
    text = hatch_build.described(README, repository)
    assert f"]({repository}/docs/guide/running.md#what-repeats-a-run)" in text
    assert f"]({repository}/docs/images/demo.svg?raw=true)" in text
    targets = [target.partition("#")[0].partition("?")[0] for target in re.findall(rf"{repository}/([^)\"]+)", text)]
    assert len(targets) > 20
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_without_a_repository_links_are_words() -> None:
    """Whoever builds a package of a copy says nothing about where its source is."""
    text = hatch_build.described(README, "")
    assert "docs/images" not in text
    assert "\n- Production checklist, troubleshooting by symptom" in text
