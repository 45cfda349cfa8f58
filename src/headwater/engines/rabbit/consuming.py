"""Receiving from queues: those of a group, or that of a reader, which lives as long as the reader does."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import pamqp.frame
from pamqp.commands import Basic

from ...engine import Source, Start, Topic
from ...errors import ConfigurationError, HeadwaterError, NotSupportedError, TopicNotFoundError
from ...inbox import Inbox
from ...message import Message, Outgoing, Position, Receipt
from ...topics import is_pattern, match
from ...worker import MAX_AHEAD
from .channel import DirectChannel, open_channel
from .link import BACKOFF, FAREWELL, LOST, Link, leave_channel
from .options import rabbit_of
from .topology import Place, Topology, queue_is_there
from .wire import read

_log: Final = logging.getLogger("headwater.rabbit")

BEGIN: Final = 10.0  # seconds in which a queue can be consumed; one whose leader is lost never answers
REFRESH: Final = 5.0  # seconds between two looks whether a queue is still bound as it should be


class Session:
    """What one channel delivered, and what of it is settled. A token of a message is its session and its tag."""

    def __init__(self) -> None:
        self.channel: DirectChannel
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._delivered = 0  # the last tag
        self._settled_up_to = 0  # this tag, and all below it
        self._settled: set[int] = set()  # above that

    @property
    def unsettled(self) -> int:
        return self._delivered - self._settled_up_to - len(self._settled)

    def delivered(self, tag: int) -> None:
        self._delivered = tag

    def end(self, *_: Any) -> None:
        """The channel is closed, or the server delivers nothing more on it."""
        if not self.over.done():
            self.over.set_result(None)

    def ack(self, tags: Sequence[int]) -> None:
        """Acknowledge. Those below which nothing is unsettled share one frame."""
        tags = self._settle(tags)
        shared = max((tag for tag in tags if tag <= self._settled_up_to), default=0)
        frames: list[Any] = [Basic.Ack(shared, multiple=True)] if shared else []
        self._post(frames + [Basic.Ack(tag) for tag in tags if tag > self._settled_up_to])

    def reject(self, tags: Sequence[int], *, requeue: bool) -> None:
        self._post([Basic.Reject(tag, requeue) for tag in self._settle(tags)])

    def _settle(self, tags: Sequence[int]) -> list[int]:
        """Those that were not settled before."""
        new = [tag for tag in tags if tag > self._settled_up_to and tag not in self._settled]
        self._settled.update(new)
        while self._settled_up_to + 1 in self._settled:
            self._settled_up_to += 1
            self._settled.discard(self._settled_up_to)
        return new

    def _post(self, frames: list[Any]) -> None:
        """At once, for these must not overtake each other. There are no more than what was delivered."""
        if frames and not self.channel.is_closed:  # else all of it comes again, to whoever is there
            self.channel.post(b"".join(pamqp.frame.marshal(frame, self.channel.number) for frame in frames))


class Tap:
    """One queue, consumed on a channel of its own, and on another one whenever that is lost.

    The server gives a consumer `prefetch` messages at a time that are not settled. When all of these wait for another
    attempt one more consumer is given others, so that failing messages do not hold up the rest.
    """

    def __init__(
        self, link: Link, topology: Topology, place: Place, source: Source, prefetch: int, inbox: Inbox
    ) -> None:
        self._link = link
        self._topology = topology
        self._place = place
        self._source = source
        self._options = rabbit_of(source.options)
        self._prefetch = MAX_AHEAD if source.exclusive else prefetch  # an exclusive one has no other beside it
        self._inbox = inbox
        self._topics = {binding.exchange: binding.topic for binding in place.bindings if not is_pattern(binding.topic)}
        self._patterns = [binding.topic for binding in place.bindings if is_pattern(binding.topic)]
        self._position = position_of(source.start)  # in a stream: where it is read from
        # A stream begins at the chunk that contains a time; messages are stamped to the second.
        self._since = int(source.start.timestamp()) if isinstance(source.start, datetime) else 0
        self._sought: asyncio.Future[None] | None = None  # done once it is read from the position somebody wanted
        self._consumers = 0
        self._session = Session()
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Take the place; what is published from now on comes. Raises what `Topology.make_place` does, TimeoutError."""
        await self._begin()
        self._keeper = asyncio.create_task(self._keep(), name=f"headwater {self._place.queue}")

    async def close(self) -> None:
        """Give it up: what is not settled goes to others at once."""
        if self._keeper is None:
            return
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        self._topology.forget_place(self._place)
        channel = self._session.channel
        with suppress(*LOST, TimeoutError):
            if self._place.temporary and not channel.is_closed:
                await channel.queue_delete(self._place.queue, timeout=FAREWELL)
        await leave_channel(channel)

    def replays(self, topic: str) -> bool:
        """Whether this is the stream of that topic."""
        return self._place.stream and self._place.queue == topic

    async def seek(self, position: Position) -> None:
        """Read a stream from this offset on."""
        self._position, self._since = position.offset, 0
        self._sought = asyncio.get_running_loop().create_future()
        self._session.end()
        await self._sought

    async def widen(self) -> None:
        """Have one more consumer if those there are can be given nothing more."""
        limit = self._consumers * self._prefetch
        if limit <= self._session.unsettled < MAX_AHEAD:
            with suppress(*LOST):  # the keeper begins again
                await self._consume(self._session)

    # --- consuming ------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        async with asyncio.timeout(BEGIN):
            await self._topology.make_place(self._link, self._place, self._options)
            session = Session()
            session.channel = await open_channel(
                await self._link.connection(), on_delivered=partial(self._delivered, session)
            )
            try:
                session.channel.closing.add_done_callback(session.end)
                session.channel.on_consumer_cancel_callbacks.add(session.end)
                await session.channel.basic_qos(prefetch_count=self._prefetch)
                self._session, self._consumers = session, 0
                await self._consume(session)
                if self._position == "next":  # should the connection be lost before anything came
                    self._position = datetime.now(UTC)
            except BaseException:
                await leave_channel(session.channel)
                raise

    async def _consume(self, session: Session) -> None:
        self._consumers += 1
        tag = f"{self._source.client}.{self._consumers}"
        arguments = {"x-stream-offset": self._position} if self._place.stream else None
        await session.channel.basic_consume(self._place.queue, _unused, consumer_tag=tag, arguments=arguments)

    def _delivered(self, session: Session, frame: Basic.Deliver, properties: Basic.Properties, body: bytes) -> None:
        tag = frame.delivery_tag
        assert tag is not None
        session.delivered(tag)
        now = time.time()
        found = read(properties, now)
        topic = self._topic(found.delayed_to or frame.exchange or "")
        if topic is None:
            session.ack([tag])
            return
        message = Message(
            topic,
            body,
            found.key,
            found.headers,
            0 if self._place.stream else None,
            found.offset,
            now if properties.timestamp is None else properties.timestamp.timestamp(),
            self._source.group,
            found.given_back + 1,
            (session, tag),
        )
        if self._place.stream:
            if message.time < self._since:
                session.ack([tag])
                return
            assert isinstance(found.offset, int)
            self._position = found.offset + 1
        self._inbox.put(message)

    def _topic(self, exchange: str) -> str | None:
        """The topic of what an exchange passed on; None for what a wildcard let through and no pattern matches."""
        topic = self._topics.get(exchange)
        if topic is not None:
            return topic
        if self._patterns:
            return exchange if any(match(pattern, exchange) is not None for pattern in self._patterns) else None
        return next(iter(self._topics.values()), self._source.topics[0])  # somebody else bound it, or published to it

    # --- staying --------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        try:
            while True:
                await asyncio.wait((self._session.over,), timeout=REFRESH)
                if self._session.over.done():
                    await self._begin_again()
                else:
                    await self._refresh()
        except HeadwaterError as error:  # this can never heal
            self._inbox.fail(error)

    async def _refresh(self) -> None:
        """Bind again what may have lost its bindings: a queue does not notice that its exchange was deleted."""
        with suppress(HeadwaterError, TimeoutError, *LOST):  # another look follows
            async with asyncio.timeout(BEGIN):
                await self._topology.make_place(self._link, self._place, self._options, again=True)

    async def _begin_again(self) -> None:
        """Begin again as soon as it can be."""
        session = self._session
        if not session.channel.is_closed and self._sought is None:
            _log.warning("the queue %r was deleted, with the messages in it: waiting for a new one", self._place.queue)
        await leave_channel(session.channel)
        self._forget_unreceived(session)
        for tries in itertools.count(1):
            try:
                if await self._may_begin():
                    await self._begin()
                    break
            except (*LOST, TimeoutError) as error:
                if tries == 1 and self._link.available:
                    _log.warning("the queue %r cannot be consumed yet: %r. Trying on", self._place.queue, error)
                await asyncio.sleep(BACKOFF.delay(tries))
        if self._sought is not None:
            self._sought.set_result(None)
            self._sought = None

    def _forget_unreceived(self, session: Session) -> None:
        """What was delivered and not received comes again."""
        ours = list[Message]()
        for message in self._inbox.clear():
            if message.token[0] is session:
                ours.append(message)
            else:
                self._inbox.put(message)
        if ours and self._place.stream and self._sought is None:
            self._position = ours[0].offset

    async def _may_begin(self) -> bool:
        """Whether there is something to begin with, or may be made: whoever only reads a topic does not make it anew.

        A reader's queue that expired has a gap; a stream that was deleted is another one when it is made again.
        """
        if not (self._place.temporary or self._place.stream) or await queue_is_there(self._link, self._place.queue):
            return True
        topics = ", ".join(self._source.topics)
        if not self._place.stream:
            _log.warning("a reader of %s was away for too long: what was published meanwhile is missed", topics)
            return True
        self._position, self._since = "first", 0
        try:
            await self._topology.check(self._link, Topic(self._place.queue, options=self._source.options))
        except TopicNotFoundError:
            return False
        return True


