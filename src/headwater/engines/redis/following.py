"""A place in streams without a group: everything from a position on, and nothing is kept at the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

from ...engine import Source
from ...errors import AuthenticationError, NotSupportedError, TopicNotFoundError
from ...message import Message, Outgoing, Position, Receipt
from ...topics import is_pattern
from . import places
from .entries import read
from .patterns import streams_matching
from .reading import Basket, Reader
from .servers import Servers, refused
from .wire import Command, Refusal

_log: Final = logging.getLogger("headwater.redis")


class Following:
    """Reads streams from a position, which it keeps over reconnects."""

    def __init__(self, servers: Servers, source: Source, name: str, url: str) -> None:
        self.name = name
        self._url = url
        self.basket = Basket()
        self.basket.on_resume = self._interrupt
        self._servers, self._source = servers, source
        self._positions: dict[str, str] = {}  # the last id of each topic that came
        self._moved = set[str]()  # those that were sought in since they were last read
        self._readers: dict[int, Reader] = {}

    async def open(self) -> None:
        """Find out where to begin. Raises TopicNotFoundError, AuthenticationError, ConnectError."""
        topics = [topic for topic in self._source.topics if not is_pattern(topic)]
        found = await streams_matching(self._servers, filter(is_pattern, self._source.topics))
        infos = await self._servers.ask([(topic, ("XINFO", "STREAM", topic)) for topic in [*topics, *found]])
        for topic, info in zip([*topics, *found], infos, strict=True):
            if isinstance(info, Refusal):
                if "no such key" in str(info):
                    raise TopicNotFoundError(topic)
                raise refused(self._url, topic, ("XINFO", "STREAM", topic), info)
            about = dict(zip(info[::2], info[1::2], strict=True))
            self._positions[topic] = places.before(self._source.start, about[b"last-generated-id"].decode())
        self._read(self._positions)

    async def close(self) -> None:
        await asyncio.gather(*(reader.stop() for reader in self._readers.values()))

    async def take_in(self, topics: set[str]) -> None:
        """Read these topics of our patterns, too: those that were not there before, from their beginning."""
        new = sorted(topics.difference(self._positions))
        self._positions |= dict.fromkeys(new, places.BEGINNING)
        self._read(new)

    def _read(self, topics: Iterable[str]) -> None:
        for place, together in self._servers.together(topics).items():
            if place in self._readers:
                self._readers[place].read_too(together)
            else:
                self._readers[place] = Reader(self._servers, self, together)

    def _interrupt(self) -> None:
        for reader in self._readers.values():
            reader.interrupt()

    # --- Duty -----------------------------------------------------------------------------------------

    async def prepare(self, topics: Sequence[str]) -> None:
        pass  # the positions are ours

    async def patience(self) -> float:
        return 60.0

    def read(self, topics: Sequence[str], count: int, block: int) -> Command:
        self._moved.difference_update(topics)
        positions = [self._positions[topic] for topic in topics]
        return ("XREAD", "COUNT", count, "BLOCK", block, "STREAMS", *topics, *positions)

    def arrived(self, reply: Any) -> None:
        for raw, entries in reply:
            topic = raw.decode()
            if topic not in self._moved:
                self._positions[topic] = entries[-1][0].decode()
                self.basket.put(read(topic, None, entries))

    async def refused(self, topics: Sequence[str], refusal: Refusal) -> bool:
        error = refused(self._url, topics[0], ("XREAD",), refusal)
        if isinstance(error, AuthenticationError):  # who reads is told; whatever else it is may pass
            self.basket.fail(error)
        return False

    # --- Subscription ---------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        return await self.basket.receive(limit, wait)

    def wake(self) -> None:
        self.basket.wake()

    def begin(self, message: Message) -> None:
        pass  # nothing is counted

    async def ack(self, messages: Sequence[Message]) -> None:
        pass  # nothing is kept

    async def extend(self, messages: Sequence[Message]) -> None:
        pass  # nothing is lent

    async def nack(self, messages: Sequence[Message], delay: float) -> None:
        raise NotSupportedError("redis", "nack", "the core retries in place")

    async def reject(self, messages: Sequence[Message], reason: str) -> None:
        raise NotSupportedError("redis", "reject", "the core writes dead letters")

    async def commit(self, acks: Sequence[Message], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        raise NotSupportedError("redis", "transactions")

    def pause(self, partitions: frozenset[tuple[str, int]]) -> None:
        self.basket.pause(partitions)

    def resume(self, partitions: frozenset[tuple[str, int]]) -> None:
        self.basket.resume(partitions)

    async def seek(self, position: Position) -> None:
        if position.topic not in self._positions:
            raise TopicNotFoundError(position.topic, "this reader does not read it")
        self._positions[position.topic] = places.before(position.offset, self._positions[position.topic])
        self._moved.add(position.topic)
        self.basket.clear(lambda message: message.topic == position.topic)
        self._interrupt()
