"""The tables of docs/evidence/celery.md, made from stored results.

`python -m tests.matrix.report` writes them; a test of the documentation finds a page that is out of date. Cells that
came to the same are one row, so that what a row does not name (brokers, acknowledgement, company) made no difference.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.matrix.outcomes import (
    NOT_PLAIN,
    Broker,
    Cell,
    Company,
    Outcome,
    Pool,
    Seen,
    Variant,
    arrows,
    excuse,
    findings,
    impossible,
    is_worse,
)

RESULTS = Path(__file__).with_name("results")
PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "celery.md"
SHOWN = "5.7"
"""The version of Celery whose results are shown in full; of the others the page tells the differences."""
HEADING = ["outcome", "record", "calls", "in the record after", "Flower", "a plain task", "compared"]
Cells = dict[Cell, Seen]


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(with_tables(PAGE.read_text()))


def with_tables(text: str) -> str:
    """Return the page's text with the tables as the results have them."""
    made = {"matrix": tables, "versions": versions, "open": open_findings}

    def fill(marker: re.Match[str]) -> str:
        return f"<!-- begin {marker[1]} -->\n{made[marker[1]]()}\n<!-- end {marker[1]} -->"

    return re.sub(r"<!-- begin (\w+) -->\n.*?<!-- end \1 -->", fill, text, flags=re.DOTALL)


# --- results -----------------------------------------------------------------------------------------


def stored_versions() -> list[str]:
    """Return the versions of Celery of which there are results, the one that is shown first."""
    found = sorted((path.stem.removeprefix("celery-") for path in RESULTS.glob("celery-*.json")), reverse=True)
    return sorted(found, key=lambda version: version != SHOWN)


def stored(version: str) -> tuple[dict[str, Any], Cells]:
    """Return the stored results of a version: what is said of them as a whole, and the cells."""
    result = json.loads((RESULTS / f"celery-{version}.json").read_text())
    return result, {_cell_of(row): _seen_of(row) for row in result["cells"]}


def _cell_of(row: dict[str, Any]) -> Cell:
    variant = Variant(Company(row["company"]), row["acks"])
    return Pool[row["pool"]], Broker[row["broker"]], Outcome[row["outcome"]], variant


def _seen_of(row: dict[str, Any]) -> Seen:
    fields = {name: row[name] for name in Seen.__dataclass_fields__ if name in row}
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Seen(**{**fields, **lists})


# --- tables ------------------------------------------------------------------------------------------


def tables() -> str:
    """Return a table for each pool."""
    _, cells = stored(SHOWN)
    return "\n\n".join(_table_of(pool, cells) for pool in Pool if any(cell[0] is pool for cell in cells))


def _table_of(pool: Pool, cells: Cells) -> str:
    rows = [row for outcome in Outcome for row in _rows_of(pool, outcome, cells)]
    lines = [HEADING, ["---"] * len(HEADING), *rows]
    return f"### {pool}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rows_of(pool: Pool, outcome: Outcome, cells: Cells) -> list[list[str]]:
    """Return a row for each way in which the outcome's records ended."""
    reason = impossible(pool, outcome)
    if reason is not None:
        return [[outcome, f"*{reason}*", *[""] * (len(HEADING) - 2)]]
    mine = {cell: seen for cell, seen in cells.items() if cell[0] is pool and cell[2] is outcome}
    reactive = {cell: seen for cell, seen in mine.items() if cell[3].company is not Company.PLAIN}
    groups: defaultdict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell, seen in reactive.items():
        groups[_record_of(seen), _calls_of(seen), arrows(seen.flower)].append(cell)
    rows = []
    for number, ((record, calls, flower), group) in enumerate(groups.items()):
        label = _label(group, reactive)
        rows.append(
            [
                outcome if number == 0 else "",
                f"{label}: {record}" if label else record,
                calls,
                _longest(reactive[cell].landed_seconds for cell in group),
                flower,
                _plain(outcome, mine) if number == 0 else "",
                _compared(group, mine),
            ]
        )
    return rows


def _record_of(seen: Seen) -> str:
    history = arrows(seen.history)
    return seen.status if history == seen.status else f"{seen.status} ({history})"


def _calls_of(seen: Seen) -> str:
    return f"{seen.calls}, **at the same time**" if seen.overlaps else str(seen.calls)


