"""`operations …`: bulk work that goes on, or has ended within the last week."""

from __future__ import annotations

from collections.abc import Sequence

import click
from click_didyoumean import DYMGroup
from rich.markup import escape
from rich.table import Table

from celery_reactive.cli.output import (
    console_for,
    counted,
    json_option,
    moment,
    plain_table,
    print_table,
    redaction_for,
    secrets_option,
    to_json,
    visible,
    written,
)
from celery_reactive.cli.project import open_project
from celery_reactive.management import redacting
from celery_reactive.management.operations import Operation


@click.group("operations", cls=DYMGroup)
def operations() -> None:
    """See how far bulk retries, discards and purges have come, and cancel them."""


@operations.command("list")
@click.option("--running", is_flag=True, help="Only those that have not ended.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="Show so many at most.")
@json_option
@secrets_option
@click.pass_context
def list_(ctx: click.Context, *, running: bool, limit: int, as_json: bool, show_secrets: bool) -> None:
    """List operations, the newest first."""
    handle = open_project(ctx)
    redaction = redaction_for(handle, show_secrets=show_secrets)
    found = [redacting.operation(one, redaction) for one in handle.operations(running=running, limit=limit)]
    if as_json:
        click.echo(to_json(found))
    elif not found:
        click.echo("no operations")
    else:
        print_table(console_for(ctx), _table(found))


@operations.command()
@click.argument("operation", metavar="ID")
@json_option
@secrets_option
@click.pass_context
def show(ctx: click.Context, *, operation: str, as_json: bool, show_secrets: bool) -> None:
    """Show one operation."""
    handle = open_project(ctx)
    found = redacting.operation(handle.operation(operation), redaction_for(handle, show_secrets=show_secrets))
    if as_json:
        click.echo(to_json(found))
    else:
        print_table(console_for(ctx), _table([found]))
        if found.error:
            click.echo(f"\n{visible(found.error)}")


@operations.command()
@click.argument("operation", metavar="ID")
@click.pass_context
def cancel(ctx: click.Context, *, operation: str) -> None:
    """Stop an operation; what it has changed stays changed."""
    handle = open_project(ctx)
    if handle.cancel_operation(operation):
        click.echo(f"cancelled after {counted(handle.operation(operation).changed)}")
    else:
        click.echo(f"had ended already: {handle.operation(operation).state}")


def _table(found: Sequence[Operation]) -> Table:
    table = plain_table()
    for column in ("id", "action", "state", "looked at", "changed", "begun", "by", "of"):
        table.add_column(column, justify="right" if column in {"looked at", "changed"} else "left")
    for one in found:
        total = "" if one.total is None else f" of {one.total:,}"
        state = f"{one.state.value}, waits for a planner" if one.is_stalled else one.state.value
        table.add_row(
            one.id,
            one.action.value,
            state,
            f"{one.looked:,}{total}",
            f"{one.changed:,}",
            moment(one.created_at),
            escape(one.by or ""),
            escape(written(one.asked)),
        )
    return table
