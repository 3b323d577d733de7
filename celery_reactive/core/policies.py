"""What becomes of records nobody needs, and of all records when a definition changes (B-41, B-43, B-44).

Made by users, as typed objects or as dicts in either spelling; read by the planner. Only values: what is done about
them is decided elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
from datetime import timedelta
from enum import StrEnum
from typing import Self

from celery_reactive.core.duration import Duration
from celery_reactive.core.options import Options, read_boolean, read_choice, read_integer

_DEFAULT_KEEP_FOR = timedelta(hours=24)


class DeleteWhen(StrEnum):
    """Which records are orphans; also accepted in mongodash's camelCase."""

    SOURCE_DOCUMENT_DELETED = "source_document_deleted"
    SOURCE_DOCUMENT_DELETED_OR_NO_LONGER_MATCHING = "source_document_deleted_or_no_longer_matching"
    NEVER = "never"


class OnHandlerVersionChange(StrEnum):
    """Which records run again when a handler's version has risen."""

    NONE = "none"
    REPROCESS_FAILED = "reprocess_failed"
    REPROCESS_ALL = "reprocess_all"


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class CleanupPolicy:
    """When the record of a document goes (B-41).

    Attributes:
        delete_when: What makes a record an orphan.
        keep_for: How long an orphan stays after its last update or run; zero: it goes at once.
    """

    delete_when: DeleteWhen
    keep_for: timedelta

    def __init__(
        self,
        *,
        delete_when: DeleteWhen | str = DeleteWhen.SOURCE_DOCUMENT_DELETED,
        keep_for: Duration = _DEFAULT_KEEP_FOR,
    ) -> None:
        """Make the policy.

        Raises:
            ConfigurationError: A value is wrong; both are looked at.
        """
        self._read({"delete_when": delete_when, "keep_for": keep_for})

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Return the policy that *raw* means: a policy, a dict, or None for the default.

        Raises:
            ConfigurationError: An option is unknown or wrong; all such are listed.
        """
        if raw is None:
            return cls()
        if isinstance(raw, cls):
            return raw
        made = cls.__new__(cls)
        made._read(raw)  # noqa: SLF001 -- a constructor's own business
        return made

    def _read(self, raw: object) -> None:
        options = Options("cleanup_policy", raw, ("delete_when", "keep_for"), camel_case_allowed=True)
        choice = functools.partial(read_choice, choices=DeleteWhen)
        delete_when = options.read("delete_when", choice, DeleteWhen.SOURCE_DOCUMENT_DELETED)
        keep_for = options.read("keep_for", options.duration, _DEFAULT_KEEP_FOR)
        options.check()
        object.__setattr__(self, "delete_when", delete_when)
        object.__setattr__(self, "keep_for", keep_for)


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class Evolution:
    """What happens when the code of a task has changed (B-43, B-44).

    Attributes:
        handler_version: Raised by hand when records should be looked at again; 1 or more.
        on_handler_version_change: Which records run again then.
        reconcile_on_trigger_change: Whether a changed filter or projection is applied to all documents at once.
    """

    handler_version: int
    on_handler_version_change: OnHandlerVersionChange
    reconcile_on_trigger_change: bool

    def __init__(
        self,
        *,
        handler_version: int = 1,
        on_handler_version_change: OnHandlerVersionChange | str = OnHandlerVersionChange.NONE,
        reconcile_on_trigger_change: bool = True,
    ) -> None:
        """Make the settings.

        Raises:
            ConfigurationError: A value is wrong; all are looked at.
        """
        self._read(
            {
                "handler_version": handler_version,
                "on_handler_version_change": on_handler_version_change,
                "reconcile_on_trigger_change": reconcile_on_trigger_change,
            }
        )

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Return the settings that *raw* means: an Evolution, a dict, or None for the defaults.

        Raises:
            ConfigurationError: An option is unknown or wrong; all such are listed.
        """
        if raw is None:
            return cls()
        if isinstance(raw, cls):
            return raw
        made = cls.__new__(cls)
        made._read(raw)  # noqa: SLF001 -- a constructor's own business
        return made

    def _read(self, raw: object) -> None:
        known = ("handler_version", "on_handler_version_change", "reconcile_on_trigger_change")
        options = Options("evolution", raw, known, camel_case_allowed=True)
        version = options.read("handler_version", functools.partial(read_integer, at_least=1), 1)
        choice = functools.partial(read_choice, choices=OnHandlerVersionChange)
        on_change = options.read("on_handler_version_change", choice, OnHandlerVersionChange.NONE)
        reconcile = options.read("reconcile_on_trigger_change", read_boolean, default=True)
        options.check()
        object.__setattr__(self, "handler_version", version)
        object.__setattr__(self, "on_handler_version_change", on_change)
        object.__setattr__(self, "reconcile_on_trigger_change", reconcile)
