"""Tells which files in `changes/` would be overlooked at the next release, or read badly in the changelog.

Run by `make check`. Towncrier gathers the files; it passes over a name that it does not understand in silence.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHANGES = ROOT / "changes"
LONGEST_LINE = 120
_ITEM = re.compile(r"- \S")


def main(changes: Path = CHANGES) -> int:
    """Print what is wrong; 1 if anything is."""
    files = sorted(path for path in changes.iterdir() if path.name not in ("README.md", "template.md.jinja"))
    wrong = [f"{path.name}: {what}" for path in files for what in wrong_in(path)]
    print(f"changes since the last release: {len(files)} files")
    if wrong:
        print("\n".join(wrong), "see changes/README.md", sep="\n", file=sys.stderr)
    return 1 if wrong else 0


def wrong_in(path: Path) -> Iterator[str]:
    """Yield what is wrong with one file."""
    if not re.fullmatch(rf"\+[a-z0-9-]+\.(?:{'|'.join(kinds())})\.md", path.name):
        yield f"its name is not of the form +NAME.KIND.md, with one of {', '.join(kinds())} as KIND"
    text = path.read_text()
    items = [item for item in re.split(r"^(?=- )", text, flags=re.MULTILINE) if item.strip()]
    if not items:
        yield "it is empty"
    for item in items:
        first, *others = item.rstrip().splitlines()
        if not _ITEM.match(first) or any(line and not line.startswith("  ") for line in others):
            yield f"expected list items, each further line indented by two: {first!r}"
        elif not item.rstrip().endswith("."):
            yield f"an item is no whole sentence: {first!r}"
    if any(len(line) > LONGEST_LINE for line in text.splitlines()):
        yield f"a line is longer than {LONGEST_LINE} characters"


def kinds() -> list[str]:
    """Return the kinds of changes, as towncrier is configured."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    return [kind["directory"] for kind in settings["type"]]


if __name__ == "__main__":
    sys.exit(main())
