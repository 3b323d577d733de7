"""`metrics`: the exposition once, or what is shipped for Grafana and Prometheus."""

from __future__ import annotations

import json

import click

from celery_reactive.cli.project import open_project
from celery_reactive.metrics import shipped


@click.command()
@click.option("--grafana", "what", flag_value="grafana", help="Print the Grafana board as JSON; needs no app.")
@click.option("--rules", "what", flag_value="rules", help="Print the alert rules for Prometheus; needs no app.")
@click.pass_context
def metrics(ctx: click.Context, what: str | None) -> None:
    """Print the metrics once, in Prometheus' text format.

    In `cluster` mode those of the whole system. For Prometheus give the planner a port: `planner --metrics-port`.
    """
    match what:
        case "grafana":
            click.echo(json.dumps(shipped.board(), indent=2))
        case "rules":
            click.echo(shipped.rules(), nl=False)
        case _:
            click.echo(open_project(ctx).metrics(), nl=False)
