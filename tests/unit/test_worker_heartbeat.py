"""The renewal of leases within one process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from celery_reactive.core.duration import parse_duration
from celery_reactive.worker.heartbeat import Heartbeat

_THREADS = 4


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads that take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switching")
def test_no_run_is_forgotten_when_a_process_starts_with_several_at_once() -> None:
    """B-23: every live run is renewed, whoever starts the thread."""
    for _ in range(40):
        heartbeat, together, end = Heartbeat(), threading.Barrier(_THREADS), threading.Event()
        inside = threading.Semaphore(0)
        settings = SimpleNamespace(heartbeat=parse_duration("1h", name="heartbeat"))

        def run(
            heartbeat: Heartbeat = heartbeat,
            together: threading.Barrier = together,
            end: threading.Event = end,
            inside: threading.Semaphore = inside,
            settings: Any = settings,
        ) -> None:
            mine: Any = SimpleNamespace(lost=False, runtime=SimpleNamespace(settings=settings))
            together.wait()
            with heartbeat.renewing([mine]):
                inside.release()
                end.wait()

        threads = [threading.Thread(target=run) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        for _ in threads:
            inside.acquire()
        live = len(heartbeat._live)
        end.set()
        for thread in threads:
            thread.join()
        assert live == _THREADS
