"""`tasks …`: look at records, explain them, change them by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import click
from click_didyoumean import DYMGroup
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from celery_reactive.app import Reactive
from celery_reactive.cli import bulk
from celery_reactive.cli.filters import DocId, filter_options, given_id
from celery_reactive.cli.output import (
    console_for,
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
from celery_reactive.cli.project import TaskName, open_project
from celery_reactive.core.doc_id import other_reading
from celery_reactive.core.duration import parse_duration
from celery_reactive.core.record import RecordKey
from celery_reactive.core.states import RecordState
from celery_reactive.errors import ArgumentError, ConfigurationError
from celery_reactive.management import redacting
from celery_reactive.management.cleanup import count_purge, purge_sample
from celery_reactive.management.listing import MAX_LIMIT, MAX_SKIP, SORTABLE, Page, TaskRecord
from celery_reactive.management.operations import Action

_COLOURS = {
    RecordState.PENDING: "cyan",
    RecordState.PROCESSING: "blue",
    RecordState.PROCESSING_DIRTY: "blue",
    RecordState.COMPLETED: "green",
    RecordState.FAILED: "red",
}
_LONGEST_ERROR = 80

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
background_option = click.option(
    "--background", is_flag=True, help="Leave it to the leading planner, and return at once."
)
_BULK = (
    filter_options,
    click.option("--all", "everything", is_flag=True, help="All records of all tasks, where no filter is given."),
    click.option("--limit", type=click.IntRange(1), help="Change so many at most."),
    yes_option,
    background_option,
    json_option,
)


def _of_many_records(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the options of a change of many records."""
    return functools.reduce(lambda inner, option: option(inner), reversed(_BULK), command)


