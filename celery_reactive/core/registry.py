"""The reactive tasks of one app, by name."""

from __future__ import annotations

from collections.abc import Iterator

from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import ConfigurationError, UnknownTaskError


class Registry:
    """Definitions by the task's stable name, and the Celery task that runs each."""

    def __init__(self) -> None:
        self._tasks: dict[str, ReactiveTask] = {}
        self._celery_names: dict[str, str] = {}

    def add(self, task: ReactiveTask, *, celery_name: str) -> None:
        """Register *task*, run by the Celery task *celery_name*.

        Raises:
            ConfigurationError: Another Celery task carries the same name.
        """
        other = self._celery_names.get(task.name)
        if other is not None and other != celery_name:
            raise ConfigurationError(
                task.name,
                [f"expected a name of its own, got one that {other} has already; give one of them task=…"],
            )
        self._tasks[task.name] = task
        self._celery_names[task.name] = celery_name

    def get(self, name: str) -> ReactiveTask:
        """Return the task called *name*.

        Raises:
            UnknownTaskError: Lists the known ones.
        """
        try:
            return self._tasks[name]
        except KeyError:
            raise UnknownTaskError(name, list(self._tasks)) from None

    def celery_name(self, name: str) -> str:
        """Return the name of the Celery task that runs *name*."""
        return self._celery_names[self.get(name).name]

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[ReactiveTask]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)
