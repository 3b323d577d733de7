"""Laying many documents over their records: a few statements that the server goes through fast.

Called by `plan` alone, for batches of changes and pages of a scan; it changes nothing about what is written, see
`store/records/planning.py`. It never decides that a document is at fault: whatever could not be laid here, for a
record has moved meanwhile, is named and left to the one guarded statement that `plan` has for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from celery_reactive.store import records
from celery_reactive.store.records import Observation, Records, Unlike
from celery_reactive.store.scans import Span

if TYPE_CHECKING:
    from pymongo.collection import Collection

FEW = 8
"""Up to so many documents the one statement is as fast as several."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lay:
    """Lays what one observation sees over the records of its task."""

    source: Collection[Any]
    target: Records
    observation: Observation

    def over(self, whose: Sequence[Any] | Span, *, inserted: Sequence[Any] = ()) -> list[Any]:
        """Lay the documents over their records.

        Args:
            whose: Ids of documents, or a span of them.
            inserted: Further ids, of documents that should have no record.

        Returns:
            The ids of those that must be laid by the guarded statement.

        Raises:
            StoreBusyError: Somebody's transaction holds a record; some were laid.
            StoreUnavailableError: Some may have been laid; doing it again is harmless.
            StatementFailedError: Some document cannot be planned; some may have been laid.
        """
        if isinstance(whose, Span):
            return self._differing(whose)
        if len(whose) + len(inserted) <= FEW:
            return [*whose, *inserted]
        if inserted and not records.make_records(self.source, self.target, self.observation, inserted):
            whose = [*whose, *inserted]
        return self._differing(whose) if whose else []

    def _differing(self, whose: Sequence[Any] | Span) -> list[Any]:
        """Lay those documents that are not what their records say; return the ids of what is left to do."""
        unlike = self._compare(whose)
        if len(unlike) > FEW and not self._write(unlike):
            unlike = self._compare([*unlike.new, *unlike.changed])
        elif len(unlike) > FEW:
            return []
        return [*unlike.new, *unlike.changed]

    def _write(self, unlike: Unlike) -> bool:
        """Make and exchange records; return whether that is known to be complete."""
        complete = not unlike.new or records.make_records(self.source, self.target, self.observation, unlike.new)
        if unlike.changed:
            records.exchange_records(self.source, self.target, self.observation, unlike.changed)
        return complete and not unlike.changed

    def _compare(self, whose: Sequence[Any] | Span) -> Unlike:
        return records.find_unlike(self.source, self.target, self.observation, whose)