class Length(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.2
    """A length of time such as "7d"."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the length that was written."""
        try:
            return parse_duration(value, name=param.opts[-1] if param is not None else self.name)
        except ConfigurationError as error:
            self.fail("; ".join(error.problems), param, ctx)


def _sortable(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the fields that begin so, for the shell."""
    return [field for field in SORTABLE if field.startswith(incomplete)]


@click.group("tasks", cls=DYMGroup)
def tasks() -> None:
    """Look at records and change them."""


@tasks.command("list")
@filter_options
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, MAX_LIMIT), help="Show so many at most.")
@click.option("--skip", default=0, type=click.IntRange(0, MAX_SKIP), help="Pass over so many.")
@click.option("--after", help="Go on after the page whose `next` this is.")
@click.option(
    "--sort",
    default="nextRunAt",
    show_default=True,
    shell_complete=_sortable,
    help="Field to sort by; -field for descending.",
)
@json_option
@secrets_option
@click.pass_context
def list_(
    ctx: click.Context,
    *,
    chosen: dict[str, Any],
    limit: int,
    skip: int,
    after: str | None,
    sort: str,
    as_json: bool,
    show_secrets: bool,
) -> None:
    """List records."""
    handle = open_project(ctx)
    order = (sort.removeprefix("-"), -1 if sort.startswith("-") else 1)
    found = handle.get_tasks(limit=limit, skip=skip, after=after, sort=order, **chosen)
    page = redacting.page(found, redaction_for(handle, show_secrets=show_secrets))
    if as_json:
        click.echo(to_json(page))
    else:
        _show_page(page, console_for(ctx))


@tasks.command()
@click.argument("task", type=TaskName())
@click.argument("doc_id", type=DocId())
@json_option
@secrets_option
@click.pass_context
def show(ctx: click.Context, *, task: str, doc_id: Any, as_json: bool, show_secrets: bool) -> None:
    """Show everything that is stored of TASK for the document DOC_ID."""
    handle, wanted = open_project(ctx), given_id(doc_id)
    page = handle.get_tasks(task=task, doc_id=wanted, limit=1)
    if not page.items:
        raise click.ClickException(f"no record of {RecordKey(task, wanted)}{_hint(wanted)}")
    record = redacting.record(page.items[0], redaction_for(handle, show_secrets=show_secrets))
    if as_json:
        click.echo(to_json(record))
    else:
        _show_record(record, console_for(ctx))


@tasks.command()
@filter_options
@json_option
@click.pass_context
def count(ctx: click.Context, *, chosen: dict[str, Any], as_json: bool) -> None:
    """Count records."""
    number = open_project(ctx).count_tasks(**chosen)
    click.echo(to_json({"count": number}) if as_json else str(number))


@tasks.command()
@click.argument("task", type=TaskName())
@click.argument("doc_id", type=DocId())
@json_option
@secrets_option
@click.pass_context
def explain(ctx: click.Context, *, task: str, doc_id: Any, as_json: bool, show_secrets: bool) -> None:
    """Tell why TASK ran, will run or will not for the document DOC_ID."""
    handle, wanted = open_project(ctx), given_id(doc_id)
    found = redacting.explanation(handle.explain(task, wanted), redaction_for(handle, show_secrets=show_secrets))
    if as_json:
        click.echo(to_json(found))
        return
    click.echo(visible(str(found)))
    if found.record is None and not found.document_exists:
        click.echo(_hint(wanted).removeprefix("; "))


@tasks.command()
@_of_many_records
@click.pass_context
def retry(ctx: click.Context, /, **options: Any) -> None:
    """Make records pending now; running ones run again after."""
    _change(ctx, Action.RETRY, **options)


@tasks.command()
@_of_many_records
@click.pass_context
def discard(ctx: click.Context, /, **options: Any) -> None:
    """End pending and failed records without a run."""
    _change(ctx, Action.DISCARD, **options)


@tasks.command()
@click.argument("task", type=TaskName())
@click.option("--gone", is_flag=True, help="Records whose document was deleted.")
@click.option("--left", is_flag=True, help="Records whose document no longer matches the filter.")
@click.option("--older-than", type=Length(), help='Only what has not been updated or run for so long, as "7d".')
@yes_option
@background_option
@json_option
@click.pass_context
def purge(ctx: click.Context, /, *, task: str, yes: bool, background: bool, as_json: bool, **which: Any) -> None:
    """Remove records of TASK, whatever its cleanup policy.

    With neither --gone nor --left, all records of a task that is no longer declared. Running ones stay.
    """
    handle = open_project(ctx)
    try:
        number = count_purge(handle.runtime, task, **which)
    except ArgumentError as error:
        raise click.UsageError(f"{task} is declared: say --gone or --left; its other records are in use") from error
    if number and not yes:
        sample = [RecordKey(task, doc_id) for doc_id in purge_sample(handle.runtime, task, limit=bulk.SAMPLE, **which)]
        bulk.ask(Action.PURGE, number, sample)
    asked = {"task": task, **which}
    bulk.carry_out(ctx, handle, Action.PURGE, asked, background=background, as_json=as_json)


def _change(
    ctx: click.Context,
    action: Action,
    *,
    chosen: dict[str, Any],
    everything: bool,
    limit: int | None,
    yes: bool,
    background: bool,
    as_json: bool,
) -> None:
    handle = open_project(ctx)
    if not chosen and not everything:
        raise click.UsageError(f"expected a filter, or --all to {action.value} every record of every task")
    meant = _changeable(action, chosen)
    number = 0 if meant is None else handle.count_tasks(**meant)
    if number and not yes:
        bulk.ask(action, number, _sample(handle, meant or {}), limit=limit)
    bulk.carry_out(
        ctx, handle, action, chosen, everything=everything, limit=limit, background=background, as_json=as_json
    )


def _changeable(action: Action, chosen: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the filters for what *action* would change, to count it; None: nothing of what is chosen."""
    if action is Action.RETRY:
        return dict(chosen)
    states = {RecordState.PENDING.value, RecordState.FAILED.value} & set(chosen.get("status") or RecordState)
    return {**chosen, "status": sorted(states)} if states else None


def _sample(handle: Reactive, chosen: Mapping[str, Any]) -> Sequence[RecordKey]:
    return [record.key for record in handle.get_tasks(limit=bulk.SAMPLE, **chosen).items]


def _hint(doc_id: object) -> str:
    other = other_reading(doc_id)
    return "" if other is None else f"; for the string write '{other}'"


# --- showing ----------------------------------------------------------------------------------------


def _show_page(page: Page, console: Console) -> None:
    if not page.items:
        console.print("no records")
        return
    print_table(console, _table(page))
    first = page.skip + 1
    console.print(f"\n{first:,}-{page.skip + len(page.items):,} of {page.total:,}")
    if page.next is not None:
        console.print(f"go on with --after {page.next}", soft_wrap=True)


def _table(page: Page) -> Table:
    table = plain_table()
    for column in ("task", "document", "status", "attempts", "next run", "changed", "last error"):
        table.add_column(column, justify="right" if column == "attempts" else "left")
    for record in page.items:
        table.add_row(
            escape(record.task),
            escape(written(record.source_doc_id)),
            f"[{_COLOURS[record.status]}]{record.status}[/]",
            str(record.attempts),
            "" if record.next_run_at is None else moment(record.next_run_at),
            moment(record.updated_at),
            escape(_shortened(record.last_error)),
        )
    return table


def _shortened(error: str | None) -> str:
    text = visible(" ".join((error or "").split()))
    return text if len(text) <= _LONGEST_ERROR else f"{text[: _LONGEST_ERROR - 1]}…"


def _show_record(record: TaskRecord, console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(record):
        table.add_row(name, escape(visible(value)))
    console.print(table)
    if record.execution_history:
        console.print("\n[bold]History[/], the oldest first")
        print_table(console, _history(record))
    if record.last_error_traceback:
        console.print("\n[bold]Traceback[/]")
        console.print(escape(visible(record.last_error_traceback)), soft_wrap=True)


def _facts(record: TaskRecord) -> list[tuple[str, str]]:
    flags = [name for name in ("gone", "left", "guarded") if getattr(record, name)]
    times = {
        "next run": record.next_run_at,
        "due": record.due_at,
        "created": record.created_at,
        "changed": record.updated_at,
        "started": record.started_at,
        "completed": record.completed_at,
        "first error": record.first_error_at,
    }
    return [
        ("task", record.task),
        ("document", f"{written(record.source_doc_id)} of {record.collection}"),
        ("status", " ".join([record.status.value, *flags])),
        ("attempts", str(record.attempts)),
        *((name, moment(when)) for name, when in times.items() if when is not None),
        ("watched values", written(record.last_observed_values)),
        *([("last error", f"{record.last_error_type or 'error'}: {record.last_error}")] if record.last_error else []),
    ]


def _history(record: TaskRecord) -> Table:
    table = plain_table()
    for column in ("at", "status", "took", "why"):
        table.add_column(column, justify="right" if column == "took" else "left")
    for entry in record.execution_history:
        took = entry.get("durationMs")
        why = entry.get("error") or entry.get("reason") or ""
        table.add_row(
            moment(entry["at"]), entry["status"], "" if took is None else f"{took:,.0f} ms", escape(visible(why))
        )
    return table
