"""Delayed messages of one engine: how they are filed, and its candidacy for moving those that are due."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...engine import Assigned, Change
from ...errors import HeadwaterError, TopicNotFoundError
from ...log import delays
from ...log.alarm import Alarm
from ...log.delays import Delayed, Delays, encode_delayed
from ...log.groups import Group
from ...log.members import Member
from ...log.store import Run, Store, TopicWanted
from ...message import NO_HEADERS, Outgoing
from .records import decode_headers, encode_headers
from .sending import Sorter, key_bytes

if TYPE_CHECKING:
    from .engine import LocalEngine

_RETRY = 1.0  # seconds before what failed is tried again


def postponed(messages: Sequence[Outgoing], now: float, sorter: Sorter) -> list[Outgoing]:
    """The same messages, those with a delay as they wait in the topic of delays.

    Raises as `Sorter.sort` does for where they are to go in the end: a message is not accepted that could
    not be delivered.
    """
    sorter.sort(messages)
    return [_postponed(message, now) if message.delay else message for message in messages]


def _postponed(message: Outgoing, now: float) -> Outgoing:
    waiting = Delayed(
        message.topic,
        message.partition,
        key_bytes(message.key),
        encode_headers(message.headers),
        message.body,
    )
    body = encode_delayed(now + (message.delay or 0.0), waiting)
    return Outgoing(None, delays.TOPIC, None, NO_HEADERS, 0, None, None, body)


class Postponing:
    """One engine's part in delayed messages: a member of an exclusive group, whose holder moves what is due.

    It takes part once it consumes in a group or sends a delayed message, so a process that only publishes
    stays out of it.
    """

    def __init__(self, engine: LocalEngine, store: Store) -> None:
        self._engine, self._store = engine, store
        self._alarm = Alarm(engine.bells)
        self._member: Member | None = None
        self._wanted = False
        self._joining: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None

    @staticmethod
    def owns(topic: str) -> bool:
        """Whether this is the topic of delays."""
        return topic == delays.TOPIC

    async def make_topic(self) -> None:
        """Have the topic of delays."""
        wanted = TopicWanted(delays.TOPIC, delays.PARTITIONS)
        await asyncio.to_thread(self._store.create_topics, [wanted])
        self._engine.topics_changed()

    def wanted(self) -> None:
        """Take part from now on, as soon as there is the topic."""
        self._wanted = True
        self.stir()

    def stir(self) -> None:
        """A bell rang."""
        self._alarm.ring()
        if self._member is not None:
            self._member.notice()
        elif self._wanted and self._joining is None and delays.TOPIC in self._store.topics():
            self._joining = asyncio.create_task(self._join(), name="candidate for delayed messages")

    async def _join(self) -> None:
        engine = self._engine
        member = Member(
            Group(engine.path, delays.TOPIC, engine.catalogue, create=True, lease=engine.lease),
            (delays.TOPIC,),
            exclusive=True,
            client=engine.client,
            bell=engine.bells.id,
            call=engine.bells.call,
            on_change=self._on_change,
            on_leases=self._on_leases,
        )
        self._member = member
        await member.join(lambda topic, partition, stream: 0)

    async def _on_change(self, change: Change) -> None:
        if not isinstance(change, Assigned):
            await self._stop_moving()

    def _on_leases(self) -> None:
        assert self._member is not None
        lease = self._member.leases.get((delays.TOPIC, 0))
        if lease is not None and self._moving is None:
            self._engine.bells.listen(self, [lease.stream])
            self._moving = asyncio.create_task(self._move(), name="moving delayed messages")

    async def _move(self) -> None:
        engine = self._engine
        sorter = Sorter(self._store)

        def sort(messages: Sequence[Delayed]) -> Sequence[Run]:
            topics = self._store.topics()
            outgoing = [
                _due(message, len(topics[message.topic].streams)) for message in messages if message.topic in topics
            ]
            return [parcel.run for parcel in sorter.sort(outgoing)] if outgoing else []

        while self._member is not None:
            lease = self._member.leases.get((delays.TOPIC, 0))
            if lease is None:
                return
            try:
                moving = Delays(self._store, lease, sort, durable=engine.durable)
                await delays.run(moving, engine.clock, self._alarm, lambda: engine.bells.ring(None))
            except TopicNotFoundError:
                pass  # deleted in between: look again
            except HeadwaterError as error:
                engine.upkeep.problem = f"delayed messages wait: {error}"
            await asyncio.sleep(_RETRY)

    async def _stop_moving(self) -> None:
        moving, self._moving = self._moving, None
        if moving is not None:
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)

    async def stop(self) -> None:
        """Leave the work to others."""
        self._wanted = False
        if self._joining is not None:
            await asyncio.gather(self._joining, return_exceptions=True)
        member = self._member
        if member is not None:
            try:
                await member.leave()
            finally:
                self._member = None
        await self._stop_moving()


def _due(message: Delayed, partitions: int) -> Outgoing:
    partition = message.partition if message.partition is not None and message.partition < partitions else None
    headers = decode_headers(message.headers)
    return Outgoing(None, message.topic, message.key, headers, partition, None, None, message.body)
