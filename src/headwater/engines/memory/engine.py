"""The memory engine: declares, sends, and shares partitions out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Final

import msgspec

from ...clock import SYSTEM_CLOCK, Clock
from ...engine import Ack, Assigned, Capabilities, DeclareMode, OnChange, Revoked, Source, Start, Topic
from ...errors import (
    ConfigurationError,
    NotSupportedError,
    OffsetOutOfRangeError,
    TopicNameError,
    TopicNotFoundError,
)
from ...log.assignment import Wanted, balanced
from ...message import Outgoing, Receipt
from ...topics import REPLIES, is_pattern
from .administration import MemoryAdmin
from .store import Cursor, Group, MemoryStore, Place
from .subscription import MemorySubscription

_log: Final = logging.getLogger("headwater.memory")
_STORES: Final[dict[str, MemoryStore]] = {}  # those with a name, shared within the process

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


class MemoryEngine:
    """Everything an engine can do, without a server and without a disk."""

    name = "memory"
    available = True  # as long as its process is

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

    def reply_topic(self, mark: str) -> str:
        return REPLIES

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
            if outgoing.delay and not self.capabilities(Source(topics=(outgoing.topic,))).delayed_send:
                raise NotSupportedError("the engine that memory stands for", "publish(delay=)")
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

    def hand_out(self, cursor: Cursor, offset: int) -> None:
        """What was given back may be handed out again."""
        cursor.resume(offset)
        self._wake_readers()

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
        group = self.store.groups.setdefault(source.group, Group(source.group))
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

    def _take_start(self, group: Group, source: Source) -> None:
        """Resolve where a group begins, once for each name or pattern; what comes later is read from its beginning."""
        skipped = 0
        for pattern in source.topics:
            start = "earliest" if pattern in group.resolved else source.start
            for place in self.store.places((pattern,)):
                if place not in group.cursors:
                    offset = self.resolve(start, place)
                    skipped += offset - self.store.topics[place[0]][place[1]].earliest
                    group.cursors[place] = Cursor(offset)
            group.resolved.add(pattern)
        if skipped:
            _log.info("the new group %r begins at %s and skips %d message(s)", group.name, source.start, skipped)

    async def _assign(self, group: Group) -> None:
        """Share the partitions out, moving as few as possible; those that move are given back first."""
        async with group.moving:
            wanted = self._shares(group)
            group.epoch += 1
            for member in group.members:
                leaving = frozenset(member.places) - wanted[member]
                if leaving:
                    member.give_up(leaving)
                    await member.on_change(Revoked(leaving, group.epoch))
                    for place in leaving:
                        group.cursors[place].rewind()
            for member in group.members:
                coming = wanted[member] - frozenset(member.places)
                if coming:
                    member.places = [*member.places, *sorted(coming)]
                    await member.on_change(Assigned(coming, group.epoch))
                    member.notify()

    def _shares(self, group: Group) -> dict[MemorySubscription, frozenset[Place]]:
        readable = [(member, frozenset(self.store.places(member.source.topics))) for member in group.members]
        wanted = []
        for place in dict.fromkeys(place for _, places in readable for place in sorted(places)):
            if place not in group.cursors:  # a partition that came later is read from its beginning
                group.cursors[place] = Cursor(self.store.topics[place[0]][place[1]].earliest)
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
        if not isinstance(offset, int):
            raise ConfigurationError(f"start={start!r}: give 'earliest', 'latest', an offset or an aware datetime")
        if not partition.earliest <= offset <= partition.latest:
            raise OffsetOutOfRangeError(*place, offset, partition.earliest, partition.latest)
        return offset
