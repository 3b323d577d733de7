"""`docs/reference/stored.md` lists what is stored and sent: every kind, every field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import celery_reactive
from celery_reactive.core.message import HEADER, message_for, unpack
from celery_reactive.core.record import Due, RecordKey
from celery_reactive.store import indexes
from celery_reactive.store.instances import Kind
from tests.docs.pages import ROOT, code_in

PAGE = (ROOT / "docs" / "reference" / "stored.md").read_text()
STORE = Path(celery_reactive.__file__).parent / "store"
STORED = json.loads(max((ROOT / "tests" / "integration" / "stored").glob("*.json")).read_text())


def sections() -> dict[str, set[str]]:
    """Return the fields that are listed under each heading of the third level, a kind by its name."""
    found = {}
    for section in re.split(r"^##+ ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        fields = {name for row in re.findall(r"^\| ([^|]*) \|", text, flags=re.MULTILINE) for name in code_in(row)}
        found.update(dict.fromkeys(code_in(heading) or [heading], fields))
    return found


def kinds() -> dict[str, set[str]]:
    """Return the fields of each kind of the globals, as the kept documents have them."""
    found: dict[str, set[str]] = {}
    for document in STORED["globals"]:
        found.setdefault(document["_id"]["k"], set()).update(document.keys() - {"_id"})
    return found


def test_every_kind_is_kept_and_listed() -> None:
    """One that the store writes and the file of the release lacks would be listed by nobody."""
    text = "".join(path.read_text() for path in STORE.rglob("*.py"))
    written = {*re.findall(r'"k": "(\w+)"', text), *re.findall(r'^\w*KIND = "(\w+)"', text, flags=re.MULTILINE), *Kind}
    assert written == set(kinds())
    assert written <= set(sections())


@pytest.mark.parametrize("heading", re.findall(r"^### (.*)$", PAGE.partition("\n## Globals\n")[2], flags=re.MULTILINE))
def test_every_field_of_the_globals_is_listed(heading: str) -> None:
    """And no other."""
    names = code_in(heading)
    assert sections()[names[0]] == set().union(*(kinds()[name] for name in names))


def test_every_field_of_a_record_is_listed() -> None:
    """And no other."""
    fields = set().union(*STORED["records"])
    assert sections()["Record"] == fields


def test_every_field_of_the_bookkeeping_is_listed() -> None:
    """And none that nothing writes."""
    listed = sections()["_r"]
    assert set().union(*(record["_r"] for record in STORED["records"])) <= listed
    text = "".join(path.read_text() for path in STORE.rglob("*.py"))
    assert {name for name in listed if not re.search(rf'_r\.{name}\b|flag\("{name}"|"{name}":', text)} == set()


def test_every_index_is_listed() -> None:
    """By its name."""
    assert sections()["Indexes"] == {index.document["name"] for index in indexes.ALL}


def test_a_message_is_as_shown() -> None:
    """B-22: the example is one that a worker reads, and the table has its fields."""
    [block] = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
    shown: dict[str, Any] = json.loads(block)
    named = unpack("proj.task", {"headers": shown["headers"]}, shown["args"])
    due = [Due(one.key, one.cycle, one.attempts, alone=False) for one in named]
    assert named[0].key == RecordKey("proj.task", "A-1")
    sent = message_for(namespace="shop.orders", due=due, max_attempts=5)
    assert {name: json.loads(json.dumps(sent[name])) for name in shown} == shown
    assert sections()["Messages"] == set(shown["headers"][HEADER])
    one = message_for(namespace="shop.orders", due=due[:1], max_attempts=5)
    assert one["task_id"] == RecordKey("proj.task", "A-1").celery_id("shop.orders", 0)
    assert (one["expires"], "eta" in one, "countdown" in one) == (None, False, False)
