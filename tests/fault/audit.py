"""The judge of a chaos run: what the handlers wrote down, held against what the writer wrote.

Called by `chaos`; pure functions, tested by themselves. Judged is by the machine's monotonic clock, which writer and
handlers share.

What counts:

* A run is **at work** from the first line of its handler to its last. One whose process was killed has no last line
  and is at work only up to nobody knows when; it is not judged.
* A run is **live** at a moment if it is at work and, at that moment, less than the lease has passed since its process
  sent the last claim or renewal of it that was acknowledged. Later it may be at work still (its process was frozen, or
  cut off from MongoDB), but it owns nothing any more (B-23): `lease_lost` tells it so.
* A **state** of a document is its `v`, for `tally` its `v` and `w`; `w` counts the writes to a document, also
  across deletion, so that of two states the newer is known.

What is proved:

* nothing **lost** (B-10): of each document that matches in the end, the newest run that handled it (by fence) saw its
  last state; if the document was inserted anew (B-18), that run began after the insertion was sent. A record that is
  `failed` with its attempts spent is excused: it was handled as often as its policy says.
* no **overlap** (B-23): no two runs of one record are live at the same moment.
* nothing **stale** (B-10): no run that was live when it began handled an older state than one that had finished before,
  nor had a smaller fence (B-27).
* **records** say so too: each is completed or failed, has made no more attempts than its policy allows, and shows the
  last state of a document that matches.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

LEASE_SECONDS = 3
MAX_ATTEMPTS = 6
LIMITS = {"sync": MAX_ATTEMPTS, "tally": None}
"""Most attempts by task; None: any number."""

Key = tuple[str, Any]
"""Task and document id."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ran:
    """One run, as its handler wrote it down."""

    task: str
    doc: Any
    fence: int
    started: float
    """On the monotonic clock, as all moments here."""
    finished: float | None
    """None: the process was killed."""
    renewed: float | None
    """When the last claim or renewal that was acknowledged was sent."""
    outcome: str | None
    saw: Mapping[str, int] | None
    """`v` and `w` of the state that was handled; None: it was not."""

    @property
    def key(self) -> Key:
        """Which record it ran for."""
        return (self.task, self.doc)

    @property
    def handled(self) -> bool:
        """Whether the handler did its work."""
        return self.outcome == "handled" and self.saw is not None

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Ran:
        """Return a run as `chaos_app` stored it."""
        return cls(
            task=stored["task"],
            doc=stored["doc"],
            fence=int(stored["fence"]),
            started=stored["startedMono"],
            finished=stored.get("finishedMono"),
            renewed=stored.get("renewed"),
            outcome=stored.get("outcome"),
            saw=stored.get("saw"),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Last:
    """How the writer left a document."""

    exists: bool
    matches: bool
    v: int
    w: int
    inserted: float
    """When its last insertion was sent."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One broken promise."""

    promise: str
    key: Key
    what: str


def judge(
    runs: Sequence[Ran], documents: Mapping[Any, Last], records: Mapping[Key, Mapping[str, Any]]
) -> list[Finding]:
    """Return everything that speaks against the promises.

    Args:
        runs: All runs.
        documents: By id, how the writer left them.
        records: By task and document id, as stored.
    """
    by_key: defaultdict[Key, list[Ran]] = defaultdict(list)
    for run in runs:
        by_key[run.key].append(run)
    findings = [
        finding
        for doc, last in documents.items()
        for task in LIMITS
        if last.exists and last.matches
        for finding in lost((task, doc), last, by_key[task, doc], records.get((task, doc)))
    ]
    for of_one in by_key.values():
        findings += overlaps(of_one)
        findings += stale(of_one)
    return findings + [finding for key, record in records.items() for finding in wrong(key, record, documents[key[1]])]


def lost(key: Key, last: Last, runs: Iterable[Ran], record: Mapping[str, Any] | None) -> Iterator[Finding]:
    """Yield what speaks against the last state of a matching document having been handled."""
    task, _ = key
    if record is not None and _has_given_up(task, record) and _shows(task, record, last):
        return
    newest = max((run for run in runs if run.handled), key=lambda run: run.fence, default=None)
    if newest is None or newest.saw is None:
        yield Finding("lost", key, f"no run handled it, its state is {_state(task, last)}")
    elif _seen(task, newest.saw) != _state(task, last):
        yield Finding("lost", key, f"it is {_state(task, last)}, last handled was {_seen(task, newest.saw)}")
    elif newest.started < last.inserted:
        yield Finding("lost", key, f"inserted anew at {last.inserted:.3f}, last handled run began {newest.started:.3f}")


def overlaps(runs: Iterable[Ran]) -> Iterator[Finding]:
    """Yield pairs of runs of one record that were live at the same moment."""
    judged = [run for run in runs if run.finished is not None]
    for one, other in combinations(sorted(judged, key=lambda run: run.started), 2):
        moment = other.started
        if _is_live(one, moment) and _is_live(other, moment):
            yield Finding("overlap", one.key, f"fences {one.fence} and {other.fence} were live at {moment:.3f}")


def stale(runs: Iterable[Ran]) -> Iterator[Finding]:
    """Yield runs of one record that were live and yet handled something older than a run that had finished before."""
    handled = sorted((run for run in runs if run.handled), key=lambda run: run.started)
    for before, after in combinations(handled, 2):
        if before.finished is None or before.finished > after.started or not _is_live(after, after.started):
            continue
        assert before.saw is not None
        assert after.saw is not None
        if after.saw["w"] < before.saw["w"]:
            what = f"fence {after.fence} handled write {after.saw['w']} after {before.saw['w']} had been handled"
            yield Finding("stale", after.key, what)
        if after.fence <= before.fence:
            yield Finding("stale", after.key, f"fence {after.fence} began after fence {before.fence} had finished")


def wrong(key: Key, record: Mapping[str, Any], last: Last) -> Iterator[Finding]:
    """Yield what a record says that it should not, now that everything is at rest."""
    task, _ = key
    limit = LIMITS[task]
    if record["status"] not in {"completed", "failed"}:
        yield Finding("record", key, f"is {record['status']}")
    if record["status"] == "failed" and not _has_given_up(task, record):
        yield Finding("record", key, f"failed after {record['attempts']} attempts of {limit}")
    if limit is not None and record["attempts"] > limit:
        yield Finding("record", key, f"made {record['attempts']} attempts of {limit}")
    if last.exists and last.matches and not _shows(task, record, last):
        yield Finding("record", key, f"shows {record['lastObservedValues']}, the document is {_state(task, last)}")


def _is_live(run: Ran, moment: float) -> bool:
    if run.finished is None or run.renewed is None or not run.started <= moment < run.finished:
        return False
    # One that was acknowledged later shows that the run owned its record at that moment.
    return moment - run.renewed < LEASE_SECONDS


def _has_given_up(task: str, record: Mapping[str, Any]) -> bool:
    return bool(record["status"] == "failed" and record["attempts"] == LIMITS[task])


def _shows(task: str, record: Mapping[str, Any], last: Last) -> bool:
    return _seen(task, record["lastObservedValues"]) == _state(task, last)


def _state(task: str, last: Last) -> tuple[int, ...]:
    return (last.v,) if task == "sync" else (last.v, last.w)


def _seen(task: str, values: Mapping[str, int]) -> tuple[int, ...]:
    return (values["v"],) if task == "sync" else (values["v"], values["w"])