def _longest(seconds: Iterable[float | None]) -> str:
    known = [one for one in seconds if one is not None]
    return f"{max(known):.1f} s" if known else ""


def _plain(outcome: Outcome, cells: Cells) -> str:
    """Tell what became of the plain tasks."""
    if outcome in NOT_PLAIN:
        return f"*{NOT_PLAIN[outcome]}*"
    plain = {cell: seen for cell, seen in cells.items() if cell[3].company is Company.PLAIN}
    groups: defaultdict[str, list[Cell]] = defaultdict(list)
    for cell, seen in plain.items():
        ended = "done" if seen.done else "not done"
        groups[f"{ended}, {seen.calls} call{'s' * (seen.calls != 1)}, {arrows(seen.flower)}"].append(cell)
    told = []
    for text, group in groups.items():
        label = _label(group, plain)
        told.append(f"{label}: {text}" if label else text)
    return "; ".join(told)


def _compared(group: Sequence[Cell], cells: Cells) -> str:
    verdicts = set()
    for pool, broker, outcome, variant in group:
        plain = cells.get((pool, broker, outcome, Variant(Company.PLAIN, variant.acks)))
        seen = cells[pool, broker, outcome, variant]
        if plain is None:
            continue
        if is_worse(seen, plain):
            verdicts.add(f"**worse**: {excuse(pool, broker, outcome) or '?'}")
        elif (seen.done and not plain.done) or (_ends(seen.flower) and not _ends(plain.flower)):
            verdicts.add("better")
        else:
            verdicts.add("same")
    return "; ".join(sorted(verdicts))


def _ends(flower: Sequence[str]) -> bool:
    return bool(flower) and flower[-1] not in {"STARTED", "RECEIVED", "RETRY"}


def _label(group: Sequence[Cell], all_cells: Iterable[Cell]) -> str:
    """Say which cells a group is, by what it shares and the others have not; empty: it is all of them."""
    everything = set(all_cells)
    chosen = set(group)
    if chosen == everything:
        return ""
    axes = [lambda cell: cell[1].value, lambda cell: cell[3].company.value, lambda cell: f"acks {cell[3].acks}"]
    inside = [sorted({axis(cell) for cell in chosen}) for axis in axes]
    whole = [sorted({axis(cell) for cell in everything}) for axis in axes]
    is_product = len(chosen) == sum(
        1 for cell in everything if all(axis(cell) in part for axis, part in zip(axes, inside, strict=True))
    )
    if is_product:
        return ", ".join(" and ".join(part) for part, full in zip(inside, whole, strict=True) if part != full)
    names = sorted(
        ", ".join(axis(cell) for axis, full in zip(axes, whole, strict=True) if len(full) > 1) for cell in chosen
    )
    return "; ".join(names) if len(names) <= _MOST_NAMED else f"{len(chosen)} of {len(everything)} cells"


_MOST_NAMED = 3


def open_findings() -> str:
    """Return every record's cell that is not as expected, for all versions."""
    lines = []
    for version in stored_versions():
        _, cells = stored(version)
        lines += [f"- Celery {version} | {finding}" for finding in findings(cells)]
    return "\n".join(lines) or "None."


def versions() -> str:
    """Return what was played on each version, and what is different from the version that is shown."""
    _, shown = stored(SHOWN)
    lines = []
    for version in stored_versions():
        result, cells = stored(version)
        both = cells.keys() & shown.keys()
        different = sorted({_difference(cell, cells[cell], shown[cell]) for cell in both} - {""})
        lines.append(f"- Celery {result['celery']}: {len(cells)} cells in {result['took_seconds']} s.")
        lines += [f"    - {line}" for line in different]
    return "\n".join(lines)


def _difference(cell: Cell, other: Seen, shown: Seen) -> str:
    pool, _, outcome, variant = cell
    if variant.company is Company.PLAIN:
        return ""
    pairs = ((_record_of(other), _record_of(shown)), (arrows(other.flower), arrows(shown.flower)))
    parts = [f"{new} instead of {old}" for new, old in pairs if new != old]
    return f"{pool}, {outcome}, {variant.company}: {', '.join(parts)}" if parts else ""


if __name__ == "__main__":
    main()
