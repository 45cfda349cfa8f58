"""Engines in memory that refuse, stall, or come late, as a server may."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from headwater import Broker, ConnectError, Outgoing, Receipt
from headwater.engines.memory import MemoryEngine


def on(engine: MemoryEngine, **options: Any) -> Broker:
    """A broker on this engine."""
    broker = Broker(**options)
    broker.use(lambda: engine, "odd://server")
    return broker


class Stalling(MemoryEngine):
    """Takes no message before it is `open`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.cancelled: list[str] = []

    async def connect(self) -> None:
        self._open = asyncio.Event()
        self._turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._open.set)

    def send(self, messages: Sequence[Outgoing]) -> Awaitable[Sequence[Receipt]]:  # type: ignore[override]  # it waits
        self.asked += [outgoing.topic for outgoing in messages]
        return self._send_when_open(messages)

    async def _send_when_open(self, messages: Sequence[Outgoing]) -> Sequence[Receipt]:
        try:
            async with self._turn:  # who comes just as it opens does not overtake
                await self._open.wait()
                return super().send(messages)
        except asyncio.CancelledError:
            self.cancelled += [outgoing.topic for outgoing in messages]
            raise


class Late(MemoryEngine):
    """Cannot be reached the first times, and then refuses the first messages as a lost connection does."""

    def __init__(self, *, connects: int = 0, sends: int = 0, error: type[ConnectError] = ConnectError) -> None:
        super().__init__()
        self.connects, self.sends, self.error = connects, sends, error
        self.tries = 0

    async def connect(self) -> None:
        self.tries += 1
        if self.tries <= self.connects:
            raise self.error("odd://server", "connection refused")

    def send(self, messages: Sequence[Outgoing]) -> Sequence[Receipt]:
        if self.sends:
            self.sends -= 1
            raise self.error("odd://server", "connection lost before anything was written")
        return super().send(messages)


class Fickle(MemoryEngine):
    """Refuses its first send late, once it is told to, and its second one at once; both as a lost connection does."""

    def __init__(self) -> None:
        super().__init__()
        self.sends = 0

    async def connect(self) -> None:
        self._told = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def refuse(self) -> None:
        self._loop.call_soon_threadsafe(self._told.set)

    def send(self, messages: Sequence[Outgoing]) -> Any:
        self.sends += 1
        if self.sends == 1:
            return self._refuse_later()
        if self.sends == 2:
            raise ConnectError("odd://server", "connection lost before anything was written")
        return super().send(messages)

    async def _refuse_later(self) -> None:
        await self._told.wait()
        raise ConnectError("odd://server", "connection lost before anything was written")


class Server(MemoryEngine):
    """There or not, as it is told; while it is not, a send waits as it does on a real one."""

    def __init__(self, *, there: bool = True) -> None:
        super().__init__()
        self.there = there

    @property
    def available(self) -> bool:  # type: ignore[override]  # it changes
        return self.there

    async def connect(self) -> None:
        if not self.there:
            raise ConnectError("odd://server", "connection refused")

    def send(self, messages: Sequence[Outgoing]) -> Any:
        return super().send(messages) if self.there else self._send_once_there(messages)

    async def _send_once_there(self, messages: Sequence[Outgoing]) -> Sequence[Receipt]:
        while not self.there:
            await asyncio.sleep(0.001)
        return super().send(messages)


class Pooled(MemoryEngine):
    """Sends in threads of its own, which take nothing any more at the very end of a process."""

    def __init__(self) -> None:
        super().__init__()
        self._pool = ThreadPoolExecutor(1)

    async def connect(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._pool, time.sleep, 0)

    async def send(self, messages: Sequence[Outgoing]) -> Sequence[Receipt]:  # type: ignore[override]  # it waits
        await asyncio.get_running_loop().run_in_executor(self._pool, time.sleep, 0.3)
        return super().send(messages)


def kept(engine: MemoryEngine) -> list[bytes]:
    """The bodies of all messages, in the order they came."""
    records = [record for topic in engine.store.topics.values() for partition in topic for record in partition.records]
    return [record.body for record in sorted(records, key=lambda record: record.serial)]
