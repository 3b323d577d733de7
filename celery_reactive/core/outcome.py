"""What one attempt came to. The store turns an outcome into a transition."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta

from bson.raw_bson import RawBSONDocument

_ERROR_BYTES = 8 * 1024
_TRACEBACK_BYTES = 16 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """What is kept of an exception: text that any BSON encoder takes, of bounded size (B-25)."""

    message: str
    type: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException, traceback: str = "") -> Failure:
        """Describe *error*, whatever its `str` does.

        Args:
            error: What the handler raised.
            traceback: Its formatted traceback; shortened to 16 KiB.
        """
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        try:
            message = str(error)
        except Exception as broken:  # noqa: BLE001 -- the user's exception may raise anything from `__str__`
            message = f"{kind.__name__} (its str() raised {type(broken).__name__})"
        return cls(shorten(message, _ERROR_BYTES) or kind.__name__, name, shorten(traceback, _TRACEBACK_BYTES))


def shorten(text: str, limit_bytes: int) -> str:
    """Return *text* as encodable text of at most *limit_bytes* UTF-8 bytes, keeping its head and its tail."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode("utf-8")
    mark = f" … {len(encoded) - limit_bytes} bytes left out … "
    half = (limit_bytes - len(mark.encode())) // 2
    return encoded[:half].decode("utf-8", "ignore") + mark + encoded[-half:].decode("utf-8", "ignore")


@dataclasses.dataclass(frozen=True, slots=True)
class Completed:
    """The handler returned."""

    duration: timedelta
    document_checked: bool = False
    """This run's `get_document` passed its check, so an event with the same values tells nothing new."""


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """There was nothing to do: the document is gone or no longer matches, or Celery's `Ignore` (B-32, B-40)."""

    reason: str
    duration: timedelta = timedelta(0)
    gone: bool = False
    """The document was seen to be deleted."""
    left: bool = False
    """The document was seen outside the filter."""
    generation: int | None = None
    """Of the definition whose filter it was; None where no filter was asked."""


@dataclasses.dataclass(frozen=True, slots=True)
class Deferred:
    """The handler asked to run later; not a failed attempt (B-34)."""

    until: datetime
    """A server time; one that has passed means in a second."""
    hold: bool = False
    """Keep the time even if the data changes."""
    duration: timedelta = timedelta(0)


@dataclasses.dataclass(frozen=True, slots=True)
class Overtaken:
    """The watched values moved on before the handler read the document (B-33)."""

    values: RawBSONDocument
    """`{"v": watched values}` as read."""
    generation: int
    """Of the definition whose projection gave them."""
    duration: timedelta = timedelta(0)


@dataclasses.dataclass(frozen=True, slots=True)
class GivenBack:
    """Not run, or stopped in good order: pending again, attempts as before (B-28, B-68)."""

    wait: timedelta = timedelta(0)
    alone: bool = False
    """Must travel alone the next time: its worker died while it ran in company."""


@dataclasses.dataclass(frozen=True, slots=True)
class Errored:
    """The handler raised, and attempts are left (B-25)."""

    error: Failure
    duration: timedelta
    retry_in: timedelta
    alone: bool = False
    """Must travel alone the next time, too: its worker died with it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Exhausted:
    """The handler raised on its last attempt (B-25)."""

    error: Failure
    duration: timedelta


Outcome = Completed | Skipped | Deferred | Overtaken | GivenBack | Errored | Exhausted
