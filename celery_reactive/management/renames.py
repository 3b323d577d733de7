"""Tasks whose records are stored and that are not declared any more, and what they may be called now (B-2, B-4).

Called by `plan` and `doctor`. A task is renamed where its function moves and it has no `task=` of its own: under the
new name every document would run once more. That it is so is a guess, told with its reason, and nothing acts on it.
"""

from __future__ import annotations

import dataclasses

from celery_reactive.core.task import ReactiveTask
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, orphans, scans


@dataclasses.dataclass(frozen=True, slots=True)
class Undeclared:
    """A task that a planner has defined once, and that this code does not declare."""

    task: str
    namespace: str
    """`database.collection` it watched."""
    records: int


def undeclared(runtime: Runtime) -> list[Undeclared]:
    """Return the tasks that are stored and not declared, with their records.

    Raises:
        StoreUnavailableError: MongoDB does not answer.
    """
    declared = {task.name for task in runtime.registry}
    known = orphans.namespaces(runtime.connection.globals())
    found = []
    for name, namespace in sorted(known.items()):
        if name not in declared:
            database, _, collection = namespace.partition(".")
            target = runtime.connection.records(ReactiveTask(name=name, database=database, collection=collection))
            found.append(Undeclared(name, namespace, scans.count(target, name)))
    return found


def former_name(runtime: Runtime, task: ReactiveTask) -> Undeclared | None:
    """Return what a task that no planner has seen yet was probably called before; None: it looks new.

    It is one that watched the same collection and is gone from the code, and that had the same filter and projection,
    or whose name ends alike.

    Raises:
        StoreUnavailableError: MongoDB does not answer.
    """
    globals_ = runtime.connection.globals()
    if definitions.read(globals_, task.name).generation:
        return None
    here = [one for one in undeclared(runtime) if one.namespace == runtime.connection.namespace(task) and one.records]
    stored = definitions.read_all(globals_, [one.task for one in here])
    texts = definitions.definition_texts(task)
    for one in here:
        before = stored[one.task]
        if (before.filter_text, before.projection_text) == texts or _last(one.task) == _last(task.name):
            return one
    return None


def _last(name: str) -> str:
    return name.rpartition(".")[2]
