"""The memory engine: topics that live as long as their process, or their test."""

from __future__ import annotations

import asyncio
import itertools
import logging
import zlib
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final, Unpack
from urllib.parse import SplitResult

import msgspec

from ..admin import (
    OPERATIONS,
    ClusterInfo,
    GroupInfo,
    Health,
    Lag,
    MemberInfo,
    NodeInfo,
    PartitionInfo,
    PartitionLag,
    TopicInfo,
)
from ..broker import Broker, BrokerOptions
from ..clock import SYSTEM_CLOCK, Clock
from ..engine import Ack, Assigned, Capabilities, DeclareMode, OnChange, Revoked, Source, Start, Topic
from ..errors import (
    ConfigurationError,
    GroupNotFoundError,
    NotSupportedError,
    OffsetOutOfRangeError,
    TopicNameError,
    TopicNotFoundError,
)
from ..log.assignment import Wanted, balanced
from ..message import Headers, Message, Outgoing, Position, Receipt
from ..topics import is_internal, is_pattern, match

DEFAULT_PARTITIONS: Final = 8

_log: Final = logging.getLogger("headwater.memory")

Place = tuple[str, int]  # a partition of a topic

CAPABILITIES: Final = Capabilities(
    ack=Ack.EACH,
    counts_deliveries=True,
    delayed_send=True,
    headers=True,
    keys=True,
    partitions=True,
    patterns=True,
    groups=True,
    exclusive=True,
    replay=True,
    atomic_batch=True,
    atomic_commit=True,
)


class _Record(msgspec.Struct, frozen=True):
    body: bytes
    key: bytes | None
    headers: Headers
    time: float
    serial: int  # counts all records of a store in the order they came


class _Partition:
    """The records of one partition: the first kept has the offset `earliest`."""

    def __init__(self) -> None:
        self.earliest = 0
        self.records: list[_Record] = []

    @property
    def latest(self) -> int:
        return self.earliest + len(self.records)

    def record(self, offset: int) -> _Record:
        return self.records[offset - self.earliest]

    def at(self, moment: float) -> int:
        """The first offset at or after this time."""
        return self.earliest + bisect_left(self.records, moment, key=lambda record: record.time)

    def trim(self, before: int) -> None:
        count = min(max(0, before - self.earliest), len(self.records))
        del self.records[:count]
        self.earliest += count


class _Cursor:
    """How far a group is on one partition: all below `done_up_to` is done, and so are those in `done`."""

    def __init__(self, start: int) -> None:
        self.done_up_to = start
        self.next = start  # what is handed out next
        self.done: set[int] = set()
        self.attempts: dict[int, int] = {}

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
        self.next = self.done_up_to


class _Group:
    """A consumer group: its cursors, its members, and who has which partition."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cursors: dict[Place, _Cursor] = {}
        self.resolved: set[str] = set()  # names and patterns whose start is decided
        self.members: list[MemorySubscription] = []
        self.epoch = 0
        self.moving = asyncio.Lock()


class MemoryStore:
    """Topics, groups and delayed messages; engines of one name share one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.topics: dict[str, list[_Partition]] = {}
        self.retention: dict[str, tuple[timedelta | None, int | None]] = {}
        self.groups: dict[str, _Group] = {}
        self.readers: set[MemorySubscription] = set()
        self.delayed = 0  # messages whose time has not come
        self._spread = itertools.count()
        self._serials = itertools.count()

    def create(self, topic: Topic) -> None:
        if topic.name not in self.topics:
            self.topics[topic.name] = [_Partition() for _ in range(topic.partitions or DEFAULT_PARTITIONS)]
            self.retention[topic.name] = (topic.retention, topic.retention_bytes)

    def partitions(self, name: str) -> list[_Partition]:
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
        partition.records.append(_Record(outgoing.body, key, headers, now, next(self._serials)))
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


_STORES: dict[str, MemoryStore] = {}


