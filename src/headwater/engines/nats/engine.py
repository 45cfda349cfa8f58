"""JetStream: topics are subjects that streams keep, groups are durable consumers."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import msgspec

from ...clock import SYSTEM_CLOCK, Clock
from ...engine import Ack, Capabilities, DeclareMode, OnChange, Source, Subscription, Topic
from ...errors import ConnectError, NotSupportedError
from ...message import Outgoing, Receipt
from ...topics import RETRY_SUFFIX
from . import subjects
from .administration import JetStreamAdmin
from .api import NO_JETSTREAM, Api, JetStreamError, NoAnswerError
from .connection import ANSWER_WITHIN, Connection
from .listening import Listener
from .options import Nats, Settings
from .place import Place
from .sending import Sender
from .streams import Streams

_PINNED_SINCE: Final = (2, 11)

_READER: Final = Capabilities(headers=True, patterns=True, groups=True, replay=True, durable=True)
_GROUP: Final = msgspec.structs.replace(
    _READER,
    ack=Ack.EACH,
    counts_deliveries=True,
    counts_unbegun=True,
    nack=True,
    delayed_nack=True,
    reject=True,
    exclusive=True,
)


class JetStreamEngine:
    """A connection to NATS, what is published to its streams and read from them."""

    name = "nats"
    clock: Clock = SYSTEM_CLOCK

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connection = Connection(settings)
        self.api = Api(self.connection, settings.domain)
        self.streams = Streams(self.api, self.connection, settings)
        self.admin = JetStreamAdmin(self)
        self._sender = Sender(self.connection, self.streams, settings, self.clock)

    @property
    def available(self) -> bool:
        return self.connection.client is not None

    def capabilities(self, source: Source) -> Capabilities:
        delayed = self.streams.can_schedule
        if source.group is None:
            return msgspec.structs.replace(_READER, delayed_send=delayed)
        return msgspec.structs.replace(_GROUP, lease=self.lease(source), delayed_send=delayed)

    def lease(self, source: Source) -> float:
        """Seconds until an unsettled message is given to somebody else."""
        option = source.option(Nats)
        return self.settings.lease if option is None or option.lease is None else option.lease

    def check_topic(self, name: str) -> None:
        subjects.check(name)

    def reply_topic(self, mark: str) -> str:
        return f"{subjects.INBOX}hw.{mark}"

    async def connect(self) -> None:
        await self.connection.open()
        try:
            await self.api.ask("INFO", within=ANSWER_WITHIN)
        except (NoAnswerError, JetStreamError) as error:
            if isinstance(error, JetStreamError) and error.code not in NO_JETSTREAM:
                return  # it is there, and electing a leader
            await self.connection.close()
            hint = "JetStream does not answer: it is enabled by nats-server -js, and nats+core:// does without"
            said = error.reason
            raise ConnectError(f"nats://{self.settings.address}", f"{hint} ({said})") from error

    async def close(self) -> None:
        await self.connection.close()

    async def check(self) -> None:
        await self.api.ask("INFO", within=ANSWER_WITHIN)

    async def declare(self, topics: Sequence[Topic], mode: DeclareMode) -> None:
        for topic in topics:
            if topic.partitions not in (None, 1):
                raise NotSupportedError("nats", f"{topic.partitions} partitions of {topic.name!r}", "a stream has one")
            if mode == "create":
                await self.streams.ensure(topic)
                if topic.name.endswith(RETRY_SUFFIX) and self.streams.can_schedule:
                    await self.streams.check_schedules(topic.name)  # without, messages would be held up for ever
            elif mode == "check":
                self.streams.forget(topic.name)
                await self.streams.of(topic.name)

    def send(self, messages: Sequence[Outgoing]) -> Awaitable[Sequence[Receipt]]:
        return self._sender.send(messages)

    def subscribe(self, source: Source, on_change: OnChange) -> AbstractAsyncContextManager[Subscription]:
        if source.partitions not in (None, (0,)):
            raise NotSupportedError("nats", f"partitions={source.partitions}", "a stream has one, 0")
        if source.exclusive and self.connection.version < _PINNED_SINCE:
            raise NotSupportedError("nats", "exclusive", "it needs a server of version 2.11")
        if all(topic.startswith(subjects.INBOX) for topic in source.topics):
            return Listener(self.connection, source).taken()
        return Place(self, source).taken()
