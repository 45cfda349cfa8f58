"""A member of a consumer group: what the client library calls when partitions come and go."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from ...engine import Assigned, Change, Lost, OnChange, Revoked, Source
from ...message import Message
from ...topics import match
from .committing import Committer
from .records import EARLIEST, Claim, Place, to_messages
from .settings import expression
from .troubles import Troubles

if TYPE_CHECKING:
    from confluent_kafka import Message as Record

    from .fetching import Fetcher
    from .handover import Handover

ANSWER_WITHIN: Final = 5.0  # seconds for a question in the middle of a rebalance; it is asked again
HEARD_WITHIN: Final = 10.0  # seconds until the core has noted what was assigned or lost
LOOK_AGAIN: Final = 0.02  # seconds until a thread that waits for the core looks whether it is needed itself

_log = logging.getLogger("headwater.kafka")


class Membership:
    """Takes part in a group. All but `__init__` is called in the thread that consumes.

    Partitions that leave are drained first: the core is told on its loop, and this thread waits for it, at most
    `drain_timeout` seconds. The client library lets no other thread in meanwhile, so whatever the core may need of the
    consumer to finish is done here while waiting: neither waits for the other.
    """

    def __init__(
        self,
        source: Source,
        handover: Handover,
        committer: Committer,
        claims: dict[Place, Claim],
        on_change: OnChange,
        *,
        cooperative: bool,
        drain_timeout: float,
        address: str,
    ) -> None:
        self.claims, self.group = claims, source.group
        self.starts: Mapping[Place, int] = {}  # where a group begins that never read these
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.generation: Any = None  # who we are in the group, for transactions; another at each rebalance
        self.fetcher: Fetcher  # set before it is started
        self._source = source
        self._handover = handover
        self._committer = committer
        self._on_change = on_change
        self._cooperative = cooperative
        self._drain_timeout = drain_timeout
        self._epoch = 0
        self._loop = asyncio.get_running_loop()
        self._troubles = Troubles(source.group, address)

    def begin(self, consumer: Consumer) -> None:
        topics = [expression(topic) for topic in self._source.topics]
        consumer.subscribe(topics, on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lose)

    def between(self, consumer: Consumer) -> None:
        self._committer.store_some(consumer)

    def end(self, consumer: Consumer) -> None:
        self._committer.store_all(consumer)

    def look_up_generation(self, consumer: Consumer) -> None:
        self.generation = consumer.consumer_group_metadata()

    def convert(self, records: Sequence[Record]) -> list[Message]:
        return to_messages(records, self)

    def troubled(self, record: Record) -> None:
        self._troubles.met(record)

    def failed(self, error: Exception) -> BaseException:
        reason = self._troubles.described(error)
        self._loop.call_soon_threadsafe(self._settle_joining, reason)
        return reason

    # Partitions come

    def _assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        wanted = [p for p in partitions if any(match(topic, p.topic) is not None for topic in self._source.topics)]
        positions = self._positions(consumer, wanted) if wanted else []
        if self._cooperative:
            consumer.incremental_assign(positions)
        else:
            consumer.assign(positions)
        consumer.resume(positions)  # the library remembers what was paused when these were ours before
        for position in positions:
            place = (position.topic, position.partition)
            self.claims[place] = Claim(*place, position.offset)
        self.look_up_generation(consumer)
        self._epoch += 1
        self._tell(Assigned(_places(positions), self._epoch), HEARD_WITHIN)

    def _positions(self, consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Where the group is on these; where it has never been, that is decided now and stored at once."""
        while True:
            try:
                known = consumer.committed(partitions, timeout=ANSWER_WITHIN)
                asked = [TopicPartition(p.topic, p.partition, EARLIEST) for p in known]
                self._begin(consumer, known, consumer.offsets_for_times(asked, timeout=ANSWER_WITHIN))
                return known
            except KafkaException as error:
                if self.fetcher.stopping:
                    return partitions
                _log.debug("the coordinator does not say where group %r is, asking again: %s", self.group, error)

    def _begin(self, consumer: Consumer, known: list[TopicPartition], kept: list[TopicPartition]) -> None:
        new = []
        for position, earliest in zip(known, kept, strict=True):
            place, offset = (position.topic, position.partition), position.offset
            if offset < 0:
                position.offset = self.starts.get(place, earliest.offset)
                new.append(position)
            elif offset < earliest.offset:
                text = "group %r: %s[%d] expired from offset %d to %d while nobody read it"
                _log.warning(text, self.group, *place, offset, earliest.offset)
                position.offset = earliest.offset
        if new:
            consumer.commit(offsets=new, asynchronous=False)

    # Partitions go

    def _revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        places = _places(partitions)
        self._epoch += 1
        if not self.fetcher.stopping and not self._tell(Revoked(places, self._epoch), self._drain_timeout):
            text = "group %r: messages of %d partition(s) that move were still handled after %.3g s; others get them"
            _log.warning(text, self.group, len(places), self._drain_timeout)
            self._tell(Lost(places, self._epoch), HEARD_WITHIN)
        self._committer.store_all(consumer, places)
        self._let_go(places)

    def _lose(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        places = _places(partitions)
        self._let_go(places)
        self._epoch += 1
        if not self.fetcher.stopping:
            _log.warning("group %r lost %d partition(s): others have their messages now", self.group, len(places))
            self._tell(Lost(places, self._epoch), HEARD_WITHIN)

    def _let_go(self, places: frozenset[Place]) -> None:
        for place in places:
            claim = self.claims.pop(place, None)
            if claim is not None:
                claim.live = False

    def _tell(self, change: Change, within: float) -> bool:
        """Have the core note a change on its loop; False if it did not in so many seconds."""
        noting = self._note(change)
        try:
            noted = asyncio.run_coroutine_threadsafe(noting, self._loop)
        except RuntimeError:  # the loop is closed: nobody handles anything
            noting.close()
            return True
        deadline = time.monotonic() + within
        while not noted.done() and time.monotonic() < deadline:
            self.fetcher.serve_calls()
            wait([noted], LOOK_AGAIN)
        if noted.cancel():
            return False
        if not noted.cancelled() and noted.exception() is not None:
            _log.error("group %r: a change of partitions was not noted: %r", self.group, noted.exception())
        return True

    def _settle_joining(self, error: BaseException | None) -> None:
        if self.joined.done():
            return
        if error is None:
            self.joined.set_result(None)
        else:
            self.joined.set_exception(error)
            self.joined.exception()  # who receives hears of it, too

    async def _note(self, change: Change) -> None:
        if isinstance(change, Assigned):
            self._settle_joining(None)
        else:
            self._handover.forget(change.partitions)
        await self._on_change(change)


def _places(positions: Sequence[TopicPartition]) -> frozenset[Place]:
    return frozenset((position.topic, position.partition) for position in positions)
