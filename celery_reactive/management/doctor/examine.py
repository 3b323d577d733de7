"""All checks in their order: what is wrong, what to do, and what could not be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from celery_reactive.errors import ReactiveError, StatementFailedError, StoreUnavailableError
from celery_reactive.management.doctor import broker, collections, processes, server, tasks
from celery_reactive.management.doctor.case import Case, CelerySide
from celery_reactive.management.doctor.finding import Ailment, Diagnosis, Finding, Severity, error
from celery_reactive.runtime import Runtime

WRONG_SETTINGS = error("wrong_settings", "correct the setting or the declaration; nothing starts before")

Check = Callable[[Case], Iterator[Finding]]

_OF_CELERY: tuple[Check, ...] = (broker.settings, broker.broker)
_OF_DATABASE: tuple[Check, ...] = (
    server.grants,
    server.writes,
    server.oplog,
    server.clock,
    collections.names,
    collections.watched,
    collections.records,
    collections.documents,
    tasks.declared,
    tasks.names,
    tasks.stored,
    tasks.failures,
    processes.planners,
    processes.positions,
    processes.workers,
    processes.deliveries,
    processes.versions,
    processes.room,
)
_ORDER = list(Severity)


def ailments() -> Mapping[str, Ailment]:
    """Return everything that can be found, by its code."""
    known = [
        thing
        for module in (server, collections, tasks, processes, broker)
        for thing in vars(module).values()
        if isinstance(thing, Ailment)
    ]
    return {ailment.code: ailment for ailment in (*known, WRONG_SETTINGS)}


def examine(runtime: Runtime, celery: CelerySide) -> Diagnosis:
    """Return what is probably wrong, the worst first. Never raises for what is wrong with the installation.

    Args:
        runtime: The app's parts.
        celery: What Celery and its broker say.
    """
    case = Case(runtime, celery)
    findings = [finding for check in _OF_CELERY for finding in check(case)]
    unfit = list(server.answers(case))
    unchecked: list[str] = []
    if unfit:
        findings += unfit
        unchecked.append("collections, tasks, planners and workers: MongoDB cannot be used")
    else:
        for check in _OF_DATABASE:
            try:
                findings += check(case)
            except (StoreUnavailableError, StatementFailedError) as failed:
                unchecked.append(f"{check.__module__.rpartition('.')[2]} ({check.__name__}): {str(failed)[:300]}")
    return Diagnosis(tuple(sorted(findings, key=lambda one: _ORDER.index(one.severity))), tuple(unchecked))


def refused(wrong: ReactiveError) -> Diagnosis:
    """Return the diagnosis for an app whose settings or declarations cannot be read."""
    problems = getattr(wrong, "problems", [str(wrong)])
    subject = str(getattr(wrong, "subject", "app"))
    found = tuple(WRONG_SETTINGS.on(subject, problem) for problem in problems)
    return Diagnosis(found, ("everything else: the app cannot be opened",))
