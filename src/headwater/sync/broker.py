"""The whole broker for synchronous code: the same methods, blocking."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

from .. import forks
from ..broker import Broker, BrokerOptions
from ..codecs import Codec, encode
from ..engine import Start
from ..errors import (
    ConfigurationError,
    ConnectError,
    DeliveryUnknownError,
    HeadwaterError,
    NotSupportedError,
    PublishError,
    RequestTimeoutError,
    SyncInAsyncError,
    TooManyInFlightError,
)
from ..message import NO_HEADERS, HeadersLike, Message, Outgoing, Receipt
from ..stream import Until
from .courier import Courier
from .delivery import Deliveries, DeliveryFuture, Stats, WhenFull
from .stream import SyncStream
from .thread import SHARED

if TYPE_CHECKING:
    from .admin import SyncAdmin

P = ParamSpec("P")
T = TypeVar("T")

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
    runs in. `with` connects it at once, and closes it in the end.

    Args:
        broker: a URL or a Broker.
        max_in_flight: how many messages may be under way, unconfirmed.
        when_full: "block" waits for room within the timeout, "raise" raises TooManyInFlightError, "drop" drops.
        allow_in_loop: True lets it block a thread that runs an event loop, as notebooks do.
        call_timeout: seconds for what has no timeout of its own, such as administration.
        exit_timeout: seconds to deliver what is under way when the process ends.
        spill: a directory: while the engine is away messages are kept there, in an embedded log, and their publish
            returns; they are passed on in order when it is back, if need be by the next process that uses the
            directory. A URL gives the log options, `local://./spill?durability=process`. The `options` of a publish
            cannot be kept, and are refused.
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
        spill: str | os.PathLike[str] | None = None,
        **options: Unpack[BrokerOptions],
    ) -> None:
        if options and not isinstance(broker, str):
            raise ConfigurationError(f"SyncBroker({broker}): give {', '.join(options)} to that broker")
        self.broker = Broker(broker, **options) if isinstance(broker, str) else broker
        self.call_timeout = call_timeout
        self._allow_in_loop = allow_in_loop
        self._deliveries = Deliveries(max_in_flight, when_full)
        self._courier = Courier(self.broker, self._deliveries, exit_timeout, spill)
        forks.watch(self)

    def start_afresh(self) -> None:
        """Begin as new: what was queued is the parent's to deliver."""
        self._deliveries.start_afresh()
        self._courier.start_afresh()

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
        """As `Broker.publish`. What was certainly not accepted is tried again within `timeout`.

        Raises ConnectError if it never left, TooManyInFlightError if there was no room for it.
        """
        self._check_caller("publish")
        outgoing = Outgoing(value, topic, key, headers, partition, delay, codec, b"", tuple(options))
        delivery = self._submit(outgoing, timeout)
        if confirm:
            return delivery.result()
        delivery.add_done_callback(_log_loss)
        return Receipt(topic, time=self.broker.engine.clock.time())

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
        """Publish without waiting: its confirmation comes in the future. `flush` waits for all of them.

        Messages of one thread are sent in the order they were published.
        """
        self._check_caller("publish_soon", "await broker.publish(...)")
        outgoing = Outgoing(value, topic, key, headers, partition, delay, codec, b"", tuple(options))
        return self._submit(outgoing, timeout)

    def _submit(self, outgoing: Outgoing, timeout: float) -> DeliveryFuture:
        if outgoing.options and self._courier.spill is not None:
            raise NotSupportedError("a spill", "options= of a publish", "they cannot be kept: give them to a topic")
        delivery = DeliveryFuture(outgoing, timeout, self._deliveries, self._courier)
        if self.broker.has_middleware:
            delivery.context = contextvars.copy_context()
        else:
            encode(outgoing, self.broker.codec)
        if not self._deliveries.enter(outgoing.topic, timeout):
            delivery.drop()
            return delivery
        try:
            self._courier.take(delivery)
        except BaseException:
            delivery.cancel()
            raise
        return delivery

    def publish_many(self, messages: Sequence[Outgoing], *, timeout: float = 10.0) -> Sequence[Receipt]:
        """As `Broker.publish_many`, after what was published before. Raises TooManyInFlightError without room."""
        self._check_caller("publish_many")
        count, delivered = len(messages), 0
        if not count:
            return []
        if self._courier.spill is not None:
            return self._publish_each(messages, timeout)
        if not self._deliveries.enter(messages[0].topic, timeout, count):
            raise TooManyInFlightError(messages[0].topic, self._deliveries.most)
        try:
            receipts = self._courier.call(
                lambda rest: self.broker.publish_many(messages, timeout=rest),
                timeout,
                lambda: DeliveryUnknownError(messages[0].topic, timeout),
            )
            delivered = count
        except PublishError as error:
            delivered = sum(receipt is not None for receipt in error.receipts)
            raise
        finally:
            self._deliveries.decide_several(delivered=delivered, failed=count - delivered)
        return receipts

    def _publish_each(self, messages: Sequence[Outgoing], timeout: float) -> Sequence[Receipt]:
        """Each by itself, all under way at once: a spill takes them one by one."""
        deliveries = [_outcome(self._submit, outgoing, timeout) for outgoing in messages]
        outcomes = [one if isinstance(one, HeadwaterError) else _outcome(one.result) for one in deliveries]
        receipts = [None if isinstance(one, HeadwaterError) else one for one in outcomes]
        errors = [one if isinstance(one, HeadwaterError) else None for one in outcomes]
        if any(errors):
            raise PublishError(receipts, errors)
        return [receipt for receipt in receipts if receipt is not None]

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until all that was published is settled; False if `timeout` seconds were not enough."""
        self._check_caller("flush")
        return self._deliveries.wait_for_all(timeout)

    @property
    def stats(self) -> Stats:
        """Counts since the process began to use this face."""
        counts, queued = self._deliveries, self._courier.queued
        in_flight = max(0, counts.undecided - queued)
        return Stats(queued, in_flight, counts.delivered, counts.failed, counts.lost, counts.spilled)

    # --- everything else ------------------------------------------------------------------------------

    def request(
        self,
        value: Any,
        topic: str,
        *,
        key: str | bytes | None = None,
        headers: HeadersLike = NO_HEADERS,
        timeout: float = 5.0,
        codec: Codec | None = None,
    ) -> Message:
        """As `Broker.request`. Raises ConnectError if the server could not be reached within `timeout` seconds."""
        self._check_caller("request")
        return self._courier.call(
            lambda rest: self.broker.request(value, topic, key=key, headers=headers, timeout=rest, codec=codec),
            timeout,
            lambda: RequestTimeoutError(topic, timeout),
        )

    get = _blocking(Broker.get)
    ping = _blocking(Broker.ping)
    declare = _blocking(Broker.declare)

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
    ) -> SyncStream:
        """As `Broker.stream`: a plain iterator. Leaving it early wants `with` or `close()`."""
        self._check_caller("stream", "async for message in broker.stream(...)")
        stream = self.broker.stream(
            *topics,
            start=start,
            partitions=partitions,
            limit=limit,
            until=until,
            wait=wait,
            type=type,
            options=options,
        )
        return SyncStream(self._courier, stream)

    @property
    def admin(self) -> SyncAdmin:
        """As `Broker.admin`, blocking; each call within `call_timeout` seconds."""
        from .admin import SyncAdmin

        return SyncAdmin(self)

    def run(self, method: str, work: Callable[[], Coroutine[Any, Any, T]], *, timeout: float | None = None) -> T:
        """Run what `work` makes in the broker's loop, once the broker is connected, and give what it gives.

        Raises SyncInAsyncError, which names `method`, in a thread that runs an event loop, and ConnectError after
        `timeout` seconds, by default `call_timeout`. An interruption cancels the work.
        """
        self._check_caller(method)
        seconds = self.call_timeout if timeout is None else timeout

        def late() -> ConnectError:
            return ConnectError(str(self.broker), f"no answer to {method} within {seconds:g} s")

        async def in_time(rest: float) -> T:
            try:
                async with asyncio.timeout(rest):
                    return await work()
            except TimeoutError as error:
                raise late() from error

        return self._courier.call(in_time, seconds, late)

    # --- coming and going -----------------------------------------------------------------------------

    def connect(self) -> None:
        """Reach the server now, instead of with the first use. Raises ConnectError after `connect_timeout` seconds.

        With a spill it may be away; what is left there from before is passed on from now on.
        """
        self._check_caller("connect")
        if self._courier.spill is not None:
            self._courier.mailbox.submit(self._courier.spill.open).result(self.call_timeout)
        else:
            self._courier.call(_nothing, self.broker.connect_timeout, self._courier.unsent)

    def close(self) -> None:
        """Deliver what is under way, within `exit_timeout` seconds, and leave the server, unless an app uses it.

        Idempotent; the next use connects again.
        """
        self._check_caller("close")
        self._courier.finish()
        if self._courier.spill is not None:
            self._courier.mailbox.submit(self._courier.spill.close).result(self.call_timeout)
        if self.broker.loop is not None and self.broker.loop is SHARED.loop:
            SHARED.mailbox.submit(self.broker.close).result(self.call_timeout)

    def _check_caller(self, method: str, instead: str = "") -> None:
        running = asyncio._get_running_loop()
        if running is None or (self._allow_in_loop and running is not self.broker.loop):
            return
        if getattr(running, "_thread_id", None) in (None, threading.get_ident()):  # not another greenlet's
            raise SyncInAsyncError(method, instead or f"await broker.{method}(...)")

    def __enter__(self) -> Self:
        self._check_caller("__enter__", "async with broker")
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SyncBroker({self.broker})"


def _outcome(call: Callable[P, T], /, *arguments: P.args, **keywords: P.kwargs) -> T | HeadwaterError:
    """What the call gives, or raises."""
    try:
        return call(*arguments, **keywords)
    except HeadwaterError as error:
        return error


async def _nothing(_rest: float) -> None:
    """Connecting is all that is wanted."""


def _log_loss(delivery: Future[Receipt]) -> None:
    if not delivery.cancelled() and (error := delivery.exception()) is not None:  # nobody waits for this one
        _log.warning("a message published with confirm=False was lost: %s", error)
