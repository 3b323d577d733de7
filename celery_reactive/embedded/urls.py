"""Connection strings: another database in place of the one they name. No I/O."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


def with_path(url: str, path: str) -> str:
    """Return *url* with *path* as the database it names."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{path}"))
