"""The page of figures: its tables and plots, made of what the benchmarks have found.

Called by `run.py` at its end; `python benchmarks/page.py` writes both anew, after a change of the page. What stands
between `<!-- measured NAME -->` and `<!-- end measured -->` in the page is made here, the rest is written by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import plots
from figures import Figure, Plot, Section, number

_ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results.json"
PAGE = _ROOT / "docs" / "guide" / "performance.md"
IMAGES = _ROOT / "docs" / "images"
_MEASURED = re.compile(r"<!-- measured (\w+) -->\n.*?<!-- end measured -->", re.DOTALL)


def write() -> None:
    """Write the tables into the page, and the plots beside it."""
    results = json.loads(RESULTS.read_text())
    PAGE.write_text(with_tables(PAGE.read_text(), results))
    for section in _sections(results).values():
        for plot in section.plots:
            (IMAGES / f"bench-{plot.name}.svg").write_text(plots.svg(plot))


def with_tables(text: str, results: dict[str, Any]) -> str:
    """Return the page's *text* with what was measured in its places."""
    sections = _sections(results)

    def measured(match: re.Match[str]) -> str:
        name = match[1]
        body = _machine(results["machine"]) if name == "machine" else _section(sections.get(name))
        return f"<!-- measured {name} -->\n{body}\n<!-- end measured -->"

    return _MEASURED.sub(measured, text)


def _sections(results: dict[str, Any]) -> dict[str, Section]:
    return {name: Section.from_json(stored) for name, stored in results["sections"].items()}


def _machine(facts: dict[str, str]) -> str:
    return "; ".join(f"{name} {value}" if name != "machine" else value for name, value in facts.items()) + "."


def _section(section: Section | None) -> str:
    if section is None:
        return "Not measured yet."
    images = [_image(plot) for plot in section.plots]
    return "\n\n".join(part for part in (_table(section.figures), section.note, *images) if part)


def _table(figures: list[Figure]) -> str:
    if not figures:
        return ""
    rows = [(one.what, f"{number(one.value)} {one.unit}".strip(), _ratio(one), one.goal) for one in figures]
    lines = ["| measured | figure | beside it, in the same run | goal |", "|---|---:|---:|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _ratio(figure: Figure) -> str:
    return "" if figure.ratio is None else f"{number(figure.ratio)} × {figure.beside}"


def _image(plot: Plot) -> str:
    return f"![{plot.title}](../images/bench-{plot.name}.svg)"


if __name__ == "__main__":
    write()
