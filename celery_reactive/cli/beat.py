"""`beat …`: the entries of Celery's schedule, and sending one of them now (B-67)."""

from __future__ import annotations

import click
from click_didyoumean import DYMGroup
from rich.markup import escape

from celery_reactive.cli.output import console_for, json_option, moment, plain_table, print_table, to_json
from celery_reactive.cli.project import open_project
from celery_reactive.management.schedule import entries_of
from celery_reactive.planner.beat import scheduler_seen, send_now


@click.group("beat", cls=DYMGroup)
def beat() -> None:
    """See Celery's schedule, which `planner --beat` runs, and send an entry now."""


@beat.command("list")
@json_option
@click.pass_context
def list_(ctx: click.Context, *, as_json: bool) -> None:
    """List the entries with their last and next runs."""
    handle = open_project(ctx)
    entries = entries_of(scheduler_seen(handle.app, handle.runtime).schedule)
    if as_json:
        click.echo(to_json(entries))
    elif not entries:
        click.echo("no entries; set beat_schedule")
    else:
        table = plain_table()
        for column in ("entry", "task", "schedule", "last run", "runs", "due in"):
            table.add_column(column, justify="right" if column == "runs" else "left")
        for one in entries:
            last = "" if one.last_run_at is None else moment(one.last_run_at)
            cells = (escape(one.name), escape(one.task), escape(one.schedule), last, str(one.runs), str(one.due_in))
            table.add_row(*cells)
        print_table(console_for(ctx), table)


@beat.command()
@click.argument("name")
@click.pass_context
def trigger(ctx: click.Context, *, name: str) -> None:
    """Send the task of the entry NAME once, now; its schedule stays as it is."""
    handle = open_project(ctx)
    click.echo(f"{name} sent, id {send_now(handle.app, handle.runtime, name)}")
