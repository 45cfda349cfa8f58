"""Reading without a group: every reader sees everything, and nothing is kept of where it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from ...engine import Assigned, OnChange, Source, Start
from ...errors import ConfigurationError, NotSupportedError, OffsetOutOfRangeError, TopicNotFoundError
from ...log.alarm import Alarm
from ...log.store import Store
from ...message import Message, Outgoing, Position, Receipt
from ...topics import is_pattern, match
from .records import to_messages

MAX_BYTES = 1 << 20  # of values read from one partition at once

Partitions = frozenset[tuple[str, int]]


def start_offset(store: Store, start: Start, topic: str, partition: int, stream: int) -> int:
    """The offset at which reading begins. Raises OffsetOutOfRangeError, ConfigurationError."""
    if start == "earliest":
        return store.earliest(stream)
    if start == "latest":
        return store.latest(stream)
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise ConfigurationError(f"start={start!r} has no time zone: give an aware datetime")
        return store.offset_at(stream, start.timestamp())
    if isinstance(start, Mapping):
        if partition not in start:
            return store.earliest(stream)
        start = start[partition]
    if not isinstance(start, int):
        raise ConfigurationError(f"start={start!r}: give 'earliest', 'latest', an offset or an aware datetime")
    earliest, latest = store.earliest(stream), store.latest(stream)
    if not earliest <= start <= latest:
        raise OffsetOutOfRangeError(topic, partition, start, earliest, latest)
    return start


class _Place:
    """One partition that is read."""

    __slots__ = ("partition", "paused", "position", "stream", "topic")

    def __init__(self, topic: str, partition: int, stream: int, position: int) -> None:
        self.topic, self.partition, self.stream, self.position = topic, partition, stream, position
        self.paused = False


class Following:
    """A reader of topics on its own. Made by `LocalEngine.subscribe`.

    What does not exist yet, of a pattern or a growing topic, is read from its beginning once it does.
    """

    def __init__(self, source: Source, store: Store, alarm: Alarm, listen: Callable[[list[int]], None]) -> None:
        """Raises TopicNotFoundError for a name that is not there."""
        self._source, self._store, self._alarm, self._listen = source, store, alarm, listen
        self._places: dict[tuple[str, int], _Place] = {}
        self._turn = 0
        self._dry: int | None = None
        self._catalog = -1
        self.touched = False  # nothing is ever kept
        for topic in source.topics:
            if not is_pattern(topic):
                store.topic(topic)
        self._take_in(source.start)

    async def announce(self, on_change: OnChange) -> None:
        """Say what is read."""
        await on_change(Assigned(frozenset(self._places), 0))

    def stir(self) -> None:
        """A bell rang."""
        self._alarm.ring()

    def _take_in(self, start: Start) -> None:
        """Know the partitions there are now; new ones begin at `start`."""
        self._catalog = self._store.catalog_generation
        only = self._source.partitions
        topics = self._store.topics()
        wanted = {
            (name, partition): stream
            for name, topic in topics.items()
            if any(match(pattern, name) is not None for pattern in self._source.topics)
            for partition, stream in enumerate(topic.streams)
            if only is None or partition in only
        }
        if isinstance(start, int) and len(wanted) > 1:
            raise ConfigurationError(
                f"start={start} is the offset of one partition, and {', '.join(self._source.topics)} has "
                f"{len(wanted)}: give {{partition: offset, ...}} or partitions=[...]"
            )
        missing = [n for n in only or () if all(partition != n for _, partition in wanted)]
        if missing:
            raise TopicNotFoundError(f"{self._source.topics[0]}[{missing[0]}]", "it has fewer partitions")
        for at, stream in wanted.items():
            known = self._places.get(at)
            if known is None or known.stream != stream:
                self._places[at] = _Place(*at, stream, start_offset(self._store, start, *at, stream))
        for at in self._places.keys() - wanted.keys():
            del self._places[at]
        self._listen([place.stream for place in self._places.values()])

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """The next messages, as many as are there up to `limit`; () after `wait` quiet seconds or a `wake`.

        Raises TopicNotFoundError once all that is read was deleted.
        """
        await self._alarm.take_turns()
        if found := self._gather(limit):
            return found
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while not self._alarm.was_woken():
            self._alarm.arm()
            if found := self._gather(limit):
                return found
            left = deadline - loop.time()
            if left <= 0:
                break
            await self._alarm.sleep(left)
        return ()

    def wake(self) -> None:
        """Make a waiting `receive` return at once."""
        self._alarm.wake()

    def _gather(self, limit: int) -> list[Message]:
        if self._store.catalog_generation != self._catalog:
            self._notice_topics()
        visible = self._store.visible_end
        if visible == self._dry:
            return []
        found: list[Message] = []
        places = list(self._places.values())
        committed = self._store.committed
        for i in range(len(places)):
            place = places[(self._turn + i) % len(places)]
            if place.paused or place.position >= committed(place.stream):
                continue
            for chunk in self._store.read_columns(place.stream, place.position, limit - len(found), MAX_BYTES):
                found += to_messages(place.topic, place.partition, chunk)
                place.position = chunk.base + len(chunk.values)
            if len(found) >= limit:
                break
        self._turn += 1
        if not found:
            self._dry = visible
        return found

    def _notice_topics(self) -> None:
        for topic in self._source.topics:
            if not is_pattern(topic):
                self._store.topic(topic)
        self._take_in("earliest")
        self._dry = None

    def pause(self, partitions: Partitions) -> None:
        """Receive nothing more from these until `resume`."""
        for at in partitions & self._places.keys():
            self._places[at].paused = True

    def resume(self, partitions: Partitions) -> None:
        """Receive from these again."""
        for at in partitions & self._places.keys():
            self._places[at].paused = False
        self._dry = None
        self._alarm.ring()

    async def seek(self, position: Position) -> None:
        """The message at this position comes next. Raises OffsetOutOfRangeError, TopicNotFoundError."""
        place = self._places.get((position.topic, position.partition))
        if place is None:
            raise TopicNotFoundError(f"{position.topic}[{position.partition}]", "it is not read here")
        offset = int(position.offset)
        place.position = start_offset(self._store, offset, place.topic, place.partition, place.stream)
        self._dry = None
        self._alarm.ring()

    def begin(self, message: Message) -> None:
        """Nothing is counted without a group."""

    async def ack(self, messages: Sequence[Message]) -> None:
        """Nothing is kept without a group."""

    async def nack(self, messages: Sequence[Message], delay: float) -> None:
        raise NotSupportedError("local", "nack without a group")

    async def reject(self, messages: Sequence[Message], reason: str) -> None:
        raise NotSupportedError("local", "reject without a group")

    async def extend(self, messages: Sequence[Message]) -> None:
        """There are no leases on messages."""

    async def commit(self, acks: Sequence[Message], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        raise NotSupportedError("local", "transactions without a group", "give the subscriber a group")
