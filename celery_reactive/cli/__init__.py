"""The command line: `celery-reactive …` and `celery -A proj reactive …` are the same commands.

`main` is the console script, `reactive` the entry point of Celery's own command. A command opens the project
(`project`), calls the layer below and prints; it decides nothing. `celery.bin.celery` must not be imported at
the top of this package: that module imports this one while it loads its plug-ins.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import click

from celery_reactive.cli import project
from celery_reactive.cli.beat import beat
from celery_reactive.cli.cleanup import cleanup
from celery_reactive.cli.controls import pause, resume, throttle, trigger
from celery_reactive.cli.dashboard import dashboard
from celery_reactive.cli.demo.command import demo
from celery_reactive.cli.doctor import doctor
from celery_reactive.cli.guard import GuardedGroup, traceback_option
from celery_reactive.cli.limit import limit
from celery_reactive.cli.metrics import metrics
from celery_reactive.cli.operations import operations
from celery_reactive.cli.plan import plan
from celery_reactive.cli.planner import planner
from celery_reactive.cli.reconcile import reconcile
from celery_reactive.cli.schemas import schema
from celery_reactive.cli.status import failures, status
from celery_reactive.cli.tasks import tasks

__all__ = ["main", "reactive"]


@click.group(cls=GuardedGroup)
@traceback_option
def reactive(**_options: Any) -> None:
    """Celery tasks that run when MongoDB documents change."""


for _command in (
    planner,
    status,
    doctor,
    failures,
    limit,
    plan,
    reconcile,
    tasks,
    cleanup,
    metrics,
    dashboard,
    demo,
    pause,
    resume,
    throttle,
    trigger,
    operations,
    beat,
    schema,
):
    reactive.add_command(_command)


_CELERYS_OPTIONS = {
    "app": "Where the Celery app is: `proj`, or `proj.celery_app:app`.",
    "broker": "URL of the broker, instead of the app's.",
    "result_backend": "URL of the result backend, instead of the app's.",
    "loader": "Celery's loader, instead of the app's.",
    "config": "Module with the app's configuration.",
    "workdir": "Folder to change to first.",
    "no_color": "Write without colours.",
    "quiet": "Write less.",
}
"""What Celery's own options mean; it says so in a page of its own only."""


def main() -> None:
    """Run `celery-reactive`, with Celery's own global options; the app may also come from CELERY_APP."""
    sys.exit(_standalone().main(prog_name="celery-reactive", auto_envvar_prefix="CELERY"))


def _explained(param: click.Parameter) -> click.Parameter:
    """Return a copy of an option of Celery's with a meaning, if it has none."""
    explained = copy.copy(param)
    if isinstance(explained, click.Option) and explained.help is None:
        explained.help = _CELERYS_OPTIONS.get(explained.name or "")
    return explained


def _standalone() -> click.Group:
    from celery.bin.celery import celery as base  # noqa: PLC0415 -- imports this package

    def start(app: str | None, **options: Any) -> None:
        options.pop("traceback")
        project.export(options)
        base.callback(app=None if app is None else project.load_app(app), version=False, **options)

    group = GuardedGroup(
        name="celery-reactive",
        help=reactive.help,
        callback=start,
        params=[_explained(param) for param in base.params if param.name != "version"],
        commands=reactive.commands,
        invoke_without_command=True,
    )
    group = traceback_option(group)
    return click.version_option(package_name="celery-reactive", prog_name="celery-reactive")(group)
