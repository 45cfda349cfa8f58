"""A place in channels: what is published from now on, until it is received. Nothing is kept for anybody."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from ...clock import Clock
from ...codecs.envelope import unseal
from ...engine import Source
from ...errors import DecodeError, NotSupportedError
from ...inbox import Inbox
from ...message import NO_HEADERS, Message, Outgoing, Position, Receipt
from ...topics import is_pattern, match
from .listening import Listener
from .patterns import glob_of
from .servers import Servers

_log: Final = logging.getLogger("headwater.redis")


class ChannelSubscription:
    """Hears some topics. A reader that is too slow holds the server back, up to what that keeps for a client."""

    def __init__(self, servers: Servers, source: Source, name: str, clock: Clock) -> None:
        self._source, self._clock = source, clock
        self._inbox = Inbox(source.prefetch, self._release)
        self._late: list[Message] = []  # what came with the last that there was room for
        self._listener = Listener(servers, name, self._hear, self._missed)
        self._heard_by = {glob_of(topic).encode(): topic for topic in source.topics}

    async def open(self) -> None:
        """Returns once everything that is published from now on is heard."""
        topics = self._source.topics
        patterns = [glob_of(topic) for topic in topics if is_pattern(topic)]
        await self._listener.listen([topic for topic in topics if not is_pattern(topic)], patterns)

    async def close(self) -> None:
        await self._listener.close()

    # --- hearing --------------------------------------------------------------------------------------

    def _hear(self, heard: bytes, channel: bytes, data: bytes) -> None:
        topic = channel.decode(errors="backslashreplace")
        if self._heard_by[heard] != self._wanted_by(topic):
            return  # it is not wanted, or comes once more for another of our topics
        try:
            key, headers, body = unseal(data)
        except DecodeError:
            key, headers, body = None, NO_HEADERS, data  # some other program's
        message = Message(topic, body, key, headers, 0, None, self._clock.time())
        if self._late or not self._inbox.put(message):
            self._late.append(message)
            self._listener.hold()

    def _wanted_by(self, topic: str) -> str | None:
        return next((wanted for wanted in self._source.topics if match(wanted, topic) is not None), None)

    def _release(self) -> None:
        late, self._late = self._late, []
        while late and self._inbox.put(late[0]):
            del late[0]
        self._late = late
        if not late:
            self._listener.release()

    def _missed(self, seconds: float) -> None:
        topics = ", ".join(self._source.topics)
        _log.warning("what was published to %s within %.1f s without a connection was missed", topics, seconds)

    # --- Subscription ---------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        return await self._inbox.receive(limit, wait)

    def wake(self) -> None:
        self._inbox.wake()

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
        self._inbox.pause()

    def resume(self, partitions: frozenset[tuple[str, int]]) -> None:
        self._inbox.resume()

    async def seek(self, position: Position) -> None:
        raise NotSupportedError("redis", "seek on a channel", "nothing is kept there: use streams")
