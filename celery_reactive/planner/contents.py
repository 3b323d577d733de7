"""What the broker holds: whether it has been emptied, and how many messages wait in a queue.

Called by `broker`. Speaks to the broker on a connection of its own that cannot hang. Reads; the two things it writes
are the canary, a key of Redis that is gone when everything else is, and a queue of RabbitMQ that has been deleted: what
is published to a queue that does not exist is lost without a word.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from amqp.exceptions import NotFound
from kombu.connection import Connection as BrokerConnection
from kombu.entity import Queue
from kombu.exceptions import OperationalError

from celery_reactive.errors import ReactiveError


class ContentsUnknownError(ReactiveError):
    """The broker did not say what it holds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """The messages of one queue."""

    messages: int
    complete: bool
    """Whether those that workers have taken and not acknowledged are among them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What the broker held when it was asked."""

    emptied: bool
    """Everything has been lost since the last reading, by this planner or another."""
    queues: Mapping[str, Held]
    """By the queue's name."""


class Contents(ABC):
    """The contents of one kind of broker, as far as the queues of some tasks go."""

    def __init__(self, connect: Callable[[], BrokerConnection], queues: Mapping[str, Queue], canary: str) -> None:
        """Take what is needed; nothing is connected.

        Args:
            connect: Makes a connection whose statements end in time.
            queues: Where the messages for each task go; a task that is not named is not watched.
            canary: Name of a key that nobody else uses.
        """
        self._connect = connect
        self._connection: BrokerConnection | None = None
        self._queues = {queue.name: queue for queue in queues.values()}
        self._canary = canary
        self.queue_of = {task: str(queue.name) for task, queue in queues.items()}
        """Name of the queue of each task."""

    @property
    def shown_url(self) -> str:
        """The broker's address without its password."""
        return str(self._connect().as_uri())

    def read(self) -> Reading:
        """Ask the broker what it holds.

        Raises:
            ContentsUnknownError: It did not answer, or does not let us ask. The next reading connects anew.
        """
        connection: Any = self._connection or self._connect()
        self._connection = connection
        try:
            connection.ensure_connection(max_retries=max(0, len(connection.alt) - 1))
            return self._read(connection)
        except (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors) as error:
            self.close()
            raise ContentsUnknownError(str(error)) from error

    def close(self) -> None:
        """Close the connection; the next reading opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()  # type: ignore[no-untyped-call]

    @abstractmethod
    def _read(self, connection: Any) -> Reading: ...


class RedisContents(Contents):
    """Redis or Valkey: lists of messages, and one hash of what all workers have taken and not acknowledged."""

    def _read(self, connection: Any) -> Reading:
        channel = connection.default_channel
        steps = channel.priority_steps
        with channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipeline:
            pipeline.set(self._canary, "celery-reactive looks here whether its messages are still there", nx=True)
            pipeline.hlen(channel.unacked_key)
            for name in self._queues:
                for step in steps:
                    pipeline.llen(channel._q_for_pri(name, step))  # noqa: SLF001 -- the only one to know a list's name
            made, taken, *lengths = pipeline.execute()
        waiting = [sum(lengths[at : at + len(steps)]) for at in range(0, len(lengths), len(steps))]
        held = {name: Held(taken + number, complete=True) for name, number in zip(self._queues, waiting, strict=True)}
        return Reading(emptied=bool(made), queues=held)


class AmqpContents(Contents):
    """RabbitMQ: nobody is told how many messages workers have taken; without workers there are none."""

    def _read(self, connection: Any) -> Reading:
        return Reading(emptied=False, queues={name: self._held(connection, name) for name in self._queues})

    def _held(self, connection: Any, name: str) -> Held:
        try:
            with connection.channel() as channel:
                found = channel.queue_declare(name, passive=True)
        except NotFound:
            self._declare(connection, self._queues[name])
            return Held(0, complete=True)
        return Held(found.message_count, complete=found.consumer_count == 0)

    def _declare(self, connection: Any, queue: Any) -> None:
        if not queue.no_declare:
            with connection.channel() as channel:
                queue(channel).declare()


_KINDS: dict[str, type[Contents]] = {"redis": RedisContents, "amqp": AmqpContents}


def contents_of(connect: Callable[[], BrokerConnection], queues: Mapping[str, Queue], canary: str) -> Contents | None:
    """Return the contents of the broker that *connect* leads to; None: it cannot be asked."""
    transport: Any = connect().transport
    kind = _KINDS.get(transport.driver_type)
    return None if kind is None else kind(connect, queues, canary)
