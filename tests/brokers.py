"""Brokers of a test's own, which it may empty and break."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from celery_reactive.embedded import EmbeddedServerError, RabbitServer


@contextmanager
def own_rabbit() -> Iterator[RabbitServer]:
    """Run a RabbitMQ inside the block; skip the test where none is installed."""
    try:
        server = RabbitServer()
    except EmbeddedServerError as error:
        pytest.skip(str(error))
    with server:
        yield server
