"""What a change of a document means to a task: whether it concerns it, by the names of the changed paths alone.

Called by the planner for every update event and every task of the collection. Must never answer no where an update
might matter; a needless yes only costs a statement.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from bson import Binary


class Wrote(NamedTuple):
    """The newest change of a document that a batch of the stream tells of."""

    doc_id: Any
    at: datetime
    """The server's wall clock when it logged the change."""
    by: Binary | None
    """Id of the session whose transaction it was part of."""


def concerns(changed: Collection[str], paths: frozenset[str] | None) -> bool:
    """Tell whether an update of the *changed* paths can alter anything below or above *paths*.

    Positions in arrays do not count: `items.3.price` meets `items.price`.

    Args:
        changed: Dotted paths of an update event.
        paths: Dotted paths that a filter and a projection depend on; None: on anything.
    """
    return paths is None or any(_meet(_segments(change), _segments(path)) for change in changed for path in paths)


def _meet(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return all(mine == theirs for mine, theirs in zip(one, other, strict=False))


@functools.lru_cache(maxsize=8192)
def _segments(path: str) -> tuple[str, ...]:
    return tuple(segment for segment in path.split(".") if not (segment.isascii() and segment.isdigit()))
