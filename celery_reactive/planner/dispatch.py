"""Dispatching: mark what is due as sent, then publish a message for it (B-22).

Called by `process`, in a thread of its own. The mark is the intent and comes first: a planner that
dies in between leaves records whose deadline passes, and they are sent again. A message is a wake-up
and carries no authority; what is known not to have been published is cleared when the broker answers.

The only planner module that knows Celery; `contents` knows the brokers behind it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

from celery import Celery
from kombu.connection import Connection as BrokerConnection
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from kombu.messaging import Producer

from celery_reactive.core.message import message_for
from celery_reactive.core.record import Due, RecordKey
from celery_reactive.core.task import ReactiveTask
from celery_reactive.errors import ReactiveError
from celery_reactive.events import DispatchFailed, RecordsDispatched
from celery_reactive.planner.patience import Complaint
from celery_reactive.planner.plan import PlannedTask
from celery_reactive.runtime import Runtime
from celery_reactive.store import definitions, records

logger = logging.getLogger(__name__)

_ROUND_SIZE = 500
_FIRST_DEADLINE = timedelta(seconds=60)
_LONGEST_DEADLINE = timedelta(minutes=15)
_SAFETY_POLL_SECONDS = 0.5
_BROKER_WAIT_SECONDS = 1.0
_BROKER_TIMEOUT_SECONDS = 5.0
_TIME_LIMITS = ("socket_timeout", "socket_connect_timeout", "read_timeout", "write_timeout", "confirm_timeout")
"""Of all transports; each takes those it knows."""


class BrokerUnavailableError(ReactiveError):
    """The broker did not take a message. It may have been published nevertheless."""


class Publisher:
    """Publishes messages through Celery, on a connection of its own that cannot hang."""

    def __init__(self, app: Celery, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime
        self._connection: BrokerConnection | None = None
        self._producer: Producer | None = None

    def check(self) -> None:
        """Connect to the broker once.

        Raises:
            BrokerUnavailableError: It does not answer; the message names it without secrets.
        """
        try:
            self._open().connection.ensure_connection(max_retries=1, timeout=_BROKER_TIMEOUT_SECONDS)
        except Exception as error:
            self.close()
            raise BrokerUnavailableError(f"{self.shown_url}: the broker does not answer: {error}") from error

    @property
    def shown_url(self) -> str:
        """The broker's address without its password."""
        return str(self._app.connection_for_write().as_uri())

    def publish(self, task: ReactiveTask, due: Sequence[Due]) -> None:
        """Publish one message that names the records *due*.

        Raises:
            BrokerUnavailableError: The broker did not take it, or did not say so in time.
        """
        celery_task = self._app.tasks[self._runtime.registry.celery_name(task.name)]
        message = message_for(
            namespace=self._runtime.connection.namespace(task),
            due=due,
            max_attempts=task.retry_policy.max_attempts,
        )
        try:
            celery_task.apply_async(producer=self._open(), retry=False, **message)
        except (OperationalError, OSError, *self._app.connection_for_write().connection_errors) as error:
            self.close()
            raise BrokerUnavailableError(str(error)) from error

    def has_time_limit(self, task: ReactiveTask) -> bool:
        """Whether Celery limits the time of a message to *task*: its records would have to share it (B-30)."""
        celery_task = self._app.tasks[self._runtime.registry.celery_name(task.name)]
        conf = self._app.conf
        limits = (celery_task.time_limit, celery_task.soft_time_limit, conf.task_time_limit, conf.task_soft_time_limit)
        return any(limits)

    def queue_of(self, task: ReactiveTask) -> Queue | None:
        """Return the queue that messages for *task* go to; None where only the exchange or the message tells."""
        celery_task = self._app.tasks[self._runtime.registry.celery_name(task.name)]
        own = {name: getattr(celery_task, name, None) for name in ("queue", "exchange")}
        asked = {name: value for name, value in own.items() if value is not None}
        try:
            route = self._app.amqp.router.route(asked, celery_task.name, args=([],), kwargs={}, task_type=celery_task)
        except Exception:  # noqa: BLE001 -- a router of the user's may want a message that names something
            return None
        queue = route.get("queue")
        return queue if isinstance(queue, Queue) and "exchange" not in route else None

    def connect(self) -> BrokerConnection:
        """Return a new connection whose statements end in time; nothing is connected yet."""
        options = dict(self._app.conf.broker_transport_options or {})
        for limit in _TIME_LIMITS:
            options.setdefault(limit, _BROKER_TIMEOUT_SECONDS)
        connection: BrokerConnection = self._app.connection_for_write(
            connect_timeout=_BROKER_TIMEOUT_SECONDS,
            transport_options={**options, "confirm_publish": True},
        )
        return connection

    def close(self) -> None:
        """Close the connection; the next message opens another."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            connection.release()  # type: ignore[no-untyped-call]

    def _open(self) -> Producer:
        if self._producer is None:
            self._connection = self.connect()
            self._producer = self._app.amqp.Producer(self._connection, auto_declare=False)
        return self._producer


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
        self._tasks = tuple(tasks)
        self._publisher = publisher
        self._ended = ended
        self._kicked = threading.Event()
        self._complaint = Complaint("the broker")
        self._filter_complaint = Complaint("reactive_task_filter")
        self._unpublished: dict[str, list[RecordKey]] = {}
        self._held: dict[str, float] = {}
        """Tasks of which nothing may be sent now, whatever is due, and after how many seconds to look again."""

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
        return sum(
            self._send_due(task.definition)
            for task in self._tasks
            if task.definition.name not in self._held and not self._ended.is_set()
        )

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

    def _send_due(self, task: ReactiveTask) -> int:
        target = self._runtime.connection.records(task)
        room = self._runtime.settings.max_in_flight
        due = records.find_due(target, task.name, limit=min(_ROUND_SIZE, room))
        if len(due) > _FEW:
            room -= records.count_in_flight(target, task.name)
            if room <= 0:
                self._held[task.name] = _FULL_WAIT_SECONDS
            due = due[: max(room, 0)]
        if not due:
            return 0
        records.mark_sent(
            target,
            [one.key for one in due],
            first_deadline=_FIRST_DEADLINE,
            longest_deadline=_LONGEST_DEADLINE,
        )
        self._publish(task, due)
        return len(due)

    def _publish(self, task: ReactiveTask, due: Sequence[Due]) -> None:
        messages = list(chunks(due, self._records_a_message(task, len(due))))
        for number, message in enumerate(messages):
            try:
                self._publisher.publish(task, message)
            except BrokerUnavailableError:
                # The one that failed is in doubt; those after it were certainly not published.
                left = [one.key for later in messages[number:] for one in later]
                self._unpublished.setdefault(task.name, []).extend(left)
                raise
        self._complaint.back()
        self._runtime.emit(RecordsDispatched(task.name, len(due), len(messages)))

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
        for name in list(self._unpublished):
            task = self._runtime.registry.get(name)
            records.mark_unsent(self._runtime.connection.records(task), self._unpublished[name])
            del self._unpublished[name]

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
