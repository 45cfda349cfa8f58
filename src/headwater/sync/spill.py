"""What is published while the engine is away: kept in an embedded log, and passed on in order once it is back."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, Protocol

import msgspec

from .. import forks
from ..broker import Broker
from ..engine import Change, Revoked, Source, Subscription, Topic
from ..errors import (
    AuthenticationError,
    ConnectError,
    DeliveryUnknownError,
    GroupNotFoundError,
    NotConnectedError,
    StoreNotFoundError,
    TopicNotFoundError,
)
from ..message import REASON, Headers, Message, Outgoing, Receipt
from .delivery import DeliveryFuture

PATIENCE: Final = 1.0  # seconds to connect in, before the engine counts as away
LOOK_AGAIN: Final = 0.1  # seconds between two looks at whether it is back
BURST: Final = 500  # messages written, or passed on, at once
PASS_ON: Final = 10.0  # seconds to confirm them
DRAIN: Final = 5.0  # seconds that new messages wait for the last ones here to be passed on
MESSAGES: Final = Topic("spill", partitions=1)  # in the order they were published
REFUSED: Final = Topic("refused", partitions=1)  # what the engine, once back, did not take
SOURCE: Final = Source(topics=(MESSAGES.name,), group="spill", start="earliest", exclusive=True, prefetch=BURST)

_AGAIN: Final = (ConnectError, NotConnectedError, DeliveryUnknownError)
_log: Final = logging.getLogger("headwater.sync")


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """A message as it is kept."""

    topic: str
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    body: bytes
    partition: int | None
    due: float | None  # seconds since the epoch


_write: Final = msgspec.msgpack.Encoder().encode
_read: Final = msgspec.msgpack.Decoder(_Kept).decode


class _State(Enum):
    UNKNOWN = "nobody has looked yet whether something is left from before"
    DIRECT = "nothing is kept: messages go to the engine"
    SPILLING = "messages are kept"
    DRAINING = "the last ones are passed on; who comes now waits, so as not to overtake them"


class Sender(Protocol):
    """Who has the broker that messages are passed on to."""

    broker: Broker

    async def join(self, go_on: Callable[[], bool]) -> bool:
        """Have it connected in this loop; False if it is in another one. Raises ConnectError unless it may go on."""
        ...


class Spill:
    """A directory that processes may share: each keeps messages there, and one at a time passes them on, in order.

    What is passed on is confirmed by the engine before it is forgotten: if that fails in between, it arrives twice.
    """

    def __init__(self, where: str | os.PathLike[str], sender: Sender) -> None:
        url = os.fspath(where)
        self._kept = Broker(url if "://" in url else f"local://{url}")
        self._sender = sender
        self._passing: asyncio.Task[None] | None = None
        self.start_afresh()

    def start_afresh(self) -> None:
        """Know nothing."""
        if self._passing is not None:
            forks.leave_alone(self._passing)
        self._passing = None
        self._state = _State.UNKNOWN
        self._drained: asyncio.Event = asyncio.Event()
        self._opening = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._sending = asyncio.Lock()

    @property
    def idle(self) -> bool:
        """Whether messages go to the engine."""
        return self._state is _State.DIRECT and self._is_there()

    def _is_there(self) -> bool:
        broker = self._sender.broker
        return broker.connected and broker.engine.available

    # --- keeping --------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Look whether something is left to be passed on, and whether the engine is there."""
        async with self._opening:
            if self._state is _State.UNKNOWN:
                await self._kept.connect()
                self._state = _State.DIRECT
                if await self._left():
                    await self._begin()
            if self._state is _State.DIRECT and not await self._reached():
                await self._begin()

    async def take(self, queue: deque[DeliveryFuture]) -> None:
        """Do the next thing there is to do about these: keep them, or wait until they may go to the engine."""
        if self._state is _State.SPILLING:
            await self._keep(queue)
        elif self._state is _State.DRAINING:
            await self._drained.wait()
        else:
            await self.open()

    async def close(self) -> None:
        """Pass nothing on any more. What is kept stays."""
        if self._passing is not None:
            self._passing.cancel()
            await asyncio.wait([self._passing])
        await self._kept.close()
        self._state = _State.UNKNOWN

    async def _reached(self) -> bool:
        """Whether the engine is there, which it has a moment to show."""
        if self._sender.broker.connected:
            return self._is_there()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._sender.join(lambda: False)
        except AuthenticationError:
            raise
        except (ConnectError, TimeoutError):
            return False
        return True

    async def _begin(self) -> None:
        await self._kept.connect()
        await self._kept.declare([MESSAGES, REFUSED])
        self._state = _State.SPILLING
        self._passing = asyncio.create_task(self._pass_on_all(), name="headwater spill")
        _log.warning("%s is away: messages for it are kept in %s", self._sender.broker, self._kept)

    async def _keep(self, queue: deque[DeliveryFuture]) -> None:
        async with self._writing:
            deliveries = [queue.popleft() for _ in range(min(BURST, len(queue)))]
            ready = [(delivery, outgoing) for delivery in deliveries for outgoing in await self._prepared(delivery)]
            try:
                await self._kept.publish_many([Outgoing(_packed(outgoing), MESSAGES.name) for _, outgoing in ready])
            except Exception as error:
                for delivery in deliveries:
                    delivery.fail(error)
            else:
                for delivery in deliveries:
                    delivery.keep(Receipt(delivery.outgoing.topic, time=time.time()))

    async def _prepared(self, delivery: DeliveryFuture) -> Sequence[Outgoing]:
        """What is to be kept: the message, once the publish middleware has seen it."""
        if delivery.over:
            return ()
        delivery.sent = True
        if delivery.context is None:
            return (delivery.outgoing,)
        try:
            work = self._sender.broker.prepare([delivery.outgoing])
            return await asyncio.get_running_loop().create_task(work, context=delivery.context)
        except Exception as error:
            delivery.fail(error)
            return ()

    # --- passing on -----------------------------------------------------------------------------------

    async def _pass_on_all(self) -> None:
        try:
            while self._state is not _State.DIRECT and await self._sender.join(lambda: True):
                if self._is_there():
                    await self._pass_on()
                else:
                    await asyncio.sleep(LOOK_AGAIN)
        except Exception as error:
            _log.error("%s: what is kept in %s cannot be passed on: %s", self._sender.broker, self._kept, error)
        finally:
            self._passing = None
            if self._state is not _State.DIRECT:  # who comes next looks again
                self._set(_State.UNKNOWN)

    async def _pass_on(self) -> None:
        """Until nothing is left, or the engine goes away again."""
        async with self._kept.engine.subscribe(SOURCE, self._on_change) as place:
            while self._is_there():
                if messages := await place.receive(BURST, LOOK_AGAIN):
                    async with self._sending:
                        await self._deliver(place, messages)
                await self._look()
                if self._state is _State.DIRECT:
                    return
        self._set(_State.SPILLING)

    async def _look(self) -> None:
        """Decide by what is left whether messages are still to be kept."""
        loop = asyncio.get_running_loop()
        if self._state is _State.SPILLING and await self._left() <= BURST:
            self._set(_State.DRAINING)
            self._drain_until = loop.time() + DRAIN
        if self._state is not _State.DRAINING:
            return
        async with self._writing:  # what was being written is counted
            left = await self._left()
        if not left:
            await self._kept.admin.topics.purge(MESSAGES.name, before={0: self._passed_on})
            _log.info("%s is back, and has all that was kept in %s", self._sender.broker, self._kept)
            self._set(_State.DIRECT)
        elif loop.time() > self._drain_until:  # another process keeps on writing: nobody waits for ever
            self._set(_State.SPILLING)

    def _set(self, state: _State) -> None:
        self._state = state
        if state is _State.DRAINING:
            self._drained.clear()
        else:
            self._drained.set()

    async def _deliver(self, place: Subscription, messages: Sequence[Message]) -> None:
        while messages and self._is_there() and (outbox := self._sender.broker.outbox) is not None:
            sent = [outbox.publish(_unpacked(message.body), PASS_ON) for message in messages]
            results = await asyncio.gather(*sent, return_exceptions=True)
            again = [message for message, result in zip(messages, results, strict=True) if isinstance(result, _AGAIN)]
            for message, result in zip(messages, results, strict=True):
                if isinstance(result, BaseException) and not isinstance(result, _AGAIN):
                    await self._put_aside(message, result)
            await place.ack([message for message in messages if message not in again])
            messages = again
            if messages:
                await asyncio.sleep(LOOK_AGAIN)

    async def _put_aside(self, message: Message, error: BaseException) -> None:
        _log.error(
            "%s refused a message that was kept for it, %s; it is in the topic %r of %s",
            self._sender.broker,
            error,
            REFUSED.name,
            self._kept,
        )
        await self._kept.publish(message.body, REFUSED.name, headers={REASON: str(error)})

    async def _on_change(self, change: Change) -> None:
        if isinstance(change, Revoked):  # what is on its way is confirmed before somebody else goes on
            async with self._sending:
                pass

    async def _left(self) -> int:
        """How many messages are kept."""
        admin = self._kept.admin
        try:
            (info,) = await admin.partitions.list(MESSAGES.name)
        except (StoreNotFoundError, TopicNotFoundError):
            return 0
        self._passed_on = info.latest
        try:
            lag = await admin.groups.lag(str(SOURCE.group), MESSAGES.name)
        except GroupNotFoundError:
            return info.messages
        return lag.total


def _packed(outgoing: Outgoing) -> bytes:
    due = None if outgoing.delay is None else time.time() + outgoing.delay
    headers = outgoing.headers
    pairs = headers.pairs if isinstance(headers, Headers) else Headers(headers).pairs
    return _write(_Kept(outgoing.topic, outgoing.key_bytes, pairs, outgoing.body, outgoing.partition, due))


def _unpacked(body: bytes) -> Outgoing:
    kept = _read(body)
    delay = None if kept.due is None else max(0.0, kept.due - time.time())
    return Outgoing(None, kept.topic, kept.key, Headers(kept.headers), kept.partition, delay, body=kept.body)
