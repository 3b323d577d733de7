"""How much is sent at once: what is with the broker per queue, its sharing among tasks, and records per message.

Called by `dispatch`. No I/O; times are on the monotonic clock. The backlog belongs in MongoDB, where it is ordered, can
be held back and is seen; the broker gets what its workers will take within a moment. So a document that comes now, or
one of another task, does not wait behind all that came before.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

MOST_A_MESSAGE = 128
"""Records that one message names, where their number is found by itself."""
_UNKNOWN_MOST = 8
"""As long as nothing is known of how long they run."""
_MESSAGE_WORK = timedelta(milliseconds=200)
"""A message is to hold about so much work: little enough that nobody waits, enough that its own cost is small."""
_CELERYS_PART = timedelta(milliseconds=1)
"""Celery's own time for each record, whatever its handler does."""
_MESSAGES_A_SLOT = 2
"""One that is run, one that waits for it to end: with that no slot is idle until the planner looks again."""
_LEAST_MESSAGES_A_SLOT = 4
"""Of messages with a fixed number of records, which are sent further ahead."""
_PATIENCE_SECONDS = 1.0
_MEMORY_SECONDS = 5.0
"""What is sent further ahead than that only makes new documents wait."""
_RECENT_SECONDS = 5.0
_SHORTEST_WAIT_SECONDS = 0.02
_LONGEST_WAIT_SECONDS = 0.25
_REMEMBERED_MESSAGES = 10_000


def records_of_work(run_time: timedelta | None) -> int:
    """Return how many records of a task a message names under a backlog: 200 ms of work.

    Args:
        run_time: Of the task's handler, as observed; None: nothing is known.
    """
    if run_time is None:
        return _UNKNOWN_MOST
    return max(1, min(int(_MESSAGE_WORK / (run_time + _CELERYS_PART)), MOST_A_MESSAGE))


class Window:
    """What of one queue is with the broker: how much there may be, and whose it is.

    What is with the broker is counted in MongoDB; between two counts it is known from above, as what was counted and
    what has been sent since.
    """

    def __init__(self, most: int) -> None:
        """Begin with nothing known.

        Args:
            most: Records with the broker, whatever its workers finish (`reactive_max_in_flight`).
        """
        self._most = most
        self._counts: dict[str, int] = {}
        self._sizes: dict[str, deque[int]] = {}
        """Of the messages of each task, the newest last."""
        self._finished: deque[tuple[float, int]] = deque()
        """When so many were found to have been finished since the look before."""
        self._full_since: float | None = None
        self._taken_at = -math.inf
        """When fewer were found to be with the broker than at the look before."""

    def is_counted(self, task: str) -> bool:
        """Whether it is known from above how many records of *task* are with the broker."""
        return task in self._counts

    def counted(self, task: str, number: int, *, at: float) -> None:
        """Take note of how many records of *task* are with the broker."""
        known = self._counts.get(task, number)
        if known > number:
            self._finished.append((at, known - number))
            self._taken_at = at
        self._counts[task] = number

    def sent(self, task: str, sizes: Sequence[int]) -> None:
        """Take note of messages that are about to be published, by the number of records that each names."""
        self._counts[task] = self._counts.get(task, 0) + sum(sizes)
        self._sizes.setdefault(task, deque(maxlen=_REMEMBERED_MESSAGES)).extend(sizes)

    def has_messages(self, task: str) -> bool:
        """Whether any record of *task* is known to be with the broker."""
        return bool(self._counts.get(task))

    def room(self, *, slots: int, a_message: int, now: float) -> int:
        """Return how many more records may go to the broker, by what is known; not below zero.

        Args:
            slots: Messages that the workers of the queue run at once.
            a_message: Records that one message names.
            now: On the monotonic clock.
        """
        least = _LEAST_MESSAGES_A_SLOT * slots * a_message
        return max(0, min(self._most, max(self._finished_lately(now), least)) - sum(self._counts.values()))

    def room_for_messages(self, tasks: Collection[str], *, slots: int, now: float) -> int:
        """Return how many more messages of *tasks* may go to the broker, by what is known.

        Where none are taken for a second, more may go: some may have been lost.

        Args:
            tasks: Those whose messages grow with their backlog.
            slots: Messages that the workers of the queue run at once.
            now: On the monotonic clock.
        """
        held = sum(self._messages(task) for task in tasks)
        most = _MESSAGES_A_SLOT * slots
        if held < most:
            self._full_since = None
            return most - held
        if self._full_since is None:
            self._full_since = now
        stands_still = now - max(self._full_since, self._taken_at)
        return max(0, most + slots * int(stands_still / _PATIENCE_SECONDS) - held)

    def share(self, demands: Mapping[str, int], room: int) -> dict[str, int]:
        """Divide *room* among tasks that have records due.

        Each gets its part of the whole window, less what it has with the broker; what a task does not use is lent to
        the others, the first named first.

        Args:
            demands: Records due by task, the most urgent task first.
            room: Records that may go to the broker.
        """
        return _divide(demands, room, self._counts)

    def share_messages(self, demands: Mapping[str, int], room: int) -> dict[str, int]:
        """Divide room for messages as `share` does; a task of which there is none with the broker gets one at least."""
        held = {task: self._messages(task) for task in demands}
        shares = _divide(demands, room, held)
        return {task: max(share, 1) if not held[task] else share for task, share in shares.items()}

    def seconds_until_room(self, now: float) -> float:
        """Return after how long to count again where the window is full: an eighth of it will have been finished."""
        recent = [(at, number) for at, number in self._finished if at >= now - _RECENT_SECONDS]
        finished = sum(number for _, number in recent)
        if not finished:
            return _LONGEST_WAIT_SECONDS
        a_second = finished / max(now - recent[0][0], _SHORTEST_WAIT_SECONDS)
        eighth = sum(self._counts.values()) / 8
        return min(max(eighth / a_second, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)

    def _messages(self, task: str) -> int:
        """Return how many messages hold the records of *task* that are with the broker: the newest that were sent."""
        left, messages = self._counts.get(task, 0), 0
        for size in reversed(self._sizes.get(task, ())):
            if left <= 0:
                break
            left -= size
            messages += 1
        # An earlier leader has sent the others.
        return messages + max(left, 0)

    def _finished_lately(self, now: float) -> int:
        while self._finished and self._finished[0][0] < now - _MEMORY_SECONDS:
            self._finished.popleft()
        return sum(number for _, number in self._finished)


def _divide(demands: Mapping[str, int], room: int, held: Mapping[str, int]) -> dict[str, int]:
    part = (room + sum(held.values())) // max(1, len(demands))
    granted: dict[str, int] = {}
    for task, wanted in demands.items():
        own = max(0, part - held.get(task, 0))
        granted[task] = min(wanted, own, room - sum(granted.values()))
    left = room - sum(granted.values())
    for task, wanted in demands.items():
        lent = min(wanted - granted[task], left)
        granted[task] += lent
        left -= lent
    return granted
