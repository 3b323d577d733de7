"""`status` and `failures`: what the system is doing, for people, or as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

import click
from celery import Celery
from kombu.exceptions import OperationalError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

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
from celery_reactive.core.duration import format_duration
from celery_reactive.core.states import RecordState
from celery_reactive.core.task import DEFAULT_PRIORITY
from celery_reactive.management import redacting
from celery_reactive.management.reconciling import ReconciliationStatus
from celery_reactive.management.status import LeaderStatus, Status, TaskStatus, read_planning_failures, read_status
from celery_reactive.store.unplanned import Unplanned

_PING_SECONDS = 1.0
_CONNECT_SECONDS = 2.0


@click.command()
@json_option
@secrets_option
@click.option("--group", default="default", show_default=True, help="The planner group.")
@click.pass_context
def status(ctx: click.Context, *, as_json: bool, show_secrets: bool, group: str) -> None:
    """Show leader, lag, queues, workers and controls in force."""
    handle = open_project(ctx)
    seen = read_status(handle.runtime, group=group, workers=ping(handle.app))
    found = redacting.status(seen, redaction_for(handle, show_secrets=show_secrets))
    if as_json:
        click.echo(to_json(found))
    else:
        _show(found, console_for(ctx))


@click.command()
@json_option
@secrets_option
@click.option("--task", type=TaskName(), help="Only this task's.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 10_000), help="Show so many at most.")
@click.pass_context
def failures(ctx: click.Context, *, as_json: bool, show_secrets: bool, task: str | None, limit: int) -> None:
    """List the documents that could not be planned."""
    handle = open_project(ctx)
    redaction = redaction_for(handle, show_secrets=show_secrets)
    seen = read_planning_failures(handle.runtime, task=task, limit=limit)
    found = [redacting.failure(one, redaction) for one in seen]
    if as_json:
        click.echo(to_json(found))
    elif not found:
        click.echo("no planning failures")
    else:
        print_table(console_for(ctx), _failures_table(found))


def ping(app: Celery) -> tuple[str, ...] | None:
    """Return the names of the workers that answer within a second, None if the broker does not within a few."""
    limits = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), _CONNECT_SECONDS)
    connection = app.connection_for_write(
        connect_timeout=_CONNECT_SECONDS,
        transport_options={**(app.conf.broker_transport_options or {}), **limits},
    )
    try:
        with connection:
            connection.ensure_connection(max_retries=1, timeout=_CONNECT_SECONDS)
            replies = app.control.ping(timeout=_PING_SECONDS, connection=connection)
    except (OSError, OperationalError, *connection.connection_errors, *connection.channel_errors):
        return None
    return tuple(sorted(name for reply in replies for name in reply))


def _show(found: Status, console: Console) -> None:
    console.print(f"[bold]Leader[/]     {_leader_in_words(found.leader)}")
    for position in found.positions:
        console.print(f"[bold]Planned[/]    {escape(position.database)} up to {moment(position.planned_to)}", end="")
        console.print(f", {format_duration(_whole_seconds(position.lag))} ago")
    for one in found.reconciliations:
        console.print(f"[bold]Reconciles[/] {_reconciliation_in_words(one)}")
    console.print(f"[bold]Workers[/]    {_workers_in_words(found.workers)}")
    console.print(f"[bold]Failures[/]   {_failures_in_words(found.planning_failures)}\n")
    print_table(console, _tasks_table(found.tasks))
    if found.first_failures:
        console.print()
        print_table(console, _failures_table(found.first_failures))


def _leader_in_words(leader: LeaderStatus | None) -> str:
    if leader is None or leader.instance is None:
        return "[red]none[/]: start `celery-reactive -A … planner`"
    since = "" if leader.since is None else f", since {moment(leader.since)}"
    beat = "" if leader.heartbeat_age is None else f", heartbeat {leader.heartbeat_age.total_seconds():.1f} s ago"
    vanished = " [red](vanished: a stand-by takes over, if there is one)[/]" if leader.is_stale else ""
    return f"{escape(leader.instance)}, term {leader.term}{since}{beat}{vanished}"


def _reconciliation_in_words(one: ReconciliationStatus) -> str:
    left = "" if one.remaining is None else f", about {format_duration(one.remaining)} left"
    share = 100 * one.done // one.total if one.total else 100
    return f"{escape(one.namespace)}: {one.done:,} of {one.total:,} ({share} %), {one.per_second:,.0f}/s{left}"


def _workers_in_words(workers: tuple[str, ...] | None) -> str:
    if workers is None:
        return "[red]unknown[/]: the broker does not answer"
    return escape(", ".join(workers)) or "[red]none answers[/]: start `celery -A … worker`"


def _failures_in_words(count: int) -> str:
    return "none in planning" if count == 0 else f"[red]{count} documents could not be planned[/], see `failures`"


def _tasks_table(tasks: Iterable[TaskStatus]) -> Table:
    table = plain_table()
    table.add_column("task")
    table.add_column("collection")
    for state in RecordState:
        table.add_column(state.value.replace("_", "\n"), justify="right")
    table.add_column("oldest\nwait", justify="right")
    table.add_column("")
    for task in tasks:
        counts = [str(task.counts[state]) for state in RecordState]
        wait = "" if task.oldest_wait is None else format_duration(_whole_seconds(task.oldest_wait))
        table.add_row(escape(task.task), escape(task.namespace), *counts, wait, "; ".join(_remarks(task)))
    return table


def _remarks(task: TaskStatus) -> list[str]:
    remarks = []
    if task.paused:
        remarks.append("[yellow]paused[/]")
    if task.throttled_until is not None:
        remarks.append(f"[yellow]throttled until {moment(task.throttled_until)}[/]")
    remarks += _limits(task)
    if task.generation == 0:
        remarks.append("no planner has seen it yet")
    elif not task.is_reconciled:
        remarks.append("[yellow]being reconciled[/]")
    if task.differs:
        remarks.append("[yellow]the leader runs another definition[/]")
    return remarks


def _limits(task: TaskStatus) -> list[str]:
    """Return the limits there are, and whatever was set by hand."""
    words = {
        "priority": f"priority {task.priority}",
        "rate_limit": "no rate limit" if task.rate_limit is None else f"at most {task.rate_limit}",
        "max_concurrency": (
            "no limit at a time" if task.max_concurrency is None else f"at most {task.max_concurrency} at a time"
        ),
    }
    usual = {"priority": task.priority == DEFAULT_PRIORITY, "rate_limit": task.rate_limit is None}
    usual["max_concurrency"] = task.max_concurrency is None
    by_hand = [f"[yellow]{words[name]}, set by hand[/]" for name in task.set_by_hand]
    return [words[name] for name in words if not usual[name] and name not in task.set_by_hand] + by_hand


def _failures_table(found: Sequence[Unplanned]) -> Table:
    table = plain_table()
    for column in ("task", "document", "reason", "since", "tries", "error"):
        table.add_column(column, justify="right" if column == "tries" else "left")
    for one in found:
        table.add_row(
            escape(one.key.task),
            escape(written(one.key.doc_id)),
            one.reason.value,
            moment(one.since),
            str(one.tries),
            escape(visible(one.error)),
        )
    return table


def _whole_seconds(span: timedelta) -> timedelta:
    return timedelta(seconds=round(span.total_seconds()))
