"""`cleanup`: remove records that nobody needs."""

from __future__ import annotations

import click

from celery_reactive.cli.output import counted
from celery_reactive.cli.project import TaskName, open_project


@click.command()
@click.argument("tasks", nargs=-1, type=TaskName(), metavar="[TASK]...")
@click.pass_context
def cleanup(ctx: click.Context, tasks: tuple[str, ...]) -> None:
    """Remove orphaned records now, of all tasks or of those named."""
    removed = open_project(ctx).cleanup(*tasks)
    click.echo(f"{counted(removed)} removed")
