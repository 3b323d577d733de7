"""How much goes to the broker at once, and in how many messages: pure arithmetic."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_reactive.planner.window import Window, records_of_work

pytestmark = pytest.mark.unit

MILLISECOND = timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("run_time", "expected"),
    [
        (None, 8),
        (timedelta(0), 128),
        (MILLISECOND, 100),
        (19 * MILLISECOND, 10),
        (timedelta(seconds=3), 1),
    ],
)
def test_a_message_holds_a_fifth_of_a_second_of_work(run_time: timedelta | None, expected: int) -> None:
    """B-22: by the observed run time, 128 at most, few while nothing is known."""
    assert records_of_work(run_time) == expected


def test_there_is_room_for_a_message_that_is_run_and_one_that_waits_in_each_slot() -> None:
    """The rest of a backlog stays in the database; what is counted is what the newest messages hold."""
    window = Window(2000)
    assert window.room_for_messages(["a", "b"], slots=2, now=0.0) == 4
    window.sent("a", [100, 100, 3])
    assert window.room_for_messages(["a", "b"], slots=2, now=0.0) == 1
    window.counted("a", 4, at=1.0)
    assert window.room_for_messages(["a", "b"], slots=2, now=1.0) == 2
    window.counted("a", 3, at=1.0)
    assert window.room_for_messages(["a", "b"], slots=2, now=1.0) == 3


def test_messages_that_nobody_takes_do_not_stop_a_task_for_long() -> None:
    """Some may have been lost: each second as many more may go as there are slots."""
    window = Window(2000)
    window.sent("a", [1] * 4)
    assert [window.room_for_messages(["a"], slots=2, now=now) for now in (0.0, 0.9, 1.0, 2.0)] == [0, 0, 2, 4]
    window.sent("a", [1] * 4)
    assert [window.room_for_messages(["a"], slots=2, now=now) for now in (2.0, 3.0)] == [0, 2]
    window.counted("a", 1, at=3.0)
    assert window.room_for_messages(["a"], slots=2, now=3.0) == 3


def test_where_some_are_taken_no_more_go_for_those_that_take_their_time() -> None:
    """Slow handlers find no longer and longer queue before the next document, or that of another task."""
    window = Window(2000)
    window.sent("a", [1] * 4)
    assert [window.room_for_messages(["a"], slots=2, now=now) for now in (0.0, 1.0)] == [0, 2]
    window.sent("a", [1] * 2)
    window.counted("a", 5, at=1.5)
    assert [window.room_for_messages(["a"], slots=2, now=now) for now in (1.5, 2.4)] == [0, 0]
    window.counted("a", 4, at=2.4)
    assert [window.room_for_messages(["a"], slots=2, now=now) for now in (2.4, 3.0, 3.4)] == [0, 0, 2]


def test_records_that_an_earlier_leader_has_sent_count_as_messages() -> None:
    """What is not known is not underestimated."""
    window = Window(2000)
    window.counted("a", 5, at=0.0)
    window.sent("a", [2])
    assert window.room_for_messages(["a"], slots=4, now=0.0) == 2


def test_a_task_without_a_message_gets_one_whatever_others_have() -> None:
    """B-58: it waits behind the others' messages that are there, no more."""
    window = Window(2000)
    window.sent("a", [1] * 8)
    assert window.share_messages({"a": 10, "b": 10}, 0) == {"a": 0, "b": 1}
    assert window.share_messages({"a": 10, "b": 1}, 4) == {"a": 3, "b": 1}


def test_at_first_a_few_messages_for_each_slot_go_out() -> None:
    """Nothing has been finished yet."""
    window = Window(2000)
    assert window.room(slots=2, a_message=8, now=0.0) == 64
    window.sent("a", [60])
    assert window.room(slots=2, a_message=8, now=0.0) == 4


def test_as_much_is_with_the_broker_as_was_finished_in_the_last_seconds() -> None:
    """Slow handlers do not get more than they finish before it is sent again; fast ones what the setting allows."""
    window = Window(300)
    window.sent("a", [200])
    window.counted("a", 0, at=10.0)
    assert window.room(slots=1, a_message=1, now=14.0) == 200
    assert window.room(slots=1, a_message=1, now=15.1) == 4
    window.sent("a", [200])
    window.counted("a", 0, at=16.0)
    window.sent("a", [200])
    window.counted("a", 0, at=17.0)
    assert window.room(slots=1, a_message=1, now=18.0) == 300


def test_what_is_counted_replaces_what_was_supposed() -> None:
    """A count after a leader's change finds what its predecessor has sent."""
    window = Window(100)
    window.counted("a", 90, at=0.0)
    assert window.room(slots=50, a_message=1, now=0.0) == 10
    window.counted("a", 95, at=1.0)
    assert window.room(slots=50, a_message=1, now=1.0) == 5


def test_each_task_keeps_its_part_and_lends_the_rest() -> None:
    """B-58: whoever came first does not keep the others out; what nobody else wants is lent."""
    window = Window(100)
    assert window.share({"a": 100, "b": 100}, 100) == {"a": 50, "b": 50}
    assert window.share({"a": 100, "b": 10}, 100) == {"a": 90, "b": 10}
    window.sent("a", [90])
    assert window.share({"a": 100, "b": 10}, 10) == {"a": 0, "b": 10}
    assert window.share({"a": 100}, 10) == {"a": 10}


@given(
    counts=st.dictionaries(st.sampled_from("abcd"), st.integers(0, 50)),
    demands=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 60), min_size=1),
    room=st.integers(0, 100),
)
def test_no_room_is_wasted_and_none_given_twice(counts: dict[str, int], demands: dict[str, int], room: int) -> None:
    """All of the room is used while anything is due, and no task gets more than it has due."""
    window = Window(1000)
    for task, number in counts.items():
        window.sent(task, [number])
    shares = window.share(demands, room)
    assert sum(shares.values()) == min(room, sum(demands.values()))
    assert all(0 <= shares[task] <= due for task, due in demands.items())


def test_a_full_queue_is_looked_at_again_when_an_eighth_is_done() -> None:
    """No polling without need: by what was finished in the last seconds, a quarter of a second at most."""
    window = Window(1000)
    window.sent("a", [800])
    assert window.seconds_until_room(0.0) == 0.25
    window.counted("a", 400, at=1.0)
    assert window.seconds_until_room(2.0) == pytest.approx(50 / 400)
    assert window.seconds_until_room(100.0) == 0.25