def from_url(parts: SplitResult, query: Mapping[str, str]) -> MemoryEngine:
    """`memory://name` is shared within the process, `memory://` private."""
    if query:
        raise ConfigurationError(f"memory:// has no options; it was given {', '.join(query)}")
    return MemoryEngine(parts.netloc + parts.path)


class MemoryBroker(Broker):
    """A broker in memory: `name` is shared within the process, none is private to this broker."""

    def __init__(self, name: str = "", **options: Unpack[BrokerOptions]) -> None:
        super().__init__(f"memory://{name}", **options)


class MemoryEngine:
    """Everything an engine can do, without a server and without a disk."""

    name = "memory"

    def __init__(
        self,
        store: str = "",
        *,
        clock: Clock = SYSTEM_CLOCK,
        capabilities: Callable[[Source], Capabilities] | None = None,
    ) -> None:
        self.clock = clock
        self.store = _STORES.setdefault(store, MemoryStore(store)) if store else MemoryStore("")
        self.admin = MemoryAdmin(self.store, self)
        self.moving: set[asyncio.Task[None]] = set()  # partitions being found for members, after a topic was made
        self._replaced = capabilities

    def capabilities(self, source: Source) -> Capabilities:
        return CAPABILITIES if self._replaced is None else self._replaced(source)

    def check_topic(self, name: str) -> None:
        if not name or "{" in name or name != name.strip():
            raise TopicNameError(name, "a name is not empty, and has neither braces nor blanks around it")

    async def connect(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def check(self) -> None:
        pass

    async def declare(self, topics: Sequence[Topic], mode: DeclareMode) -> None:
        for topic in topics:
            if mode == "check":
                self.store.partitions(topic.name)
            elif mode == "create":
                self.store.create(topic)
        self.topics_change()

    def send(self, messages: Sequence[Outgoing]) -> Sequence[Receipt]:
        for outgoing in messages:
            self.check_topic(outgoing.topic)
            self.store.check(outgoing)
        known = len(self.store.topics)
        now, sticky = self.clock.time(), self.store.spread()
        receipts = [
            self._send_later(outgoing) if outgoing.delay else self.store.append(outgoing, now, sticky)
            for outgoing in messages
        ]
        if len(self.store.topics) != known:
            self.topics_change()
        self._wake_readers()
        return receipts

    def _send_later(self, outgoing: Outgoing) -> Receipt:
        def deliver() -> None:
            self.store.delayed -= 1
            self.send([outgoing])

        self.store.delayed += 1
        delay, outgoing = outgoing.delay or 0.0, msgspec.structs.replace(outgoing, delay=None)
        self.clock.call_later(delay, deliver)
        return Receipt(outgoing.topic, outgoing.partition, None, self.clock.time())

    def _wake_readers(self) -> None:
        for reader in self.store.readers:
            reader.notify()

    def topics_change(self) -> None:
        """New partitions find their members, soon: who made them may be a handler that a move would wait for."""
        task = asyncio.get_running_loop().create_task(self._find_members())
        self.moving.add(task)
        task.add_done_callback(self.moving.discard)

    async def _find_members(self) -> None:
        for group in list(self.store.groups.values()):
            if group.members:
                await self._assign(group)
        for reader in self.store.readers:
            reader.find_places()
            reader.notify()

    def subscribe(self, source: Source, on_change: OnChange) -> AbstractAsyncContextManager[MemorySubscription]:
        return self._member(source, on_change) if source.group else self._reader(source)

    @asynccontextmanager
    async def _reader(self, source: Source) -> AsyncIterator[MemorySubscription]:
        for topic in source.topics:
            if not is_pattern(topic) and topic not in self.store.topics:
                raise TopicNotFoundError(topic)
        reader = MemorySubscription(self, source, None)
        reader.find_places(first=True)
        self.store.readers.add(reader)
        try:
            yield reader
        finally:
            self.store.readers.discard(reader)

    @asynccontextmanager
    async def _member(self, source: Source, on_change: OnChange) -> AsyncIterator[MemorySubscription]:
        assert source.group is not None
        group = self.store.groups.setdefault(source.group, _Group(source.group))
        self._take_start(group, source)
        member = MemorySubscription(self, source, group)
        member.on_change = on_change
        group.members.append(member)
        self.store.readers.add(member)
        await self._assign(group)
        try:
            yield member
        finally:
            self.store.readers.discard(member)
            group.members.remove(member)
            for place in member.places:
                group.cursors[place].rewind()
            await self._assign(group)

    def _take_start(self, group: _Group, source: Source) -> None:
        """Resolve where a group begins, once for each name or pattern; what comes later is read from its beginning."""
        skipped = 0
        for pattern in source.topics:
            start = "earliest" if pattern in group.resolved else source.start
            for place in self.store.places((pattern,)):
                if place not in group.cursors:
                    offset = self.resolve(start, place)
                    skipped += offset - self.store.topics[place[0]][place[1]].earliest
                    group.cursors[place] = _Cursor(offset)
            group.resolved.add(pattern)
        if skipped:
            _log.info("the new group %r begins at %s and skips %d message(s)", group.name, source.start, skipped)

    async def _assign(self, group: _Group) -> None:
        """Share the partitions out, moving as few as possible; those that move are given back first."""
        async with group.moving:
            wanted = self._shares(group)
            group.epoch += 1
            for member in group.members:
                leaving = frozenset(member.places) - wanted[member]
                if leaving:
                    member.places = [place for place in member.places if place not in leaving]
                    await member.on_change(Revoked(leaving, group.epoch))
                    for place in leaving:
                        group.cursors[place].rewind()
            for member in group.members:
                coming = wanted[member] - frozenset(member.places)
                if coming:
                    member.places = [*member.places, *sorted(coming)]
                    await member.on_change(Assigned(coming, group.epoch))
                    member.notify()

    def _shares(self, group: _Group) -> dict[MemorySubscription, frozenset[Place]]:
        readable = [(member, frozenset(self.store.places(member.source.topics))) for member in group.members]
        wanted = []
        for place in dict.fromkeys(place for _, places in readable for place in sorted(places)):
            if place not in group.cursors:  # a partition that came later is read from its beginning
                group.cursors[place] = _Cursor(self.store.topics[place[0]][place[1]].earliest)
            fitting = [(str(number), member) for number, (member, places) in enumerate(readable) if place in places]
            owner = next((name for name, member in fitting if place in member.places), "")
            wanted.append(Wanted(*place, [name for name, _ in fitting], owner, fitting[0][1].source.exclusive))
        owners = balanced(wanted)
        return {
            member: frozenset(place for place, owner in owners.items() if owner == str(number))
            for number, member in enumerate(group.members)
        }

    def resolve(self, start: Start, place: Place) -> int:
        """Where reading begins on one partition. Raises OffsetOutOfRangeError."""
        partition = self.store.topics[place[0]][place[1]]
        if start == "earliest":
            return partition.earliest
        if start == "latest":
            return partition.latest
        if isinstance(start, datetime):
            return partition.at(start.timestamp())
        offset = start.get(place[1], partition.earliest) if isinstance(start, Mapping) else start
        assert isinstance(offset, int)
        if not partition.earliest <= offset <= partition.latest:
            raise OffsetOutOfRangeError(*place, offset, partition.earliest, partition.latest)
        return offset


class MemorySubscription:
    """A place in a memory source: a member of a group, or a reader on its own."""

    def __init__(self, engine: MemoryEngine, source: Source, group: _Group | None) -> None:
        self.source = source
        self.places: list[Place] = []
        self.on_change: OnChange
        self._engine = engine
        self._store = engine.store
        self._group = group
        self._cursors = {} if group is None else group.cursors
        self._paused: frozenset[Place] = frozenset()
        self._waiter: asyncio.Future[None] | None = None
        self._woken = False
        self._turn = 0

    def find_places(self, first: bool = False) -> None:
        """Take in the partitions that a reader without a group wants; those that came later from their beginning."""
        if self._group is not None:
            return
        chosen, start = self.source.partitions, self.source.start
        places = [p for p in self._store.places(self.source.topics) if chosen is None or p[1] in chosen]
        if first and isinstance(start, int) and len(places) != 1:
            raise ConfigurationError(f"start={start} needs one partition: give partitions=[n] or start={{n: {start}}}")
        for place in places:
            if place not in self._cursors:
                self._cursors[place] = _Cursor(self._engine.resolve(start if first else "earliest", place))
        self.places = places

    @property
    def backlog(self) -> int:
        """Messages that could be received now."""
        return sum(
            self._store.topics[place[0]][place[1]].latest - max(self._cursors[place].next, 0)
            for place in self.places
            if place not in self._paused
        )

    def notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def wake(self) -> None:
        self._woken = True
        self.notify()

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while not (messages := self._take(limit)) and not self._woken and (rest := deadline - loop.time()) > 0:
            self._waiter = loop.create_future()
            timer = loop.call_later(rest, self.notify)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        self._woken = False
        return messages

    def _take(self, limit: int) -> list[Message]:
        taken: list[Message] = []
        self._turn += 1
        count = len(self.places)
        for index in range(count):
            place = self.places[(index + self._turn) % count]
            if place not in self._paused and len(taken) < limit:
                taken.extend(self._take_from(place, limit - len(taken)))
        return taken

    def _take_from(self, place: Place, limit: int) -> list[Message]:
        topic, number = place
        partition, cursor = self._store.topics[topic][number], self._cursors[place]
        self._store.expire(topic, self._engine.clock.time())
        if cursor.next < partition.earliest:
            cursor.rewind(partition.earliest)
        group, taken = self.source.group, list[Message]()
        while cursor.next < partition.latest and len(taken) < limit:
            offset, record = cursor.next, partition.record(cursor.next)
            cursor.next += 1
            if offset not in cursor.done:
                attempt = cursor.attempts.get(offset, 0) + 1
                taken.append(
                    Message(topic, record.body, record.key, record.headers, number, offset, record.time, group, attempt)
                )
        return taken

    def begin(self, message: Message) -> None:
        assert isinstance(message.offset, int)
        self._cursors[self._place(message)].attempts[message.offset] = message.attempt

    async def ack(self, messages: Sequence[Message]) -> None:
        for message in messages:
            place = self._place(message)
            if place in self.places:
                assert isinstance(message.offset, int)
                self._cursors[place].ack(message.offset)

    async def nack(self, messages: Sequence[Message], delay: float) -> None:
        raise NotSupportedError("memory", "nack", "the core retries in place")

    async def reject(self, messages: Sequence[Message], reason: str) -> None:
        raise NotSupportedError("memory", "reject", "the core writes dead letters")

    async def extend(self, messages: Sequence[Message]) -> None:
        pass  # no leases

    async def commit(self, acks: Sequence[Message], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        receipts = self._engine.send(sends)
        await self.ack(acks)
        return receipts

    def pause(self, partitions: frozenset[Place]) -> None:
        self._paused |= partitions

    def resume(self, partitions: frozenset[Place]) -> None:
        self._paused -= partitions
        self.notify()

    async def seek(self, position: Position) -> None:
        place = (position.topic, position.partition)
        if place not in self._cursors:
            raise TopicNotFoundError(position.topic, f"this reader has no partition {position.partition} of it")
        assert isinstance(position.offset, int)
        self._cursors[place].rewind(self._engine.resolve(position.offset, place))
        self.notify()

    @staticmethod
    def _place(message: Message) -> Place:
        return (message.topic, message.partition or 0)


class MemoryAdmin:
    """The administration of a memory store."""

    operations = OPERATIONS

    def __init__(self, store: MemoryStore, engine: MemoryEngine) -> None:
        self._store = store
        self._engine = engine

    async def list_topics(self) -> Sequence[TopicInfo]:
        return [
            TopicInfo(
                name,
                len(partitions),
                sum(len(partition.records) for partition in partitions),
                sum(len(record.body) for partition in partitions for record in partition.records),
                *self._store.retention[name],
                internal=is_internal(name),
            )
            for name, partitions in self._store.topics.items()
        ]

    async def create_topic(
        self,
        name: str,
        partitions: int | None,
        retention: timedelta | None,
        retention_bytes: int | None,
        options: Sequence[Any],
    ) -> None:
        self._engine.check_topic(name)
        await self._engine.declare([Topic(name, partitions, retention, retention_bytes)], "create")

    async def alter_topic(
        self, name: str, retention: timedelta | None, retention_bytes: int | None, options: Sequence[Any]
    ) -> None:
        self._store.partitions(name)
        self._store.retention[name] = (retention, retention_bytes)

    async def delete_topic(self, name: str) -> None:
        self._store.partitions(name)
        del self._store.topics[name], self._store.retention[name]
        for group in self._store.groups.values():
            for place in [place for place in group.cursors if place[0] == name]:
                del group.cursors[place]
            for member in group.members:
                member.places = [place for place in member.places if place[0] != name]
        self._engine.topics_change()

    async def purge_topic(self, name: str, before: Mapping[int, int] | datetime | None) -> None:
        for number, partition in enumerate(self._store.partitions(name)):
            if isinstance(before, datetime):
                partition.trim(partition.at(before.timestamp()))
            else:
                partition.trim(partition.latest if before is None else before.get(number, 0))

    async def list_partitions(self, topic: str) -> Sequence[PartitionInfo]:
        return [
            PartitionInfo(topic, number, partition.earliest, partition.latest)
            for number, partition in enumerate(self._store.partitions(topic))
        ]

    async def add_partitions(self, topic: str, total: int) -> None:
        partitions = self._store.partitions(topic)
        if total < len(partitions):
            raise ConfigurationError(f"{topic!r} has {len(partitions)} partitions, and partitions only grow")
        partitions.extend(_Partition() for _ in range(total - len(partitions)))
        self._engine.topics_change()

    async def list_groups(self) -> Sequence[GroupInfo]:
        return [
            GroupInfo(
                group.name,
                tuple(sorted({topic for topic, _ in group.cursors})),
                tuple(
                    MemberInfo(str(number), "this process", tuple(member.places))
                    for number, member in enumerate(group.members)
                ),
            )
            for group in self._store.groups.values()
        ]

    def _group(self, name: str) -> _Group:
        if name not in self._store.groups:
            raise GroupNotFoundError(name)
        return self._store.groups[name]

    async def lag(self, group: str, topic: str | None) -> Lag:
        cursors = self._group(group).cursors
        found = []
        for (name, number), cursor in sorted(cursors.items()):
            if topic in (None, name):
                latest = self._store.topics[name][number].latest
                todo = latest - cursor.done_up_to - len(cursor.done)
                found.append(PartitionLag(name, number, cursor.done_up_to, latest, todo))
        return Lag(group, tuple(found))

    async def set_offsets(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        found = self._group(group)
        if found.members:
            raise ConfigurationError(f"group {group!r} has {len(found.members)} live member(s): stop them, then reset")
        for number, offset in offsets.items():
            found.cursors.setdefault((topic, number), _Cursor(offset)).rewind(offset)

    async def offsets_at(self, topic: str, moment: datetime) -> Mapping[int, int]:
        return {n: p.at(moment.timestamp()) for n, p in enumerate(self._store.partitions(topic))}

    async def delete_group(self, group: str) -> None:
        if self._group(group).members:
            raise ConfigurationError(f"group {group!r} has live members: stop them, then delete it")
        del self._store.groups[group]

    async def describe_cluster(self) -> ClusterInfo:
        return ClusterInfo("memory", "", (NodeInfo("0", "this process", True),))

    async def health(self) -> Health:
        return Health()


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
