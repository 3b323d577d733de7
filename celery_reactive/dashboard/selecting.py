"""Which records a request means: by filters, or by their keys.

Called by pages, API and actions. The texts are kept as they came, so that every filter stands in the URL.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from celery_reactive.core.error_template import pattern_of
from celery_reactive.core.record import RecordKey, id_to_text
from celery_reactive.core.states import FINAL, RecordState
from celery_reactive.core.suggest import shown
from celery_reactive.dashboard import parameters
from celery_reactive.dashboard.access import RefusedError
from celery_reactive.dashboard.parameters import Fields, Parameters
from celery_reactive.management.selection import TaskFilters

FILTERS = ("task", "status", "collection", "doc_id", "error", "regex", "template", "has_error")
PAGING = ("sort", "limit", "skip", "after")
TARGETS = (*FILTERS, "key", "all")
DEFAULT_LIMIT, MOST_LIMIT = 50, 200


@dataclasses.dataclass(frozen=True, slots=True)
class Filters:
    """Filters as they were written; all narrow together."""

    task: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    collection: tuple[str, ...] = ()
    doc_id: str | None = None
    """As `id_to_text` writes it, or as a person does."""
    error: str | None = None
    regex: bool = False
    template: str | None = None
    """Of an error group (`core.error_template`): records whose errors say the same."""
    has_error: bool | None = None

    @classmethod
    def read(cls, fields: Fields) -> Filters:
        """Return the filters of a request.

        Raises:
            RefusedError: One cannot be read.
        """
        filters = cls(
            tuple(fields.texts("task")),
            tuple(fields.texts("status")),
            tuple(fields.texts("collection")),
            fields.text("doc_id"),
            fields.text("error"),
            bool(fields.flag("regex")),
            fields.text("template"),
            fields.flag("has_error"),
        )
        if filters.template is not None and filters.error is not None:
            raise RefusedError(400, "expected error or template, got both")
        filters.meant()
        return filters

    def meant(self) -> TaskFilters:
        """Return them as management takes them.

        Raises:
            RefusedError: The document id or the pattern cannot be read.
        """
        filters: TaskFilters = {}
        if self.task:
            filters["task"] = list(self.task)
        if self.status:
            filters["status"] = list(self.status)
        if self.collection:
            filters["collection"] = list(self.collection)
        if self.doc_id is not None:
            filters["doc_id"] = parameters.doc_id_of(self.doc_id)
        if self.error is not None:
            filters["error"] = parameters.pattern_of(self.error) if self.regex else self.error
        if self.template is not None:
            filters["error"] = re.compile(pattern_of(self.template))
        if self.has_error is not None:
            filters["has_error"] = self.has_error
        return filters

    def pairs(self) -> list[tuple[str, str]]:
        """Return them as the pairs of a query string."""
        several = [(name, text) for name in ("task", "status", "collection") for text in getattr(self, name)]
        single = [(name, getattr(self, name)) for name in ("doc_id", "error", "template")]
        flags = [("regex", "true" if self.regex else None), ("has_error", _flag(self.has_error))]
        return [*several, *((name, text) for name, text in (*single, *flags) if text is not None)]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is narrowed."""
        return self == Filters()


@dataclasses.dataclass(frozen=True, slots=True)
class Listing:
    """A page of a listing: filters, order and place."""

    filters: Filters
    sort: str | None = None
    """A field, with a minus before it for descending; None: what suits the states that are asked for."""
    limit: int = DEFAULT_LIMIT
    skip: int = 0
    after: str | None = None

    @classmethod
    def read(cls, fields: Parameters) -> Listing:
        """Return the page that a request asks for.

        Raises:
            RefusedError: A part of it cannot be read.
        """
        return cls(
            Filters.read(fields),
            fields.text("sort"),
            fields.number("limit", default=DEFAULT_LIMIT, least=1, most=MOST_LIMIT),
            fields.number("skip", default=0, least=0, most=2**63),
            fields.text("after"),
        )

    @property
    def order(self) -> tuple[str, int]:
        """The order as management takes it."""
        sort = self.sort or self._usual_sort
        return (sort.removeprefix("-"), -1 if sort.startswith("-") else 1)

    @property
    def _usual_sort(self) -> str:
        """The order that tells most and that an index has, whatever there is to sort."""
        states = set(self.filters.status)
        if states and states <= FINAL:
            return "-lastFinalizedAt"
        return "nextRunAt" if states == {RecordState.PENDING} else "-nextRunAt"

    def query(self, **changes: Any) -> str:
        """Return the query string of this page, or of one that differs by *changes*; None takes a part away."""
        page = dataclasses.replace(self, **changes)
        pairs = page.filters.pairs()
        if page.sort is not None:
            pairs.append(("sort", page.sort))
        if page.limit != DEFAULT_LIMIT:
            pairs.append(("limit", str(page.limit)))
        if page.skip:
            pairs.append(("skip", str(page.skip)))
        if page.after is not None:
            pairs.append(("after", page.after))
        return urlencode(pairs)


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """The records that an action is for."""

    filters: Filters
    keys: tuple[RecordKey, ...] = ()
    everything: bool = False
    """Whether all records of all tasks may be meant."""

    @classmethod
    def read(cls, fields: Fields) -> Target:
        """Return the records that a request means.

        Raises:
            RefusedError: None are named, or in two ways at once.
        """
        target = cls(
            Filters.read(fields),
            tuple(_key(text) for text in fields.texts("key")),
            bool(fields.flag("all")),
        )
        if target.keys and not target.filters.is_empty:
            raise RefusedError(400, "expected keys of records or filters, got both")
        if target.is_nothing and not target.everything:
            raise RefusedError(400, "expected a filter, got none; for every record of every task say all")
        return target

    @property
    def is_nothing(self) -> bool:
        """Whether nothing narrows it."""
        return self.filters.is_empty and not self.keys

    def meant(self) -> Iterator[TaskFilters]:
        """Yield what is meant as management takes it; several where records are named one by one."""
        if self.keys:
            for key in self.keys:
                yield {"task": key.task, "doc_id": key.doc_id}
        else:
            yield self.filters.meant()

    def pairs(self) -> list[tuple[str, str]]:
        """Return it as the fields of a form."""
        keys = [("key", key_text(key)) for key in self.keys]
        return [*self.filters.pairs(), *keys, *([("all", "true")] if self.everything else [])]


def key_text(key: RecordKey) -> str:
    """Return the text that names one record."""
    return json.dumps([key.task, id_to_text(key.doc_id)], ensure_ascii=False)


def _key(text: str) -> RecordKey:
    try:
        match json.loads(text):
            case [str(task), str(doc_id)]:
                return RecordKey(task, parameters.doc_id_of(doc_id))
            case _:
                pass
    except (ValueError, RecursionError):
        pass
    raise RefusedError(400, f'key: expected ["task", "document id"] as JSON, got {shown(text)}')


def _flag(value: bool | None) -> str | None:  # noqa: FBT001 -- a value like the others
    return None if value is None else str(value).lower()
