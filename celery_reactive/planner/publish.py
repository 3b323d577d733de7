"""Publishing: the planner's messages, through Celery, on a connection of its own that cannot hang (B-22).

Called by `dispatch`. Messages go out together, so that the broker's answers are waited for once and not once a message.
What the broker has not confirmed is in doubt and is named to the caller; nothing that is in doubt may ever be taken for
published. The routes, signals, headers and events of a message are `apply_async`'s.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import kombu.exceptions
from celery import Celery
from kombu.connection import Connection as BrokerConnection
from kombu.entity import Queue
from kombu.exceptions import OperationalError

from celery_reactive.core.message import HEADER, message_for, message_priority
from celery_reactive.core.record import Due
from celery_reactive.core.task import DEFAULT_PRIORITY, ReactiveTask
from celery_reactive.errors import ReactiveError
from celery_reactive.runtime import Runtime

_TIMEOUT_SECONDS = 5.0
"""Longest wait for a broker's answer, where the user has set none; a user's own is kept."""
_AMQP, _REDIS = "py-amqp", "redis"
_TIME_LIMITS = {
    _AMQP: ("read_timeout", "write_timeout"),
    _REDIS: ("socket_timeout", "socket_connect_timeout"),
}
"""Transport options by the driver's name: one that does not know an option may refuse it."""
_BATCH_ERROR: type[Exception] = getattr(kombu.exceptions, "BatchPublishError", OperationalError)
"""Of kombu 5.7 and newer, as batches are."""
UsualPriority = Callable[[ReactiveTask], int | None]
"""Of messages that neither user nor route gives one; None: none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """Records of one task that one message names."""

    task: ReactiveTask
    due: Sequence[Due]


class NotPublishedError(ReactiveError):
    """Some messages were not confirmed by the broker. They may have been published nevertheless.

    Attributes:
        messages: Those that are in doubt; all others were published.
    """

    def __init__(self, problem: str, messages: Sequence[Message] = ()) -> None:
        super().__init__(problem)
        self.messages = tuple(messages)


class BrokerUnavailableError(NotPublishedError):
    """The broker does not answer: nothing can be published to it now."""


class MessagesRefusedError(NotPublishedError):
    """The broker, a router or a queue did not take the messages of some tasks; it takes those of others.

    Attributes:
        tasks: Names of the tasks whose messages were refused.
    """

    def __init__(self, reasons: Mapping[str, str], messages: Sequence[Message]) -> None:
        super().__init__("; ".join(f"{task}: {reason}" for task, reason in reasons.items()), messages)
        self.tasks = frozenset(reasons)


@dataclasses.dataclass(slots=True)
class _Post:
    """A message on its way out."""

    message: Message
    send: Callable[[Any], object]
    """Hands it to a producer."""
    celery_id: str
    is_confirmed: bool = False


class Publisher:
    """Publishes messages through Celery, on a connection of its own that cannot hang."""

    def __init__(self, app: Celery, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime
        self._line: _Line | None = None
        self._priorities: dict[str, int] = {}
        """Those set by hand, as far as they are known."""

    def prioritize(self, task: str, priority: int) -> None:
        """Give the messages of *task* a priority from now on, whatever is declared (B-58)."""
        self._priorities[task] = priority

    def check(self) -> None:
        """Connect to the broker, to each of several once until one answers.

        Raises:
            BrokerUnavailableError: None does; the message names it without secrets.
        """
        self._open()

    @property
    def shown_url(self) -> str:
        """The broker's address without its password."""
        return str(self._app.connection_for_write().as_uri())

    def publish(self, task: ReactiveTask, due: Sequence[Due]) -> None:
        """Publish one message that names the records *due*; raises what `publish_all` does."""
        self.publish_all([Message(task, due)])

    def publish_all(self, messages: Sequence[Message]) -> None:
        """Publish messages, together where the broker lets us.

        What was not confirmed although the broker answers is sent once more: each alone, so that one message that
        cannot be published takes no other with it, and on a new connection, so that a queue that has been deleted is
        declared again.

        Raises:
            BrokerUnavailableError: The broker did not answer, or not in time.
            MessagesRefusedError: All messages were published but those of the tasks that it names.
        """
        posts = [self._post(message) for message in messages]
        try:
            reasons = self._send_with_patience(posts)
        except self._absences() as error:
            self.close()
            raise BrokerUnavailableError(_words(error), _in_doubt(posts)) from error
        if reasons:
            raise MessagesRefusedError(reasons, _in_doubt(posts))

    def _send_with_patience(self, posts: Sequence[_Post]) -> dict[str, str]:
        """Send all, then alone what was not confirmed; return why the messages of some tasks were refused."""
        self._send(posts)
        reasons: dict[str, str] = {}
        for post in posts:
            task = post.message.task.name
            if post.is_confirmed or task in reasons:
                continue
            reason = self._send([post])
            if not post.is_confirmed:
                reasons[task] = reason
        return reasons

    def _send(self, posts: Sequence[_Post]) -> str:
        """Send *posts* and note which of them are confirmed; return why the others are not."""
        try:
            reason = self._open().send(posts)
        except self._absences():
            raise
        except Exception as error:  # noqa: BLE001 -- a router, a serializer, a transport may raise anything
            reason = _words(error)
        if not all(post.is_confirmed for post in posts):
            self.close()
        return reason

    def _post(self, message: Message) -> _Post:
        task = message.task
        celery_task = self._app.tasks[self._runtime.registry.celery_name(task.name)]
        options = message_for(
            namespace=self._runtime.connection.namespace(task),
            due=message.due,
            max_attempts=task.retry_policy.max_attempts,
        )
        if "json" in self._app.conf.accept_content:
            # Of ids as text: every worker that takes JSON can read it, whatever the task's own serializer.
            options["serializer"] = "json"

        def send(producer: Any) -> object:
            return celery_task.apply_async(producer=producer, retry=False, **options)

        return _Post(message, send, options["task_id"])

    def _absences(self) -> tuple[type[BaseException], ...]:
        """Return what is raised when the broker does not answer.

        Transports also name errors that a router of the user's may raise; those are no sign of it.
        """
        of_transport = self._app.connection_for_write().connection_errors
        others = [error for error in of_transport if not issubclass(error, LookupError)]
        return (BrokerUnavailableError, OperationalError, _BATCH_ERROR, OSError, *others)

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

    def queue_name(self, task: ReactiveTask) -> str | None:
        """Return the name of the queue that `queue_of` returns."""
        queue = self.queue_of(task)
        return None if queue is None else str(queue.name)

    def connect(self) -> BrokerConnection:
        """Return a new connection whose statements end in time; nothing is connected yet."""
        options = dict(self._app.conf.broker_transport_options or {})
        driver = self._app.connection_for_write().transport.driver_name
        for limit in _TIME_LIMITS.get(driver, ()):
            if options.get(limit) is None:
                options[limit] = _TIMEOUT_SECONDS
        if driver == _AMQP:
            # Its messages are confirmed, but not each waited for.
            options["confirm_publish"] = False
        connection: BrokerConnection = self._app.connection_for_write(
            connect_timeout=self._app.conf.broker_connection_timeout or _TIMEOUT_SECONDS,
            transport_options=options,
        )
        return connection

    def close(self) -> None:
        """Close the connection; the next message opens another."""
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _open(self) -> _Line:
        if self._line is None:
            connection: Any = self.connect()
            try:
                connection.ensure_connection(max_retries=max(0, len(connection.alt) - 1))
                self._line = _line_over(connection, self._app.amqp.Producer, self._usual_priority)
            except Exception as error:
                connection.release()
                raise BrokerUnavailableError(f"{self.shown_url}: the broker does not answer: {error}") from error
        return self._line

    def _usual_priority(self, task: ReactiveTask) -> int | None:
        """Return the option `priority`, None while no task asks for an order: then messages are as in plain Celery."""
        asked = any(self._priority(one) != DEFAULT_PRIORITY for one in self._runtime.registry)
        return self._priority(task) if asked else None

    def _priority(self, task: ReactiveTask) -> int:
        return self._priorities.get(task.name, task.priority)


