"""`pause`, `resume`, `throttle`, `trigger`: hold a task back, or run it for one document."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from celery_reactive.cli.filters import DocId, given_id
from celery_reactive.cli.output import moment
from celery_reactive.cli.project import TaskName, open_project
from celery_reactive.core.duration import parse_duration
from celery_reactive.core.record import RecordKey
from celery_reactive.errors import ConfigurationError


@click.command()
@click.argument("task", type=TaskName())
@click.pass_context
def pause(ctx: click.Context, task: str) -> None:
    """Start no run of TASK, anywhere, until it is resumed."""
    open_project(ctx).pause(task)
    click.echo(f"{task} is paused; runs under way go on")


@click.command()
@click.argument("task", type=TaskName())
@click.argument("doc_id", type=DocId(), required=False)
@click.pass_context
def resume(ctx: click.Context, task: str, doc_id: Any) -> None:
    """End the pause of TASK, and a throttle too.

    With a DOC_ID: let the record run again that the loop guard has paused, and leave the task as it is.
    """
    if doc_id is None:
        open_project(ctx).resume(task)
        click.echo(f"{task} is resumed")
        return
    key = RecordKey(task, given_id(doc_id))
    if not open_project(ctx).resume(task, key.doc_id):
        raise click.ClickException(f"{key} is not paused by the loop guard; `tasks explain` tells what it waits for")
    click.echo(f"{key} runs now")


@click.command()
@click.argument("task", type=TaskName())
@click.argument("delay", metavar="DURATION|TIME")
@click.pass_context
def throttle(ctx: click.Context, task: str, delay: str) -> None:
    """Start no run of TASK, anywhere, for a DURATION such as 15m, or until a TIME such as 2026-01-31T12:00Z.

    A longer throttle that is in force stays.
    """
    until = open_project(ctx).throttle(task, _delay(delay))
    click.echo(f"{task} is throttled until {moment(until)}")


@click.command()
@click.argument("task", type=TaskName())
@click.argument("doc_id", type=DocId())
@click.pass_context
def trigger(ctx: click.Context, task: str, doc_id: Any) -> None:
    """Run TASK for the document DOC_ID now; make its record if there is none and the document matches."""
    key = RecordKey(task, given_id(doc_id))
    if not open_project(ctx).trigger(task, key.doc_id):
        raise click.ClickException(f"{key}: no record, and no document that matches; `tasks explain` tells more")
    click.echo(f"{key} runs now")


def _delay(text: str) -> Any:
    """Return the time or the duration that was written."""
    try:
        return parse_duration(text, name="DURATION")
    except ConfigurationError as problem:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise click.UsageError("; ".join(problem.problems)) from problem
    if when.tzinfo is None:
        raise click.UsageError(f"expected a time with its zone, as {text}Z, got {text}")
    return when
