"""What a monitor such as Flower hears of workers: Celery's events. Used by the acceptance tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from celery import Celery

from celery_reactive import testing

_READ_SECONDS = 0.05


@contextmanager
def listening(app: Celery) -> Iterator[list[dict[str, Any]]]:
    """Collect the events of the app's workers inside the block, which begins when one of them has been heard.

    Not with the receiver's own loop: that looks every second whether it is to end.
    """
    heard: list[dict[str, Any]] = []
    ended = threading.Event()

    def listen() -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": heard.append})
            with receiver.consumer_context(wakeup=False) as (reading, _, _):
                while not ended.is_set():
                    with suppress(TimeoutError):
                        reading.drain_events(timeout=_READ_SECONDS)
                    if not heard:
                        app.control.broadcast("heartbeat")

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        testing.wait_until(lambda: heard, timeout=20, interval=0.01)
        yield heard
    finally:
        ended.set()
        thread.join()
