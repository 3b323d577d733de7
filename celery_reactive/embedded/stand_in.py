"""SecantusDB as a program, with what it gets wrong put right: a stand-in for mongod where there is none.

Run by `MongoServer` as a file, in a process of its own, with the options of SecantusDB's own command; nothing imports
this module, and it imports nothing of the package. It reaches into the one release that the extra `embedded` names:
with another it must fail at the start, not answer wrongly.

- `$$NOW` carries a time zone there and stored dates carry none, so that each was neither before nor after the other;
  and it is undefined in the projection of a `find`.
- `$set` in a pipeline puts a document in the place of the one that is there, where a mongod lays it over that.
- `$merge` with a pipeline removes the document and inserts what the pipeline makes of what it has read before: what
  somebody else writes meanwhile is lost, and for a moment there is nothing.
- An index that is partial on one of its own keys is read as if that key came first, and nothing is found.
"""

# ruff: noqa: SLF001 -- what is put right is private; the release is pinned
from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from secantus import aggregate, expressions
from secantus.__main__ import main
from secantus.storage import Storage

Document = dict[str, Any]

_resolve = expressions._resolve_var
_set_fields = aggregate._add_fields_one
_merge = aggregate._stage_merge


def _resolve_now(name: str, ctx: Any) -> Any:
    """Resolve a variable; `$$NOW` as a date is that was stored: of whole milliseconds, without a time zone."""
    if name != "NOW":
        return _resolve(name, ctx)
    now = ctx.vars.get("NOW") or datetime.now(UTC)  # noqa: TID251 -- here it is the database's clock
    return now.replace(tzinfo=None, microsecond=now.microsecond // 1000 * 1000)


def _set_within(doc: Document, spec: Mapping[str, Any], variables: Document) -> Document:
    """Set fields, each of a document in *spec* by itself where there is a document already."""
    changed: Document = _set_fields(doc, dict(_leaves(doc, spec)), variables)
    return changed


def _leaves(doc: object, spec: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in spec.items():
        known = _at(doc, name)
        if _is_document(value) and isinstance(known, Mapping):
            leaves += _leaves(known, value, f"{prefix}{name}.")
        else:
            leaves.append((prefix + name, value))
    return leaves


def _is_document(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and not any(name.startswith("$") for name in value)


def _at(doc: object, path: str) -> object:
    for name in path.split("."):
        doc = doc.get(name) if isinstance(doc, Mapping) else None
    return doc


def _merge_at_once(spec: Any, docs: list[Document], context: Any) -> list[Document]:
    """Merge by `_id` with a pipeline as an update does; leave what is new, and any other merge, to the original."""
    pipeline = spec.get("whenMatched") if isinstance(spec, Mapping) and spec.get("on", "_id") == "_id" else None
    if not isinstance(pipeline, list):
        _merge(spec, docs, context)
        return []
    into = spec["into"]
    place = (context.db_name, into) if isinstance(into, str) else (into.get("db", context.db_name), into["coll"])
    with context.storage._coll_lock(*place):
        for doc in docs:
            variables = {**context.vars, "new": doc}
            updated = context.storage.update_matching(*place, {"_id": doc["_id"]}, pipeline, let=variables)
            if not updated["matched"]:
                _merge(spec, [doc], context)
    return []


def _serves_nobody(query: Mapping[str, Any], partial: Mapping[str, Any]) -> bool:
    """Keep partial indexes out of every plan: what they would find is found without them."""
    del query, partial
    return False


if __name__ == "__main__":
    expressions._resolve_var = _resolve_now
    aggregate._add_fields_one = _set_within
    aggregate._STAGES["$merge"] = _merge_at_once
    Storage._query_implies_partial = staticmethod(_serves_nobody)
    raise SystemExit(main())
