"""`docs/llms.txt`: what there is to read, a line for each page, for programs that look for the right one.

`python -m tests.docs.llms` writes it, from the lists in the index of the site and in the guide's; `test_site.py` finds
it out of date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.docs.pages import ROOT

DOCS = ROOT / "docs"
FILE = DOCS / "llms.txt"
INDEX = DOCS / "index.md"
GUIDE = DOCS / "guide" / "README.md"
_ENTRY = re.compile(r"^(?:-|\d+\.) \[([^\]]+)\]\(([^)#\s]+\.md)\): (.+)$", re.MULTILINE)


def main() -> None:
    """Write the file."""
    FILE.write_text(text())


def text() -> str:
    """Return the file as the lists have it now."""
    title, _, rest = INDEX.read_text().partition("\n\n")
    summary = " ".join(rest.partition("\n\n")[0].split())
    sections = [f"## {name}\n\n" + "\n".join(lines) for name, lines in listed().items()]
    return "\n\n".join([title, f"> {summary}", *sections]) + "\n"


def listed() -> dict[str, list[str]]:
    """Return the lines of each section; the guide's pages after those to start with."""
    sections: dict[str, list[str]] = {}
    for section in re.split(r"^## ", INDEX.read_text(), flags=re.MULTILINE)[1:]:
        name, _, entries = section.partition("\n")
        sections[name] = list(lines_of(entries, INDEX))
        if not sections.get("Guide"):
            sections["Guide"] = list(lines_of(GUIDE.read_text(), GUIDE))
    return sections


def lines_of(entries: str, page: Path) -> Iterator[str]:
    """Yield a line for each page in a list of *page*; paths count from the folder of the site."""
    for title, target, line in _ENTRY.findall(entries):
        path = (page.parent / target).resolve().relative_to(DOCS)
        yield f"- [{title}]({path}): {line}"


if __name__ == "__main__":
    main()
