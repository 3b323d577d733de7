"""The definition of a reactive task: what `@reactive_task(...)` came to, found at `task.reactive`.

Made by the declaration; read by everybody. Holds no function: which code runs is the registry's knowledge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

from celery_reactive.core.batch import Batch
from celery_reactive.core.duration import format_duration
from celery_reactive.core.filters import Filter
from celery_reactive.core.limits import Rate
from celery_reactive.core.policies import CleanupPolicy, Evolution
from celery_reactive.core.projection import Projection
from celery_reactive.core.retry import RetryPolicy

DEFAULT_DEBOUNCE = timedelta(seconds=1)
DEFAULT_HISTORY_LIMIT = 5
DEFAULT_GROUP = "default"
DEFAULT_PRIORITY, HIGHEST_PRIORITY = 4, 9
DEFAULT_LOOP_GUARD: int | None = 100


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ReactiveTask:
    """A checked definition (B-2)."""

    name: str
    """Stable identity; names the task's records, whatever the function is called."""
    collection: str
    """The watched collection."""
    database: str | None = None
    """None: the client's default database."""
    filter: Filter = dataclasses.field(default_factory=lambda: Filter({}))
    """Which documents concern the task."""
    projection: Projection = dataclasses.field(default_factory=Projection)
    """Which part of a document counts as a change."""
    backfill: bool = True
    """Whether documents run that match at the first deployment, or match a widened filter."""
    debounce: timedelta = DEFAULT_DEBOUNCE
    """How long a document must have been quiet; zero: it runs at once."""
    debounce_max_wait: timedelta | None = None
    """Longest wait from the first unhandled change; None: no limit."""
    retry_policy: RetryPolicy = dataclasses.field(default_factory=RetryPolicy)
    cleanup_policy: CleanupPolicy = dataclasses.field(default_factory=CleanupPolicy)
    execution_history_limit: int = DEFAULT_HISTORY_LIMIT
    """How many of the newest history entries a record keeps; 0: none."""
    evolution: Evolution = dataclasses.field(default_factory=Evolution)
    chunk: int | Literal["auto"] | None = None
    """Records a message may name; None: as `reactive_chunk` says."""
    batch: Batch | None = None
    """Its handler gets several documents at once (B-60); None: one."""
    priority: int = DEFAULT_PRIORITY
    """How urgent its messages are, 0 to 9; 9 most, on every broker (B-58)."""
    rate_limit: Rate | None = None
    """How many runs may start in a period, cluster-wide; None: no limit (B-58)."""
    max_concurrency: int | None = None
    """How many runs there may be at a time, cluster-wide; None: no limit (B-58)."""
    loop_guard: int | None = DEFAULT_LOOP_GUARD
    """How many runs of a document in a row its handler's own writes may cause; None: any number (B-64)."""
    recheck_interval: timedelta | str | None = None
    """How often all documents are looked at again, because the filter depends on time; `CRON …` or a length (B-59)."""
    on_delete: bool = False
    """Whether the deletion of a document that has a record is a run of its own (B-61)."""
    track_changes: bool = False
    """Whether runs learn what has changed since the last one that completed (B-63)."""
    document_class: Callable[[dict[str, Any]], Any] | None = None
    """What `get_document` makes of a document: a Pydantic model, or anything that can be called with it (B-62)."""
    group: str = DEFAULT_GROUP
    """The planner group that plans it (B-65)."""

    @property
    def paths(self) -> frozenset[str] | None:
        """Dotted paths of the fields an update must touch to concern the task; None: any field."""
        if self.filter.paths is None or self.projection.paths is None:
            return None
        return self.filter.paths | self.projection.paths

    def __repr__(self) -> str:
        place = self.collection if self.database is None else f"{self.database}.{self.collection}"
        watched = "the whole document" if self.projection.whole else self.projection.document
        return (
            f"<ReactiveTask {self.name!r} on {place}: filter {self.filter.query}, watches {watched}, "
            f"debounce {format_duration(self.debounce)}>"
        )
