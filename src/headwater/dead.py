"""The dead letters of a topic: listed, sent back, or let go.

A letter that was replayed or purged leaves the list by a mark written behind it in the dead-letter topic, together
with the replayed message, so that this works on every engine that keeps its messages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from .errors import TopicNotFoundError
from .letters import replayed
from .message import ATTEMPTS, EXCEPTION, GROUP, OFFSET, PARTITION, REASON, SETTLED, TOPIC, Headers, Message, Outgoing
from .topics import DEAD_SUFFIX, dead_topic

if TYPE_CHECKING:
    from .admin import EngineAdmin
    from .broker import Broker

Place = tuple[int, int | str]  # partition and offset in the dead-letter topic
BURST = 500  # letters that are sent back in one publish


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up. `partition` and `offset` are its place among the dead letters."""

    partition: int
    offset: int | str
    topic: str
    group: str | None
    reason: str
    exception: str | None
    attempts: int
    original_partition: str | None
    original_offset: str | None
    key: str | None
    headers: Headers
    body: bytes
    timestamp: datetime


class DeadLetters:
    """Dead letters by the topic they came from; `at` is where they are, `<topic>.dead` unless told otherwise."""

    def __init__(self, broker: Broker, engine: EngineAdmin) -> None:
        self._broker = broker
        self._engine = engine

    async def topics(self) -> Sequence[str]:
        """The dead-letter topics there are."""
        return sorted(t.name for t in await self._engine.list_topics() if t.name.endswith(DEAD_SUFFIX))

    async def list(
        self, topic: str, *, group: str | None = None, limit: int | None = None, at: str | None = None
    ) -> Sequence[DeadLetter]:
        """The letters that were neither replayed nor purged, oldest first; none where none were ever written."""
        letters = await self._read(at or dead_topic(topic))
        found = [_letter(message) for message in letters.values() if _is_of(message, group)]
        return found[:limit]

    async def replay(
        self,
        topic: str,
        *,
        group: str | None = None,
        offsets: Sequence[Place] | None = None,
        at: str | None = None,
        to: Broker | None = None,
    ) -> int:
        """Send letters back to their topic, each for the group that gave it up alone; how many.

        `to` is the broker of that topic, for letters that another broker keeps.
        """
        return await self._settle(at or dead_topic(topic), group, offsets, replayed, to)

    async def purge(
        self, topic: str, *, group: str | None = None, offsets: Sequence[Place] | None = None, at: str | None = None
    ) -> int:
        """Take letters off the list for good; how many."""
        return await self._settle(at or dead_topic(topic), group, offsets, None)

    async def _settle(
        self,
        where: str,
        group: str | None,
        offsets: Sequence[Place] | None,
        send: Callable[[Message], Outgoing] | None,
        to: Broker | None = None,
    ) -> int:
        letters = await self._read(where)
        chosen = [
            (place, message)
            for place, message in letters.items()
            if _is_of(message, group) and (offsets is None or place in offsets)
        ]
        for first in range(0, len(chosen), BURST):
            burst = chosen[first : first + BURST]
            sends = [] if send is None else [send(message) for _, message in burst]
            mark = msgspec.json.encode([place for place, _ in burst])
            if to is not None:
                await to.publish_many(sends)
                sends = []
            await self._broker.publish_many([*sends, Outgoing(mark, where, headers={SETTLED: "1"})])
        return len(chosen)

    async def _read(self, where: str) -> dict[Place, Message]:
        letters: dict[Place, Message] = {}
        settled = set[Place]()
        counted = "list_partitions" in self._engine.operations and not self._engine.has_ids
        async for message in self._by_partition(where) if counted else self._by_number(where):
            if SETTLED in message.headers:
                settled.update((p, o) for p, o in msgspec.json.decode(message.body))
            else:
                letters[message.partition or 0, message.offset or 0] = message
        return {place: message for place, message in letters.items() if place not in settled}

    async def _by_partition(self, where: str) -> AsyncIterator[Message]:
        """All there are now, where each partition says how far it goes."""
        try:
            partitions = await self._engine.list_partitions(where)
        except TopicNotFoundError:
            return
        for info in partitions:
            if not info.messages:
                continue
            assert isinstance(info.latest, int), "topics whose offsets are ids are read by number"
            ends = _reached(info.latest)
            stream = self._broker.stream(where, start="earliest", partitions=[info.partition], until=ends, wait=1.0)
            async with stream:
                async for message in stream:
                    yield message
                    if message.offset == info.latest - 1:
                        break

    async def _by_number(self, where: str) -> AsyncIterator[Message]:
        """All there are now, where offsets are no numbers: as many as the topic says it has."""
        kept = next((topic.messages for topic in await self._engine.list_topics() if topic.name == where), 0)
        if kept:
            async with self._broker.stream(where, start="earliest", limit=kept, wait=1.0) as stream:
                async for message in stream:
                    yield message


def _reached(end: int) -> Callable[[Message], bool]:
    return lambda message: isinstance(message.offset, int) and message.offset >= end


def _is_of(message: Message, group: str | None) -> bool:
    return group is None or message.headers.get(GROUP) == group


def _letter(message: Message) -> DeadLetter:
    headers = message.headers
    return DeadLetter(
        partition=message.partition or 0,
        offset=message.offset or 0,
        topic=headers.get(TOPIC, message.topic.removesuffix(DEAD_SUFFIX)),
        group=headers.get(GROUP),
        reason=headers.get(REASON, ""),
        exception=headers.get(EXCEPTION),
        attempts=int(headers.get(ATTEMPTS, "0")),
        original_partition=headers.get(PARTITION),
        original_offset=headers.get(OFFSET),
        key=message.key,
        headers=headers,
        body=message.body,
        timestamp=datetime.fromtimestamp(message.time, UTC),
    )
