"""The slim stream tells ids and names of changed paths, resumes where it was, and says when it cannot (B-10, B-49)."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from bson import Timestamp
from pymongo.database import Database

from celery_reactive.core.changes import concerns
from celery_reactive.store import wake
from celery_reactive.store.change_stream import Batch, Change, ChangeKind, ChangeStream, HistoryLostError
from celery_reactive.store.connection import Connection

Document = dict[str, Any]
NOW = timedelta(0)
WAIT = timedelta(seconds=2)
GLOBALS = "_celery_reactive"


@pytest.fixture
def watched(connection: Connection) -> Database[Document]:
    """The watched database, with one document in `orders`."""
    database = connection.database()
    database["orders"].insert_one(
        {"_id": 0, "items": [{"p": 1}, {"p": 2}, {"p": 3}], "a": {"b": 1, "c": 2}, "padding": "." * 500}
    )
    return database


@pytest.fixture
def stream(watched: Database[Document]) -> Iterator[ChangeStream]:
    """A stream of `orders` and `customers`, open and read up to now."""
    stream = ChangeStream(watched, ["orders", "customers"], batch_size=5, wake_collection=GLOBALS)
    stream.open()
    stream.read(NOW)
    yield stream
    stream.close()


def collect(stream: ChangeStream, number: int) -> list[Change]:
    """Read until *number* changes have come."""
    changes: list[Change] = []
    deadline = time.monotonic() + 20
    while len(changes) < number and time.monotonic() < deadline:
        changes += stream.read(WAIT).changes
    return changes


def written(doc_id: Any, *paths: str, inserted: bool = False, collection: str = "orders") -> Change:
    """Return the change that a write should give; no paths: anything may have changed."""
    return Change(ChangeKind.WRITTEN, collection, doc_id, frozenset(paths) if paths else None, inserted=inserted)


def test_each_kind_of_write_gives_its_change(watched: Database[Document], stream: ChangeStream) -> None:
    """B-10: in the order of the server's history; only the watched collections."""
    orders = watched["orders"]
    orders.insert_one({"_id": 1})
    watched["others"].insert_one({"_id": 2})
    watched["customers"].insert_one({"_id": None})
    orders.replace_one({"_id": 1}, {"a": 1})
    orders.update_one({"_id": 1}, {"$set": {"a": 2}})
    orders.delete_one({"_id": 1})
    assert collect(stream, 5) == [
        written(1, inserted=True),
        written(None, inserted=True, collection="customers"),
        written(1),
        written(1, "a"),
        Change(ChangeKind.DELETED, "orders", 1),
    ]


def test_who_wakes_the_planner_may_say_for_which_task(watched: Database[Document], stream: ChangeStream) -> None:
    """B-22: so that it looks at that one alone."""
    wake.wake(watched[GLOBALS])
    wake.wake(watched[GLOBALS], "shop.sync")
    assert [(change.kind, change.doc_id) for change in collect(stream, 2)] == [
        (ChangeKind.WOKEN, None),
        (ChangeKind.WOKEN, "shop.sync"),
    ]


PATHS: dict[str, tuple[Any, set[str]]] = {
    "set": ({"$set": {"x": 1, "a.b": 2}}, {"x", "a.b"}),
    "unset": ({"$unset": {"a.c": ""}}, {"a.c"}),
    "rename": ({"$rename": {"a.b": "z"}}, {"a.b", "z"}),
    "inside an array": ({"$set": {"items.1.p": 9}}, {"items.1.p"}),
    "at the end of an array": ({"$push": {"items": {"p": 4}}}, {"items.3"}),
    "a pipeline": ([{"$set": {"a.b": {"$add": ["$a.c", 5]}}}], {"a.b"}),
    "an array cut short": ([{"$set": {"items": {"$slice": ["$items", 1]}}}], {"items"}),
    "a key with a dollar": (
        [{"$set": {"a": {"$setField": {"field": {"$literal": "$d"}, "input": "$a", "value": 1}}}}],
        {"a.$d"},
    ),
    "a key with a dot": ([{"$set": {"a": {"$setField": {"field": "x.y", "input": "$a", "value": 1}}}}], {"a.x.y"}),
}


@pytest.mark.parametrize("name", list(PATHS))
def test_an_update_names_the_paths_it_changed(watched: Database[Document], stream: ChangeStream, name: str) -> None:
    """B-10: names, or that of a field around them, however the update was written; what it left alone is not named."""
    update, paths = PATHS[name]
    watched["orders"].update_one({"_id": 0}, update)
    (change,) = collect(stream, 1)
    assert change.paths is not None
    assert all(concerns(change.paths, frozenset([path])) for path in paths)
    assert not concerns(change.paths, frozenset(["padding"]))


