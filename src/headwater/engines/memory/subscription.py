"""A place in a memory source: receiving, settling, seeking."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ...engine import OnChange, Source
from ...errors import ConfigurationError, TopicNotFoundError
from ...message import Message, Outgoing, Position, Receipt
from .store import Cursor, Group, Place

if TYPE_CHECKING:
    from .engine import MemoryEngine


class MemorySubscription:
    """A place in a memory source: a member of a group, or a reader on its own."""

    def __init__(self, engine: MemoryEngine, source: Source, group: Group | None) -> None:
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
        for gone in self._cursors.keys() - set(places):  # should it be made again, it is another topic
            del self._cursors[gone]
        for place in places:
            if place not in self._cursors:
                self._cursors[place] = Cursor(self._engine.resolve(start if first else "earliest", place))
        self.places = places

    def give_up(self, places: frozenset[Place]) -> None:
        """These go to somebody else."""
        self.places = [place for place in self.places if place not in places]
        self._paused -= places

    @property
    def backlog(self) -> int:
        """Messages that could be received now."""
        return sum(
            self._cursors[place].waiting(self._store.topics[place[0]][place[1]].latest)
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
        for offset in cursor.take(partition, limit):
            record, attempt = partition.record(offset), cursor.attempts.get(offset, 0) + 1
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
        for message in messages:
            assert isinstance(message.offset, int)
            cursor = self._cursors[self._place(message)]
            cursor.postpone(message.offset)
            self._engine.clock.call_later(delay, partial(self._engine.hand_out, cursor, message.offset))

    async def reject(self, messages: Sequence[Message], reason: str) -> None:
        await self.ack(messages)  # there is nowhere else to keep them

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
