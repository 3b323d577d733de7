"""How commands print: tables for people, JSON for programs (`docs/guide/cli-json.md`).

Called by the commands. In a terminal output has colours and fits, however narrow that is; in a pipe it is plain text,
and no column is cut.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.table import Column, Table

from celery_reactive.app import Reactive
from celery_reactive.core.record import RecordKey, id_to_text
from celery_reactive.core.redaction import Redaction, Unredacted

_PLAIN_WIDTH = 1000
"""In a pipe every row of a table is one line."""
_LEAST_LAST = 24
"""Characters that a table's last column needs, which takes what the others leave."""
_GAP = 2
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys rather than shows: control characters but for newline and tab, and turns of direction."""

VERBATIM = frozenset({"doc_id", "source_doc_id", "last_observed_values", "asked", "samples"})
"""Fields that hold a user's values, of any BSON type: shown as relaxed extended JSON, which keeps the types apart."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
secrets_option = click.option(
    "--show-secrets", is_flag=True, help="Show what is masked otherwise: values of fields such as password and token."
)


def redaction_for(handle: Reactive, *, show_secrets: bool = False) -> Redaction:
    """Return what masks the user's secrets in what is printed; nothing is masked where *show_secrets* is asked for."""
    return Unredacted() if show_secrets else Redaction(handle.runtime.settings.redact)


def console_for(ctx: click.Context) -> Console:
    """Return a console that obeys Celery's `-C`, and does not cut columns where nobody looks at a terminal."""
    console = Console(no_color=True if ctx.obj.no_color else None, highlight=False)
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH, highlight=False)


def to_json(value: object) -> str:
    """Return *value*, made of this package's dataclasses, as JSON: times in ISO 8601, durations in seconds."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False)


def _plain(value: object) -> Any:
    match value:
        case RecordKey():
            return {"task": value.task, "doc_id": _verbatim(value.doc_id)}
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case dict():
            return {str(key): _plain(each) for key, each in value.items()}
        case tuple() | list():
            return [_plain(each) for each in value]
        case str() | int() | float() | None:
            return value
        case _ if dataclasses.is_dataclass(value):
            return {field.name: _field(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return str(value)


def _field(name: str, value: object) -> Any:
    return _verbatim(value) if name in VERBATIM else _plain(value)


def _verbatim(value: object) -> Any:
    return json.loads(id_to_text(value))


def written(value: object) -> str:
    """Return a value of the user's as people write it: relaxed extended JSON in their own letters."""
    return visible(json.dumps(_verbatim(value), ensure_ascii=False))


def visible(text: str) -> str:
    """Return *text* with what would command a terminal as escapes: an error may quote what anybody has stored."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def moment(when: datetime) -> str:
    """Return a time as people read it."""
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def plain_table() -> Table:
    """Return an empty table without lines."""
    return Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")


def print_table(console: Console, table: Table) -> None:
    """Print *table*; where the terminal has no room for its columns, each row as lines of a name and a value."""
    *firm, last = table.columns
    for column in firm:
        column.no_wrap = True
    needed = sum(_width(console, column) + _GAP for column in firm) + min(_width(console, last), _LEAST_LAST)
    if needed <= console.width:
        console.print(table)
        return
    names = [" ".join(str(column.header).split()) for column in table.columns]
    for number, row in enumerate(zip(*(column.cells for column in table.columns), strict=True)):
        if number:
            console.print()
        console.print(_block(names, row))


def _block(names: Sequence[str], row: Sequence[RenderableType]) -> Table:
    block = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
    block.add_column(style="bold", no_wrap=True)
    block.add_column(overflow="fold")
    for name, value in zip(names, row, strict=True):
        if value:
            block.add_row(name, value)
    return block


def _width(console: Console, column: Column) -> int:
    """Return how many characters the widest cell of *column* has."""
    return max(console.measure(cell).maximum for cell in (column.header, *column.cells))


def counted(number: int, what: str = "record") -> str:
    """Return "1 record", "2 records"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
