"""What a new version of a handler asks for: its records run again (B-44).

Called by `process` before reconciliation, in the same thread. Records are reset page by page, each once for a
version, whoever leads meanwhile; the version is stored after the last, so that a new leader goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any, assert_never

from celery_reactive.core.policies import OnHandlerVersionChange
from celery_reactive.core.states import RecordState
from celery_reactive.events import ReprocessingFinished
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, records, scans

logger = logging.getLogger(__name__)


class Evolver:
    """Compares the handlers' versions with the stored ones, for the leader of one term."""

    def __init__(self, runtime: Runtime, tasks: Sequence[PlannedTask], *, term: int, ended: threading.Event) -> None:
        self._runtime = runtime
        self._tasks = tuple(tasks)
        self._term = term
        self._ended = ended
        self._looked = False

    def evolve(self) -> bool:
        """Reset the records of handlers with a new version, once a term; return whether there were any.

        Raises:
            TermEndedError: A newer leader plans; it goes on.
            StoreUnavailableError: MongoDB is away; the next call goes on.
        """
        if self._looked:
            return False
        names = [task.definition.name for task in self._tasks]
        stored = definitions.read_all(self._runtime.connection.globals(), names)
        reset = sum(self._compare(task, stored[task.definition.name].handler_version) for task in self._tasks)
        self._looked = not self._ended.is_set()
        return reset > 0

    def _compare(self, task: PlannedTask, stored: int) -> int:
        name, version = task.definition.name, task.definition.evolution.handler_version
        if version < stored:
            logger.warning(
                "handler_version is lower than the one in force, nothing is reset for it",
                extra={"event": "handler_version_lower", "task": name, "version": version, "in_force": stored},
            )
        if version <= stored:
            return 0
        reset = self._reset(task, version)
        if not self._ended.is_set():
            definitions.store_handler_version(self._runtime.connection.globals(), name, version, term=self._term)
            self._runtime.emit(ReprocessingFinished(name, version, reset))
        return reset

    def _reset(self, task: PlannedTask, version: int) -> int:
        match task.definition.evolution.on_handler_version_change:
            case OnHandlerVersionChange.NONE:
                return 0
            case OnHandlerVersionChange.REPROCESS_FAILED:
                return self._reset_pages(task, version, frozenset({RecordState.FAILED}))
            case OnHandlerVersionChange.REPROCESS_ALL:
                return self._reset_pages(task, version, None)
            case policy:
                assert_never(policy)

    def _reset_pages(self, task: PlannedTask, version: int, only: frozenset[RecordState] | None) -> int:
        target, name = self._runtime.connection.records(task.definition), task.definition.name
        after: Any = scans.START
        reset = 0
        with self._runtime.connection.causal_session() as session:
            while not self._ended.is_set():
                span = scans.next_records(target, name, after, limit=self._runtime.settings.batch_size, session=session)
                if span is None:
                    break
                page = scans.record_ids_of(target, name, span, session=session)
                reset += records.reprocess(target, name, page, version=version, only=only)
                after = span.until
        return reset
