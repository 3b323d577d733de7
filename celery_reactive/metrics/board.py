"""The Grafana board."""

from __future__ import annotations

from typing import Any


def board() -> dict[str, Any]:
    """Return the board."""
    return {}