def test_no_value_enters_the_planner(
    watched: Database[Document], stream: ChangeStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-10: the events hold ids and names; a large document makes no large event."""
    watched["orders"].insert_one({"_id": 1, "secret": "s3cret" * 1000})
    watched["orders"].update_one({"_id": 1}, {"$set": {"secret": "another" * 1000}})
    replies: list[Document] = []
    ask = stream._command

    def note(command: Document) -> Document:
        replies.append(ask(command))
        return replies[-1]

    monkeypatch.setattr(stream, "_command", note)
    collect(stream, 2)
    assert "s3cret" not in str(replies)
    assert "another" not in str(replies)


def test_a_batch_is_what_has_arrived(watched: Database[Document], stream: ChangeStream) -> None:
    """B-47: up to the batch size, with the token and the time of its last change."""
    watched["orders"].insert_many({"_id": number} for number in range(1, 8))
    first, second = stream.read(WAIT), stream.read(WAIT)
    assert [change.doc_id for change in first.changes] == [1, 2, 3, 4, 5]
    assert [change.doc_id for change in second.changes] == [6, 7]
    assert first.at <= second.at


def test_an_idle_stream_moves_on(watched: Database[Document], stream: ChangeStream) -> None:
    """B-55: an empty batch tells that nothing happened up to a time, so that an idle lag is nil."""
    watched["others"].insert_one({})
    before: Batch = stream.read(NOW)
    watched["others"].insert_one({})
    after = stream.read(timedelta(milliseconds=50))
    assert (before.changes, after.changes) == ([], [])
    assert after.at > before.at
    assert after.token


def test_a_stream_resumes_after_a_batch(watched: Database[Document], stream: ChangeStream) -> None:
    """B-47: nothing twice and nothing left out; by another instance."""
    watched["orders"].insert_many({"_id": number} for number in range(1, 8))
    token = stream.read(WAIT).token
    stream.close()
    watched["orders"].insert_one({"_id": 8})
    another = ChangeStream(watched, ["orders"], batch_size=100)
    another.open(resume_after=token)
    assert [change.doc_id for change in collect(another, 3)] == [6, 7, 8]
    another.close()


def drop(watched: Database[Document]) -> None:
    """Drop the watched collection."""
    watched["orders"].drop()


def rename_away(watched: Database[Document]) -> None:
    """Rename the watched collection."""
    watched["orders"].rename("archive")


def rename_to(watched: Database[Document]) -> None:
    """Give another collection the watched name."""
    watched["staging"].insert_one({})
    watched["staging"].rename("customers")


@pytest.mark.parametrize(
    ("upheaval", "change"),
    [
        (drop, Change(ChangeKind.COLLECTION_GONE, "orders")),
        (rename_away, Change(ChangeKind.COLLECTION_GONE, "orders")),
        (rename_to, Change(ChangeKind.COLLECTION_MADE, "customers")),
    ],
)
def test_an_upheaval_is_told(
    watched: Database[Document], stream: ChangeStream, upheaval: Callable[[Database[Document]], None], change: Change
) -> None:
    """B-49: a collection dropped or renamed sends no event per document."""
    upheaval(watched)
    assert collect(stream, 1) == [change]


def test_a_dropped_database_ends_the_stream(watched: Database[Document], stream: ChangeStream) -> None:
    """B-49: it is told, and reading on says that the history is lost rather than waiting for ever."""
    watched.client.drop_database(watched.name)
    while ChangeKind.DATABASE_GONE not in {change.kind for change in collect(stream, 1)}:
        pass
    with pytest.raises(HistoryLostError):
        collect(stream, 10)


def damaged(_: Document) -> Document:
    """Return a token that is none."""
    return {"_data": "not hexadecimal"}


def cut(token: Document) -> Document:
    """Return a token that lacks its end."""
    return {"_data": token["_data"][:-4]}


def foreign(_: Document) -> Document:
    """Return what another program may have stored."""
    return {"_data": base64.b64encode(b"token").decode()}


@pytest.mark.parametrize("damage", [damaged, cut, foreign])
def test_a_token_that_cannot_be_read_is_lost_history(
    watched: Database[Document], stream: ChangeStream, damage: Callable[[Document], Document]
) -> None:
    """B-49: recovered from by reconciliation, not by a person."""
    token = stream.read(NOW).token
    another = ChangeStream(watched, ["orders"], batch_size=10)
    with pytest.raises(HistoryLostError):
        another.open(resume_after=damage(token))
    another.close()


def test_a_stream_that_was_closed_has_ended(stream: ChangeStream) -> None:
    """B-49: reading it does not wait; closing it again does nothing."""
    stream.close()
    stream.close()
    with pytest.raises(HistoryLostError):
        stream.read(WAIT)


def test_somebody_may_wake_the_planner(watched: Database[Document], stream: ChangeStream) -> None:
    """B-22: a record made due by hand needs no poll; other writes to the globals wake nobody."""
    watched[GLOBALS].insert_one({"_id": {"k": "position"}})
    wake.wake(watched[GLOBALS])
    wake.wake(watched[GLOBALS])
    assert {change.kind for change in collect(stream, 2)} == {ChangeKind.WOKEN}


def test_times_are_those_of_the_server(watched: Database[Document], stream: ChangeStream) -> None:
    """B-10: the time of a batch is one at which its changes were there."""
    watched["orders"].insert_one({"_id": 1})
    batch = stream.read(WAIT)
    assert isinstance(batch.at, Timestamp)
    with watched.client.start_session(causal_consistency=True) as session:
        watched.command("ping", session=session)
        assert session.operation_time is not None
        assert batch.at <= session.operation_time
