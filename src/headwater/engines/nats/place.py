"""A place in topics that JetStream keeps: messages of one or more consumers, received and settled."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from ...engine import Source, Start, Topic
from ...errors import ConfigurationError, HeadwaterError, NotSupportedError, TopicNotFoundError
from ...message import Message, Outgoing, Position, Receipt
from ...topics import is_internal, is_pattern, match
from . import roll
from .api import NO_STREAM, JetStreamError
from .connection import Route, log
from .consumers import Cursor, Durable, Marks, Passing, beginning
from .options import Nats
from .pulling import Pull
from .streams import nanoseconds
from .subjects import consumer_name, subject_of

if TYPE_CHECKING:
    from .engine import JetStreamEngine

LOOK_EVERY: Final = 1.0  # seconds between two looks at what may have broken
FIND_EVERY: Final = 15.0  # seconds between two looks for streams that a pattern matches, should nobody tell of them
LEAST_NACK: Final = 0.05  # seconds: given back without delay, a message would come again thousands of times a second
FAREWELL: Final = 3.0  # seconds that leaving may take

_STREAMS_CHANGE: Final = ("$JS.EVENT.ADVISORY.STREAM.CREATED.>", "$JS.EVENT.ADVISORY.STREAM.UPDATED.>")
_GIVEN_UP: Final = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.*."
_SLOWEST: Final = 5.0  # seconds between two tries to mend what is broken
_ACK: Final = b" 0\r\n\r\n"
_IN_PROGRESS: Final = b" 4\r\n+WPI\r\n"
_NAK: Final = b" 4\r\n-NAK\r\n"


class Place:
    """A member of a group, or a reader on its own.

    A topic has one consumer, a pattern one in each stream that keeps something of it.
    """

    def __init__(self, engine: JetStreamEngine, source: Source) -> None:
        self.source = source
        self._engine = engine
        self._connection, self._streams = engine.connection, engine.streams
        self._lease = engine.lease(source)
        self._pulls: dict[tuple[str, str], Pull] = {}  # by topic or pattern, and stream
        self._unsettled: dict[bytes, None] = {}  # where to settle what came, in order
        self._owed: list[bytes] = []  # what was settled while the server was away
        self._passed_over: set[str] = set()  # streams that a pattern finds, with nothing it matches
        self._paused: set[str] = set()  # topics
        self._room = source.prefetch  # messages that each pull may hold
        self._turn = 0
        self._waiter: asyncio.Future[None] | None = None
        self._woken = False
        self._attention = asyncio.Event()
        self._find_at = math.inf
        self._loop = asyncio.get_running_loop()

    # --- the place itself -----------------------------------------------------------------------------

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[Place]:
        """Take the place. Leaving gives it up, and what is not settled to others at once."""
        connection = self._connection
        routes = self._listen()
        keeper: asyncio.Task[None] | None = None
        connection.on_return.append(self._begin_again)
        try:
            await self._find(first=True)
            await self._mend()
            self._ask()
            keeper = self._loop.create_task(self._keep(), name="headwater nats place")
            yield self
        finally:
            connection.on_return.remove(self._begin_again)
            if keeper is not None:
                keeper.cancel()
                await asyncio.gather(keeper, return_exceptions=True)
            await self._leave()
            if routes:
                await connection.unsubscribe(*routes)

    def _listen(self) -> list[Route]:
        """Hear of new streams, for patterns, of messages that are given out no longer, and of who asks who is here."""
        source, subscribe = self.source, self._connection.subscribe
        routes: list[Route] = []
        if any(map(is_pattern, source.topics)):
            routes += [subscribe(subject, self._streams_changed) for subject in _STREAMS_CHANGE]
        if source.group is None:
            return routes
        names = [consumer_name(source.group, topic) for topic in source.topics]
        routes += roll.answer(self._connection, names, source.client)
        if (source.option(Nats) or Nats()).max_deliver > 0:
            routes += [subscribe(_GIVEN_UP + name, self._given_up) for name in names]
        return routes

    async def _leave(self) -> None:
        pulls = [*self._pulls.values()]
        await asyncio.gather(*(pull.stop() for pull in pulls))
        client = self._connection.client
        if client is None:
            return  # what is not settled is given to others when its lease ends
        try:
            async with asyncio.timeout(FAREWELL):
                if self._unsettled:
                    await asyncio.gather(*(pull.cursor.notice() for pull in pulls), return_exceptions=True)
                    client.write(b"".join([b"PUB " + reply + _NAK for reply in self._unsettled]))
                await asyncio.gather(*(pull.leave() for pull in pulls))
                await client.ping()
        except (HeadwaterError, TimeoutError, ConnectionResetError) as error:
            log.debug("left %s without a farewell: %r", ", ".join(self.source.topics), error)

    # --- finding streams ------------------------------------------------------------------------------

    async def _find(self, *, first: bool = False) -> None:
        """Have a pull for each stream that has something to read here; what comes later is read from its beginning."""
        for topic in self.source.topics:
            if is_pattern(topic):
                await self._find_matching(topic, first)
            else:
                self._open(topic, await self._stream_of(topic), self.source.start if first else "earliest")
        self._find_at = self._loop.time() + FIND_EVERY if any(map(is_pattern, self.source.topics)) else math.inf
        self._room = max(1, self.source.prefetch // max(1, len(self._pulls)))

    async def _find_matching(self, topic: str, first: bool) -> None:
        group, marks = self.source.group, Marks(self._engine.api, self._engine.settings)
        new = first and (group is None or not await marks.has(group, topic))
        for stream in await self._streams.find(subject_of(topic)):
            if not await self._is_passed_over(stream):
                self._open(topic, stream, self.source.start if new else "earliest")
        if new and group is not None:
            await self._mend()
            await marks.set(group, topic)

    async def _stream_of(self, topic: str) -> str:
        if self.source.group is not None and self._engine.settings.auto_create:
            return await self._streams.ensure(Topic(topic))
        return await self._streams.of(topic)

    async def _is_passed_over(self, stream: str) -> bool:
        """Whether a stream has nothing but dead letters, retries, and what Headwater made for itself."""
        if stream not in self._passed_over and all(map(is_internal, (await self._streams.info(stream)).subjects)):
            self._passed_over.add(stream)
        return stream in self._passed_over

    def _open(self, topic: str, stream: str, start: Start) -> None:
        """Have a pull, broken until it is mended."""
        if (topic, stream) in self._pulls:
            return
        engine, group = self._engine, self.source.group
        cursor: Cursor
        if group is None:
            cursor = Passing(engine.api, self._streams, topic, stream, start)
        else:
            cursor = Durable(engine.api, self._streams, engine.settings, self.source, topic, stream, start)
        pull = Pull(engine.api, self._connection, cursor, topic, group, self._unsettled, self._notify, self._changed)
        self._pulls[topic, stream] = pull

    # --- staying in place -----------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Mend what breaks, find what is new, and keep the lease on what was not received yet."""
        tries, extend_at = 0, self._loop.time() + self._lease / 3
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await self._attention.wait()
            except TimeoutError:
                pass
            self._attention.clear()
            await self._connection.ready()
            if self._loop.time() >= extend_at:
                extend_at = self._loop.time() + self._lease / 3
                self._settle([message for pull in self._pulls.values() for message in pull.ready], _IN_PROGRESS)
            try:
                if self._loop.time() >= self._find_at:
                    await self._find()
                await self._mend()
                tries = 0
            except Exception as error:  # whatever it is, this place wants to go on
                level = log.warning if tries == 1 else log.debug  # the first may be a server that is just coming back
                level("cannot read %s: %s; trying again", ", ".join(self.source.topics), error)
                await asyncio.sleep(min(_SLOWEST, 0.1 * 2.0 ** min(tries, 10)) * random.uniform(0.5, 1.0))
                tries += 1
                self._attention.set()
            self._ask()

    async def _mend(self) -> None:
        """Have every consumer there, and asked. One whose stream is gone makes place for another."""
        for pull in self._pulls.values():
            pull.look()
        broken = [(place, pull) for place, pull in self._pulls.items() if pull.broken]
        found = await asyncio.gather(*(pull.restart() for _, pull in broken), return_exceptions=True)
        self._ask()
        for (topic, stream), error in zip((place for place, _ in broken), found, strict=True):
            if isinstance(error, JetStreamError) and error.code == NO_STREAM:
                log.warning("the stream %s is gone, which had messages of %s", stream, topic)
                del self._pulls[topic, stream]
                self._streams.forget(topic)
                self._streams_changed()
            elif error is not None:
                raise error

    def _begin_again(self) -> None:
        """The connection is new: nothing that was asked on the old one is answered."""
        owed, self._owed = self._owed, []
        self._write(b"".join(owed))
        for pull in self._pulls.values():
            pull.interrupt()
        self._attention.set()

    def _streams_changed(self, *_: object) -> None:
        self._find_at = 0.0
        self._attention.set()

    def _given_up(self, _subject: bytes, _reply: bytes, body: bytes, _headers: bytes | None) -> None:
        about = msgspec.json.decode(body)
        text = "message %s of the stream %s was given out %s times without success: group %r does not get it again"
        log.warning(text, about["stream_seq"], about["stream"], about["deliveries"], self.source.group)

    def _changed(self) -> None:
        if any(pull.broken for pull in self._pulls.values()):
            self._attention.set()
        self._ask()

    def _ask(self) -> None:
        for pull in self._pulls.values():
            pull.ask(self._room)

    # --- receiving ------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        deadline = self._loop.time() + wait
        while not (taken := self._take(limit)) and not self._woken and (rest := deadline - self._loop.time()) > 0:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(rest, self._notify)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        self._woken = False
        self._ask()
        return taken

    def _take(self, limit: int) -> list[Message]:
        pulls = [pull for pull in self._pulls.values() if pull.ready and not self._is_paused(pull)]
        taken: list[Message] = []
        self._turn += 1
        for index in range(len(pulls)):
            ready = pulls[(index + self._turn) % len(pulls)].ready
            while ready and len(taken) < limit:
                taken.append(ready.popleft())
        return taken

    def _is_paused(self, pull: Pull) -> bool:
        return any(match(pull.topic, topic) is not None for topic in self._paused)

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def wake(self) -> None:
        self._woken = True
        self._notify()

    # --- settling -------------------------------------------------------------------------------------

    async def ack(self, messages: Sequence[Message]) -> None:
        self._settle(messages, _ACK, over=True)

    async def nack(self, messages: Sequence[Message], delay: float) -> None:
        what = b'-NAK {"delay": %d}' % nanoseconds(max(delay, LEAST_NACK))
        self._settle(messages, b" %d\r\n%b\r\n" % (len(what), what), over=True)

    async def reject(self, messages: Sequence[Message], reason: str) -> None:
        what = b"+TERM " + " ".join(reason.split()).encode()
        self._settle(messages, b" %d\r\n%b\r\n" % (len(what), what), over=True)

    async def extend(self, messages: Sequence[Message]) -> None:
        self._settle(messages, _IN_PROGRESS)

    def _settle(self, messages: Sequence[Message], what: bytes, *, over: bool = False) -> None:
        """Tell the server the same of all of these; if it is away, once it is back."""
        parts: list[bytes] = []
        for message in messages:
            reply = message.token
            if reply is not None:
                parts += (b"PUB ", reply, what)
                if over:
                    self._unsettled.pop(reply, None)
        self._write(b"".join(parts))

    def _write(self, data: bytes) -> None:
        client = self._connection.client
        if client is not None:
            client.write(data)
        elif data:
            self._owed.append(data)

    def begin(self, message: Message) -> None:
        pass  # the server counts what it gives out

    async def commit(self, acks: Sequence[Message], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        raise NotSupportedError("nats", "transactions")

    # --- places ---------------------------------------------------------------------------------------

    def pause(self, partitions: frozenset[tuple[str, int]]) -> None:
        """A topic that shares a pattern with others pauses all of it."""
        self._paused |= {topic for topic, _ in partitions}

    def resume(self, partitions: frozenset[tuple[str, int]]) -> None:
        self._paused -= {topic for topic, _ in partitions}
        self._notify()

    async def seek(self, position: Position) -> None:
        for (topic, stream), pull in self._pulls.items():
            if match(topic, position.topic) is not None and isinstance(pull.cursor, Passing):
                if not isinstance(position.offset, int):
                    raise ConfigurationError(f"{position.offset!r} is no place in a stream: it counts in ints")
                beginning(position.offset, topic, await self._streams.info(stream))
                await pull.seek(position.offset)
                self._ask()
                return
        raise TopicNotFoundError(position.topic, "this place does not read it, or it is a group's")
