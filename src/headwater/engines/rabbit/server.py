"""What there is while we are connected: the links, the topology, the sender. Here begins what imports the client."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

import aiormq

from ...engine import DeclareMode, Source, Subscription, Topic
from ...errors import AuthenticationError, ConnectError, OffsetOutOfRangeError
from ...topics import is_pattern
from .address import Address
from .consuming import QueueSubscription, position_of
from .link import LOST, Link, described, is_passing
from .names import QUEUE_PREFIX
from .options import QueueType
from .sending import Sender
from .streams import bounds, first_since
from .topology import Place, Topology

CHECK: Final = 5.0  # seconds in which a server that could take a message answers
ANSWER: Final = 12.0  # ... and in which it has done what it was asked to do
AGAIN: Final = 0.2  # seconds before it is asked once more for what is not ready yet

T = TypeVar("T")

_log: Final = logging.getLogger("headwater.rabbit")


class Server:
    """The servers of one address.

    What is consumed has a connection of its own: when RabbitMQ is short of memory or disk it stops reading from those
    that publish, and acknowledgements would be stuck with them.

    So has what reads streams, for administration too. RabbitMQ shows a stream before it is started, and who consumes it
    in that moment has the whole connection closed (541, INTERNAL_ERROR): what groups hold would be delivered again. A
    reader goes on where it was; so this connection says nothing of whether the server is there.
    """

    def __init__(
        self,
        address: Address,
        *,
        heartbeat: int,
        context: ssl.SSLContext | None,
        client: str,
        queue_type: QueueType,
        auto_create: bool,
    ) -> None:
        self._address = address
        self._publishing = Link(address, client, heartbeat, context, self._changed)
        self._consuming = Link(address, f"{client} consuming", heartbeat, context, self._changed)
        self._reading = Link(address, f"{client} reading", heartbeat, context, _nobody_minds)
        self._minded = [self._publishing]  # those that were opened, and say whether the server is there
        self._away = False
        self.topology = Topology(queue_type, auto_create)
        self.sender = Sender(self._publishing, self.topology)

    @property
    def available(self) -> bool:
        return all(link.available for link in self._minded)

    def _changed(self, reason: str | None) -> None:
        """Say once that the server is away, and once that all of it is back."""
        if reason is not None and not self._away:
            self._away = True
            _log.warning("%r is away: %s. Trying to get back", self._address, reason)
        elif self._away and self.available:
            self._away = False
            _log.info("%r is back", self._address)

    async def open(self) -> None:
        await self._publishing.open()

    async def close(self) -> None:
        await self.sender.close()
        for link in (self._publishing, self._consuming, self._reading):
            await link.close()

    # --- what is asked of it --------------------------------------------------------------------------

    async def _ask(self, call: Callable[[], Awaitable[T]], within: float | None = None) -> T:
        """What a call gives that may be repeated; it is, while that may help.

        Raises ConnectError after `within` seconds, or ANSWER, and AuthenticationError for what is not for this user.
        """
        within = ANSWER if within is None else within
        name, reason = repr(self._address), f"no answer within {within:g} s"
        try:
            async with asyncio.timeout(within):
                while True:
                    try:
                        return await call()
                    except LOST as error:
                        reason = described(error)
                        if isinstance(error, aiormq.ChannelAccessRefused):
                            raise AuthenticationError(name, f"{reason}: see rabbitmqctl set_permissions") from None
                        if not is_passing(error):
                            raise ConnectError(name, reason) from error
                        await asyncio.sleep(AGAIN)
        except TimeoutError:
            raise ConnectError(name, reason) from None

    async def check(self) -> None:
        """Raise ConnectError if the server could not take a message now."""
        await self._ask(self._check, CHECK)

    async def _check(self) -> None:
        async with self._publishing.channel() as channel:
            await channel.basic_qos(prefetch_count=1)

    async def declare(self, topics: Sequence[Topic], mode: DeclareMode) -> None:
        make = {"create": self.topology.declare, "check": self.topology.check}.get(mode)
        for topic in topics:
            if make is not None:
                await self._ask(partial(make, self._publishing, topic))
        self.sender.forget_targets()

    async def delete_topic(self, topic: str) -> None:
        """Its exchange, and its stream if it has one. Raises TopicNotFoundError."""
        await self._ask(partial(self._delete_topic, topic))

    async def _delete_topic(self, topic: str) -> None:
        await self.topology.check(self._publishing, Topic(topic))
        self.topology.forget()
        async with self._publishing.channel() as channel:
            await channel.exchange_delete(topic)
            if self.topology.is_kept(topic):  # else a queue of this name is somebody else's
                await channel.queue_delete(topic)

    async def delete_queues(self, queues: Sequence[str]) -> None:
        await self._ask(partial(self._delete_queues, queues))

    async def _delete_queues(self, queues: Sequence[str]) -> None:
        async with self._publishing.channel() as channel:
            for queue in queues:
                await channel.queue_delete(queue)

    async def purge_queues(self, queues: Sequence[str]) -> None:
        await self._ask(partial(self._purge_queues, queues))

    async def _purge_queues(self, queues: Sequence[str]) -> None:
        async with self._publishing.channel() as channel:
            for queue in queues:
                await channel.queue_purge(queue)

    async def consumers_of(self, queues: Sequence[str]) -> int:
        """How many consumers these queues have together."""
        return await self._ask(partial(self._consumers_of, queues))

    async def _consumers_of(self, queues: Sequence[str]) -> int:
        async with self._publishing.channel() as channel:
            said = [await channel.queue_declare(queue, passive=True) for queue in queues]
        return sum(one.consumer_count or 0 for one in said)

    async def offset_at(self, topic: str, moment: datetime) -> int:
        """The first offset at or after this time, or the next one. Raises TopicNotFoundError."""
        _, latest = await self.bounds(topic)
        found = await self._ask(partial(first_since, self._reading, topic, moment))
        return latest if found is None else found

    async def bounds(self, topic: str) -> tuple[int, int]:
        """The first offset of a topic that keeps its messages, and the next. Raises TopicNotFoundError."""
        await self._reading.open()
        return await self._ask(partial(bounds, self._reading, topic))

    async def check_offset(self, topic: str, offset: int) -> None:
        """Raise OffsetOutOfRangeError unless the stream of a topic has this offset, or gives it to the next message."""
        earliest, latest = await self.bounds(topic)
        if not earliest <= offset <= latest:
            raise OffsetOutOfRangeError(topic, 0, offset, earliest, latest)

    # --- consuming ------------------------------------------------------------------------------------

    async def _link_of(self, place: Place) -> Link:
        if place.stream:
            await self._reading.open()
            return self._reading
        await self._consuming.open()
        if self._consuming not in self._minded:
            self._minded.append(self._consuming)
        return self._consuming

    @asynccontextmanager
    async def subscribe(self, source: Source) -> AsyncIterator[Subscription]:
        is_reader = source.group is None
        places = self.topology.reading_places(source) if is_reader else self.topology.places(source)
        linked = [(await self._link_of(place), place) for place in places]
        if is_reader:
            link = linked[0][0]
            for topic in source.topics:
                if not is_pattern(topic) and not topic.startswith(QUEUE_PREFIX):
                    await self._ask(partial(self.topology.check, link, Topic(topic, options=source.options)))
        for place in places:
            if place.stream and isinstance(offset := position_of(source.start), int):
                await self.check_offset(place.queue, offset)
        subscription = QueueSubscription(self.topology, source, linked, self.check_offset)
        await self._ask(subscription.open)
        try:
            yield subscription
        finally:
            await subscription.close()


def _nobody_minds(_: str | None) -> None:
    """The loss of a connection that says nothing of whether the server is there."""
