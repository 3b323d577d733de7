"""Broker contents: notice that messages have been lost, and let their records be sent again (B-66).

Called by `process`, in a thread of its own. Without it a record whose message is lost waits for its dispatch deadline;
what this stage cannot see, that deadline still covers. Sending again what was not lost after all is harmless, as the
claim decides, but not free: each message in a row that a record needs is believed lost after twice the patience.

Lost is what was sent before a broker was found emptied, and what was sent before the first of several readings in a
row that found fewer messages than those records need. Workers take messages between a reading and a count: that is
over by the next reading, and only the same records count then.

Nothing is asked of the broker while no record is on its way, but once at the beginning: what is sent for the first
time must find a canary.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from celery_reactive.core.task import ReactiveTask
from celery_reactive.events import BrokerContentsLost
from celery_reactive.planner.contents import Contents, ContentsUnknownError, Held
from celery_reactive.planner.patience import Complaint
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.runtime import Runtime
from celery_reactive.store import records, server

_LOOK_SECONDS = 2.0
_READINGS = 3
_PATIENCE = timedelta(seconds=5)
_BATCH_SIZE = 1000


@dataclasses.dataclass(slots=True)
class _Suspicion:
    """A queue that holds too few messages."""

    since: datetime
    """The server's time before the first reading that found it so: records sent later are not in question."""
    readings: int = 0


class ContentsWatch:
    """Watches over the messages that are on their way, for the leader of one term."""

    def __init__(
        self,
        runtime: Runtime,
        tasks: Sequence[PlannedTask],
        contents: Contents,
        *,
        most_a_message: Callable[[ReactiveTask], int],
        on_lost: Callable[[], None],
        ended: threading.Event,
    ) -> None:
        """Begin with no suspicion.

        Args:
            runtime: The app's parts.
            tasks: The tasks of the planner group.
            contents: Of the broker.
            most_a_message: Says how many records of a task one message may name.
            on_lost: Called when records were made due again.
            ended: Set when the stage must stop.
        """
        self._runtime = runtime
        self._tasks = [task.definition for task in tasks if task.definition.name in contents.queue_of]
        self._contents = contents
        self._most_a_message = most_a_message
        self._on_lost = on_lost
        self._ended = ended
        self._complaint = Complaint("the broker, asked for its contents,")
        self._has_read = False
        self._emptied_at: datetime | None = None
        """Not yet dealt with: the server's time before the reading that found the broker emptied."""
        self._suspicions: dict[str, _Suspicion] = {}

    def step(self) -> None:
        """Look once, then wait.

        Raises:
            StoreUnavailableError: What was found is dealt with at the next look.
        """
        try:
            self.look()
        finally:
            self._ended.wait(_LOOK_SECONDS)
            if self._ended.is_set():
                self._contents.close()

    def look(self) -> int:
        """Compare what the broker holds with what is on its way.

        Returns:
            Number of records made due again.

        Raises:
            StoreUnavailableError: What was found is dealt with at the next look.
        """
        now = server.now(self._runtime.connection.database())
        sent = self._count(self._tasks)
        if self._has_read and not any(sent.values()):
            self._contents.close()
            self._suspicions.clear()
            return 0
        try:
            reading = self._contents.read()
        except ContentsUnknownError as error:
            self._complaint.away(error)
            return 0
        self._complaint.back()
        self._has_read = True
        if reading.emptied:
            self._emptied_at = now
        if self._emptied_at is not None:
            return self._give_up_all(self._emptied_at)
        return sum(self._judge(queue, held, sent, now) for queue, held in reading.queues.items())

    def _give_up_all(self, sent_before: datetime) -> int:
        lost = self._give_up(self._tasks, sent_before)
        self._emptied_at = None
        self._suspicions.clear()
        return lost

    def _judge(self, queue: str, held: Held, sent: Mapping[str, int], now: datetime) -> int:
        """Take in what a queue holds; give up what is on its way there after enough readings that found too few."""
        tasks = [task for task in self._tasks if self._contents.queue_of[task.name] == queue]
        suspicion = self._suspicions.get(queue) or _Suspicion(now)
        too_few = self._holds_too_few(held, tasks, sent) and self._holds_too_few(
            held, tasks, self._count(tasks, sent_before=suspicion.since)
        )
        if not too_few:
            self._suspicions.pop(queue, None)
            return 0
        suspicion.readings += 1
        if suspicion.readings < _READINGS:
            self._suspicions[queue] = suspicion
            return 0
        lost = self._give_up(tasks, suspicion.since)
        self._suspicions.pop(queue, None)
        return lost

    def _holds_too_few(self, held: Held, tasks: Sequence[ReactiveTask], sent: Mapping[str, int]) -> bool:
        """Whether a queue holds fewer messages than the least that name the records *sent*.

        Where workers may hold messages that nobody counts, only an empty queue says something, and only while no
        worker runs anything behind which they could wait.
        """
        least = sum(math.ceil(sent[task.name] / self._most_a_message(task)) for task in tasks)
        if held.complete:
            return held.messages < least
        return held.messages == 0 < least and not any(self._runs(task) for task in tasks)

    def _count(self, tasks: Sequence[ReactiveTask], *, sent_before: datetime | None = None) -> dict[str, int]:
        return {
            task.name: records.count_in_flight(
                self._runtime.connection.records(task), task.name, sent_before=sent_before
            )
            for task in tasks
        }

    def _runs(self, task: ReactiveTask) -> bool:
        return records.is_running(self._runtime.connection.records(task), task.name)

    def _give_up(self, tasks: Sequence[ReactiveTask], sent_before: datetime) -> int:
        lost = sum(self._expire(task, sent_before) for task in tasks)
        if lost:
            self._runtime.emit(BrokerContentsLost(self._contents.shown_url, lost))
            self._on_lost()
        return lost

    def _expire(self, task: ReactiveTask, sent_before: datetime) -> int:
        target = self._runtime.connection.records(task)
        expired = 0
        while not self._ended.is_set():
            keys = records.find_sent(target, task.name, sent_before=sent_before, patience=_PATIENCE, limit=_BATCH_SIZE)
            expired += records.expire_sent(target, keys, sent_before=sent_before, patience=_PATIENCE)
            if len(keys) < _BATCH_SIZE:
                break
        return expired
