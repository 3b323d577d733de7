"""The port that metrics and health are served on: what it answers to whom, and what it does not let itself be asked."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from celery_reactive.errors import ConfigurationError, StoreUnavailableError
from celery_reactive.metrics import serve
from celery_reactive.metrics.serve import Port, listen


class Answers:
    """What is behind a port, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.is_ready = True
        self.error: StoreUnavailableError | None = None

    def text(self) -> bytes:
        """Return the metrics."""
        self.asked += 1
        if self.error is not None:
            raise self.error
        return b"metrics %d\n" % self.asked


@pytest.fixture(autouse=True)
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports are closed at once."""
    monkeypatch.setattr(serve, "_GLANCE_SECONDS", 0.02)


@pytest.fixture
def answers() -> Answers:
    """Answers that are good."""
    return Answers()


@contextmanager
def opened(answers: Answers, host: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """Yield the address of a port."""
    with Port(listen(host, 0), text=answers.text, is_ready=lambda: answers.is_ready) as port:
        yield port.address


@pytest.fixture
def address(answers: Answers) -> Iterator[tuple[str, int]]:
    """An open port."""
    with opened(answers) as address:
        yield address


def ask(address: tuple[str, int], path: str, method: str = "GET") -> tuple[int, bytes]:
    """Return status and body of an answer."""
    connection = http.client.HTTPConnection(*address, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_metrics_are_read_once_a_second_at_most(address: tuple[str, int], answers: Answers) -> None:
    """B-55: however often they are asked for, and whoever asks at once."""
    assert {ask(address, "/metrics") for _ in range(5)} == {(200, b"metrics 1\n")}
    assert ask(address, "/metrics?name[]=up") == (200, b"metrics 1\n")
    assert answers.asked == 1


def test_health_is_told_while_others_wait_for_metrics(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-55: a database that hangs must not have a supervisor kill the process."""
    monkeypatch.setattr(serve, "_FRESH_SECONDS", 0.1)
    hangs, goes_on = threading.Event(), threading.Event()

    def text() -> bytes:
        hangs.set()
        goes_on.wait(10)
        return b"at last\n"

    with (
        Port(listen("127.0.0.1", 0), text=text, is_ready=lambda: answers.is_ready) as port,
        ThreadPoolExecutor(1) as threads,
    ):
        first = threads.submit(ask, port.address, "/metrics")
        assert hangs.wait(10)
        assert [ask(port.address, "/metrics")[0] for _ in range(10)] == [503] * 10
        assert ask(port.address, "/healthz")[0] == 200
        goes_on.set()
        assert first.result() == (200, b"at last\n")


def test_metrics_that_cannot_be_read_are_an_error(address: tuple[str, int], answers: Answers) -> None:
    """B-55: Prometheus knows that it has none, and nobody learns the database's address."""
    answers.error = StoreUnavailableError("mongodb://me:secret@db.example")
    status, body = ask(address, "/metrics")
    assert (status, b"secret" in body) == (503, False)
    answers.error = None
    assert ask(address, "/metrics")[0] == 200


def test_health_is_told(address: tuple[str, int], answers: Answers) -> None:
    """B-55: alive whatever is away; ready only where the work is done."""
    assert (ask(address, "/healthz"), ask(address, "/readyz")) == ((200, b"ok\n"), (200, b"ready\n"))
    answers.is_ready = False
    assert (ask(address, "/healthz"), ask(address, "/readyz")) == ((200, b"ok\n"), (503, b"not ready\n"))


@pytest.mark.parametrize("path", ["/", "/metrics/", "/..%2f..%2fetc/passwd", "/debug", "*"])
def test_there_is_nothing_else(address: tuple[str, int], path: str) -> None:
    """B-55: three paths and no more."""
    assert ask(address, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_can_be_changed(address: tuple[str, int], method: str) -> None:
    """B-55: it only answers."""
    assert ask(address, "/metrics", method)[0] == 501


def test_a_head_has_no_body(address: tuple[str, int]) -> None:
    """B-55: as HTTP wants it."""
    assert ask(address, "/healthz", "HEAD") == (200, b"")


@pytest.mark.parametrize(
    "said", [b"\x00\xff\r\n\r\n", b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n", b"GET /\r\n", b""]
)
def test_nonsense_harms_nothing(address: tuple[str, int], said: bytes) -> None:
    """B-55: whoever says it is sent away, and others are served."""
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        while client.recv(4096):
            pass
    assert ask(address, "/healthz")[0] == 200


def test_who_says_nothing_takes_no_place_for_long(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """B-55: at most so many at once, and each of them only for a while."""
    monkeypatch.setattr(serve._Handler, "timeout", 0.3)
    with opened(answers) as address, ExitStack() as silent:
        clients = [silent.enter_context(socket.create_connection(address, timeout=10)) for _ in range(30)]
        waiting = threading.Event()
        for _ in range(100):
            try:
                if ask(address, "/healthz")[0] == 200:
                    break
            except (OSError, http.client.HTTPException):
                waiting.wait(0.05)
        else:
            pytest.fail("nobody is served any more")
        assert all(client.recv(1) == b"" for client in clients)


def test_a_port_may_be_of_another_family(answers: Answers) -> None:
    """B-55: IPv6."""
    try:
        opened_port = opened(answers, "::1")
        with opened_port as (host, port):
            assert ask((host, port), "/healthz")[0] == 200
    except ConfigurationError:
        pytest.skip("no IPv6 here")


@pytest.mark.parametrize("host", ["127.0.0.1", "203.0.113.7"])
def test_an_address_that_cannot_be_had_is_named(host: str) -> None:
    """B-55: taken, or another machine's."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"got {host}:{port}"):
            listen(host, port)
