"""Asking before many records are changed, and showing how far that has come.

Called by `tasks retry`, `tasks discard` and `tasks purge`. The work is a tracked operation: it goes on where this
process does not live to see its end, and Ctrl-C cancels it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from celery_reactive.app import Reactive
from celery_reactive.cli.output import console_for, counted, redaction_for, to_json
from celery_reactive.core.record import RecordKey
from celery_reactive.management import operations, redacting
from celery_reactive.management.operations import Action, Operation
from celery_reactive.store.operations import OperationState

SAMPLE = 5
_VERBS = {Action.RETRY: "Retry", Action.DISCARD: "Discard", Action.PURGE: "Remove"}
_ENDED = {Action.RETRY: "retried", Action.DISCARD: "discarded", Action.PURGE: "removed"}


def ask(action: Action, number: int, sample: Sequence[RecordKey], *, limit: int | None = None) -> None:
    """Show how many records are meant, and some of them, and ask.

    Raises:
        Abort: The answer is no, or nobody answers.
    """
    for key in sample:
        click.echo(f"  {key}", err=True)
    if number > len(sample):
        click.echo(f"  … and {counted(number - len(sample), 'other')}", err=True)
    most = f", {limit:,} at most" if limit is not None and limit < number else ""
    click.confirm(f"{_VERBS[action]} {counted(number)}{most}?", abort=True, err=True)


def carry_out(
    ctx: click.Context,
    handle: Reactive,
    action: Action,
    asked: Mapping[str, Any],
    *,
    everything: bool = False,
    limit: int | None = None,
    background: bool = False,
    as_json: bool = False,
) -> None:
    """Run an operation and tell what came of it, or leave it to the leading planner.

    Raises:
        ClickException: It failed; what was changed by then stays changed.
        Abort: Ctrl-C: it was cancelled.
    """
    runtime = handle.runtime
    runner = None if background else operations.new_runner(runtime)
    begun = operations.start(runtime, action, asked, everything=everything, limit=limit, runner=runner)
    seen = begun if runner is None else _run(ctx, handle, begun, runner)
    ended = redacting.operation(seen, redaction_for(handle))
    if as_json:
        click.echo(to_json(ended))
    elif runner is None:
        click.echo(
            f"operation {ended.id} begun; the leading planner goes on with it, `operations show {ended.id}` tells"
        )
    else:
        click.echo(f"{counted(ended.changed)} {_ENDED[action]}")
    if ended.state is OperationState.FAILED:
        raise click.ClickException(f"operation {ended.id} failed: {ended.error}")
    if ended.state is OperationState.CANCELLED:
        raise click.ClickException(f"operation {ended.id} was cancelled")


def _run(ctx: click.Context, handle: Reactive, begun: Operation, runner: str) -> Operation:
    console = console_for(ctx)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(begun.action.value, total=begun.total)
        try:
            return operations.run(
                handle.runtime,
                begun.id,
                runner=runner,
                on_progress=lambda seen: progress.update(bar, completed=seen.looked),
            )
        except KeyboardInterrupt:
            operations.cancel(handle.runtime, begun.id)
            ended = operations.get(handle.runtime, begun.id)
            click.echo(f"cancelled after {counted(ended.changed)} {_ENDED[begun.action]}", err=True)
            raise click.Abort from None