def _in_doubt(posts: Iterable[_Post]) -> list[Message]:
    return [post.message for post in posts if not post.is_confirmed]


def _words(error: BaseException) -> str:
    """Return what an error says, with its cause where it leaves that out."""
    said = str(error) or type(error).__name__
    return f"{said}: {error.__cause__}" if isinstance(error, _BATCH_ERROR) and error.__cause__ else said


# --- producers -----------------------------------------------------------------------------------


class _Stamping:
    """Laid over the app's producer: what a planner's message gets that neither user nor route has set.

    Other messages that Celery publishes on the way, such as `task-sent` events, are left alone.
    """

    usual_priority: int | None = None
    returns_unroutable = False

    def publish(self, body: Any, *args: Any, headers: Any = None, **options: Any) -> Any:
        """Publish as the app's producer does."""
        if headers and HEADER in headers:
            if options.get("priority") is None and self.usual_priority is not None:
                options["priority"] = self.usual_priority
            options["mandatory"] = self.returns_unroutable
        return super().publish(body, *args, headers=headers, **options)  # type: ignore[misc]


# --- lines: how messages go over a connection together -------------------------------------------


class _Line(ABC):
    """An open connection, and how messages go over it together."""

    def __init__(self, connection: Any, producer: Any, usual_priority: UsualPriority) -> None:
        self._connection = connection
        self._producer = producer
        self._usual_priority = usual_priority
        self._zero_is_first = connection.transport.driver_type == _REDIS

    @abstractmethod
    def send(self, posts: Sequence[_Post]) -> str:
        """Send *posts* and note which of them are confirmed, also when raising.

        Returns:
            Why those that were refused were.
        """

    def close(self) -> None:
        """Close the connection."""
        self._connection.release()

    def _put(self, post: _Post) -> None:
        priority = self._usual_priority(post.message.task)
        self._producer.usual_priority = message_priority(priority, zero_is_first=self._zero_is_first)
        post.send(self._producer)


