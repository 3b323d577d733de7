"""The search engine: SQLite's full-text search in a file. It stands for a real one, and has what those have.

Entries are stored by id, many at once, and a version given by the sender lets an older write do nothing. It knows
nothing of MongoDB.
"""

import dataclasses
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

TABLES = """
CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, version INTEGER NOT NULL);
CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5 (title, body, tokenize = 'porter unicode61 remove_diacritics 2');
"""
CLAIM = """
INSERT INTO entries (id, version) VALUES (?, ?)
ON CONFLICT (id) DO UPDATE SET version = excluded.version WHERE version < excluded.version
RETURNING number
"""
SEARCH = """
SELECT id FROM texts JOIN entries ON number = texts.rowid
WHERE texts MATCH ? ORDER BY bm25(texts, 10, 1), number LIMIT ?
"""


@dataclasses.dataclass(frozen=True)
class Put:
    """Store this text under the id, in place of what is there."""

    id: str
    version: int
    title: str
    body: str


@dataclasses.dataclass(frozen=True)
class Remove:
    """Find this id no more. Its version stays, so that an older `Put` does not bring it back."""

    id: str
    version: int


class Index:
    """An index in a file, made where there is none. Usable from the thread that has opened it."""

    def __init__(self, path: str) -> None:
        self._database = sqlite3.connect(path, timeout=20)
        self._database.executescript(TABLES)

    def write(self, changes: Iterable[Put | Remove]) -> None:
        """Make the changes, all at once; those that come later than a newer one do nothing."""
        with self._database:
            for change in changes:
                self._make(change)

    def search(self, words: str, limit: int = 10) -> list[str]:
        """Return the ids of what has all these words, the best first."""
        quoted = " ".join('"' + word.replace('"', '""') + '"' for word in words.split())
        return [row[0] for row in self._database.execute(SEARCH, (quoted, limit))] if quoted else []

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _make(self, change: Put | Remove) -> None:
        if (row := self._database.execute(CLAIM, (change.id, change.version)).fetchone()) is None:
            return
        self._database.execute("DELETE FROM texts WHERE rowid = ?", row)
        if isinstance(change, Put):
            text = (*row, change.title, change.body)
            self._database.execute("INSERT INTO texts (rowid, title, body) VALUES (?, ?, ?)", text)


@contextmanager
def opened(path: str) -> Iterator[Index]:
    """Open an index inside the block."""
    index = Index(path)
    try:
        yield index
    finally:
        index.close()
