"""`plan`: what a deployment of this code would do, before it is one."""

from __future__ import annotations

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from celery_reactive.cli.output import console_for, json_option, plain_table, print_table, to_json, written
from celery_reactive.cli.project import TaskName, open_project
from celery_reactive.management import plan as planning
from celery_reactive.management.plan import PlanReport

_ROWS = {
    "create": "match and have no record",
    "rerun": "run again",
    "skip": "wait to run, and are skipped",
    "unchanged": "match, and nothing runs",
    "failing": "cannot be planned",
}


@click.command()
@click.argument("task", type=TaskName())
@click.option("--dry-run", is_flag=True, default=True, help="Write nothing; there is no other way to run this command.")
@json_option
@click.pass_context
def plan(ctx: click.Context, *, task: str, dry_run: bool, as_json: bool) -> None:  # noqa: ARG001 -- it always is
    """Count what a deployment of this code would create, run again and skip for TASK; nothing is written.

    It reads every document of the watched collection once.
    """
    runtime = open_project(ctx).runtime
    console = console_for(ctx)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=as_json or not console.is_terminal) as progress:
        bar = progress.add_task(task, total=None)
        report = planning.plan(
            runtime, task, on_progress=lambda done, total: progress.update(bar, completed=done, total=total)
        )
    if as_json:
        click.echo(to_json(report))
    else:
        _show(report, console)


def _show(report: PlanReport, console: Console) -> None:
    changed = (
        "is new" if report.is_new else f"changes {' and '.join(report.changes)}" if report.changes else "is as stored"
    )
    console.print(f"[bold]{escape(report.task)}[/] on {escape(report.namespace)} {changed}\n")
    table = plain_table()
    for column in ("documents", "", "for example"):
        table.add_column(column, justify="right" if column == "documents" else "left")
    for name, meaning in _ROWS.items():
        number = getattr(report, name)
        if number or name != "failing":
            examples = ", ".join(written(one) for one in report.samples.get(name, ()))
            table.add_row(f"{number:,}", meaning, escape(examples))
    print_table(console, table)
    console.print(f"\n{report.documents:,} documents looked at, nothing written")
    for note in report.notes:
        console.print(f"[yellow]Note[/]  {escape(note)}")
