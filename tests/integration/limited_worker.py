"""A process with four threads that run what they are allowed to of a limited task; `test_limits.py` starts two.

It prints when its handlers began and ended, by the clock that it shares with the server of the test.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
import uuid
from datetime import timedelta

from celery_reactive.core.declaration import declare
from celery_reactive.core.message import Named
from celery_reactive.core.outcome import GivenBack, Outcome
from celery_reactive.core.record import RecordKey
from celery_reactive.core.registry import Registry
from celery_reactive.core.task import ReactiveTask
from celery_reactive.runtime import Runtime
from celery_reactive.settings import Settings
from celery_reactive.store.connection import Connection
from celery_reactive.worker.context import TaskContext
from celery_reactive.worker.execute import execute
from celery_reactive.worker.run import Run
from tests.integration.bench import each

TASK = declare("shop.sync", {"collection": "orders", "debounce": 0, "rate_limit": "20/s", "max_concurrency": 3})
DOCUMENTS = range(24)
_THREADS = 4
_PAUSE_SECONDS = 0.02


def work(runtime: Runtime, task: ReactiveTask, until: float, spans: list[tuple[float, float]]) -> None:
    """Run records at random, some alone and some together, until a time; each is due again at once."""
    pause = threading.Event()

    def body(_run: Run, _context: TaskContext) -> Outcome:
        began = time.time()
        pause.wait(random.random() * _PAUSE_SECONDS)
        spans.append((began, time.time()))
        return GivenBack()

    while time.time() < until:
        chosen = random.sample(DOCUMENTS, random.choice((1, 1, 3)))
        named = [Named(RecordKey(task.name, doc_id), 0) for doc_id in chosen]
        execute(runtime, task, named, each(body), token=uuid.uuid4().hex, worker="limited")
        pause.wait(_PAUSE_SECONDS)


def main(url: str, seconds: float) -> None:
    """Work for some seconds, then tell."""
    settings = Settings(mongodb_url=url, instance_id="limited", visibility_timeout=timedelta(seconds=60))
    runtime = Runtime(settings, Registry(), Connection(settings), ())
    spans: list[tuple[float, float]] = []
    threads = [
        threading.Thread(target=work, args=(runtime, TASK, time.time() + seconds, spans)) for _ in range(_THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps(spans))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
