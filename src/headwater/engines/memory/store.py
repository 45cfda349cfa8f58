"""What a memory store keeps: topics with their records, groups with their cursors."""

from __future__ import annotations

import asyncio
import itertools
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import msgspec

from ...engine import Topic
from ...errors import ConfigurationError, TopicNotFoundError
from ...message import Headers, Message, Outgoing, Receipt
from ...topics import match

if TYPE_CHECKING:
    from .subscription import MemorySubscription

DEFAULT_PARTITIONS: Final = 8

Place = tuple[str, int]  # a partition of a topic


class Record(msgspec.Struct, frozen=True):
    body: bytes
    key: bytes | None
    headers: Headers
    time: float
    serial: int  # counts all records of a store in the order they came


class Partition:
    """The records of one partition: the first kept has the offset `earliest`."""

    def __init__(self) -> None:
        self.earliest = 0
        self.records: list[Record] = []

    @property
    def latest(self) -> int:
        return self.earliest + len(self.records)

    def record(self, offset: int) -> Record:
        return self.records[offset - self.earliest]

    def at(self, moment: float) -> int:
        """The first offset at or after this time."""
        return self.earliest + bisect_left(self.records, moment, key=lambda record: record.time)

    def trim(self, before: int) -> None:
        count = min(max(0, before - self.earliest), len(self.records))
        del self.records[:count]
        self.earliest += count


class Cursor:
    """How far a group is on one partition: all below `done_up_to` is done, and so are those in `done`."""

    def __init__(self, start: int) -> None:
        self.done_up_to = start
        self.next = start  # what is handed out next
        self.done: set[int] = set()
        self.attempts: dict[int, int] = {}
        self.later: set[int] = set()  # given back, to be handed out after a while ...
        self.again: deque[int] = deque()  # ... and those whose time has come

    def waiting(self, latest: int) -> int:
        """How many may be handed out now."""
        withheld = sum(1 for offset in self.done | self.later if offset >= self.next)
        return len(self.again) + latest - max(self.next, 0) - withheld

    def take(self, partition: Partition, limit: int) -> list[int]:
        """What is handed out next: at most `limit` offsets."""
        taken, done, later = list[int](), self.done, self.later
        while self.again and len(taken) < limit:
            offset = self.again.popleft()
            if offset >= max(self.done_up_to, partition.earliest) and offset not in done:
                taken.append(offset)
        while self.next < partition.latest and len(taken) < limit:
            if self.next not in done and self.next not in later:
                taken.append(self.next)
            self.next += 1
        return taken

    def postpone(self, offset: int) -> None:
        """Hand this out again, but not before `resume`."""
        self.attempts.setdefault(offset, 1)
        self.later.add(offset)

    def resume(self, offset: int) -> None:
        if offset in self.later:
            self.later.discard(offset)
            if offset < self.next:
                self.again.append(offset)

    def ack(self, offset: int) -> None:
        self.attempts.pop(offset, None)
        if offset == self.done_up_to:
            self.done_up_to += 1
            while self.done_up_to in self.done:
                self.done.discard(self.done_up_to)
                self.done_up_to += 1
        elif offset > self.done_up_to:
            self.done.add(offset)

    def rewind(self, offset: int | None = None) -> None:
        """Hand out again what is not done; from `offset` on whatever was done."""
        if offset is not None:
            self.done_up_to = offset
            self.done.clear()
            self.later.clear()
        self.again.clear()
        self.next = self.done_up_to


class Group:
    """A consumer group: its cursors, its members, and who has which partition."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cursors: dict[Place, Cursor] = {}
        self.resolved: set[str] = set()  # names and patterns whose start is decided
        self.members: list[MemorySubscription] = []
        self.epoch = 0
        self.moving = asyncio.Lock()


class MemoryStore:
    """Topics, groups and delayed messages; engines of one name share one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.topics: dict[str, list[Partition]] = {}
        self.retention: dict[str, tuple[timedelta | None, int | None]] = {}
        self.groups: dict[str, Group] = {}
        self.readers: set[MemorySubscription] = set()
        self.delayed = 0  # messages whose time has not come
        self._spread = itertools.count()
        self._serials = itertools.count()

    def create(self, topic: Topic) -> None:
        if topic.name not in self.topics:
            self.topics[topic.name] = [Partition() for _ in range(topic.partitions or DEFAULT_PARTITIONS)]
            self.retention[topic.name] = (topic.retention, topic.retention_bytes)

    def partitions(self, name: str) -> list[Partition]:
        if name not in self.topics:
            raise TopicNotFoundError(name)
        return self.topics[name]

    def places(self, patterns: Sequence[str]) -> list[Place]:
        """The partitions of all topics these names and patterns match."""
        return [
            (name, number)
            for name, partitions in self.topics.items()
            if any(match(pattern, name) is not None for pattern in patterns)
            for number in range(len(partitions))
        ]

    def check(self, outgoing: Outgoing) -> None:
        count = len(self.topics.get(outgoing.topic) or range(DEFAULT_PARTITIONS))
        if outgoing.partition is not None and not 0 <= outgoing.partition < count:
            raise ConfigurationError(f"{outgoing.topic!r} has partitions 0 to {count - 1}, not {outgoing.partition}")

    def append(self, outgoing: Outgoing, now: float, sticky: int) -> Receipt:
        """Store a message that was checked. Messages without a key go to the `sticky` partition."""
        topic = outgoing.topic
        if topic not in self.topics:
            self.create(Topic(topic))
        partitions, key = self.topics[topic], outgoing.key_bytes
        number = outgoing.partition
        if number is None:
            number = (sticky if key is None else zlib.crc32(key)) % len(partitions)
        partition = partitions[number]
        headers = outgoing.headers if isinstance(outgoing.headers, Headers) else Headers(outgoing.headers)
        partition.records.append(Record(outgoing.body, key, headers, now, next(self._serials)))
        return Receipt(topic, number, partition.latest - 1, now)

    def spread(self) -> int:
        return next(self._spread)

    def expire(self, name: str, now: float) -> None:
        """Apply a topic's retention."""
        age, size = self.retention[name]
        for partition in self.topics[name]:
            if age is not None:
                partition.trim(partition.at(now - age.total_seconds()))
            while size is not None and partition.records and sum(len(r.body) for r in partition.records) > size:
                partition.trim(partition.earliest + 1)


def received(store: MemoryStore, topic: str) -> list[Message]:
    """All messages of a topic in the order they were published, for a look from outside."""
    found = [
        (record.serial, number, partition.earliest + index, record)
        for number, partition in enumerate(store.topics.get(topic, ()))
        for index, record in enumerate(partition.records)
    ]
    return [
        Message(topic, record.body, record.key, record.headers, number, offset, record.time)
        for _, number, offset, record in sorted(found, key=lambda place: place[0])
    ]
