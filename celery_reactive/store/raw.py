"""Replies whose documents are read undecoded, so that what is compared with them is what is stored.

Called by `records`. Where a write was applied and a majority has not confirmed it, the driver writes the labels of the
reply into the error that came with it, as into a dict; a plain `RawBSONDocument` refuses that with an `AttributeError`,
which hides that the write was applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from celery_reactive.core.record import CODEC


class RawReply(RawBSONDocument):
    """An undecoded document that keeps what the driver adds to it."""

    __slots__ = ("_added",)

    def update(self, added: Mapping[str, Any]) -> None:
        """Keep *added* beside what the server sent."""
        self._added = dict(added)

    def __getitem__(self, name: str) -> Any:
        added: dict[str, Any] = getattr(self, "_added", {})
        return added[name] if name in added else super().__getitem__(name)


RAW: CodecOptions[RawReply] = CODEC.with_options(document_class=RawReply)
"""How undecoded replies are read."""
