"""What a worker makes of messages: the planner's, a user's own, and those that nobody can read."""

from __future__ import annotations

from typing import Any

import pytest

from celery_reactive.core.message import MessageError, is_reactive, message_for, unpack
from celery_reactive.core.record import Due, RecordKey


def due(doc_id: object, *, attempts: int = 0) -> Due:
    """A record that is about to be published."""
    return Due(RecordKey("shop.sync", doc_id), cycle=3, attempts=attempts, alone=False)


def header(count: int) -> dict[str, Any]:
    """The headers of a message that names *count* records."""
    return {"reactive": {"v": 1, "cycles": [0] * count}}


def test_a_message_names_what_was_packed() -> None:
    """B-22: ids, in their order."""
    message = message_for(namespace="shop.orders", due=[due(1), due("1"), due(None)], max_attempts=5)
    named = unpack("shop.sync", message["headers"], message["args"])
    assert [one.key.doc_id for one in named] == [1, "1", None]


def test_a_chain_of_attempts_has_one_celery_id() -> None:
    """B-56: Flower shows one row, with the number of retries."""
    first, second = (message_for(namespace="shop.orders", due=[due(1, attempts=n)], max_attempts=5) for n in (0, 1))
    assert first["task_id"] == second["task_id"]
    assert (first["retries"], second["retries"]) == (0, 1)


def test_a_users_own_call_is_no_planners_message() -> None:
    """B-40."""
    assert not is_reactive({"id": "x", "headers": None})
    assert not is_reactive({"id": "x", "headers": [1]})


@pytest.mark.parametrize(
    ("request_", "args"),
    [
        ({"reactive": "damaged"}, (["1"],)),
        ({"reactive": {"v": 2, "cycles": [0]}}, (["1"],)),
        ({"reactive": {"v": 1}}, (["1"],)),
        (header(2), ("12",)),
        (header(2), (["1"],)),
        (header(0), ([],)),
        (header(1), ()),
        (header(1), (["["],)),
        (header(1), (["[" * 100_000],)),
        (header(1), (['{"$numberDecimal": "x"}'],)),
        (header(1), ([{"$oid": 5}],)),
    ],
)
def test_what_cannot_be_read_is_the_planners_and_names_nothing(request_: dict[str, Any], args: Any) -> None:
    """B-22: it is not run unmanaged either."""
    assert is_reactive(request_)
    with pytest.raises(MessageError):
        unpack("shop.sync", request_, args)
