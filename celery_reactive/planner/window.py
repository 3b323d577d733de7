"""How much is sent at once: records with the broker per queue, its sharing among tasks, and records per message.

Called by `dispatch`. No I/O; times are on the monotonic clock. The backlog belongs in MongoDB, where it is ordered, can
be held back and is seen; the broker gets what its workers will take within seconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from datetime import timedelta

MOST_A_MESSAGE = 128
"""Records that one message names, where their number is found by itself."""
_UNKNOWN_MOST = 8
"""As long as nothing is known of how long they run."""
_MESSAGE_WORK = timedelta(milliseconds=200)
"""A message is to hold about so much work: little enough that nobody waits, enough that its own cost is small."""
_CELERYS_PART = timedelta(milliseconds=1)
"""Celery's own time for each record, whatever its handler does."""
_MEMORY_SECONDS = 30.0
_RECENT_SECONDS = 5.0
_SHORTEST_WAIT_SECONDS = 0.02
_LONGEST_WAIT_SECONDS = 0.25
_MESSAGES_A_SLOT = 4
"""Never fewer are with the broker than keep every slot busy until the next look."""


def records_a_message(due: int, *, slots: int, run_time: timedelta | None) -> int:
    """Return how many records a message is to name: one while workers keep up, under a backlog 200 ms of work.

    Args:
        due: Records of the task that are due.
        slots: Messages that the workers of its queue run at once.
        run_time: Of the task's handler, as observed; None: nothing is known.
    """
    most = _UNKNOWN_MOST if run_time is None else int(_MESSAGE_WORK / (run_time + _CELERYS_PART))
    return max(1, min(most, MOST_A_MESSAGE, math.ceil(due / slots)))


class Window:
    """The records of one queue that are with the broker: how many there may be, and whose they are.

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
        self._finished: deque[tuple[float, int]] = deque()
        """When so many were found to have been finished since the look before."""

    def is_counted(self, task: str) -> bool:
        """Whether it is known from above how many records of *task* are with the broker."""
        return task in self._counts

    def counted(self, task: str, number: int, *, at: float) -> None:
        """Take note of how many records of *task* are with the broker."""
        known = self._counts.get(task, number)
        if known > number:
            self._finished.append((at, known - number))
        self._counts[task] = number

    def sent(self, task: str, number: int) -> None:
        """Take note of records that are about to be published."""
        self._counts[task] = self._counts.get(task, 0) + number

    def room(self, *, slots: int, a_message: int, now: float) -> int:
        """Return how many more records may go to the broker, by what is known; not below zero.

        Args:
            slots: Messages that the workers of the queue run at once.
            a_message: Records that one message names.
            now: On the monotonic clock.
        """
        least = _MESSAGES_A_SLOT * slots * a_message
        return max(0, min(self._most, max(self._finished_lately(now), least)) - sum(self._counts.values()))

    def share(self, demands: Mapping[str, int], room: int) -> dict[str, int]:
        """Divide *room* among tasks that have records due.

        Each gets its part of the whole window, less what it has with the broker; what a task does not use is lent to
        the others, the first named first.

        Args:
            demands: Records due by task, the most urgent task first.
            room: Records that may go to the broker.
        """
        part = (room + sum(self._counts.values())) // max(1, len(demands))
        granted: dict[str, int] = {}
        for task, due in demands.items():
            own = max(0, part - self._counts.get(task, 0))
            granted[task] = min(due, own, room - sum(granted.values()))
        left = room - sum(granted.values())
        for task, due in demands.items():
            lent = min(due - granted[task], left)
            granted[task] += lent
            left -= lent
        return granted

    def seconds_until_room(self, now: float) -> float:
        """Return after how long to count again where the window is full: an eighth of it will have been finished."""
        recent = [(at, number) for at, number in self._finished if at >= now - _RECENT_SECONDS]
        finished = sum(number for _, number in recent)
        if not finished:
            return _LONGEST_WAIT_SECONDS
        a_second = finished / max(now - recent[0][0], _SHORTEST_WAIT_SECONDS)
        eighth = sum(self._counts.values()) / 8
        return min(max(eighth / a_second, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)

    def _finished_lately(self, now: float) -> int:
        while self._finished and self._finished[0][0] < now - _MEMORY_SECONDS:
            self._finished.popleft()
        return sum(number for _, number in self._finished)
