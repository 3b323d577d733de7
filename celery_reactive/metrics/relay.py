"""From a worker's pool processes to the process that answers for them (`local` mode).

What a process has counted goes at once, as a datagram, to a process of its own beside the worker, which adds everything
up and serves the port. So nothing is lost when a pool process is killed, the worker's parent has no thread of ours, and
a scrape neither waits for the worker nor holds it up.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
import threading
from pathlib import Path

from celery_reactive.core.registry import Registry
from celery_reactive.core.totals import Totals
from celery_reactive.metrics.counts import Counts
from celery_reactive.metrics.expose import Exposition
from celery_reactive.metrics.serve import Port
from celery_reactive.metrics.standing import Standing

_VARIABLE = "_CELERY_REACTIVE_COUNTS"
"""Where processes that are started anew, not forked, find the address."""
_LONGEST = 1 << 16
_GLANCE_SECONDS = 1.0


class Sender:
    """Sends what one process counts."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._pid = 0
        self._left = Totals()

    def send(self, counts: Counts) -> None:
        """Send what was counted since the last call; what cannot be sent now goes with the next."""
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            assert self._socket is not None  # noqa: S101 -- see above
            self._left = self._left.plus(counts.take())
            try:
                self._socket.sendto(json.dumps(self._left.to_entries()).encode(), self._address)
            except OSError:
                return
            self._left = Totals()

    def _begin(self) -> None:
        """In this process for the first time, also after a fork."""
        self._lock, self._left, self._pid = threading.Lock(), Totals(), os.getpid()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # noqa: FBT003 -- the socket's own signature


class Receiver:
    """Adds up what processes send."""

    def __init__(self, bound: socket.socket) -> None:
        self._socket = bound
        self._lock = threading.Lock()
        self._totals = Totals()

    def totals(self) -> Totals:
        """Return everything received."""
        with self._lock:
            return self._totals

    def receive_forever(self) -> None:
        """Add up whatever comes; for a thread of its own."""
        while True:
            received = Totals.from_entries(json.loads(self._socket.recv(_LONGEST)))
            with self._lock:
                self._totals = self._totals.plus(received)


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
    receiver = Receiver(bound)
    threading.Thread(target=receiver.receive_forever, name="reactive-counts", daemon=True).start()
    exposition = Exposition(registry, Standing(), totals=receiver.totals, gauges=tuple)
    with Port(listening, text=exposition.text, is_ready=lambda: True):
        while os.getppid() == parent:
            threading.Event().wait(_GLANCE_SECONDS)