class _OneByOne(_Line):
    """Any transport: what has been published without an error counts as confirmed."""

    def send(self, posts: Sequence[_Post]) -> str:
        for post in posts:
            self._put(post)
            post.is_confirmed = True
        return ""


class _Batches(_Line):
    """Redis and Valkey: one pipeline; when it fails, nobody knows what of it was done."""

    def send(self, posts: Sequence[_Post]) -> str:
        with self._producer.batch(max_size=len(posts)):
            for post in posts:
                self._put(post)
        for post in posts:
            post.is_confirmed = True
        return ""


class _Confirming(_Line):
    """RabbitMQ: all are published before the confirmations are waited for.

    A message that no queue takes is returned before it is confirmed.
    """

    def __init__(self, connection: Any, producer: Any, usual_priority: UsualPriority) -> None:
        super().__init__(connection, producer, usual_priority)
        self._published = 0
        self._awaited: set[int] = set()
        self._refused: set[int] = set()
        self._returned: dict[str, str] = {}
        """By Celery's id: why no queue took it."""
        channel = producer.channel
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        self._basic_publish, channel.basic_publish = channel.basic_publish, self._publish
        producer.returns_unroutable = True

    def send(self, posts: Sequence[_Post]) -> str:
        self._refused.clear()
        self._returned.clear()
        numbers: list[int] = []
        try:
            for post in posts:
                # Celery may publish an event after the message, on the same channel.
                number = self._published + 1
                self._put(post)
                numbers.append(number)
            while self._awaited:
                self._connection.drain_events(timeout=self._connection.transport_options["read_timeout"])
        finally:
            for post, number in zip(posts, numbers, strict=False):
                is_out = number not in self._awaited and number not in self._refused
                post.is_confirmed = is_out and post.celery_id not in self._returned
        return next(iter(self._returned.values()), "the queue refused the message (nacked)")

    def _publish(self, message: Any, **options: Any) -> None:
        self._basic_publish(message, **options)
        self._published += 1
        self._awaited.add(self._published)

    def _on_ack(self, number: int, multiple: bool) -> None:  # noqa: FBT001 -- as amqp calls it
        self._awaited -= self._meant(number, multiple=multiple)

    def _on_nack(self, number: int, multiple: bool) -> None:  # noqa: FBT001 -- as amqp calls it
        meant = self._meant(number, multiple=multiple)
        self._awaited -= meant
        self._refused |= meant

    def _meant(self, number: int, *, multiple: bool) -> set[int]:
        return {one for one in self._awaited if one <= number} if multiple else {number}

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: Any) -> None:
        self._returned[str(message.properties.get("correlation_id"))] = (
            f"no queue takes messages to exchange {exchange!r} with routing key {routing_key!r}"
        )


def _line_over(connection: Any, producer_class: Any, usual_priority: UsualPriority) -> _Line:
    producer = type("PlannersProducer", (_Stamping, producer_class), {})(connection, auto_declare=False)
    if connection.transport.driver_name == _AMQP:
        return _Confirming(connection, producer, usual_priority)
    if getattr(producer, "supports_batch_publish", False):
        return _Batches(connection, producer, usual_priority)
    return _OneByOne(connection, producer, usual_priority)
