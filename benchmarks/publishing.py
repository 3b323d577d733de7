"""Messages published a second: the planner's, one by one and in batches, beside bare Celery's `apply_async`.

All of a broker's figures are measured in one run, from one process, on a queue that nobody takes from. RabbitMQ stands
twice: bare Celery does not ask it by default whether a message has arrived, and the planner always does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from celery import Celery
from figures import Figure, Section, tell

from celery_reactive.core.declaration import declare
from celery_reactive.core.record import Due, RecordKey
from celery_reactive.core.registry import Registry
from celery_reactive.embedded import EmbeddedServerError, RabbitServer, ValkeyServer
from celery_reactive.planner.publish import Message, Publisher
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store.connection import Connection

BATCH = 500
"""What the planner publishes together at most."""
TITLE = "Publishing, messages a second, without a worker"
_TASK = "benchmark.handle"
_WARM_UP = 50


def measure(quick: bool) -> Section:  # noqa: FBT001 -- as every benchmark
    """Publish to each broker that can be started here."""
    count = 20 if quick else 5000
    with ValkeyServer() as valkey:
        figures = list(_to("Valkey", valkey.url, count=count, confirmed=False))
    note = f"{count} messages each way."
    try:
        server = RabbitServer()
    except EmbeddedServerError as error:
        return Section("publishing", TITLE, figures, f"{note} No RabbitMQ: {error}")
    with server as rabbit:
        figures += _to("RabbitMQ", rabbit.url, count=count, confirmed=False)
        figures += _to("RabbitMQ, all confirmed", rabbit.url, count=count, confirmed=True)
    return Section("publishing", TITLE, figures, note)


def _to(broker: str, url: str, *, count: int, confirmed: bool) -> Iterator[Figure]:
    """Publish *count* messages each way.

    Args:
        broker: Its name, for people.
        url: Its address.
        count: Messages each way.
        confirmed: Whether bare Celery has each of its messages confirmed, as `confirm_publish` lets it.
    """
    app = _app(url, confirmed=confirmed)
    with ExitStack() as stack:
        stack.callback(app.close)
        stack.callback(app.control.purge)
        publisher = Publisher(app, _runtime())
        stack.callback(publisher.close)

        def together(size: int) -> Callable[[int], None]:
            def send(number: int) -> None:
                messages = _messages(number)
                for first in range(0, number, size):
                    publisher.publish_all(messages[first : first + size])

            return send

        def bare(number: int) -> None:
            for one in range(number):
                app.tasks[_TASK].apply_async(([str(one)],), retry=False)

        ways = {"planner, one by one": together(1), f"planner, {BATCH} together": together(BATCH)}
        rate = _per_second(bare, count)
        yield Figure(f"bare apply_async ({broker})", rate, "/s")
        for way, do in ways.items():
            planners = _per_second(do, count)
            yield Figure(f"{way} ({broker})", planners, "/s", "bare Celery", planners / rate)


def _app(url: str, *, confirmed: bool) -> Celery:
    app = Celery("benchmark", broker=url, set_as_current=False)
    app.conf.update(task_default_queue="benchmark", task_ignore_result=True)
    if confirmed:
        app.conf.broker_transport_options = {"confirm_publish": True}

    @app.task(name=_TASK, shared=False)
    def handle(ids: list[str]) -> None:
        raise AssertionError(ids)

    app.finalize()
    return app


def _runtime() -> Runtime:
    registry, settings = Registry(), Settings(database="test")
    registry.add(declare(_TASK, {"collection": "orders"}), celery_name=_TASK)
    return Runtime(settings, registry, Connection(settings))


def _messages(number: int) -> list[Message]:
    task = declare(_TASK, {"collection": "orders"})
    return [Message(task, [Due(RecordKey(_TASK, one), 0, 0, alone=False)]) for one in range(number)]


def _per_second(send: Callable[[int], None], count: int) -> float:
    send(_WARM_UP)
    began = time.monotonic()
    send(count)
    return count / (time.monotonic() - began)


if __name__ == "__main__":
    tell(measure)
