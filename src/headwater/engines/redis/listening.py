"""Connections that listen to channels, and stay: they say so when they may have missed something."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

from ...errors import ConnectError
from ...retry import Retry
from .servers import Servers
from .wire import Command, Disconnected, Wire

Hear = Callable[[bytes, bytes, bytes], object]  # the channel or pattern that was listened to, the channel, what came

_BACKOFF: Final = Retry(backoff=(0.05, 1.0))
_CONFIRMED: Final = frozenset((b"subscribe", b"psubscribe"))

_log: Final = logging.getLogger("headwater.redis")


async def rung(bell: asyncio.Event, seconds: float) -> bool:
    """Whether it rang within so many seconds. Unlike `asyncio.wait_for` before 3.12 this swallows no cancellation."""
    try:
        async with asyncio.timeout(seconds):
            return await bell.wait()
    except TimeoutError:
        return False


class Listener:
    """Hears what is published to some channels. What is published while it is away is missed, and nobody knows what.

    `on_gap` is told, with the seconds it was away, once it listens again.
    """

    def __init__(self, servers: Servers, name: str, hear: Hear, on_gap: Callable[[float], object]) -> None:
        self._servers, self._name, self._hear, self._on_gap = servers, name, hear, on_gap
        self._channels: list[str] = []
        self._patterns: list[str] = []
        self._wire: Wire | None = None
        self._task: asyncio.Task[None] | None = None
        self._unconfirmed = 0
        self._confirmed = asyncio.Event()
        self._lost_at: float | None = None

    async def listen(self, channels: Sequence[str], patterns: Sequence[str] = ()) -> None:
        """Listen to these as well. Returns once they are heard; waits while the server is away."""
        self._channels += channels
        self._patterns += patterns
        self._confirmed.clear()
        if self._wire is not None:
            self._subscribe(self._wire, channels, patterns)
        elif self._task is None:
            self._task = asyncio.create_task(self._run(), name="headwater redis listener")
        await self._confirmed.wait()

    def stop_listening(self, channel: str) -> None:
        """This one is not wanted any more."""
        self._channels.remove(channel)
        if self._wire is not None and channel not in self._channels:
            self._wire.tell(("UNSUBSCRIBE", channel))

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._wire is not None:
            await self._wire.close()

    def hold(self) -> None:
        """Take nothing more in until `release`: it stays with the server, as far as that allows."""
        if self._wire is not None:
            self._wire.hold()

    def release(self) -> None:
        if self._wire is not None:
            self._wire.release()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for tries in itertools.count(1):
            try:
                nodes = self._servers.nodes()
                node = next((node for node in nodes if node.available), nodes[0])
                self._wire = await node.another(self._name)
                self._wire.on_push = self._take
                self._unconfirmed = 0
                self._subscribe(self._wire, self._channels, self._patterns)
                reason = await self._wire.lost
            except (ConnectError, Disconnected) as error:
                reason = str(error)
            self._wire = None
            self._lost_at = self._lost_at or loop.time()
            _log.debug("%s does not listen: %s", self._name, reason)
            await asyncio.sleep(_BACKOFF.delay(min(tries, 5)))

    def _subscribe(self, wire: Wire, channels: Sequence[str], patterns: Sequence[str]) -> None:
        self._unconfirmed += len(channels) + len(patterns)
        commands: list[Command] = [("SUBSCRIBE", *channels)] if channels else []
        if patterns:
            commands.append(("PSUBSCRIBE", *patterns))
        wire.tell(*commands)

    def _take(self, push: Any) -> None:
        kind = push[0] if isinstance(push, list) else None
        if kind == b"message":
            self._hear(push[1], push[1], push[2])
        elif kind == b"pmessage":
            self._hear(push[1], push[2], push[3])
        elif kind in _CONFIRMED:
            self._unconfirmed -= 1
            if self._unconfirmed == 0:
                self._listening()

    def _listening(self) -> None:
        self._confirmed.set()
        if self._lost_at is not None:
            away, self._lost_at = asyncio.get_running_loop().time() - self._lost_at, None
            self._on_gap(away)


class Bells:
    """Channels on which processes wake one another. Who missed a ring is called as if it had heard one."""

    def __init__(self, servers: Servers, name: str) -> None:
        self._listener = Listener(servers, name, self._hear, lambda _: self._ring_all())
        self._called: dict[str, list[Callable[[bytes], object]]] = defaultdict(list)

    async def hang(self, channel: str, call: Callable[[bytes], object]) -> None:
        """Have this called with what is rung on a channel, b"" for what was missed. Returns once it hears."""
        self._called[channel].append(call)
        await self._listener.listen([channel])

    def take_down(self, channel: str, call: Callable[[bytes], object]) -> None:
        self._called[channel].remove(call)
        self._listener.stop_listening(channel)

    async def close(self) -> None:
        await self._listener.close()

    def _hear(self, _heard: bytes, channel: bytes, what: bytes) -> None:
        for call in list(self._called[channel.decode()]):
            call(what)

    def _ring_all(self) -> None:
        for calls in list(self._called.values()):
            for call in list(calls):
                call(b"")
