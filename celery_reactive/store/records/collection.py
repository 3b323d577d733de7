"""What the statements on records share: the collection, and how it is asked."""

from __future__ import annotations

from typing import Any

from pymongo.collection import Collection

Records = Collection[dict[str, Any]]
"""A records collection, with majority concerns."""
SIMPLE = {"locale": "simple"}
"""The collation under which values are compared, whatever the collection's."""
BY_ID = "_id_"
"""The index that a statement on named records must use: the planner of the server has chosen another."""
