"""Publishing: messages as frames on one channel, confirmed by the server in whatever order it likes."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final

import aiormq
import msgspec
import pamqp.frame
from pamqp.commands import Basic

from ...errors import (
    HeadwaterError,
    MessageTooLargeError,
    NotSupportedError,
    PublishError,
    RefusedError,
    TopicNotFoundError,
)
from ...message import Headers, Outgoing, Receipt
from .channel import DirectChannel, open_channel
from .delays import Ladder, entries, levels_of, rung
from .link import LOST, Link, described, is_passing, leave_channel
from .names import QUEUE_PREFIX, check_topic
from .options import DEFAULT, Rabbit, rabbit_of
from .wire import GENERATED, body_frames, head_frame, written

if TYPE_CHECKING:
    from .topology import Topology

AGAIN: Final = 0.05  # seconds before a connection is asked for again that was lost just now

_TOO_LARGE: Final = re.compile(r"message size \d+ .*?(\d+)$")
_NAMED: Final = re.compile(r"exchange '(.*?)'")
_TRANSIENT: Final = Rabbit(persistent=False)  # an answer is worth nothing to who asks after a restart


class Target(msgspec.Struct, frozen=True):
    """Where a message goes."""

    exchange: str
    key: str
    options: Rabbit


class Batch:
    """The messages of one send, and what became of each."""

    def __init__(self, messages: Sequence[Outgoing]) -> None:
        self.messages = messages
        self.ids = [""] * len(messages)
        self.errors: list[HeadwaterError | None] = [None] * len(messages)
        self.unsent = list(range(len(messages)))  # indexes: at first all of them, later those to be sent again
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unanswered = 0

    def begin(self) -> list[int]:
        """What is sent now."""
        indexes, self.unsent = self.unsent, []
        self._unanswered = len(indexes)
        self.answered = asyncio.get_running_loop().create_future()
        return indexes

    def answer(self) -> None:
        """It is known of one more what becomes of it."""
        self._unanswered -= 1
        if not self._unanswered and not self.answered.done():
            self.answered.set_result(None)

    def receipts(self, now: float) -> list[Receipt]:
        """Raises PublishError if some were refused."""
        receipts = [Receipt(one.topic, None, id_, now) for one, id_ in zip(self.messages, self.ids, strict=True)]
        if any(self.errors):
            accepted = [None if error else receipt for receipt, error in zip(receipts, self.errors, strict=True)]
            raise PublishError(accepted, self.errors)
        return receipts


Pending = tuple[Batch, int, str]  # the index in the batch, and the exchange


class Outlet:
    """One channel to publish on, and what the server has not confirmed on it."""

    def __init__(self) -> None:
        self.channel: DirectChannel
        self._tags = itertools.count(1)
        self._pending: dict[int, Pending] = {}

    async def open(self, connection: aiormq.Connection) -> None:
        self.channel = await open_channel(connection, on_confirmed=self._confirmed, on_returned=self._returned)

    def note(self, batch: Batch, index: int, exchange: str) -> None:
        """This one is sent next."""
        self._pending[next(self._tags)] = batch, index, exchange

    def give_up(self) -> Iterator[Pending]:
        """What nobody confirms any more, in order."""
        while self._pending:
            yield self._pending.pop(next(iter(self._pending)))

    def _confirmed(self, tag: int, multiple: bool, accepted: bool) -> None:
        pending = self._pending
        tags = list(itertools.takewhile(lambda one: one <= tag, pending)) if multiple else [tag]
        for one in tags:
            batch, index, _ = pending.pop(one)
            if not accepted:
                reason = "basic.nack: a queue that would get it takes no more"
                batch.errors[index] = RefusedError(batch.messages[index].topic, reason)
            batch.answer()

    def _returned(self, frame: Basic.Return, properties: Basic.Properties) -> None:
        """No queue takes this one; its confirmation follows."""
        for batch, index, _ in self._pending.values():
            if batch.ids[index] == properties.message_id and batch.errors[index] is None:
                hint = f"no queue takes what is published to it as {frame.routing_key!r} ({frame.reply_text})"
                batch.errors[index] = TopicNotFoundError(batch.messages[index].topic, hint)
                return


class Sender:
    """Publishes on an outlet, on another one when that is lost.

    What was not confirmed on an outlet that was lost is published again, so it may arrive twice.
    """

    def __init__(self, link: Link, topology: Topology) -> None:
        self._link = link
        self._topology = topology
        self._ladder = Ladder()
        self._targets: dict[str, Target] = {}
        self._outlet: Outlet | None = None
        self._opening = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._mark = f"{GENERATED}{os.urandom(6).hex()}-"
        self._numbers = itertools.count(1)
        self._limit: int | None = None  # bytes of a body that the server takes, once it said so

    async def close(self) -> None:
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            await leave_channel(outlet.channel)

    async def send(self, messages: Sequence[Outgoing]) -> Sequence[Receipt]:
        """As `Engine.send`."""
        batch, now = Batch(messages), time.time()
        targets = [self._target(outgoing) for outgoing in messages]
        while batch.unsent:
            try:
                outlet = await self._open_outlet()
                await self._prepare(batch, targets)
            except LOST:  # just now: the link will notice, too
                await asyncio.sleep(AGAIN)
                continue
            async with self._writing:
                await outlet.channel.room()  # what comes now cannot be cancelled: tags and messages stay in step
                if outlet.channel.is_closed or not batch.unsent:
                    continue
                self._post(outlet, batch, targets, now)
            await batch.answered
        return batch.receipts(now)

    # --- where to -------------------------------------------------------------------------------------

    def forget_targets(self) -> None:
        """Topics were declared: their options may say where they are."""
        self._targets.clear()

    def _target(self, outgoing: Outgoing) -> Target:
        if outgoing.options:
            return self._find(outgoing.topic, rabbit_of(outgoing.options))
        target = self._targets.get(outgoing.topic)
        if target is None:
            target = self._targets[outgoing.topic] = self._find(outgoing.topic, DEFAULT)
        return target

    def _find(self, topic: str, given: Rabbit) -> Target:
        if topic.startswith(QUEUE_PREFIX):
            return Target("", topic[len(QUEUE_PREFIX) :], _TRANSIENT)
        options = self._topology.options(topic, given)
        return Target(self._topology.exchange_of(topic, options), options.routing_key or topic, options)

    async def _prepare(self, batch: Batch, targets: Sequence[Target]) -> None:
        """Have the exchanges that the messages go through; refuse what cannot be published."""
        knows = self._topology.knows
        for index in batch.unsent:
            outgoing, target = batch.messages[index], targets[index]
            if knows(target.exchange) and not outgoing.delay and not outgoing.partition and self._limit is None:
                continue
            try:
                await self._check(outgoing, target)
            except HeadwaterError as error:
                batch.errors[index] = error
            except aiormq.AMQPChannelError as error:
                if is_passing(error):
                    raise
                batch.errors[index] = RefusedError(outgoing.topic, described(error))
        if any(batch.errors):
            batch.unsent = [index for index in batch.unsent if batch.errors[index] is None]

    async def _check(self, outgoing: Outgoing, target: Target) -> None:
        if outgoing.partition:
            raise NotSupportedError("rabbit", f"partition={outgoing.partition}", "a topic has none")
        if self._limit is not None and len(outgoing.body) > self._limit:
            raise MessageTooLargeError(outgoing.topic, len(outgoing.body), self._limit)
        if not self._topology.knows(target.exchange):
            check_topic(outgoing.topic)
            await self._topology.make_topic(self._link, outgoing.topic, target.options)
        if outgoing.delay:
            await self._ladder.build(self._link, levels_of(outgoing.delay), target.exchange)

    # --- on the wire ----------------------------------------------------------------------------------

    def _post(self, outlet: Outlet, batch: Batch, targets: Sequence[Target], now: float) -> None:
        frames = list[bytes]()
        for index in batch.begin():
            try:
                frames += self._frames(outlet.channel, batch, index, targets[index], now)
            except MessageTooLargeError as error:
                batch.errors[index] = error
                batch.answer()
            else:
                outlet.note(batch, index, targets[index].exchange)
        if frames:
            outlet.channel.post(b"".join(frames))

    def _frames(self, channel: DirectChannel, batch: Batch, index: int, target: Target, now: float) -> list[bytes]:
        outgoing, options = batch.messages[index], target.options
        number, largest = channel.number, channel.connection.connection_tune.frame_max
        exchange, more = target.exchange, b""
        headers = outgoing.headers if isinstance(outgoing.headers, Headers) else Headers(outgoing.headers)
        chosen = written(headers).chosen_id
        message_id = chosen or f"{self._mark}{next(self._numbers):x}".encode()
        if outgoing.delay:
            levels = levels_of(outgoing.delay)
            exchange, more = rung(levels[0]), entries(levels, exchange)
        head = head_frame(
            number,
            len(outgoing.body),
            headers,
            outgoing.key_bytes,
            message_id,
            now,
            more=more,
            persistent=options.persistent,
            priority=options.priority,
            expiration=options.expiration,
        )
        if len(head) > largest:  # it must be one frame
            raise MessageTooLargeError(outgoing.topic, len(head), largest)
        batch.ids[index] = message_id.decode()
        method = _publish_frame(number, exchange, target.key, options.mandatory and not outgoing.delay)
        return [method, head, *body_frames(number, outgoing.body, largest)]

    # --- outlets come and go --------------------------------------------------------------------------

    async def _open_outlet(self) -> Outlet:
        outlet = self._outlet
        if outlet is not None and not outlet.channel.is_closed:
            return outlet
        async with self._opening:
            if self._outlet is None or self._outlet.channel.is_closed:
                outlet = Outlet()
                await outlet.open(await self._link.connection())
                outlet.channel.closing.add_done_callback(partial(self._lost, outlet))
                self._outlet = outlet
            return self._outlet

    def _lost(self, outlet: Outlet, closing: asyncio.Future[None]) -> None:
        """What was not confirmed is sent again, but what the server closed the channel for."""
        error = None if closing.cancelled() else closing.exception()
        self._topology.forget()
        self._ladder.forget()
        text = described(error) if isinstance(error, aiormq.AMQPChannelError) else ""
        limit = _TOO_LARGE.search(text)
        if limit is not None:
            self._limit = int(limit[1])
        forgiven = not text or limit is not None or isinstance(error, aiormq.ChannelNotFoundEntity)
        named = _NAMED.search(text)
        for batch, index, exchange in outlet.give_up():
            if forgiven or (named is not None and named[1] != exchange):
                batch.unsent.append(index)
            else:
                batch.errors[index] = RefusedError(batch.messages[index].topic, text)
            batch.answer()


@lru_cache(maxsize=4096)
def _publish_frame(channel: int, exchange: str, key: str, mandatory: bool) -> bytes:
    frame = Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
    return pamqp.frame.marshal(frame, channel)
