"""A TCP proxy in the test's own loop: a network between a client and a server that fails when it is told to."""

from __future__ import annotations

import asyncio
from typing import Self

from .process import HOST, free_ports


class Proxy:
    """Forwards a port of loopback to a server's. `target` may be set or changed at any time, for later connections."""

    def __init__(self, target: int = 0) -> None:
        self.target = target
        self.port = free_ports(1)[0]
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def cut(self) -> None:
        """Drop all connections, as a network that resets them; new ones are accepted."""
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def refuse(self) -> None:
        """Accept no new connections; those that are open go on."""
        if self._server is not None:
            self._server.close()  # in Python 3.12 wait_closed would wait for the connections
            self._server = None
            await asyncio.sleep(0)

    async def accept(self) -> None:
        """Accept connections, on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, HOST, self.port)

    def stall(self) -> None:
        """Forward nothing in either direction; connections are accepted, and stay. What is sent meanwhile is kept."""
        self._flowing.clear()

    def go_on(self) -> None:
        """Forward again, first what was kept."""
        self._flowing.set()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        await self.cut()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._forward(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # either end went away, or we cut it: both ends see the same
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(HOST, self.target)
        up = asyncio.ensure_future(self._pump(reader, there_writer))
        down = asyncio.ensure_future(self._pump(there_reader, writer))
        try:
            # The end of one direction is the end of both: no protocol here is used half closed.
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        finally:
            there_writer.transport.abort()  # first, as a cut may come while we wait
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
