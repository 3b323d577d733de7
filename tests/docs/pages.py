"""The user's pages as the tests see them: blocks of code with their marks, tables by name, headings.

A mark is a comment in the line above a block or table: `continues` runs the block in the namespace of the one before
it, `raises: Error` expects the block to raise and the text block that follows to be the message, `table: name` and
`list: name` name what follows.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
)
_BLOCK = re.compile(r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_MESSAGE = re.compile(r"\s*```text\n(.*?)```", re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """A block of Python."""

    page: Path
    line: int
    """Of its first line of code."""
    code: str
    continues: bool
    """It goes on from the block before it."""
    raises: str | None
    """Name of the error it raises."""
    message: str
    """The error's text, where it raises."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def chains_of(page: Path) -> list[list[Block]]:
    """Return the blocks of a page, those that continue one another together."""
    chains: list[list[Block]] = []
    for block in blocks_of(page):
        if block.continues:
            chains[-1].append(block)
        else:
            chains.append([block])
    return chains


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of Python of a page."""
    text = page.read_text()
    blocks = []
    for found in _BLOCK.finditer(text):
        mark = found["mark"] or ""
        raises = mark.removeprefix("raises: ") if mark.startswith("raises: ") else None
        following = _MESSAGE.match(text, found.end())
        message = following[1] if raises and following else ""
        line = text.count("\n", 0, found.start("code")) + 1
        blocks.append(Block(page, line, found["code"], mark == "continues", raises, message))
    return blocks


def table(page: str, name: str) -> list[list[str]]:
    """Return the rows of a table of the guide, without its heading; cells as they are written."""
    return rows_of((ROOT / "docs" / "guide" / page).read_text(), f"<!-- table: {name} -->")


def rows_of(text: str, mark: str) -> list[list[str]]:
    """Return the rows of the first table at or after *mark*, without its heading; cells as they are written."""
    lines = text[text.index(mark) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in rows][2:]


def bold_items(page: Path, heading: str) -> list[str]:
    """Return the bold beginnings of the list under a heading, in lower case, without a full stop."""
    section = page.read_text().partition(heading)[2].partition("\n#")[0]
    return [item.rstrip(".").lower() for item in re.findall(r"^- \*\*(.*?)\*\*", section, flags=re.MULTILINE)]


def code_in(cell: str) -> list[str]:
    """Return what a cell shows as code."""
    return re.findall(r"`([^`]*)`", cell)


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that a page's headings get."""
    headings = _HEADING.findall(_FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links_of(page: Path) -> list[tuple[Path, str]]:
    """Return the files that a page links to, itself too, each with the anchor, an empty one for none."""
    found = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)#?([^)\s]*)\)", _FENCED.sub("", page.read_text()))
    return [((page.parent / target).resolve() if target else page, anchor) for target, anchor in found]
