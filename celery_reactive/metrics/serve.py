"""The port: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever supervises the process.

Opened by the planner's command and by workers in `local` mode. It binds to loopback unless told otherwise, knows three
paths and no state to change; a few requests are served at once, and however often `/metrics` is asked for, the database
is asked once a second.
"""

from __future__ import annotations

import contextlib
import http.server
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from celery_reactive.errors import ConfigurationError, ReactiveError, StoreBusyError
from celery_reactive.metrics.expose import CONTENT_TYPE

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_MOST_AT_ONCE = 8
_PATIENCE_SECONDS = 5.0
"""A client that says nothing for so long is sent away."""
_FRESH_SECONDS = 1.0
_GLANCE_SECONDS = 0.5
"""A port that is to be closed notices within this."""
_PLAIN = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """What a request gets."""

    status: HTTPStatus
    body: bytes
    content_type: str = _PLAIN


class Port:
    """An open port. As a context manager it is closed at the end."""

    def __init__(
        self, listening: socket.socket, *, text: Callable[[], bytes] | None, is_ready: Callable[[], bool]
    ) -> None:
        """Serve on a socket that listens.

        Args:
            listening: Made by `listen`.
            text: Returns the metrics; None: there are none.
            is_ready: Whether the process does its work, or stands by for it.
        """
        self._text = None if text is None else _Recent(text)
        self._is_ready = is_ready
        self._server = _Server(listening, self._answer)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_GLANCE_SECONDS,), name="reactive-http", daemon=True
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self._server.socket.getsockname()[:2]
        return str(host), int(port)

    def __enter__(self) -> Self:
        self._thread.start()
        host, port = self.address
        logger.info("serving metrics and health at http://%s:%d", host, port, extra={"event": "port_opened"})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, path: str) -> Answer:
        match path:
            case "/metrics" if self._text is not None:
                return self._metrics(self._text)
            case "/healthz":
                return Answer(HTTPStatus.OK, b"ok\n")
            case "/readyz":
                is_ready = self._is_ready()
                status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
                return Answer(status, b"ready\n" if is_ready else b"not ready\n")
            case _:
                return Answer(HTTPStatus.NOT_FOUND, b"expected /metrics, /healthz or /readyz\n")

    def _metrics(self, text: Callable[[], bytes]) -> Answer:
        try:
            return Answer(HTTPStatus.OK, text(), CONTENT_TYPE)
        except ReactiveError as error:
            logger.warning("metrics not read: %s", error, extra={"event": "metrics_not_read"})
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"MongoDB does not answer\n")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on *port*, on a free one for 0.

    Raises:
        ConfigurationError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_MOST_AT_ONCE)
    except (OSError, OverflowError) as error:
        problem = f"expected an address of this machine and a free port, got {host}:{port}: {error}"
        raise ConfigurationError("metrics port", [problem]) from error


class _Recent:
    """The text as it was at most a second ago; of several that ask at once, one reads it.

    Raises:
        StoreBusyError: It takes longer: who waits must not take the places of those who ask for the process's health.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._text = b""
        self._read_at: float | None = None

    def __call__(self) -> bytes:
        if not self._lock.acquire(timeout=_FRESH_SECONDS):
            raise StoreBusyError("another request has been waiting for MongoDB")
        try:
            if self._read_at is None or time.monotonic() - self._read_at >= _FRESH_SECONDS:
                self._text = self._read()
                self._read_at = time.monotonic()
            return self._text
        finally:
            self._lock.release()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listening: socket.socket, answer: Callable[[str], Answer]) -> None:
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.answer = answer
        self._places = threading.BoundedSemaphore(_MOST_AT_ONCE)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a request in a thread of its own; send it away where there are too many."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As the server's; the place is free again at the end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away in between."""
        logger.debug("request not served: %r", sys.exception(), extra={"event": "request_not_served"})


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = _PATIENCE_SECONDS
    server_version = "celery-reactive"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer."""
        self._send(with_body=True)

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._send(with_body=False)

    def _send(self, *, with_body: bool) -> None:
        answer = self.server.answer(urlsplit(self.path).path)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_body:
            with contextlib.suppress(ConnectionError):
                self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's signature
        """Say nothing: a scrape is no news."""
