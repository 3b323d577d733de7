"""The declared tasks beside those that are stored: names, definitions, what is held back, what could not be planned."""

from __future__ import annotations

from collections.abc import Iterator

from celery_reactive.errors import ConfigurationError
from celery_reactive.management.doctor.case import Case
from celery_reactive.management.doctor.finding import Finding, error, note, warning
from celery_reactive.management.renames import former_name
from celery_reactive.store import definitions, examination, queries, server

NO_TASK = error("no_task", "declare one with @reactive_task, in a module that the app imports (include=, autodiscover)")
DEFINITION_REFUSED = error("definition_refused", "correct filter or watch_projection as the server says")
RENAMED_TASK = warning("renamed_task", "declare it with task= and its former name, or every document runs once more")
UNDECLARED_RECORDS = note(
    "undeclared_records", "`tasks purge TASK` removes them; leave them if the task comes back, or another version runs"
)
OTHER_APP = warning(
    "other_app", "give each app a reactive_globals_collection of its own; two versions of one app are no fault"
)
OTHER_DEFINITION = warning(
    "other_definition", "restart the planners with this code, or deploy theirs here: the leader's definition counts"
)
PLANNING_FAILURES = warning("planning_failures", "`failures` lists them; correct the documents, or the definition")
HELD_BACK = note("held_back", "`resume TASK` ends it")


def declared(case: Case) -> Iterator[Finding]:
    """Whether there is any, and whether the server can compile it."""
    if not case.tasks:
        yield NO_TASK.on("app", "no reactive task is declared")
    for task in case.tasks:
        try:
            server.check_definition(case.runtime.connection.source(task), task)
        except ConfigurationError as refused:
            yield DEFINITION_REFUSED.on(task.name, refused.problems[0])


def names(case: Case) -> Iterator[Finding]:
    """Whether stored tasks are still there, under their names."""
    renamed = {}
    for task in case.tasks:
        former = former_name(case.runtime, task)
        if former is not None:
            renamed[former.task] = task.name
            problem = f"it looks like {former.task!r} under another name, whose {former.records:,} records would stay"
            yield RENAMED_TASK.on(task.name, problem)
    foreign = _of_another_app(case)
    for task_name in foreign:
        yield OTHER_APP.on(task_name, "the leading planner defines it, and this code does not declare it")
    for one in case.undeclared:
        if one.task not in renamed and one.task not in foreign and one.records:
            problem = f"it is not declared any more, and has {one.records:,} records of {one.namespace}"
            yield UNDECLARED_RECORDS.on(one.task, problem)


def _of_another_app(case: Case) -> list[str]:
    """Return the tasks that a leading planner has defined in its present term, and that this code does not declare."""
    globals_ = case.runtime.connection.globals()
    placed = examination.defined_in(globals_)
    leaders = {group: queries.leading(globals_, group) for group, _ in placed.values()}
    terms = {group: lock.term for group, lock in leaders.items() if lock is not None and lock.holder is not None}
    return [one.task for one in case.undeclared if placed.get(one.task, ("", -1))[1] == terms.get(placed[one.task][0])]


def stored(case: Case) -> Iterator[Finding]:
    """Whether the leader runs this code, and whether tasks are held back."""
    for task in case.tasks:
        controls = case.controls[task.name]
        texts = (controls.filter_text, controls.projection_text)
        if controls.generation and texts != definitions.definition_texts(task):
            yield OTHER_DEFINITION.on(task.name, "its filter or projection is not the stored one")
        if controls.paused:
            yield HELD_BACK.on(task.name, "it is paused")
        elif controls.is_throttled:
            yield HELD_BACK.on(task.name, f"it is throttled until {controls.throttled_until:%Y-%m-%d %H:%M:%S} UTC")


def failures(case: Case) -> Iterator[Finding]:
    """Whether documents could not be planned."""
    for task in case.tasks:
        number = queries.count_unplanned(case.runtime.connection.globals(), task=task.name)
        if number:
            yield PLANNING_FAILURES.on(task.name, f"{number:,} documents could not be planned, or wait for a lock")
