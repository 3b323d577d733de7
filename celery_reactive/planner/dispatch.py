"""Dispatching: mark what is due as sent, then publish a message for it (B-22).

Called by `process`, in a thread of its own. The mark is the intent and comes first: a planner that
dies in between leaves records whose deadline passes, and they are sent again. A message is a wake-up
and carries no authority; what is known not to have been published is cleared when the broker answers.

Messages go out in batches over all tasks, the more urgent tasks first (B-58); `publish` knows how.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

from celery_reactive.core.record import Due
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import StoreUnavailableError
from celery_reactive.events import DispatchFailed, RecordsDispatched
from celery_reactive.planner.patience import Complaint
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.planner.publish import BrokerUnavailableError, Message, MessagesRefusedError, Publisher
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, records

logger = logging.getLogger(__name__)

_ROUND_SIZE = 500
_FIRST_DEADLINE = timedelta(seconds=60)
_LONGEST_DEADLINE = timedelta(minutes=15)
_SAFETY_POLL_SECONDS = 0.5
_BROKER_WAIT_SECONDS = 1.0
_REFUSED_WAIT_SECONDS = 5.0
"""For a task whose messages were refused; those of others go out meanwhile."""


class Dispatcher:
    """Sends what is due, for the leader of one term."""

    def __init__(
        self,
        runtime: Runtime,
        tasks: Sequence[PlannedTask],
        publisher: Publisher,
        *,
        ended: threading.Event,
    ) -> None:
        self._runtime = runtime
        self._tasks = sorted(tasks, key=lambda task: task.definition.priority, reverse=True)
        self._publisher = publisher
        self._ended = ended
        self._kicked = threading.Event()
        self._complaint = Complaint("the broker")
        self._filter_complaint = Complaint("reactive_task_filter")
        self._unpublished: list[Message] = []
        self._held: dict[str, float] = {}
        """Tasks of which nothing may be sent now, whatever is due, and after how many seconds to look again."""
        self._refused_at: dict[str, float] = {}
        """When the broker last refused messages of a task, by the monotonic clock."""

    def most_a_message(self, task: ReactiveTask) -> int:
        """Return how many records of *task* one message names at most."""
        return self._records_a_message(task, _ROUND_SIZE)

    def kick(self) -> None:
        """Look now: something may have become due."""
        self._kicked.set()

    def step(self) -> None:
        """Send what is due, then wait until something is, or for a kick.

        Raises:
            StoreUnavailableError: MongoDB is away; what was marked is sent again after its deadline.
        """
        self._kicked.clear()
        try:
            sent = self._round()
        except BrokerUnavailableError as error:
            self._complaint.away(error)
            self._runtime.emit(DispatchFailed(str(error)))
            self._ended.wait(_BROKER_WAIT_SECONDS)
            return
        if not sent:
            self._kicked.wait(self._seconds_to_wait())

    def _round(self) -> int:
        self._clear_unpublished()
        names = [task.definition.name for task in self._tasks]
        controls = definitions.read_all(self._runtime.connection.globals(), names)
        self._held = {
            name: _PAUSED_WAIT_SECONDS for name in names if controls[name].holds_back or self._is_held_by_filter(name)
        }
        self._held |= self._held_by_refusals()
        return sum(map(self._publish, self._batches()))

    def _held_by_refusals(self) -> dict[str, float]:
        now = time.monotonic()
        waits = {task: at + _REFUSED_WAIT_SECONDS - now for task, at in self._refused_at.items()}
        return {task: wait for task, wait in waits.items() if wait > 0}

    def _is_held_by_filter(self, task: str) -> bool:
        """Ask `reactive_task_filter` (B-37); one that raises holds back, as nobody knows what it would have said."""
        allows = self._runtime.task_filter
        if allows is None:
            return False
        try:
            held = not allows(task)
        except Exception as error:  # noqa: BLE001 -- the user's code may raise anything
            self._filter_complaint.away(error)
            return True
        self._filter_complaint.back()
        return held

    def _batches(self) -> Iterator[list[Message]]:
        """Mark what is due as sent, task by task, and yield the messages that are to be published for it."""
        batch: list[Message] = []
        try:
            for task in self._tasks:
                if task.definition.name not in self._held and not self._ended.is_set():
                    batch += self._mark_due(task.definition)
                if sum(len(message.due) for message in batch) >= _ROUND_SIZE:
                    yield batch
                    batch = []
        except StoreUnavailableError:
            # What has been marked counts as sent.
            yield batch
            raise
        yield batch

    def _mark_due(self, task: ReactiveTask) -> list[Message]:
        target = self._runtime.connection.records(task)
        room = self._runtime.settings.max_in_flight
        due = records.find_due(target, task.name, limit=min(_ROUND_SIZE, room))
        if len(due) > _FEW:
            room -= records.count_in_flight(target, task.name)
            if room <= 0:
                self._held[task.name] = _FULL_WAIT_SECONDS
            due = due[: max(room, 0)]
        if not due:
            return []
        records.mark_sent(
            target,
            [one.key for one in due],
            first_deadline=_FIRST_DEADLINE,
            longest_deadline=_LONGEST_DEADLINE,
        )
        return [Message(task, named) for named in chunks(due, self._records_a_message(task, len(due)))]

    def _publish(self, batch: Sequence[Message]) -> int:
        """Publish messages; return how many records they name.

        Raises:
            BrokerUnavailableError: What is in doubt has been noted, to be sent again.
        """
        if not batch:
            return 0
        try:
            self._publisher.publish_all(batch)
        except BrokerUnavailableError as error:
            self._unpublished += error.messages
            self._tell_published(batch, but=error.messages)
            raise
        except MessagesRefusedError as error:
            self._unpublished += error.messages
            self._refused_at |= dict.fromkeys(error.tasks, time.monotonic())
            self._runtime.emit(DispatchFailed(str(error), "refused"))
            sent = self._tell_published(batch, but=error.messages)
        else:
            sent = self._tell_published(batch)
        self._complaint.back()
        return sent

    def _tell_published(self, batch: Iterable[Message], *, but: Iterable[Message] = ()) -> int:
        left = {id(message) for message in but}
        sent: dict[str, list[Message]] = {}
        for message in batch:
            if id(message) not in left:
                sent.setdefault(message.task.name, []).append(message)
        for of_task in sent.values():
            self._runtime.emit(self._dispatched(of_task))
        return sum(len(message.due) for of_task in sent.values() for message in of_task)

    def _dispatched(self, messages: Sequence[Message]) -> RecordsDispatched:
        """Return what is told of messages of one task that were published."""
        task, due = messages[0].task, [one for message in messages for one in message.due]
        again = sum(one.again for one in due)
        queue = self._publisher.queue_of(task)
        queue_name = None if queue is None else str(queue.name)
        return RecordsDispatched(task.name, len(due), len(messages), queue_name, again)

    def _records_a_message(self, task: ReactiveTask, due: int) -> int:
        """Return how many records a message names; `"auto"` spreads what is due over enough messages for all slots."""
        if self._publisher.has_time_limit(task):
            return 1
        size = task.chunk or self._runtime.settings.chunk
        return max(1, math.ceil(due / _FEW)) if isinstance(size, str) else size

    def _clear_unpublished(self) -> None:
        """Let what was not published be sent again, once the broker answers."""
        if not self._unpublished:
            return
        self._publisher.check()
        for name, task in {message.task.name: message.task for message in self._unpublished}.items():
            keys = [one.key for message in self._unpublished if message.task.name == name for one in message.due]
            records.mark_unsent(self._runtime.connection.records(task), keys)
            self._unpublished = [message for message in self._unpublished if message.task.name != name]

    def _seconds_to_wait(self) -> float:
        asked = time.monotonic()
        waits = [
            records.seconds_until_next_wake(self._runtime.connection.records(task.definition), task.definition.name)
            for task in self._tasks
            if task.definition.name not in self._held
        ]
        spent = time.monotonic() - asked
        soonest = min((wait for wait in waits if wait is not None), default=_SAFETY_POLL_SECONDS)
        return min(max(soonest - spent, _LEAST_WAIT_SECONDS), *self._held.values(), _SAFETY_POLL_SECONDS)


_FEW = 50
"""Up to so many due records are sent one by one, without asking how many are in flight."""
_FULL_WAIT_SECONDS = 0.02
_PAUSED_WAIT_SECONDS = 0.1
_LEAST_WAIT_SECONDS = 0.005


def chunks(due: Iterable[Due], size: int) -> Iterator[list[Due]]:
    """Group *due* into messages of up to *size* records; one that must travel alone gets its own."""
    company: list[Due] = []
    for one in due:
        if one.alone:
            yield [one]
            continue
        company.append(one)
        if len(company) == size:
            yield company
            company = []
    if company:
        yield company
