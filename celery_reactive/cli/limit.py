"""`limit`: set limits and priority of a task by hand, for the whole cluster and at once."""

from __future__ import annotations

import click

from celery_reactive.cli.project import TaskName, open_project
from celery_reactive.management import controls

_DECLARED = "declared"


@click.command()
@click.argument("task", type=TaskName())
@click.option("--rate", help='Most starts in a period, as "100/m"; or "unlimited", or "declared".')
@click.option("--concurrency", help='Most runs at a time; or "unlimited", or "declared".')
@click.option("--priority", help='Of its messages, 0 to 9, 9 most urgent; or "declared".')
@click.pass_context
def limit(ctx: click.Context, *, task: str, rate: str | None, concurrency: str | None, priority: str | None) -> None:
    """Set limits and priority of TASK, instead of what is declared, until they are set again.

    "unlimited" lifts a declared limit, "declared" lets it count again; what is not named stays as it is.
    """
    given = {"rate": rate, "concurrency": _number(concurrency), "priority": _number(priority)}
    changes = {name: None if value == _DECLARED else value for name, value in given.items() if value is not None}
    in_force = controls.limit(open_project(ctx).runtime, task, changes)
    by_hand = {"rate": in_force.rate, "concurrency": in_force.concurrency, "priority": in_force.priority}
    said = ", ".join(f"{name} {_DECLARED if value is None else value}" for name, value in by_hand.items())
    click.echo(f"{task}: {said}")


def _number(text: str | None) -> int | str | None:
    """Return a number where one was typed; what else was typed is judged as in Python."""
    return int(text) if text is not None and text.isdecimal() and text.isascii() else text
