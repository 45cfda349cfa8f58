"""The whole broker for synchronous code: the same methods, blocking."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

from .. import forks
from ..broker import Broker, BrokerOptions
from ..codecs import Codec, encode
from ..errors import AuthenticationError, ConnectError, NotConnectedError, SyncInAsyncError
from ..message import NO_HEADERS, HeadersLike, Message, Outgoing, Receipt
from ..retry import Retry
from ..stream import Stream
from .delivery import Deliveries, DeliveryFuture, Stats, WhenFull
from .thread import SHARED, Mailbox

if TYPE_CHECKING:
    from .admin import SyncAdmin

P = ParamSpec("P")
T = TypeVar("T")

READ_AHEAD = 500  # messages a stream takes over at once
_RETRY = Retry(backoff=(0.1, 5.0))  # waits between tries of what was certainly not accepted
_log = logging.getLogger("headwater.sync")


def _blocking(
    method: Callable[Concatenate[Broker, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncBroker, P], T]:
    """The method of a Broker, with the same signature, that blocks."""

    @functools.wraps(method)
    def call(self: SyncBroker, /, *arguments: P.args, **keywords: P.kwargs) -> T:
        return self.run(method.__name__, lambda: method(self.broker, *arguments, **keywords))

    return call


class SyncBroker:
    """A broker for synchronous code: safe to share by threads, and to inherit by a fork.

    It connects when it is first used, in a loop that all faces of the process share, or acts in the loop its broker
    runs in. `with` closes it in the end.

    Args:
        broker: a URL or a Broker.
        max_in_flight: how many messages may be under way, unconfirmed.
        when_full: "block" waits for room within the timeout, "raise" raises TooManyInFlightError, "drop" drops.
        allow_in_loop: True lets it block a thread that runs an event loop, as notebooks do.
        call_timeout: seconds for what has no timeout of its own, such as administration.
        exit_timeout: seconds to deliver what is under way when the process ends.
        options: as for Broker, when a URL is given.
    """

    def __init__(
        self,
        broker: Broker | str,
        *,
        max_in_flight: int = 10_000,
        when_full: WhenFull = "block",
        allow_in_loop: bool = False,
        call_timeout: float = 30.0,
        exit_timeout: float = 5.0,
        **options: Unpack[BrokerOptions],
    ) -> None:
        self.broker = Broker(broker, **options) if isinstance(broker, str) else broker
        self.call_timeout = call_timeout
        self._allow_in_loop = allow_in_loop
        self._exit_timeout = exit_timeout
        self._deliveries = Deliveries(max_in_flight, when_full)
        self.start_afresh()
        forks.watch(self)

    def start_afresh(self) -> None:
        """Begin as new: what was queued is the parent's to deliver."""
        self._queue: deque[DeliveryFuture] = deque()
        self._mailbox: Mailbox | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._leaves_at_exit = False
        self._deliveries.start_afresh()

    # --- publishing -----------------------------------------------------------------------------------

    def publish(
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
        """As `Broker.publish`. What was certainly not accepted is tried again within `timeout`."""
        self._check_caller("publish")
        outgoing = Outgoing(value, topic, key, headers, partition, delay, codec, b"", tuple(options))
        delivery = self._submit(outgoing, timeout)
        return delivery.result() if confirm else Receipt(topic, time=time.time())

    def publish_soon(
        self,
        value: Any,
        topic: str,
        *,
        key: str | bytes | None = None,
        headers: HeadersLike = NO_HEADERS,
        partition: int | None = None,
        delay: float | None = None,
        timeout: float = 10.0,
        codec: Codec | None = None,
        options: Sequence[Any] = (),
    ) -> DeliveryFuture:
        """Publish without waiting: its confirmation comes in the future. `flush` waits for all of them."""
        self._check_caller("publish_soon")
        outgoing = Outgoing(value, topic, key, headers, partition, delay, codec, b"", tuple(options))
        return self._submit(outgoing, timeout)

    def _submit(self, outgoing: Outgoing, timeout: float) -> DeliveryFuture:
        encode(outgoing, self.broker.codec)
        delivery = DeliveryFuture(outgoing, timeout)
        if self.broker.has_middleware:
            delivery.context = contextvars.copy_context()
        if self._deliveries.enter(delivery):
            self._queue.append(delivery)
            self._here().post(self._hand_over)
        return delivery

    def _hand_over(self) -> None:
        """In the loop: everything queued goes to the broker."""
        if not self.broker.connected:
            if self._connecting is None:
                self._connecting = asyncio.get_running_loop().create_task(self._connect())
            return
        while self._queue:
            delivery = self._queue.popleft()
            if not delivery.done():
                self._send(delivery, 1)

    async def _connect(self) -> None:
        """Until the server is reached, or nobody waits for it any more."""
        try:
            for tries in itertools.count(1):
                try:
                    await self.broker.connect()
                    break
                except ConnectError as error:
                    self._let_go(error)
                    if not self._queue:
                        return
                    await asyncio.sleep(_RETRY.delay(tries))
        except Exception as error:
            while self._queue:
                _settle(self._queue.popleft(), error=error)
        finally:
            self._connecting = None
        self._hand_over()

    def _let_go(self, error: ConnectError) -> None:
        """Tell those whose time is over, or will not come."""
        now, hopeless = time.monotonic(), isinstance(error, AuthenticationError)
        for delivery in list(self._queue):
            delivery.reason = error
            if hopeless or delivery.done() or delivery.deadline <= now:
                self._queue.remove(delivery)
                _settle(delivery, error=error)

    def _send(self, delivery: DeliveryFuture, tries: int) -> None:
        rest = max(0.001, delivery.deadline - time.monotonic())
        confirmation = self.broker.put(delivery.outgoing, rest, delivery.context)
        confirmation.add_done_callback(lambda done: self._confirmed(delivery, done, tries))
        loop = confirmation.get_loop()
        delivery.add_done_callback(lambda done: _cancel(confirmation, loop) if done.cancelled() else None)

    def _confirmed(self, delivery: DeliveryFuture, confirmation: asyncio.Future[Receipt], tries: int) -> None:
        if confirmation.cancelled():
            return
        error = confirmation.exception()
        if error is None:
            _settle(delivery, receipt=confirmation.result())
            return
        delay = _RETRY.delay(tries)
        if not isinstance(error, _NOT_ACCEPTED) or time.monotonic() + delay > delivery.deadline:
            _settle(delivery, error=error)
        else:
            confirmation.get_loop().call_later(delay, self._send, delivery, tries + 1)

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until all that was published is settled; False if `timeout` seconds were not enough."""
        self._check_caller("flush")
        return self._deliveries.wait_for_all(timeout)

    @property
    def stats(self) -> Stats:
        """Counts since the process began to use this face."""
        deliveries, queued = self._deliveries, len(self._queue)
        in_flight = max(0, deliveries.under_way - queued)
        return Stats(queued, in_flight, deliveries.delivered, deliveries.failed, deliveries.lost)

    # --- everything else ------------------------------------------------------------------------------

    publish_many = _blocking(Broker.publish_many)
    request = _blocking(Broker.request)
    get = _blocking(Broker.get)
    ping = _blocking(Broker.ping)
    declare = _blocking(Broker.declare)

    def stream(self, *topics: str, **options: Any) -> SyncStream:
        """As `Broker.stream`: a plain iterator. Leaving it early wants `with` or `close()`."""
        return self.run("stream", lambda: self._open(topics, options))

    async def _open(self, topics: tuple[str, ...], options: dict[str, Any]) -> SyncStream:
        return SyncStream(self, self.broker.stream(*topics, **options))

    @property
    def admin(self) -> SyncAdmin:
        """As `Broker.admin`, blocking; each call within `call_timeout` seconds."""
        from .admin import SyncAdmin

        return SyncAdmin(self)

    def run(self, method: str, work: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T:
        """Run what `work` makes in the broker's loop, once the broker is connected, and give what it gives.

        Raises SyncInAsyncError, which names `method`, in a thread that runs an event loop, and TimeoutError after
        `timeout` seconds. An interruption cancels the work.
        """
        self._check_caller(method)
        loop = self.broker.loop
        if loop is not None and not loop.is_running() and not loop.is_closed():
            return loop.run_until_complete(work())  # a synchronous test drives its app's loop by itself

        async def connected() -> T:
            await self.broker.connect() if self.broker.loop is None else None
            async with asyncio.timeout(timeout):
                return await work()

        future = self._here().submit(connected())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Deliver what is under way, within `exit_timeout` seconds, and leave the server, unless an app uses it."""
        self._check_caller("close")
        if self.broker.loop is None and not self._queue:
            return
        self._deliver_the_rest()
        if self._mailbox is not None and self.broker.loop is SHARED.loop:
            self._mailbox.submit(self.broker.close()).result(self.call_timeout)

    def _deliver_the_rest(self) -> None:
        failed = -self._deliveries.failed
        if not self._deliveries.wait_for_all(self._exit_timeout):
            left = self._deliveries.give_up()
            _log.error("%s: %d message(s) were not delivered within %.3g s", self.broker, left, self._exit_timeout)
        failed += self._deliveries.failed
        if failed:
            _log.error("%s: %d of the last messages could not be delivered", self.broker, failed)

    def _here(self) -> Mailbox:
        """Where the broker's loop takes calls: the one it is connected in, or that of all faces."""
        loop = self.broker.loop
        mailbox = self._mailbox
        if mailbox is None or (loop is not None and mailbox.loop is not loop):
            mailbox = self._mailbox = SHARED.mailbox() if loop in (None, SHARED.loop) else Mailbox(loop)
        if not self._leaves_at_exit:
            self._leaves_at_exit = True
            SHARED.at_exit(self._deliver_the_rest)
        return mailbox

    def _check_caller(self, method: str) -> None:
        running = asyncio._get_running_loop()
        if running is not None and (not self._allow_in_loop or running is self.broker.loop):
            raise SyncInAsyncError(method)

    def __enter__(self) -> Self:
        self.run("__enter__", _nothing)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SyncBroker({self.broker})"


class SyncStream(Iterator[Message]):
    """A plain iterator over a topic; `SyncBroker.stream` makes it."""

    def __init__(self, broker: SyncBroker, stream: Stream) -> None:
        self._broker = broker
        self._stream = stream
        self._ahead: deque[Message] = deque()

    def __next__(self) -> Message:
        if not self._ahead:
            try:
                self._ahead.extend(self._broker.run("stream", lambda: self._stream.some(READ_AHEAD)))
            except BaseException:
                self.close()  # what was taken for us is lost: the stream cannot go on as if nothing had been
                raise
        if not self._ahead:
            raise StopIteration
        return self._ahead.popleft()

    def close(self) -> None:
        """Give the place up. Idempotent."""
        self._ahead.clear()
        self._broker.run("stream", self._stream.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_NOT_ACCEPTED = (ConnectError, NotConnectedError)


def _settle(delivery: DeliveryFuture, *, receipt: Receipt | None = None, error: BaseException | None = None) -> None:
    """Unless its publisher cancelled it meanwhile."""
    if not delivery.set_running_or_notify_cancel():
        return
    if error is not None:
        delivery.set_exception(error)
    else:
        delivery.set_result(receipt)  # type: ignore[arg-type]  # one of the two is given


def _cancel(confirmation: asyncio.Future[Receipt], loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(confirmation.cancel)


async def _nothing() -> None:
    """Connecting is all that is wanted."""
