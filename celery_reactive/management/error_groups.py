"""Errors grouped by what they say, ids and numbers aside: how many, and since when.

Called by the dashboard. Reads only. Looks at a limited number of records, the newest, and says how many these were.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from datetime import datetime

from celery_reactive.core.error_template import LONGEST, template_of
from celery_reactive.core.states import RecordState
from celery_reactive.management.selection import select
from celery_reactive.runtime import Runtime
from celery_reactive.store import activity
from celery_reactive.store.activity import SameError

MOST_RECORDS = 5000
"""Records looked at in each state, over all collections."""
_LEAST_EACH = 100
"""Records looked at in each state of each collection, however many collections there are."""
STATES = (RecordState.FAILED, RecordState.PENDING)
"""Where a record with an error waits: for a person, or for its next attempt."""


@dataclasses.dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Records of one task whose errors say the same, ids and numbers aside."""

    task: str
    template: str
    type: str | None
    """Of the newest of them."""
    failed: int
    """Records without attempts left."""
    retrying: int
    """Records that wait for their next attempt."""
    first_at: datetime | None
    last_at: datetime | None
    sample: str
    """The beginning of one of the messages."""

    @property
    def count(self) -> int:
        """Records, failed and retrying."""
        return self.failed + self.retrying


@dataclasses.dataclass(frozen=True, slots=True)
class ErrorGroups:
    """The errors of the newest records."""

    groups: tuple[ErrorGroup, ...]
    """The largest first."""
    looked_at: int
    """Records, with and without an error."""
    is_cut: bool
    """Whether there are more than were looked at."""


def group_errors(
    runtime: Runtime, *, task: str | None = None, masked: Callable[[str], str] = lambda text: text
) -> ErrorGroups:
    """Return the errors of the newest failed and the newest pending records, in groups.

    Args:
        runtime: The app's parts.
        task: Only this task's; None: all.
        masked: Applied to each message before anything else; puts `error_template.HIDDEN` for what nobody may see.

    Raises:
        UnknownTaskError: There is no such task; the message lists the known ones.
        StoreBusyError: Not found within the time limit.
        StoreUnavailableError: MongoDB does not answer.
    """
    parts = select(runtime, {} if task is None else {"task": task}).parts
    limit = max(MOST_RECORDS // max(len(parts), 1), _LEAST_EACH)
    found = [
        (state, activity.errors_of(part.records, part.wanted.tasks, state, characters=LONGEST, limit=limit))
        for part in parts
        for state in STATES
    ]
    groups: dict[tuple[str, str], ErrorGroup] = {}
    for state, sample in found:
        for error in sample.errors:
            shown = dataclasses.replace(error, text=masked(error.text))
            key = (error.task, template_of(shown.text))
            groups[key] = _joined(groups.get(key), shown, state)
    return ErrorGroups(
        groups=tuple(sorted(groups.values(), key=lambda group: (-group.count, group.task, group.template))),
        looked_at=sum(sample.looked_at for _, sample in found),
        is_cut=any(sample.looked_at == limit for _, sample in found),
    )


def _joined(group: ErrorGroup | None, error: SameError, state: RecordState) -> ErrorGroup:
    failed, retrying = (error.count, 0) if state is RecordState.FAILED else (0, error.count)
    if group is None:
        template = template_of(error.text)
        times = (error.first_at, error.last_at)
        return ErrorGroup(error.task, template, error.type, failed, retrying, *times, sample=error.text)
    is_newer = error.last_at is not None and (group.last_at is None or error.last_at > group.last_at)
    return dataclasses.replace(
        group,
        type=error.type if is_newer else group.type,
        sample=error.text if is_newer else group.sample,
        failed=group.failed + failed,
        retrying=group.retrying + retrying,
        first_at=min(_known(group.first_at, error.first_at), default=None),
        last_at=max(_known(group.last_at, error.last_at), default=None),
    )


def _known(*moments: datetime | None) -> Iterable[datetime]:
    return [moment for moment in moments if moment is not None]
