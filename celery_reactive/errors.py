"""Every error this package raises.

* ReactiveError
  * ConfigurationError            wrong settings or declarations; raised at start-up, nothing was started
    * ForeignRecordsError         a records collection holds documents that are not ours; it was left untouched
    * ServerTooOldError           the server lacks what the package needs
    * NotAReplicaSetError         the server has no change streams: a standalone node, or a sharded cluster
    * ArgumentError               an argument of a call has no meaning; nothing was read or changed
  * UnknownTaskError              no such reactive task; the message lists the known ones
  * StoreUnavailableError         MongoDB did not answer; the statement may have been applied
    * StoreBusyError              a lock or a time limit stopped the statement
  * StatementFailedError          MongoDB refused the statement; repeating it does not help
  * TermEndedError                a newer leader has been elected; nothing was written
  * LeaseLostError                the claim no longer owns the record; nothing was written
  * TaskConditionFailedError      the document is gone, no longer matches, or has moved on
  * DocumentInvalidError          the task's `document_class` does not accept the document
  * LockAlreadyAcquiredError      somebody else holds the lock; nothing was done under it

The lowest layer: imported by all others, imports none. Must never carry a connection string in a message.
"""

from __future__ import annotations

import difflib
import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from celery_reactive.core.record import RecordKey


class ReactiveError(Exception):
    """Base class of all errors of this package."""


class ConfigurationError(ReactiveError):
    """Settings or declarations are wrong; nothing was started.

    Attributes:
        subject: What is wrong: a task's name, a setting, an option.
        problems: Everything that is wrong with it, one sentence each: expected, got, remedy.
    """

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        super().__init__(subject, problems)
        self.subject = subject
        self.problems = list(problems)

    def __str__(self) -> str:
        return f"{self.subject}: " + "; ".join(self.problems)


class ForeignRecordsError(ConfigurationError):
    """A collection that would hold records holds documents which are not ours (B-4). It was left untouched."""

    def __init__(self, collection: str) -> None:
        super().__init__(
            collection,
            ["expected only reactive tasks' records, found other documents; rename it or set reactive_records_suffix"],
        )
        self.collection = collection

    def __reduce__(self) -> tuple[type[ForeignRecordsError], tuple[str]]:
        return type(self), (self.collection,)


class ServerTooOldError(ConfigurationError):
    """The MongoDB server lacks what the package needs. Nothing was started."""


class NotAReplicaSetError(ConfigurationError):
    """The MongoDB server is no replica set, so that it cannot tell of changes (B-65). Nothing was started."""


class ArgumentError(ConfigurationError):
    """An argument of a call has no meaning. Nothing was read or changed."""


class UnknownTaskError(ReactiveError):
    """No reactive task has this name. Nothing was changed.

    Attributes:
        name: The name asked for.
        known: The names there are, sorted.
    """

    def __init__(self, name: str, known: Collection[str]) -> None:
        super().__init__(name, sorted(known))
        self.name = name
        self.known = sorted(known)

    def __str__(self) -> str:
        close = difflib.get_close_matches(self.name, self.known, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        listed = ", ".join(self.known) if self.known else "none is declared"
        return f"no reactive task {self.name!r}{meant} (known: {listed})"


class StoreUnavailableError(ReactiveError):
    """MongoDB did not answer in time, or refused for a passing reason. The statement may have been applied."""


class StoreBusyError(StoreUnavailableError):
    """A lock or a time limit stopped the statement: somebody's transaction holds what it needs."""


class StatementFailedError(ReactiveError):
    """MongoDB refused the statement; repeating it does not help.

    Attributes:
        code: MongoDB's error code, None if the driver refused to send it.
    """

    def __init__(self, message: str, *, code: int | None) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return functools.partial(type(self), code=self.code), self.args


class TermEndedError(ReactiveError):
    """A newer leader has been elected since this one's term began. Nothing was written."""

    def __init__(self, term: int) -> None:
        super().__init__(f"term {term} has ended; a newer leader plans")
        self.term = term

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.term,)


class LeaseLostError(ReactiveError):
    """The record was claimed again, or reset, since this attempt began.

    Nothing was written: the newer attempt decides.

    Attributes:
        key: The record.
    """

    def __init__(self, key: RecordKey) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"{self.key}: this run no longer owns the record"


class TaskConditionFailedError(ReactiveError):
    """The document is gone, no longer matches the filter, or its watched values have moved on (B-32).

    Left uncaught in a handler it ends the run as skipped, not as an error.

    Attributes:
        reason: Which of these, in words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DocumentInvalidError(ReactiveError):
    """The task's `document_class` does not accept the document (B-62); its own error is the cause.

    Left uncaught in a handler the record fails without another attempt: only a change of the document can help.
    """


class LockAlreadyAcquiredError(ReactiveError):
    """Somebody else holds the lock, also after the wait. Nothing was done under it."""
