"""`cleanup` and `tasks purge`: remove records that nobody needs."""

from __future__ import annotations

from datetime import timedelta

import click
from click_didyoumean import DYMGroup

from celery_reactive.cli.project import TaskName, open_project
from celery_reactive.core.duration import parse_duration
from celery_reactive.errors import ConfigurationError
from celery_reactive.management.cleanup import count_purge


class _Duration(click.ParamType[timedelta]):
    """A length of time such as "7d"."""

    name = "duration"

    def convert(self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        try:
            return parse_duration(value, name=param.opts[-1] if param is not None else self.name)
        except ConfigurationError as error:
            self.fail("; ".join(error.problems), param, ctx)


@click.command()
@click.argument("tasks", nargs=-1, type=TaskName(), metavar="[TASK]...")
@click.pass_context
def cleanup(ctx: click.Context, tasks: tuple[str, ...]) -> None:
    """Remove orphaned records now, of all tasks or of those named."""
    removed = open_project(ctx).cleanup(*tasks)
    click.echo(f"{_counted(removed)} removed")


@click.group("tasks", cls=DYMGroup)
def tasks() -> None:
    """Look at records and change them."""


@tasks.command()
@click.argument("task", type=TaskName())
@click.option("--gone", is_flag=True, help="Records whose document was deleted.")
@click.option("--left", is_flag=True, help="Records whose document no longer matches the filter.")
@click.option("--older-than", type=_Duration(), help='Only what has not been updated or run for so long, as "7d".')
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def purge(ctx: click.Context, *, task: str, gone: bool, left: bool, older_than: timedelta | None, yes: bool) -> None:
    """Remove records of TASK, whatever its cleanup policy.

    With neither --gone nor --left, all records of a task that is no longer declared. Running ones stay.
    """
    handle = open_project(ctx)
    try:
        number = count_purge(handle.runtime, task, gone=gone, left=left, older_than=older_than)
    except ConfigurationError as error:
        raise click.UsageError(f"{task} is declared: say --gone or --left; its other records are in use") from error
    if number and not yes:
        click.confirm(f"Remove {_counted(number)} of {task}?", abort=True)
    removed = handle.purge(task, gone=gone, left=left, older_than=older_than)
    click.echo(f"{_counted(removed)} removed")


def _counted(number: int) -> str:
    return f"{number} record{'' if number == 1 else 's'}"
