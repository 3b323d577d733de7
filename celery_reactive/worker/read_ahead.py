"""Documents of the records of one message, read in one statement instead of one each.

Called by the context: the first handler of a message that asks for its whole document has those read whose runs have
not begun yet, since they will probably ask for theirs. What has been read is handed out for a moment only, and is
checked as a read of its own would be: a document whose watched values are not those of its run, or that is missing,
is read again by itself, which finds out why (B-32).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from celery_reactive.errors import StatementFailedError
from celery_reactive.store import documents
from celery_reactive.worker.run import Run

if TYPE_CHECKING:
    from bson.raw_bson import RawBSONDocument
    from pymongo.client_session import ClientSession

_FRESH_SECONDS = 0.25
"""What changes after that has an event of its own, and so would what changed before; but nobody wants old documents."""


class ReadAhead:
    """The documents of the runs of one message."""

    def __init__(self, runs: Sequence[Run], session: ClientSession) -> None:
        """Read nothing yet.

        Args:
            runs: In the order in which they begin.
            session: Causally after their claims.
        """
        self._runs = runs
        self._session = session
        self._lock = threading.Lock()
        self._read: dict[bytes, RawBSONDocument] = {}
        self._asked: set[bytes] = set()
        """Whose document has been asked for."""
        self._sent = 0.0

    def document(self, run: Run) -> dict[str, Any] | None:
        """Return the document of *run*, checked, decoded as the client decodes; None: read it alone.

        Raises:
            StoreUnavailableError: MongoDB did not answer.
        """
        if run.collated:
            # Filter and values are compared under different collations, in two statements.
            return None
        with self._lock:
            self._asked.add(run.claim.key.exact)
            if time.monotonic() - self._sent >= _FRESH_SECONDS:
                self._read_for(run)
            found = self._read.pop(run.claim.key.exact, None)
        return None if found is None else documents.decoded(found, run.runtime.connection.documents(run.task))

    def _may_ask(self, run: Run) -> bool:
        return not run.ended and run.claim.key.exact not in self._asked

    def _read_for(self, run: Run) -> None:
        self._read.clear()
        alike = [one for one in self._runs if one is run or (one.task is run.task and self._may_ask(one))]
        if len(alike) < 2:  # noqa: PLR2004 -- no company
            return
        self._sent = time.monotonic()
        try:
            self._read = documents.read_together(
                run.runtime.connection.documents(run.task),
                run.task,
                [one.claim for one in alike],
                session=self._session,
            )
        except StatementFailedError:
            # One of them may be at fault: each alone tells which.
            return
