"""Giving an app other settings inside a block: a database of the test's own, a broker in memory.

Called by tests, by `inline` and by the fixtures. Must leave the app as it was found, whatever happens inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery

from celery_reactive.app import Reactive

MEMORY = "memory://localhost/"
"""The broker that lives in this process."""


@contextmanager
def configured(app: Celery, **settings: Any) -> Iterator[Reactive]:
    """Set *settings* of the app inside the block, and forget afterwards whatever was set in it.

    Connections to MongoDB and to the broker are made anew, so that they go where the settings say. No planner, worker
    or request of the app may be at work when the block begins or ends.

    Args:
        app: The Celery app.
        settings: As for `app.conf.update`. `broker_url` is for reading and writing where these are not named.

    Yields:
        The app's handle.
    """
    conf = _loaded(app)
    former = dict(conf.changes)
    handle = Reactive.of(app)
    try:
        if "broker_url" in settings:
            # Celery prefers an address in the environment to `broker_url` alone.
            conf.update(broker_read_url=settings["broker_url"], broker_write_url=settings["broker_url"])
        conf.update(settings)
        _disconnect(app)
        with handle.made_anew():
            yield handle
    finally:
        conf.changes.clear()
        conf.changes.update(former)
        _disconnect(app)


def _loaded(app: Celery) -> Any:
    """Return the app's configuration; before it is asked for anything it is not there yet."""
    app.conf.get("broker_url")
    return app.conf


def _disconnect(app: Celery) -> None:
    """Forget the broker's connections and all that was made of the configuration for them.

    They are not closed: kombu keeps them by address, for whoever comes back to it.
    """
    app._pool = None  # noqa: SLF001 -- as Celery's own `_after_fork` does
    vars(app).pop("amqp", None)