class QueueSubscription:
    """A place in one or more queues. A reader's messages are acknowledged as they are received.

    `check` raises OffsetOutOfRangeError for an offset that a stream does not have.
    """

    def __init__(
        self,
        topology: Topology,
        source: Source,
        places: Sequence[tuple[Link, Place]],
        check: Callable[[str, int], Awaitable[None]],
    ) -> None:
        self._check = check
        self._inbox = Inbox(sys.maxsize)  # the server bounds it: it sends no more than the prefetch
        self._acknowledges = source.group is None
        share = max(1, source.prefetch // len(places))
        self._taps = [Tap(link, topology, place, source, share, self._inbox) for link, place in places]

    async def open(self) -> None:
        """Take the place. Raises what `Tap.open` does, and has taken none then."""
        try:
            for tap in self._taps:
                await tap.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        for tap in self._taps:
            await tap.close()

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        if not len(self._inbox):
            for tap in self._taps:
                await tap.widen()
        messages = await self._inbox.receive(limit, wait)
        if messages and self._acknowledges:
            await self.ack(messages)
        return messages

    def wake(self) -> None:
        self._inbox.wake()

    def begin(self, message: Message) -> None:
        pass  # the queue counts deliveries itself

    async def ack(self, messages: Sequence[Message]) -> None:
        for session, tags in _by_session(messages).items():
            session.ack(tags)

    async def nack(self, messages: Sequence[Message], delay: float) -> None:
        if delay > 0:
            raise NotSupportedError("rabbit", f"giving back for {delay:g} s", "RabbitMQ gives it out again at once")
        for session, tags in _by_session(messages).items():
            session.reject(tags, requeue=True)

    async def reject(self, messages: Sequence[Message], reason: str) -> None:
        for session, tags in _by_session(messages).items():
            session.reject(tags, requeue=False)

    async def extend(self, messages: Sequence[Message]) -> None:
        pass  # there is no lease; what is unsettled for half an hour is the server's to take back

    async def commit(self, acks: Sequence[Message], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        raise NotSupportedError("rabbit", "transactions", "acknowledge after publishing")

    def pause(self, partitions: frozenset[tuple[str, int]]) -> None:
        pass  # the server gives no more than MAX_AHEAD messages that are not settled

    def resume(self, partitions: frozenset[tuple[str, int]]) -> None:
        pass

    async def seek(self, position: Position) -> None:
        tap = next((tap for tap in self._taps if tap.replays(position.topic)), None)
        if tap is None:
            raise NotSupportedError("rabbit", f"seek ({position.topic})", "only streams can be read again")
        await self._check(position.topic, position_of(position.offset))
        await tap.seek(position)


def position_of(start: Start) -> Any:
    """Where a stream begins, as RabbitMQ is told."""
    match start:
        case "earliest":
            return "first"
        case "latest":
            return "next"
        case int() | datetime():
            return start
        case str():
            raise ConfigurationError(f"start={start!r} is no offset of a stream: these are ints")
        case _:
            return start.get(0, "first")


def _by_session(messages: Sequence[Message]) -> dict[Session, list[int]]:
    found: dict[Session, list[int]] = {}
    for message in messages:
        session, tag = message.token
        found.setdefault(session, []).append(tag)
    return found


async def _unused(_: Any) -> None:
    """The client wants a callback for each consumer; `DirectChannel` has one of its own."""
