"""Somebody else's program: writes, changes, deletes and re-inserts documents, lets them leave the filter and return.

Called by `chaos`, in a thread of its own. It goes straight to the servers, writes with majority, repeats each statement
until it is acknowledged, and is the only one that writes these documents; so it knows the state of each, and keeps a
journal for the stories of those that something went wrong with.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from tests.fault.audit import Last

DOCUMENTS = 40
"""So many are written at a time."""
HOT_DOCUMENTS = 8
"""These of them every other time, so that runs are overtaken and made dirty."""
RETIRING_CHANCE = 1 / 8
"""That a document is not written any more after a write, and another takes its place: what is proved of last states is
proved of many, and of some that were written in the middle of a run."""
PAUSE_SECONDS = 0.04


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """One write, for people."""

    sent: float
    acknowledged: float
    what: str
    document: dict[str, Any] | None


class Writer:
    """Writes at a steady rate until it is stopped.

    Attributes:
        tally: Number of writes by kind.
        journal: All writes by document id.
    """

    def __init__(self, url: str, seed: int) -> None:
        """Prepare; nothing is written.

        Args:
            url: The servers, with a default database.
            seed: Decides what is written, in which order.
        """
        self.tally: Counter[str] = Counter()
        self.journal: defaultdict[Any, list[Written]] = defaultdict(list)
        self._chance = random.Random(f"writer {seed}")
        self._client = MongoClient[dict[str, Any]](
            url, appname="chaos-writer", serverSelectionTimeoutMS=2000, socketTimeoutMS=2000
        )
        self._orders = self._client.get_default_database().get_collection(
            "orders", write_concern=WriteConcern("majority")
        )
        self._ids = (number if number % 3 else f"order {number}" for number in itertools.count())
        self._written: list[Any] = list(itertools.islice(self._ids, DOCUMENTS))
        self._now: dict[Any, dict[str, Any] | None] = {}
        self._counts: Counter[Any] = Counter()
        self._inserted: dict[Any, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="writer", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the present write, and write no more."""
        self._stop.set()
        self._thread.join()

    def close(self) -> None:
        """Let go of the servers."""
        self._client.close()

    def documents(self) -> dict[Any, Last]:
        """Return how each document that was ever there is now, once everything that was sent has come to rest."""
        found = {document["_id"]: document for document in self._orders.find()}
        return {doc: self._last(doc, found.get(doc)) for doc in self._now}

    def _last(self, doc: Any, now: dict[str, Any] | None) -> Last:
        if now is None:
            return Last(exists=False, matches=False, v=0, w=0, inserted=self._inserted[doc])
        return Last(exists=True, matches=now["open"], v=now["v"], w=now["w"], inserted=self._inserted[doc])

    def _write_on(self) -> None:
        while not self._stop.wait(PAUSE_SECONDS):
            self._do_something()

    def _do_something(self) -> None:
        few = self._chance.random() < 1 / 2
        place = self._chance.randrange(HOT_DOCUMENTS if few else DOCUMENTS)
        doc = self._written[place]
        now = self._now.get(doc)
        if now is None:
            self._insert(doc, again=doc in self._now)
        else:
            things = (
                self._change,
                self._hurry,
                self._flip,
                self._note,
                self._delete,
                self._renew,
                self._leave_or_enter,
            )
            self._chance.choices(things, weights=(40, 18, 6, 8, 6, 6, 16))[0](doc, now)
        if self._chance.random() < RETIRING_CHANCE:
            self._written[place] = next(self._ids)

    def _insert(self, doc: Any, *, again: bool) -> None:
        self._inserted[doc] = time.monotonic()
        self._put("re-inserted" if again else "inserted", doc, v=self._values_so_far(doc), open=True)

    def _change(self, doc: Any, now: dict[str, Any]) -> None:
        self._put("changed", doc, **{**now, "v": now["v"] + 1})

    def _hurry(self, doc: Any, now: dict[str, Any]) -> None:
        """Change it again about when the run for the first change is at work."""
        self._put("changed", doc, **{**now, "v": now["v"] + 1})
        self._stop.wait(self._chance.uniform(0.01, 0.25))
        self._put("changed again", doc, **{**now, "v": now["v"] + 2})

    def _flip(self, doc: Any, now: dict[str, Any]) -> None:
        """There and back: who has seen only what was in between has not seen the last state."""
        self._put("flipped", doc, **{**now, "v": now["v"] + 1})
        self._stop.wait(self._chance.uniform(0.01, 0.25))
        self._put("flipped back", doc, **now)

    def _note(self, doc: Any, now: dict[str, Any]) -> None:
        """Change what `sync` does not watch."""
        self._put("noted", doc, **{**now, "note": self._chance.randrange(1000)})

    def _delete(self, doc: Any, _now: dict[str, Any]) -> None:
        self._send("deleted", doc, None)

    def _renew(self, doc: Any, _now: dict[str, Any]) -> None:
        """Delete it and insert it again with the same values: another document (B-18)."""
        self._send("deleted", doc, None)
        self._stop.wait(self._chance.choice((0.0, 0.2)))
        self._insert(doc, again=True)

    def _leave_or_enter(self, doc: Any, now: dict[str, Any]) -> None:
        self._put("left" if now["open"] else "entered", doc, **{**now, "open": not now["open"]})

    def _values_so_far(self, doc: Any) -> int:
        """Return the `v` of the document's last life, so that an insertion does not always bring a new one."""
        states = [written.document["v"] for written in self.journal[doc] if written.document is not None]
        return states[-1] if states else 0

    def _put(self, what: str, doc: Any, **fields: Any) -> None:
        self._counts[doc] += 1
        self._send(what, doc, {**fields, "w": self._counts[doc]})

    def _send(self, what: str, doc: Any, document: dict[str, Any] | None) -> None:
        sent = time.monotonic()
        if document is None:
            self._persist(lambda: self._orders.delete_one({"_id": doc}))
        else:
            self._persist(lambda: self._orders.replace_one({"_id": doc}, document, upsert=True))
        self._now[doc] = document
        self.tally[what] += 1
        self.journal[doc].append(Written(sent, time.monotonic(), what, document))

    def _persist(self, statement: Callable[[], object]) -> None:
        """Repeat *statement*, which does nothing the second time, until it is acknowledged."""
        while True:
            try:
                statement()
            except PyMongoError:
                threading.Event().wait(0.1)
            else:
                return
