"""Core NATS: subjects without memory. A message reaches who listens at that moment, at most once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final

from ...clock import SYSTEM_CLOCK, Clock
from ...engine import Ack, Capabilities, DeclareMode, OnChange, Source, Subscription, Topic
from ...errors import DeliveryUnknownError, HeadwaterError, NotSupportedError
from ...message import CORRELATION, REPLY_TO, Headers, Outgoing, Receipt
from . import subjects
from .connection import ANSWER_WITHIN, FULL, Connection
from .listening import Listener
from .options import Settings
from .sending import Outcome, all_or_error, check_size, prepared
from .wire import block_of, publication

if TYPE_CHECKING:
    from .client import Client

CAPABILITIES: Final = Capabilities(ack=Ack.NONE, headers=True, patterns=True, groups=True)


class CoreEngine:
    """A connection to NATS that publishes to whoever listens."""

    name = "nats"
    clock: Clock = SYSTEM_CLOCK
    admin = None

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connection = Connection(settings)

    @property
    def available(self) -> bool:
        return self.connection.client is not None

    def capabilities(self, source: Source) -> Capabilities:
        return CAPABILITIES

    def check_topic(self, name: str) -> None:
        subjects.check(name)

    def reply_topic(self, mark: str) -> str:
        return f"{subjects.INBOX}hw.{mark}"

    async def connect(self) -> None:
        await self.connection.open()

    async def close(self) -> None:
        await self.connection.close()

    async def check(self) -> None:
        await self.connection.flush(ANSWER_WITHIN)

    async def declare(self, topics: Sequence[Topic], mode: DeclareMode) -> None:
        for topic in topics:  # they need no making
            if topic.partitions not in (None, 1):
                raise NotSupportedError(
                    "nats", f"{topic.partitions} partitions of {topic.name!r}", "a subject has none"
                )

    def send(self, messages: Sequence[Outgoing]) -> Awaitable[Sequence[Receipt]]:
        """Accepted is what the server has read; whether somebody listens nobody knows."""
        commands = prepared(messages, self._command)
        connection = self.connection
        client = connection.client
        if client is None or connection.order.locked() or client.backlog > FULL:
            return self._send_later(messages, commands)
        return self._accepted(messages, commands, _written(client, commands))

    async def _send_later(
        self, messages: Sequence[Outgoing], commands: Sequence[bytes | HeadwaterError]
    ) -> Sequence[Receipt]:
        async with self.connection.order:
            while (client := await self.connection.ready()).backlog > FULL:
                await client.drained()
            taken = _written(client, commands)
        return await self._accepted(messages, commands, taken)

    async def _accepted(
        self,
        messages: Sequence[Outgoing],
        commands: Sequence[bytes | HeadwaterError],
        taken: asyncio.Future[bool],
    ) -> Sequence[Receipt]:
        began, lost = self.clock.time(), False
        try:
            await taken
        except ConnectionResetError:
            lost = True
        now = self.clock.time()
        outcomes: list[Outcome] = []
        for outgoing, command in zip(messages, commands, strict=True):
            if isinstance(command, HeadwaterError):
                outcomes.append(command)
            elif lost:
                outcomes.append(DeliveryUnknownError(outgoing.topic, round(now - began, 3)))
            else:
                outcomes.append(Receipt(outgoing.topic, None, None, now))
        return all_or_error(outcomes)

    def _command(self, outgoing: Outgoing) -> bytes:
        """Raises what the server would refuse, or cannot do."""
        if outgoing.delay:
            raise NotSupportedError("nats", "delay=", "core NATS keeps nothing: use JetStream, nats://")
        if outgoing.partition:
            raise NotSupportedError("nats", f"partition={outgoing.partition}", "a subject has none")
        subjects.check(outgoing.topic)
        block = block_of(outgoing)
        check_size(outgoing, block, self.connection.max_payload)
        return publication(outgoing.topic.encode(), _answer_to(outgoing), block, outgoing.body)

    def subscribe(self, source: Source, on_change: OnChange) -> AbstractAsyncContextManager[Subscription]:
        if source.partitions not in (None, (0,)):
            raise NotSupportedError("nats", f"partitions={source.partitions}", "a subject has none")
        return Listener(self.connection, source).taken()


def _written(client: Client, commands: Sequence[bytes | HeadwaterError]) -> asyncio.Future[bool]:
    """What can be sent is; done once the server has taken it."""
    return client.ping(b"".join([command for command in commands if isinstance(command, bytes)]))


def _answer_to(outgoing: Outgoing) -> bytes:
    """Where whoever takes a request answers, also one that knows nothing of our headers: a subject for it alone."""
    headers = outgoing.headers
    assert isinstance(headers, Headers)  # it is ready to travel
    inbox = headers.get_bytes(REPLY_TO) if headers.control else None
    if inbox is None or not inbox.startswith(subjects.INBOX.encode()):
        return b""
    return b"%b.%b" % (inbox, headers.get_bytes(CORRELATION) or b"0")
