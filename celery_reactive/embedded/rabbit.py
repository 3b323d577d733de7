"""RabbitMQ, of one node that knows nobody.

The program: `$RABBITMQ_SERVER`, else Debian's, else `rabbitmq-server` on PATH; no wheel carries one. The node has a
name, a data folder, an Erlang cookie and a port mapper (epmd) of its own, so that it neither finds nor disturbs another
node of this machine, such as the one that Debian's package starts.

Called by tests.
"""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from pathlib import Path
from typing import Self

from celery_reactive.embedded.process import HOST, EmbeddedServerError, Process, free_port

_DEBIAN = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""What Debian's `rabbitmq-server` on PATH calls, as the system's user `rabbitmq` and with the system's folders."""
# The node's own start script would start a port mapper that outlives it; this one is of the node's process group.
_START = 'epmd & exec "$1" -noinput'
_AMQP_0_9_1 = b"AMQP\x00\x00\x09\x01"


class RabbitServer:
    """A RabbitMQ whose queues and persistent messages survive `kill()`, unless `discard_data()` follows it.

    Use it as a context manager, or call `start()` and `stop()`.
    """

    def __init__(self, *, configuration: str = "") -> None:
        """Find the program; nothing is started.

        Args:
            configuration: Lines of `rabbitmq.conf`, such as further listeners.

        Raises:
            EmbeddedServerError: There is no such program.
        """
        program = _find_rabbitmq()
        self._configuration = configuration
        self._node = f"reactive-{uuid.uuid4().hex[:12]}"
        # Fixed with the node: a restarted one must find the port mapper that knows its name.
        self._mapper_port, self._distribution_port = free_port(), free_port()
        self.process = Process(
            "rabbitmq",
            lambda _port, _folder: ["/bin/sh", "-c", _START, "rabbitmq", str(program)],
            self._owner,
            environment=self._environment,
        )

    @property
    def url(self) -> str:
        """URL of the virtual host `/`, for `broker_url`."""
        return f"amqp://guest:guest@{HOST}:{self.process.port}//"

    def start(self) -> Self:
        """Start the server, or start it again after `kill()`, and wait until it answers.

        Raises:
            EmbeddedServerError: It did not; the message holds the end of its log.
        """
        self.process.start()
        return self

    def stop(self) -> None:
        """End the server and remove its data."""
        self.process.stop()

    def kill(self) -> None:
        """End the server as a crash would; `start()` brings it back with its queues."""
        self.process.kill()

    def discard_data(self) -> None:
        """Let a killed server come back empty: all queues and messages are lost.

        Raises:
            EmbeddedServerError: The server runs, or was never started.
        """
        if self.process.pid is not None:
            raise EmbeddedServerError("rabbitmq runs: kill it before its data are discarded")
        shutil.rmtree(_data(self.process.folder), ignore_errors=True)

    def suspend(self) -> None:
        """Freeze the server: connections stay open and nothing answers."""
        self.process.suspend()

    def resume(self) -> None:
        """Let a suspended server go on."""
        self.process.resume()

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        """Stop."""
        self.stop()

    def _environment(self, port: int, folder: Path) -> dict[str, str]:
        nowhere = str(folder / "none")
        configuration = folder / "rabbitmq.conf"
        configuration.write_text(self._configuration)
        return {
            "HOME": str(folder),
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_NODENAME": f"{self._node}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(_data(folder)),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": nowhere,
            "RABBITMQ_CONF_ENV_FILE": nowhere,
            "RABBITMQ_CONFIG_FILE": str(configuration),
            "RABBITMQ_ADVANCED_CONFIG_FILE": nowhere,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": HOST,
        }

    def _owner(self, port: int) -> int | None:
        """AMQP tells no process id, but the node's name, which is this one's only."""
        greeting = _greeting(port)
        if greeting is None:
            return None
        return self.process.pid if self._node.encode() in greeting else -1


def _data(folder: Path) -> Path:
    return folder / "mnesia"


def _find_rabbitmq() -> Path:
    named = os.environ.get("RABBITMQ_SERVER") or (str(_DEBIAN) if _DEBIAN.exists() else shutil.which("rabbitmq-server"))
    if named:
        return Path(named)
    raise EmbeddedServerError(
        "no RabbitMQ server was found: set RABBITMQ_SERVER to one, or install it "
        "(`apt-get install rabbitmq-server`, and `systemctl disable --now rabbitmq-server` to keep it from running)"
    )


def _greeting(port: int) -> bytes | None:
    """Return what a broker says of itself to whoever connects, None while there is none."""
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(_AMQP_0_9_1)
            return connection.recv(65536) or None
    except OSError:
        return None
