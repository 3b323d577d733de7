"""Values that name and describe records: keys, claims, observations. No I/O."""

from __future__ import annotations

import dataclasses
import uuid
from datetime import datetime, timedelta
from typing import Any

import bson
from bson import Timestamp, json_util
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument

CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
"""How this package decodes BSON: aware UTC datetimes, standard UUIDs, `DatetimeMS` beyond Python's range (B-31)."""


def _ejson(mode: int) -> json_util.JSONOptions:
    return json_util.JSONOptions(
        json_mode=mode,
        tz_aware=True,
        uuid_representation=UuidRepresentation.STANDARD,
        datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    )


_EJSON = _ejson(json_util.JSONMode.RELAXED)
EXACT_EJSON = _ejson(json_util.JSONMode.CANONICAL)
"""Extended JSON that keeps every type apart: what stored definitions are written in."""
_CELERY_IDS = uuid.UUID("6f1ad9a6-3c5e-4d0c-8f77-0c5a3f6f6a11")


def id_to_text(doc_id: object) -> str:
    """Return a document id as relaxed extended JSON: how ids travel in messages and are shown to people."""
    return json_util.dumps(doc_id, json_options=_EJSON)


def id_from_text(text: str) -> Any:
    """Return the document id that `id_to_text` wrote.

    Raises:
        ValueError: *text* is not extended JSON; nothing was read from it.
    """
    try:
        return json_util.loads(text, json_options=_EJSON)
    except (TypeError, KeyError, bson.errors.BSONError) as error:
        message = f"not extended JSON: {text[:100]!r}"
        raise ValueError(message) from error


@dataclasses.dataclass(frozen=True, slots=True)
class RecordKey:
    """Names one record: a task and the id of a source document, any BSON type."""

    task: str
    doc_id: Any

    @property
    def id(self) -> dict[str, Any]:
        """The record's `_id`."""
        return {"t": self.task, "d": self.doc_id}

    @property
    def exact(self) -> bytes:
        """Bytes that are equal for equal ids only, with types and key order (1 and 1.0 differ, as do True and 1)."""
        return bson.encode({"": self.doc_id}, codec_options=CODEC)

    def celery_id(self, namespace: str, cycle: int) -> str:
        """Return the Celery task id of the record's current chain of attempts.

        One id through a chain of retries, so Flower shows one row; a new one after a final state
        or a manual retry; the same when a message is sent again, so duplicates collapse.

        Args:
            namespace: Database and collection, as `shop.orders`.
            cycle: Counts the record's chains of attempts.
        """
        return str(uuid.uuid5(_CELERY_IDS, f"{namespace}\n{self.task}\n{id_to_text(self.doc_id)}\n{cycle}"))

    def __str__(self) -> str:
        return f"{self.task}[{id_to_text(self.doc_id)}]"


@dataclasses.dataclass(frozen=True, slots=True)
class Due:
    """A pending record that the planner has marked as sent and is about to publish."""

    key: RecordKey
    cycle: int
    attempts: int
    alone: bool
    """Must travel in a message of its own: its last worker died while it ran in company (B-28)."""
    again: bool = False
    """It was sent before, and nobody claimed it by its dispatch deadline."""
    due_at: datetime | None = None
    """When the planner had to look at it."""
    waited: timedelta = timedelta(0)
    """Since then."""
    looped: bool = False
    """Its own runs have made it due too often in a row (B-64)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one record once (B-23). Whoever knows the token owns it."""

    key: RecordKey
    token: str
    attempt: int
    """Number of this attempt, 1 for the first."""
    fence: int
    cycle: int
    due_at: datetime
    started_at: datetime
    """Server time of the claim."""
    first_error_at: datetime | None
    deferrals: int
    observed: RawBSONDocument
    """`{"v": lastObservedValues}`, undecoded, so that what is compared is what is stored."""
    generation: int
    """Generation of the definition under which the values were observed."""
    cluster_time: Timestamp
    """Known before any read of this run is sent."""
    reset_for: int = 0
    """The handler's version for which the record was last made to run again (B-44); 0: none."""
    reset_at: datetime | None = None
    gone: bool = False
    """The document had been seen to be deleted: the run is for that, or for a retry by hand."""
    deleted: bool = False
    """A deletion waits for this run (B-61)."""
    handled: RawBSONDocument | None = None
    """`{"v": watched values of the last completed run}`, where the task tracks changes and there was one."""

    def now(self, elapsed: timedelta) -> datetime:
        """Return the server's time *elapsed* after the claim."""
        return self.started_at + elapsed

    def failing_for(self, elapsed: timedelta) -> timedelta:
        """Return how long the sequence of failures has lasted, zero if this is its first (B-39)."""
        return self.now(elapsed) - self.first_error_at if self.first_error_at else timedelta(0)


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """A running record as others see it: the heartbeat moves `beats` while the worker lives."""

    key: RecordKey
    token: str
    beats: int
    company: bool
    """Others were claimed by the same statement."""
    attempts: int
    started_at: datetime
    first_error_at: datetime | None
    now: datetime
    """Server time of the reading."""
