"""A broker: from a URL to an engine, and what is done through it: publish, request, stream, get."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypedDict
from weakref import WeakSet

from . import forks
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
    from .sync import SyncBroker

_log = logging.getLogger("headwater")
DRAIN: Final = 10.0  # seconds for what was published to be confirmed when a broker is closed
BROKERS: Final = WeakSet["Broker"]()  # all there are, so that an app can name one it was not given

_Connection = tuple[Outbox | None, Requester | None]
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
        self._engine: Engine | None = None
        self._make_engine: Callable[[], Engine] | None = None
        self._made: Engine | None = None  # by that; `_engine` is another one where a test has replaced it
        self._outbox: Outbox | None = None
        self._requester: Requester | None = None
        self._streams: set[Stream] = set()
        self._reaching: asyncio.Task[None] | None = None
        self._on_move: list[Callable[[], object]] = []
        self._home = threading.Lock()
        self._face: SyncBroker | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop it is connected in, or is being connected in; None while nobody uses it."""
        self._sending: PublishNext = self._chain()
        if url is not None:
            self.use(functools.partial(engine_for, url), url)
        BROKERS.add(self)
        forks.watch(self)

    def use(self, make_engine: Callable[[], Engine], url: str) -> None:
        """Be a broker on the engine this makes; once more in a forked child, which must not use its parent's."""
        self._make_engine, self.url = make_engine, url
        self._engine = self._made = make_engine()

    def bind(self, url: str) -> None:
        """Choose the engine. Raises ConfigurationError once it is connected."""
        if self.connected:
            raise ConfigurationError(f"{self} is connected: close it before it is bound to {redacted(url)}")
        self.use(functools.partial(engine_for, url), url)

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
        """Reach the server. Idempotent. Raises ConnectError after `connect_timeout` seconds.

        It serves one loop at a time. From another loop, such as that of its blocking face, it moves to this one: what
        was published there is confirmed first.
        """
        try:
            await self.reach()
        finally:
            if self._outbox is None and self._reaching is None and self.loop is asyncio.get_running_loop():
                self._move(None)

    async def reach(self) -> None:
        """As `connect`, but it stays this loop's although it fails, for who tries again: its blocking face waits."""
        here = asyncio.get_running_loop()
        await self._move_to(here)
        while self._reaching is not None:
            await asyncio.wait([self._reaching])
            await self._move_to(here)
        if self.connected:
            return
        self._reaching = here.create_task(self._reach())
        try:
            await self._reaching
        except asyncio.CancelledError:
            if not _is_cancelled():
                raise self._was_moved() from None
            raise
        finally:
            self._reaching = None

    async def _reach(self) -> None:
        try:
            async with asyncio.timeout(self.connect_timeout):
                await self.engine.connect()
        except TimeoutError as error:
            raise ConnectError(str(self), f"no answer within {self.connect_timeout:g} s") from error
        with self._home:
            if self.loop is not asyncio.get_running_loop():
                raise self._was_moved()
            self._outbox = Outbox(self.engine)
            self._requester = Requester(self.engine, self.deliver)
        self._tell_of_move()

    def _was_moved(self) -> ConnectError:
        return ConnectError(str(self), "it was closed, or moved to another loop, meanwhile")

    def claim(self) -> bool:
        """Be this loop's unless it is another's; whether it is this loop's now."""
        here = asyncio.get_running_loop()
        with self._home:
            if self.loop is not None and self.loop.is_closed():
                self._detach()
                self._renew_engine()
                self.loop = None
            self.loop = self.loop or here
            return self.loop is here

    async def _move_to(self, here: asyncio.AbstractEventLoop) -> None:
        with self._home:
            before, self.loop = self.loop, here
            if before is None or before is here:
                return
            connection = self._detach()
        await self._leave_from(before, connection)

    async def _leave_from(self, loop: asyncio.AbstractEventLoop | None, connection: _Connection) -> None:
        if loop is None or loop is asyncio.get_running_loop():
            await self._leave(connection)
        elif loop.is_running():
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._leave(connection), loop))
        else:
            self._renew_engine()  # that loop is gone, with all that the engine had there

    def _detach(self) -> _Connection:
        connection = self._outbox, self._requester
        self._outbox = self._requester = None
        return connection

    def _move(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.loop = loop
        self._tell_of_move()

    def call_on_move(self, call: Callable[[], object]) -> None:
        """Call this once, in some thread, when the broker is connected or closed the next time."""
        self._on_move.append(call)

    def _tell_of_move(self) -> None:
        calls, self._on_move = self._on_move, []
        for call in calls:
            call()

    def start_afresh(self) -> None:
        """Forget a connection that is a parent's."""
        self._home = threading.Lock()
        self._on_move = []
        if self.loop is not None:
            forks.leave_alone((self._engine, self._detach(), self._reaching, *self._streams))
            self._streams, self._reaching, self.loop = set(), None, None
            self._renew_engine()

    def _renew_engine(self) -> None:
        if self._make_engine is not None and self._engine is self._made:
            self._engine = self._made = self._make_engine()

    async def flush(self, timeout: float = 10.0) -> bool:
        """Wait until all that was published is confirmed; False if `timeout` seconds were not enough."""
        return self._outbox is None or await self._outbox.drain(timeout)

    async def close(self) -> None:
        """Confirm what was published, close streams, leave the server. Idempotent."""
        try:
            with self._home:  # what is published from now on is refused, or waits for another loop
                loop, connection = self.loop, self._detach()
            await self._leave_from(loop, connection)
        finally:
            self._move(None)

    async def _leave(self, connection: _Connection) -> None:
        outbox, requester = connection
        async with AsyncExitStack() as closing:  # from the last line to the first, each although one before it fails
            if self._engine is not None:
                closing.push_async_callback(self._engine.close)
            if requester is not None:
                closing.push_async_callback(requester.close)
            if outbox is not None:
                closing.push_async_callback(outbox.close, DRAIN)
            for stream in list(self._streams):
                closing.push_async_callback(stream.close)
            if self._reaching is not None:
                self._reaching.cancel()
                await asyncio.wait([self._reaching])

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
        return await outbox.publish(outgoing, timeout)

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

    @property
    def outbox(self) -> Outbox | None:
        """Where messages leave, past the publish middleware; None while it is not connected."""
        return self._outbox

    @property
    def has_middleware(self) -> bool:
        """Whether something is around each publish."""
        return bool(self._middleware)

    async def _put(self, outgoing: Outgoing, timeout: float = 10.0) -> Receipt:
        outbox = self._outbox
        if outbox is None:
            raise NotConnectedError(str(self))
        encode(outgoing, self.codec)
        if outbox.full:
            await outbox.room(timeout, outgoing.topic)
        return await outbox.publish(outgoing, timeout)

    async def deliver(self, outgoing: Outgoing, timeout: float) -> Receipt:
        """Publish a message, through the publish middleware."""
        return await self._chain(lambda ready: self._put(ready, timeout))(outgoing)

    async def _publish_specially(self, outgoing: Outgoing, timeout: float, confirm: bool) -> Receipt:
        if confirm:
            return await self.deliver(outgoing, timeout)
        for ready in await self.prepare([outgoing]):
            outbox = self._outbox
            if outbox is None:
                raise NotConnectedError(str(self))
            if outbox.full:
                await outbox.room(timeout, ready.topic)
            outbox.publish(ready, timeout).add_done_callback(_ignore_result)
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
    def sync(self) -> SyncBroker:
        """This broker for synchronous code, such as `def` handlers: the same methods, blocking."""
        with self._home:  # threads may ask at once
            if self._face is None:
                from .sync import SyncBroker  # starts nothing before it is used

                self._face = SyncBroker(self)
            return self._face

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


def _is_cancelled() -> bool:
    """Whether who runs this is, and not just what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _ignore_result(future: asyncio.Future[Receipt]) -> None:
    if not future.cancelled():
        error = future.exception()
        if error is not None:  # nobody waits for this one
            _log.warning("a message published with confirm=False was lost: %s", error)


async def _nothing_moves(_change: Change) -> None:
    """One message at a time: nothing is in flight when partitions move."""
