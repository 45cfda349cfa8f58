"""A broker: from a URL to an engine, and what is done through it: publish, request, stream, get."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypedDict
from weakref import WeakSet

from .codecs import Codec, decoder_for, encode
from .engine import Change, DeclareMode, Engine, Source, Start, Topic
from .engines import engine_for, redacted
from .errors import (
    ConfigurationError,
    ConnectError,
    DeliveryUnknownError,
    EncodeError,
    HeadwaterError,
    NotConnectedError,
    NotSupportedError,
    PublishError,
)
from .message import NO_HEADERS, HeadersLike, Message, Outgoing, Receipt
from .publisher import Outbox
from .replies import Requester
from .router import Router
from .stream import Stream, Until

if TYPE_CHECKING:
    from .admin import Admin

_log = logging.getLogger("headwater")
BROKERS: Final = WeakSet["Broker"]()  # all there are, so that an app can name one it was not given

PublishNext = Callable[[Outgoing], Awaitable[Receipt]]
PublishMiddleware = Callable[[Outgoing, PublishNext], Awaitable[Receipt]]


class BrokerOptions(TypedDict, total=False):
    """What every broker takes, for the brokers of single engines to pass on."""

    codec: Codec | None
    publish_middleware: Sequence[PublishMiddleware]
    connect_timeout: float


class Broker:
    """A connection to one engine, chosen by URL, now or later with `bind`.

    `async with broker:` connects and closes; an app does it for its brokers. Handlers may be declared on it, as on a
    Router, when an app has several brokers.

    Args:
        url: such as `local://./data` or `memory://`. None: `bind` it before connecting.
        codec: writes values that name no codec themselves; by default str is text, bytes are raw, the rest is JSON.
        publish_middleware: `async def mw(outgoing, call_next)` around each publish, the first outermost.
        connect_timeout: seconds to wait for the server before ConnectError.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        codec: Codec | None = None,
        publish_middleware: Sequence[PublishMiddleware] = (),
        connect_timeout: float = 10.0,
    ) -> None:
        self.url = url
        self.codec = codec
        self.connect_timeout = connect_timeout
        self.router = Router()
        self.subscriber = self.router.subscriber
        self.publisher = self.router.publisher
        self.include_router = self.router.include_router
        self._middleware = tuple(publish_middleware)
        self._engine: Engine | None = None if url is None else self._open(url)
        self._outbox: Outbox | None = None
        self._requester: Requester | None = None
        self._streams: set[Stream] = set()
        self._sending: PublishNext = self._chain()
        BROKERS.add(self)

    def _open(self, url: str) -> Engine:
        """The engine of a URL; the broker of one engine adds its own options."""
        return engine_for(url)

    def bind(self, url: str) -> None:
        """Choose the engine. Raises ConfigurationError once it is connected."""
        if self.connected:
            raise ConfigurationError(f"{self} is connected: close it before it is bound to {redacted(url)}")
        self._engine, self.url = engine_for(url), url

    def replace_engine(self, engine: Engine | None, url: str | None = None) -> None:
        """Use this engine instead, as a test does."""
        self._engine, self.url = engine, url

    @property
    def bound(self) -> bool:
        """Whether it is known which engine this is."""
        return self._engine is not None

    @property
    def engine(self) -> Engine:
        """The engine. Raises ConfigurationError while none is chosen."""
        if self._engine is None:
            raise ConfigurationError("this broker has no URL yet: call broker.bind(url)")
        return self._engine

    @property
    def connected(self) -> bool:
        return self._outbox is not None

    # --- lifecycle ------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Reach the server. Idempotent. Raises ConnectError after `connect_timeout` seconds."""
        if self.connected:
            return
        try:
            async with asyncio.timeout(self.connect_timeout):
                await self.engine.connect()
        except TimeoutError as error:
            raise ConnectError(str(self), f"no answer within {self.connect_timeout:g} s") from error
        self._outbox = Outbox(self.engine)
        self._requester = Requester(self.engine, self._publish_within)

    async def flush(self, timeout: float = 10.0) -> bool:
        """Wait until all that was published is confirmed; False if `timeout` seconds were not enough."""
        return self._outbox is None or await self._outbox.drain(timeout)

    async def close(self) -> None:
        """Confirm what was published, close streams, leave the server. Idempotent."""
        async with AsyncExitStack() as closing:  # from the last line to the first, each although one before it fails
            if self._engine is not None:
                closing.push_async_callback(self._engine.close)
            closing.push_async_callback(self._give_up)
            closing.push_async_callback(self.flush)
            for stream in list(self._streams):
                closing.push_async_callback(stream.close)

    async def _give_up(self) -> None:
        """Tell those who wait for a confirmation or an answer that none will come."""
        requester, self._requester = self._requester, None
        outbox, self._outbox = self._outbox, None
        try:
            if requester is not None:
                await requester.close()
        finally:
            if outbox is not None:
                await outbox.close()

    async def ping(self) -> None:
        """Raise if the engine could not take a message now."""
        await self.engine.check()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- publishing -----------------------------------------------------------------------------------

    async def publish(
        self,
        value: Any,
        topic: str,
        *,
        key: str | bytes | None = None,
        headers: HeadersLike = NO_HEADERS,
        partition: int | None = None,
        delay: float | None = None,
        timeout: float = 10.0,
        confirm: bool = True,
        codec: Codec | None = None,
        options: Sequence[Any] = (),
    ) -> Receipt:
        """Publish a value; returns once the engine has accepted it.

        Messages of one task arrive in the order they were published. `bytes` travel as they are, `str` as text,
        everything else as JSON unless a codec says otherwise.

        Args:
            value: the body.
            topic: where to.
            key: messages of one key stay in order and, where there are partitions, in one of them.
            headers: str to str or bytes.
            partition: by hand, instead of by key.
            delay: seconds until it may be received.
            timeout: seconds to wait for the confirmation.
            confirm: False returns when it is handed over, with a receipt that knows only the topic.
            codec: writes the value.
            options: per engine, such as `Mqtt(retain=True)`; those of other engines are ignored.

        Raises:
            DeliveryUnknownError: no confirmation in time; the message may or may not arrive.
            EncodeError: the codec cannot write the value.
            NotConnectedError: not connected yet, or closed.
        """
        outgoing = Outgoing(value, topic, key, headers, partition, delay, codec, b"", tuple(options))
        if self._middleware or not confirm:
            return await self._publish_specially(outgoing, timeout, confirm)
        outbox = self._outbox
        if outbox is None:
            raise NotConnectedError(str(self))
        encode(outgoing, self.codec)
        if outbox.alone:
            return await outbox.publish_alone(outgoing, timeout)
        if outbox.full:
            await outbox.room(timeout, topic)
        return await outbox.put(outgoing, timeout)

    async def publish_many(self, messages: Sequence[Outgoing], *, timeout: float = 10.0) -> Sequence[Receipt]:
        """Publish several at once, in one round trip where the engine can.

        Raises PublishError, which carries receipts and errors per item, if some were refused; where the engine
        accepts all or none (memory, local) nothing was accepted then. DeliveryUnknownError as for `publish`.
        """
        try:
            return await self.send(messages, timeout=timeout)
        except (PublishError, DeliveryUnknownError, NotConnectedError):
            raise
        except HeadwaterError as error:  # none was accepted
            others = None if isinstance(error, EncodeError) else error
            errors = [self._unwritable(outgoing) or others for outgoing in messages]
            raise PublishError([None] * len(errors), errors) from error

    def _unwritable(self, outgoing: Outgoing) -> EncodeError | None:
        try:
            encode(outgoing, self.codec)
        except EncodeError as error:
            return error
        return None

    async def send(self, messages: Sequence[Outgoing], *, timeout: float = 10.0) -> Sequence[Receipt]:
        """As `publish_many`, for the framework's own messages: what refuses all of them is raised as it is."""
        ready = await self.prepare(messages)
        if not ready:
            return []
        if self._outbox is None:
            raise NotConnectedError(str(self))
        self._outbox.flush()  # what was published before comes first
        answer = self.engine.send(ready)
        if isinstance(answer, Sequence):
            return answer
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError as error:
            raise DeliveryUnknownError(ready[0].topic, timeout) from error

    async def prepare(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """The messages ready to travel: through the publish middleware, and encoded."""
        ready: list[Outgoing] = []
        if not self._middleware:
            for outgoing in messages:
                encode(outgoing, self.codec)
            return messages

        async def collect(outgoing: Outgoing) -> Receipt:
            encode(outgoing, self.codec)
            ready.append(outgoing)
            return Receipt(outgoing.topic)

        call = self._chain(collect)
        for outgoing in messages:
            await call(outgoing)
        return ready

    def _chain(self, last: PublishNext | None = None) -> PublishNext:
        call = last or self._put
        for middleware in reversed(self._middleware):
            call = _publish_layer(middleware, call)
        return call

    async def _put(self, outgoing: Outgoing, timeout: float = 10.0) -> Receipt:
        if self._outbox is None:
            raise NotConnectedError(str(self))
        encode(outgoing, self.codec)
        if self._outbox.full:
            await self._outbox.room(timeout, outgoing.topic)
        return await self._outbox.put(outgoing, timeout)

    async def _publish_within(self, outgoing: Outgoing, timeout: float) -> Receipt:
        return await self._chain(lambda ready: self._put(ready, timeout))(outgoing)

    async def _publish_specially(self, outgoing: Outgoing, timeout: float, confirm: bool) -> Receipt:
        if confirm:
            return await self._publish_within(outgoing, timeout)
        for ready in await self.prepare([outgoing]):
            if self._outbox is None:
                raise NotConnectedError(str(self))
            if self._outbox.full:
                await self._outbox.room(timeout, ready.topic)
            self._outbox.put(ready, timeout).add_done_callback(_ignore_result)
        return Receipt(outgoing.topic, time=self.engine.clock.time())

    async def request(
        self,
        value: Any,
        topic: str,
        *,
        key: str | bytes | None = None,
        headers: HeadersLike = NO_HEADERS,
        timeout: float = 5.0,
        codec: Codec | None = None,
    ) -> Message:
        """Publish a question and wait for the answer: a Message, its `value` decoded.

        Raises RequestTimeoutError after `timeout` seconds, RemoteError if the handler failed for good.
        """
        if self._requester is None:
            raise NotConnectedError(str(self))
        return await self._requester.request(Outgoing(value, topic, key, headers, codec=codec), timeout)

    # --- reading --------------------------------------------------------------------------------------

    def stream(
        self,
        *topics: str,
        start: Start = "latest",
        partitions: Sequence[int] | None = None,
        limit: int | None = None,
        until: Until | None = None,
        wait: float | None = None,
        type: Any = None,
        options: Sequence[Any] = (),
    ) -> Stream:
        """Read topics from any place, without a group: `async for message in broker.stream("orders")`.

        Args:
            topics: names, which may carry fields.
            start: "earliest", "latest", an offset (of one partition), `{partition: offset}` or an aware datetime.
            partitions: read just these.
            limit: end after so many messages.
            until: end at the first message after this time, or at the first the function is true for.
            wait: end after so many quiet seconds; by default wait for ever.
            type: what `message.value` is decoded to.
            options: per engine.

        Raises TopicNotFoundError when read, NotSupportedError where nothing is kept.
        """
        source = Source(
            topics=topics,
            start=start,
            partitions=None if partitions is None else tuple(partitions),
            options=tuple(options),
        )
        decode = None if type is None else decoder_for(type)
        stream = Stream(self._connected_engine, source, decode=decode, limit=limit, until=until, wait=wait)
        stream.on_open, stream.on_close = self._streams.add, self._streams.discard
        return stream

    async def get(
        self, topic: str, *, group: str | None = None, timeout: float = 1.0, type: Any = None
    ) -> Message | None:
        """The next message, or None after `timeout` quiet seconds.

        With a group it is acknowledged and its position kept; a new group begins at the earliest. Without one it is
        the next message to come.
        """
        engine = self._connected_engine()
        source = Source(topics=(topic,), group=group, start="earliest" if group else "latest", prefetch=1)
        async with engine.subscribe(source, _nothing_moves) as place:
            deadline = asyncio.get_running_loop().time() + timeout
            messages = await place.receive(1, timeout)
            while not messages and (rest := deadline - asyncio.get_running_loop().time()) > 0:
                messages = await place.receive(1, rest)
            if not messages:
                return None
            if group:
                await place.ack(messages)
        if type is not None:
            messages[0]._decode = decoder_for(type)
        return messages[0]

    def _connected_engine(self) -> Engine:
        if not self.connected:
            raise NotConnectedError(str(self))
        return self.engine

    # --- management -----------------------------------------------------------------------------------

    async def declare(self, topics: Sequence[Topic], mode: DeclareMode = "create") -> None:
        """Make the topics that are missing ("create"), or raise TopicNotFoundError for them ("check")."""
        for topic in topics:
            self.engine.check_topic(topic.name)
        await self._connected_engine().declare(topics, mode)

    @property
    def admin(self) -> Admin:
        """Topics, partitions, groups, dead letters. Raises NotSupportedError where the engine has none."""
        from .admin import Admin  # an operator's business: most processes never import it

        engine = self._connected_engine()
        if engine.admin is None:
            raise NotSupportedError(engine.name, "administration")
        return Admin(engine.name, engine.admin, self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({redacted(self.url) if self.url else ''})"


def _publish_layer(middleware: PublishMiddleware, call: PublishNext) -> PublishNext:
    return lambda outgoing: middleware(outgoing, call)


def _ignore_result(future: asyncio.Future[Receipt]) -> None:
    if not future.cancelled():
        error = future.exception()
        if error is not None:  # nobody waits for this one
            _log.warning("a message published with confirm=False was lost: %s", error)


async def _nothing_moves(_change: Change) -> None:
    """One message at a time: nothing is in flight when partitions move."""
