"""From a worker's pool processes to the process that answers for them (`local` mode).

What a process has counted goes at once, as a datagram, to a process of its own beside the worker, which adds everything
up and serves the port. So nothing is lost when a pool process is killed, the worker's parent has no thread of ours, and
a scrape neither waits for the worker nor holds it up.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from pathlib import Path

from celery_reactive.core.registry import Registry
from celery_reactive.metrics.catalogue import METRICS, Kind, Metric
from celery_reactive.metrics.counts import Counts
from celery_reactive.metrics.expose import Exposition
from celery_reactive.metrics.serve import Port
from celery_reactive.metrics.standing import Standing

logger = logging.getLogger(__name__)

_VARIABLE = "_CELERY_REACTIVE_COUNTS"
"""Where processes that are started anew, not forked, find the address."""
_LONGEST = 1 << 16
_GLANCE_SECONDS = 1.0
_PATIENCE_SECONDS = 0.05
"""For a receiver that is behind; a handler must not wait for it for long."""


class Sender:
    """Sends what one process counts: a few microseconds each."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._pid = 0

    def send(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        """Send one count; it is lost where nobody receives it any more."""
        if self._socket is None or self._pid != os.getpid():
            self._socket, self._pid = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), os.getpid()
            self._socket.settimeout(_PATIENCE_SECONDS)
        with contextlib.suppress(OSError):
            self._socket.sendto(json.dumps((metric.name, labels, value)).encode(), self._address)


def receive_forever(bound: socket.socket, counts: Counts) -> None:
    """Count whatever comes; for a thread of its own."""
    metrics = {metric.name: metric for metric in METRICS}
    while True:
        message = bound.recv(_LONGEST)
        try:
            name, labels, value = json.loads(message)
            metric = metrics[name]
            if metric.kind is Kind.HISTOGRAM:
                counts.observe(metric, *labels, value=value)
            else:
                counts.add(metric, *labels, number=value)
        except (ValueError, TypeError, KeyError) as error:
            logger.warning("count not understood: %r", error, extra={"event": "count_not_understood"})


def inherited() -> Sender | None:
    """Return the way to the process beside this one's parent, None where there is none."""
    address = os.environ.get(_VARIABLE)
    return Sender(address) if address else None


def serve_beside(listening: socket.socket, registry: Registry) -> Sender:
    """Start the process that serves the port, until this one ends; return the way to it.

    Called before any thread is started and any pool process is forked.

    Args:
        listening: The port; closed here.
        registry: The app's tasks.
    """
    folder = tempfile.mkdtemp(prefix="celery-reactive-")
    address = str(Path(folder) / "counts")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    bound.bind(address)
    parent = os.getpid()
    if os.fork() == 0:
        try:
            _serve(listening, bound, registry, parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)
    listening.close()
    bound.close()
    os.environ[_VARIABLE] = address
    return Sender(address)


def _serve(listening: socket.socket, bound: socket.socket, registry: Registry, parent: int) -> None:
    # A terminal and a supervisor signal all processes at once: this one stays until the worker has ended.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    counts = Counts()
    threading.Thread(target=receive_forever, args=(bound, counts), name="reactive-counts", daemon=True).start()
    exposition = Exposition(registry, Standing(), totals=counts.totals, gauges=tuple)
    with Port(listening, text=exposition.text, is_ready=lambda: True):
        while os.getppid() == parent:
            threading.Event().wait(_GLANCE_SECONDS)
