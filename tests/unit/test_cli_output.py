"""Tables in a terminal of any width, and in a pipe."""

from __future__ import annotations

import io
from types import SimpleNamespace

import click
import pytest
from rich.console import Console

from celery_reactive.cli.output import console_for, plain_table, print_table

LONG = "502 Server Error: Bad Gateway for url: https://erp.example.com/api/v1/orders"


def printed(console: Console) -> list[str]:
    """Return the lines of a table of three columns on *console*, without what follows the last word of each."""
    table = plain_table()
    for column in ("task", "next\nrun", "last error"):
        table.add_column(column)
    table.add_row("sync", "2026-01-31 12:00:00 UTC", f"[red]{LONG}[/]")
    table.add_row("index", "", "")
    print_table(console, table)
    written = console.file
    assert isinstance(written, io.StringIO)
    return [line.rstrip() for line in written.getvalue().splitlines()]


def test_the_last_column_takes_what_the_others_leave() -> None:
    """Only it is folded."""
    assert printed(Console(file=io.StringIO(), width=72))[:3] == [
        "       next",
        "task   run                      last error",
        "sync   2026-01-31 12:00:00 UTC  502 Server Error: Bad Gateway for url:",
    ]


@pytest.mark.parametrize("width", [30, 55])
def test_in_a_narrow_terminal_each_row_is_a_block(width: int) -> None:
    """Nothing is cut; what is empty is left out."""
    lines = printed(Console(file=io.StringIO(), width=width))
    assert lines[0] == "task        sync"
    assert lines[-2:] == ["", "task  index"]
    assert all(len(line) <= width for line in lines)
    assert LONG.replace(" ", "") in "".join(lines).replace(" ", "")


def test_in_a_pipe_a_row_is_a_line_without_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    """For `grep` and its kind."""
    context = click.Context(click.Command("list"), obj=SimpleNamespace(no_color=False))
    console = console_for(context)
    console.file = io.StringIO()
    assert printed(console)[2] == f"sync   2026-01-31 12:00:00 UTC  {LONG}"
    assert capsys.readouterr().out == ""
