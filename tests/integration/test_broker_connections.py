"""How the planner reaches its broker: TLS, sentinel, several brokers, users, quorum queues; publishing and counting."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from celery_reactive.embedded import EmbeddedServerError, RabbitServer, ValkeyServer
from celery_reactive.embedded.process import HOST, Process, free_port
from celery_reactive.embedded.valkey import _find_valkey, _valkey_owner
from celery_reactive.planner.contents import Contents, Held, contents_of
from celery_reactive.planner.publish import BrokerUnavailableError
from tests.acceptance.project import wait_until
from tests.integration.postbox import TASK, Postbox

CANARY = "celery-reactive.test"
SECRET = "s3cret"  # noqa: S105 -- of servers that live for a test


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cert.pem` and `key.pem` of a server at 127.0.0.1, which is its own authority."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate, and is not here")
    folder = tmp_path_factory.mktemp("certificate")
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What the test has started."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def valkey_with_tls(certificate: Path, stack: ExitStack) -> int:
    """The port of a Valkey that asks for a password, behind TLS."""
    server = stack.enter_context(ValkeyServer())
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", SECRET)
    return stack.enter_context(behind_tls(server.process.port, certificate))


@pytest.fixture(scope="module")
def tls_port() -> int:
    """Where RabbitMQ takes TLS."""
    return free_port()


@pytest.fixture(scope="module")
def rabbit(certificate: Path, tls_port: int) -> Iterator[RabbitServer]:
    """A RabbitMQ that also takes TLS."""
    configuration = f"""
        listeners.ssl.1 = {HOST}:{tls_port}
        ssl_options.certfile = {certificate / "cert.pem"}
        ssl_options.keyfile = {certificate / "key.pem"}
        """
    try:
        server = RabbitServer(configuration=configuration)
    except EmbeddedServerError as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def without_queue(rabbit: RabbitServer) -> Iterator[None]:
    """The queue is deleted afterwards."""
    yield
    with Postbox(rabbit.url) as box, box.app.connection_for_write() as connection:
        connection.channel().queue_delete("sync")


@contextmanager
def behind_tls(port: int, certificate: Path) -> Iterator[int]:
    """Yield the port of a server that takes TLS and hands what it holds on to *port*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    threads: list[threading.Thread] = []
    opened: list[socket.socket] = []
    listener = socket.create_server((HOST, 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                plain, _ = listener.accept()
                with suppress(OSError):
                    outer = context.wrap_socket(plain, server_side=True)
                    inner = socket.create_connection((HOST, port))
                    opened.extend((outer, inner))
                    start(copy, outer, inner)
                    start(copy, inner, outer)

    def start(target: Callable[..., None], *args: Any) -> None:
        threads.append(threading.Thread(target=target, args=args))
        threads[-1].start()

    start(serve)
    try:
        yield int(listener.getsockname()[1])
    finally:
        for one in (listener, *opened):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in threads:
            thread.join(10)


def copy(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes until nothing does."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@contextmanager
def contents_for(box: Postbox) -> Iterator[Contents]:
    """Yield what the planner finds in the broker."""
    queue = box.publisher.queue_of(box.messages(1)[0].task)
    assert queue is not None
    contents = contents_of(box.publisher.connect, {TASK: queue}, CANARY)
    assert contents is not None
    yield contents
    contents.close()


def assert_works(box: Postbox, number: int = 40) -> None:
    """The planner connects, publishes a batch, and counts it."""
    box.publisher.check()
    box.publish(number)
    with contents_for(box) as contents:
        assert contents.read().queues == {"sync": Held(number, complete=True)}
    assert box.doc_ids() == list(range(number))


@pytest.mark.parametrize("where", ["settings", "url"])
def test_valkey_with_tls(valkey_with_tls: int, certificate: Path, where: str) -> None:
    """`rediss://`, verified by an authority of the user's own, named in `broker_use_ssl` or in the URL."""
    address = f"rediss://:{SECRET}@{HOST}:{valkey_with_tls}/0"
    authority = str(certificate / "cert.pem")
    if where == "url":
        box = Postbox(f"{address}?ssl_cert_reqs=required&ssl_ca_certs={authority}")
    else:
        box = Postbox(address, broker_use_ssl={"ssl_ca_certs": authority})
    with box:
        assert_works(box)


def test_a_server_that_nobody_vouches_for_is_refused(valkey_with_tls: int) -> None:
    """The error says why, and not the password."""
    with Postbox(f"rediss://:{SECRET}@{HOST}:{valkey_with_tls}/0?ssl_cert_reqs=required") as box:
        with pytest.raises(BrokerUnavailableError, match="certificate") as raised:
            box.publisher.check()
        assert SECRET not in str(raised.value)


@pytest.mark.usefixtures("rabbit", "without_queue")
def test_rabbitmq_with_tls(certificate: Path, tls_port: int) -> None:
    """`amqps://`, verified by an authority of the user's own, with the login method that the user names."""
    trust = {"ca_certs": str(certificate / "cert.pem"), "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": HOST}
    url = f"amqps://guest:guest@{HOST}:{tls_port}//"
    with Postbox(url, broker_use_ssl=trust, broker_login_method="AMQPLAIN") as box:
        assert_works(box, 600)


def test_a_wrong_password_is_told_without_it(rabbit: RabbitServer) -> None:
    """The planner ends at its start with RabbitMQ's reason."""
    url = rabbit.url.replace("guest:guest", f"guest:{SECRET}")
    with Postbox(url) as box:
        with pytest.raises(BrokerUnavailableError, match="ACCESS_REFUSED") as raised:
            box.publisher.check()
        assert SECRET not in str(raised.value)


def test_sentinel_leads_to_the_primary_that_is(stack: ExitStack) -> None:
    """Also after a failover: what the planner publishes then goes to the new one."""
    primary = stack.enter_context(ValkeyServer())
    replica = stack.enter_context(ValkeyServer(options=["--replicaof", HOST, str(primary.process.port)]))
    sentinel = stack.enter_context(watched_by_sentinel(primary))
    options = {"master_name": "shop", "global_keyprefix": "proj:"}
    with Postbox(f"sentinel://{HOST}:{sentinel};sentinel://{HOST}:1", broker_transport_options=options) as box:
        assert_works(box)
        wait_until(lambda: knows_replica(sentinel), logs=str)
        primary.kill()
        wait_until(lambda: publishes(box), logs=str, timeout=60)
        with contents_for(box) as contents:
            assert contents.read().queues["sync"].messages >= 1
        with redis.Redis.from_url(replica.url) as client:
            assert client.llen("proj:sync") >= 1


@contextmanager
def watched_by_sentinel(primary: ValkeyServer) -> Iterator[int]:
    """Yield the port of a sentinel that fails over when *primary* has been away for half a second."""
    watch = f"sentinel monitor shop {HOST} {primary.process.port} 1"
    times = "sentinel down-after-milliseconds shop 500\nsentinel failover-timeout shop 2000"

    def command(port: int, folder: Path) -> list[str]:
        (folder / "sentinel.conf").write_text(f"port {port}\nbind {HOST}\ndir {folder}\n{watch}\n{times}\n")
        return [str(_find_valkey()), str(folder / "sentinel.conf"), "--sentinel"]

    process = Process("sentinel", command, _valkey_owner)
    process.start()
    try:
        yield process.port
    finally:
        process.stop()


def knows_replica(sentinel: int) -> bool:
    """Whether the sentinel has found whom to fail over to."""
    with redis.Redis(HOST, sentinel) as client:
        return len(client.sentinel_slaves("shop")) == 1


def publishes(box: Postbox) -> bool:
    """Try to publish."""
    try:
        box.publish(1)
    except BrokerUnavailableError:
        return False
    return True


def test_a_list_of_brokers_is_tried_until_one_answers(stack: ExitStack) -> None:
    """Also when the first hangs, and when the one in use goes away later."""
    first, second = stack.enter_context(ValkeyServer()), stack.enter_context(ValkeyServer())
    limits = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5}
    nobody = f"redis://{HOST}:{free_port()}/0"
    with Postbox([nobody, first.url, second.url], broker_transport_options=limits) as box:
        assert_works(box)
        first.suspend()
        assert not publishes(box)
        assert_works(box)


@pytest.mark.usefixtures("without_queue")
def test_a_list_of_rabbitmqs_is_tried_until_one_answers(rabbit: RabbitServer) -> None:
    """As a list of Redis is."""
    nobody = f"amqp://guest:guest@{HOST}:{free_port()}//"
    with Postbox([nobody, rabbit.url]) as box:
        assert_works(box)


@pytest.mark.usefixtures("without_queue")
def test_quorum_queues(rabbit: RabbitServer) -> None:
    """Made as such, confirmed, counted, and made again as such when they were deleted."""
    conf = {"task_routes": {}, "task_default_queue": "sync", "task_default_queue_type": "quorum"}
    with Postbox(rabbit.url, worker_detect_quorum_queues=True, **conf) as box:
        assert_works(box)
        for made_by in (box.publish, lambda _: count(box)):
            with box.app.connection_for_write() as connection:
                connection.channel().queue_delete("sync")
            made_by(3)
            assert is_quorum(box, "sync")


def count(box: Postbox) -> None:
    """Have the contents read."""
    with contents_for(box) as contents:
        contents.read()


def is_quorum(box: Postbox, queue: str) -> bool:
    """Whether a queue is there that can be declared as a quorum queue."""
    with box.app.connection_for_write() as connection:
        channel = connection.channel()
        channel.queue_declare(queue, passive=True)
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
    return True
