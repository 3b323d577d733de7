"""`doctor`: what is probably wrong with an installation, and what to do about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import click
from rich.console import Console
from rich.markup import escape

from celery_reactive.cli.celery_side import read_celery_side
from celery_reactive.cli.guard import redact, urls_of
from celery_reactive.cli.output import console_for, counted, json_option, to_json
from celery_reactive.cli.project import open_project
from celery_reactive.errors import ConfigurationError
from celery_reactive.management.doctor.examine import examine, refused
from celery_reactive.management.doctor.finding import Diagnosis, Severity

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_SICK = 1


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, *, as_json: bool) -> None:
    """Check server, rights, collections, tasks, planners, workers and broker, and say what to do.

    Nothing is changed. The exit code is 1 where there is an error or a warning.
    """
    diagnosis = _examine(ctx)
    if as_json:
        click.echo(to_json(diagnosis))
    else:
        _show(diagnosis, console_for(ctx))
    if not diagnosis.is_healthy:
        ctx.exit(_SICK)


def _examine(ctx: click.Context) -> Diagnosis:
    try:
        handle = open_project(ctx)
        runtime = handle.runtime
    except ConfigurationError as wrong:
        return refused(wrong)
    return _without_secrets(examine(runtime, read_celery_side(handle)), urls_of(handle.app))


def _without_secrets(diagnosis: Diagnosis, urls: Sequence[str]) -> Diagnosis:
    """Return *diagnosis* without passwords: what does not answer is told in the words of its driver."""
    findings = tuple(
        dataclasses.replace(one, problem=redact(one.problem, urls), subject=redact(one.subject, urls))
        for one in diagnosis.findings
    )
    return Diagnosis(findings, tuple(redact(what, urls) for what in diagnosis.unchecked))


def _show(diagnosis: Diagnosis, console: Console) -> None:
    for finding in diagnosis.findings:
        colour = _COLOURS[finding.severity]
        head = f"[{colour}]{finding.severity}[/] [bold]{escape(finding.subject)}[/]"
        console.print(f"{head}: {escape(finding.problem)} ({finding.code})", soft_wrap=True)
        console.print(f"  → {escape(finding.remedy)}", soft_wrap=True)
    for what in diagnosis.unchecked:
        console.print(f"[dim]not checked: {escape(what)}[/]", soft_wrap=True)
    errors, warnings, notes = (
        sum(finding.severity is severity for finding in diagnosis.findings) for severity in Severity
    )
    if diagnosis.findings:
        console.print(f"\n{counted(errors, 'error')}, {counted(warnings, 'warning')}, {counted(notes, 'note')}")
    else:
        console.print("nothing is wrong")
