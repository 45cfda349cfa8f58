"""A place in a Kafka source: what the core receives from, and settles with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, TypeVar

from confluent_kafka import Consumer, TopicPartition

from ...engine import OnChange, Source
from ...errors import ConfigurationError, NotSupportedError, TopicNotFoundError
from ...message import Message, Outgoing, Position, Receipt
from .committing import Committer
from .fetching import Fetcher
from .handover import Handover
from .membership import Membership
from .positions import first_start, reader_start
from .reading import Reader
from .records import Claim, Place
from .transacting import Transactions

if TYPE_CHECKING:
    from .engine import KafkaEngine

T = TypeVar("T")

JOIN_WAIT: Final = 30.0  # seconds until a member has been given something

LEAVE_WITHIN: Final = 12.0  # seconds; the library gives a commit about ten ...
LEAVE_WITHOUT_ANSWER: Final = 1.0  # ... and a server that is away will not answer in those

_log = logging.getLogger("headwater.kafka")


class KafkaSubscription:
    """A member of a group, or a reader without one. Made by `KafkaEngine.subscribe`."""

    def __init__(self, source: Source, engine: KafkaEngine, on_change: OnChange) -> None:
        self.source = source
        self._engine = engine
        self._settings, self._cluster, self._sender = engine.settings, engine.cluster, engine.sender
        self._on_change = on_change
        self._claims: dict[Place, Claim] = {}
        self._handover = Handover(source.prefetch)
        self._committer = Committer(self._claims, engine.settings.commit_interval)
        self._fetcher: Fetcher | None = None
        self._member: Membership
        self._transactions: Transactions | None = None
        self._opening = asyncio.Lock()

    # Coming and going

    async def join(self) -> None:
        """Take the place: nothing that is published from now on is missed."""
        if self.source.group is None:
            await self._read()
        else:
            await self._take_part(self.source.group)

    async def _read(self) -> None:
        starts = await reader_start(self._cluster, self.source)
        settings = self._settings
        reader = Reader(self.source, self._claims, starts, discover=settings.discover, address=settings.address)
        self._fetcher = Fetcher(settings.consumer(self.source), self._handover, reader)
        self._fetcher.start()

    async def _take_part(self, group: str) -> None:
        settings, source = self._settings, self.source
        places = await self._cluster.places(source.topics)
        starts = await first_start(self._cluster, source, places)
        in_company = await self._cluster.has_members(group)
        stored = await self._store_start(group, starts)
        member = Membership(
            source,
            self._handover,
            self._committer,
            self._claims,
            self._on_change,
            cooperative=settings.is_cooperative(source),
            drain_timeout=settings.drain_timeout,
            address=settings.address,
        )
        member.starts = starts
        config = settings.consumer(source) | {"on_commit": self._committer.answered}
        self._member = member
        self._fetcher = member.fetcher = Fetcher(config, self._handover, member)
        self._fetcher.start()
        if source.exactly_once:
            await self._open_transactions()
        # Alone it takes a moment. Others may be long in giving us a share; nothing is missed meanwhile.
        if places and not (stored and in_company):
            await self._wait_for_a_share(member)

    async def _store_start(self, group: str, starts: dict[Place, int]) -> bool:
        """Store where a group begins, if it has no live member; one that has stores it when partitions are shared."""
        if not starts:
            return True
        try:
            await self._cluster.store(group, starts)
        except ConfigurationError:
            return False
        return True

    async def _wait_for_a_share(self, member: Membership) -> None:
        """Raises what makes it impossible that we ever get one."""
        await asyncio.wait([member.joined], timeout=JOIN_WAIT)
        if member.joined.done():
            member.joined.result()
        else:
            _log.warning("group %r has not shared its partitions yet, it goes on without us", self.source.group)

    async def leave(self) -> None:
        """Give the place up: what is not acknowledged goes to others at once."""
        transactions, self._transactions = self._transactions, None
        if transactions is not None:
            await transactions.close()
        fetcher, self._fetcher = self._fetcher, None
        if fetcher is not None:
            within = LEAVE_WITHIN if self._engine.available else LEAVE_WITHOUT_ANSWER
            if not await fetcher.stop(within):
                _log.warning("a consumer of Kafka gets no answer to its farewell: it is left behind")

    # Receiving

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """The next messages, as many as are there up to `limit`; () after `wait` quiet seconds or a `wake`."""
        return await self._handover.receive(limit, wait)

    def wake(self) -> None:
        """Make a waiting `receive` return at once."""
        self._handover.wake()

    def pause(self, partitions: frozenset[Place]) -> None:
        """Receive nothing more from these until `resume`."""
        self._handover.pause(partitions)
        self._call(lambda consumer: consumer.pause(self._mine(partitions)))

    def resume(self, partitions: frozenset[Place]) -> None:
        """Receive from these again."""
        self._call(lambda consumer: consumer.resume(self._mine(partitions)))
        self._handover.resume(partitions)

    def _mine(self, partitions: frozenset[Place]) -> list[TopicPartition]:
        return [TopicPartition(*place) for place in partitions if place in self._claims]

    def _call(self, function: Callable[[Consumer], T]) -> Future[T]:
        assert self._fetcher is not None
        return self._fetcher.call(function)

    async def seek(self, position: Position) -> None:
        """The message at this position comes next; a group is moved there, also backwards.

        Raises TopicNotFoundError for a partition that is not read here, OffsetOutOfRangeError.
        """
        place, offset = (position.topic, position.partition), int(position.offset)
        if place not in self._claims:
            raise TopicNotFoundError(f"{position.topic}[{position.partition}]", "it is not read here")
        await self._cluster.check({place: offset})

        def move(consumer: Consumer) -> None:
            old = self._claims.get(place)
            consumer.seek(TopicPartition(*place, offset))
            self._claims[place] = Claim(*place, offset)
            if old is not None:
                old.live = False
                self._claims[place].stored = old.stored

        await asyncio.wrap_future(self._call(move))
        self._handover.drop(lambda message: message.token.live)

    # Settling

    def begin(self, message: Message) -> None:
        """Attempts are not counted by the server; does nothing."""

    async def ack(self, messages: Sequence[Message]) -> None:
        """These are done, and with them all below them; stored a moment later, and before partitions move."""
        if self.source.group is None:
            return
        if self._transactions is not None:  # a plain commit could come in later than a transaction, and undo it
            await self._transact(messages, ())
        else:
            for message in messages:
                message.token.done = message.offset + 1  # type: ignore[operator]  # ours are ints

    async def commit(self, acks: Sequence[Message], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        """Acknowledge and send in one transaction, which commits that come at the same time share.

        Raises PartitionLostError, with nothing done, if others have one of the partitions now.
        """
        await self._sender.know(list({outgoing.topic for outgoing in sends}))
        await self._open_transactions()
        return await self._transact(acks, sends)

    async def _transact(self, acks: Sequence[Message], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        assert self._transactions is not None
        offsets: dict[Claim, int] = {}
        for message in acks:
            assert isinstance(message.offset, int)
            offsets[message.token] = max(message.offset + 1, offsets.get(message.token, 0))
        receipts = await self._transactions.commit(offsets, sends)
        for claim, offset in offsets.items():
            claim.done = claim.stored = max(offset, claim.done)
        return receipts

    async def _open_transactions(self) -> None:
        """The first one waits until earlier acknowledgements are stored: they must not come in later than it."""
        if self._transactions is not None:
            return
        async with self._opening:
            if self._transactions is None:
                await asyncio.wrap_future(self._call(self._committer.store_all))
                opened = Transactions(
                    self._settings.transactions(self.source), self._member, self._settings.address, self._handover.fail
                )
                await opened.ready()
                self._transactions = opened

    async def nack(self, messages: Sequence[Message], delay: float) -> None:
        raise NotSupportedError("kafka", "nack", "the core retries in place")

    async def reject(self, messages: Sequence[Message], reason: str) -> None:
        raise NotSupportedError("kafka", "reject", "the core writes dead letters")

    async def extend(self, messages: Sequence[Message]) -> None:
        """There are no leases on messages; does nothing."""
