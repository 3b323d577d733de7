"""A network between processes and servers, whose links can be cut: altogether, or in one direction only.

Called by `stage` and by the fault tests. A link is a TCP proxy for one process and one server; `routed/` makes the
process use it. What a silent link was given arrives when it is healed, as on a network that loses packets for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
from collections.abc import Coroutine
from typing import Any, Self

HOST = "127.0.0.1"


class Direction(enum.Enum):
    """Seen from the process."""

    OUT = "to the server"
    IN = "from the server"


class Link:
    """The way from one process to one server."""

    def __init__(self, network: Network, server_port: int) -> None:
        """Listen.

        Args:
            network: Runs the link.
            server_port: Where the server listens, on 127.0.0.1.
        """
        self._network = network
        self._server_port = server_port
        self._open = {direction: asyncio.Event() for direction in Direction}
        self._refuses = False
        self._connections: set[asyncio.StreamWriter] = set()
        self.port: int = network.run(self._listen())

    def silence(self, *directions: Direction) -> None:
        """Let nothing pass any more in these directions; connections stay open."""
        self._network.run(self._set(directions, passing=False))

    def cut(self) -> None:
        """End all connections and take no new ones."""
        self._network.run(self._cut())

    def drop(self) -> None:
        """End all connections; new ones are taken."""
        self._network.run(self._drop())

    def heal(self) -> None:
        """Let everything pass, also what was held back."""
        self._refuses = False
        self._network.run(self._set(tuple(Direction), passing=True))

    async def _listen(self) -> int:
        await self._set(tuple(Direction), passing=True)
        server = await asyncio.start_server(self._serve, HOST, 0)
        self._network.keep(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _set(self, directions: tuple[Direction, ...], *, passing: bool) -> None:
        for direction in directions:
            if passing:
                self._open[direction].set()
            else:
                self._open[direction].clear()

    async def _cut(self) -> None:
        self._refuses = True
        await self._drop()

    async def _drop(self) -> None:
        for connection in self._connections:
            connection.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(HOST, self._server_port)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, server_writer}
        self._connections |= ends
        pumps = [
            asyncio.ensure_future(self._pump(reader, server_writer, self._open[Direction.OUT])),
            asyncio.ensure_future(self._pump(server_reader, writer, self._open[Direction.IN])),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            self._connections -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await passing.wait()
                writer.write(data)
                await writer.drain()


class Network:
    """Runs links, in a thread of its own. Use it as a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)

    def link(self, server_port: int) -> Link:
        """Make a link to the server on that port."""
        return Link(self, server_port)

    def keep(self, server: asyncio.Server) -> None:
        """Close *server* at the end."""
        self._servers.append(server)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run *coroutine* on the network's loop and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=10)

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End all links."""
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
