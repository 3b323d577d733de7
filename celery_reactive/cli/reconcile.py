"""`reconcile`: have every document looked at again, and watch how far that has come."""

from __future__ import annotations

import threading

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from celery_reactive.cli.output import console_for
from celery_reactive.cli.project import TaskName, open_project
from celery_reactive.core.task import DEFAULT_GROUP
from celery_reactive.management import reconciling
from celery_reactive.runtime import Runtime

_LOOK_SECONDS = 0.5


@click.command()
@click.argument("tasks", nargs=-1, type=TaskName(), metavar="[TASK]...")
@click.option("--wait", is_flag=True, help="Wait until it is done.")
@click.option("--group", default=DEFAULT_GROUP, show_default=True, help="The planner group whose progress is shown.")
@click.pass_context
def reconcile(ctx: click.Context, *, tasks: tuple[str, ...], wait: bool, group: str) -> None:
    """Compare every document with its record, for the named tasks or for all.

    The leading planner does it, beside its other work; `status` shows how far it has come.
    """
    runtime = open_project(ctx).runtime
    reconciling.request(runtime, tasks)
    if not wait:
        click.echo("asked for; the leading planner does it")
        return
    click.echo(f"waiting for the leading planner to look at {', '.join(reconciling.waiting(runtime, tasks))}")
    console = console_for(ctx)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        _follow(runtime, tasks, group, progress)
    click.echo("done")


def _follow(runtime: Runtime, tasks: tuple[str, ...], group: str, progress: Progress) -> None:
    bars: dict[str, TaskID] = {}
    pause = threading.Event()
    while reconciling.waiting(runtime, tasks):
        for one in reconciling.under_way(runtime, group=group):
            if one.namespace not in bars:
                bars[one.namespace] = progress.add_task(one.namespace)
            progress.update(bars[one.namespace], completed=one.done, total=one.total)
        pause.wait(_LOOK_SECONDS)
