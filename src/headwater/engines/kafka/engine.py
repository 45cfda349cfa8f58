"""The engine over Apache Kafka."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Final

from ...clock import SYSTEM_CLOCK, Clock
from ...engine import Ack, Capabilities, DeclareMode, OnChange, Source, Subscription, Topic
from ...errors import MissingExtraError, NotConnectedError, NotSupportedError, TopicNameError, TopicNotFoundError
from ...message import Outgoing, Receipt
from ...topics import REPLIES
from .administration import KafkaAdmin, topic_config
from .options import NOTHING, Kafka
from .settings import Settings

if TYPE_CHECKING:
    from .cluster import Cluster
    from .consuming import KafkaSubscription
    from .link import Link
    from .sending import Sender

_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")

_WITHOUT_GROUP: Final = Capabilities(
    headers=True, keys=True, partitions=True, patterns=True, groups=True, replay=True, durable=True
)
_WITH_GROUP: Final = Capabilities(
    ack=Ack.UP_TO,
    headers=True,
    keys=True,
    partitions=True,
    patterns=True,
    groups=True,
    replay=True,
    durable=True,
    atomic_commit=True,
)


class KafkaEngine:
    """A Kafka cluster, through `confluent-kafka`. Make one in the process that uses it: its client dies of a fork."""

    name = "kafka"

    def __init__(self, settings: Settings, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.settings = settings
        self.clock = clock
        self.admin = KafkaAdmin(self)
        self._cluster: Cluster | None = None
        self._sender: Sender | None = None
        self._link: Link | None = None
        self._subscriptions = set["KafkaSubscription"]()
        self._connecting = asyncio.Lock()

    @property
    def available(self) -> bool:
        """Whether the cluster answered when it was last asked, which is every second."""
        return self._link is not None and self._link.available

    @property
    def cluster(self) -> Cluster:
        """What questions are asked of. Raises NotConnectedError."""
        if self._cluster is None:
            raise NotConnectedError(f"Kafka at {self.settings.address}")
        return self._cluster

    @property
    def sender(self) -> Sender:
        """What publishes. Raises NotConnectedError."""
        if self._sender is None:
            raise NotConnectedError(f"Kafka at {self.settings.address}")
        return self._sender

    def capabilities(self, source: Source) -> Capabilities:
        """The same for every source with a group; without one nothing is kept."""
        return _WITHOUT_GROUP if source.group is None else _WITH_GROUP

    def check_topic(self, name: str) -> None:
        """Up to 249 of `a-z A-Z 0-9 . _ -`."""
        if not _NAME.fullmatch(name) or name in (".", ".."):
            raise TopicNameError(name, "a name in Kafka has up to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-'")

    def reply_topic(self, mark: str) -> str:
        return REPLIES  # a topic for each requester would be a burden to the cluster

    # Connection

    async def connect(self) -> None:
        """Reach the cluster. Raises ConnectError, AuthenticationError, MissingExtraError. Idempotent."""
        async with self._connecting:
            if self._link is not None:
                return
            try:
                from .cluster import Cluster
                from .link import Link
                from .sending import Sender
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] != "confluent_kafka":
                    raise
                raise MissingExtraError("confluent-kafka", "kafka") from error
            cluster, link = Cluster(self.settings), Link(self.settings.address)
            sender = Sender(self.settings, cluster, link.troubled)
            try:
                await link.reach(sender.greet)
            except BaseException:
                await sender.close()
                raise
            self._cluster, self._sender, self._link = cluster, sender, link

    async def close(self) -> None:
        """Leave all groups and give up what was not delivered. Idempotent."""
        for subscription in list(self._subscriptions):
            await subscription.leave()
        link, self._link = self._link, None
        sender, self._sender = self._sender, None
        self._cluster = None
        if link is not None:
            await link.close()
        if sender is not None:
            await sender.close()

    async def check(self) -> None:
        """Raise ConnectError unless the cluster answers."""
        if self._link is None:
            raise NotConnectedError(f"Kafka at {self.settings.address}")
        await self._link.ask()

    # Topics and messages

    async def declare(self, topics: Sequence[Topic], mode: DeclareMode) -> None:
        if mode == "off":
            return
        there = await self.cluster.partitions([topic.name for topic in topics])
        for topic in topics:
            if topic.name in there:
                continue
            if mode == "check":
                raise TopicNotFoundError(topic.name)
            own = next((option for option in topic.options if isinstance(option, Kafka)), NOTHING)
            config = topic_config(topic.retention, topic.retention_bytes, own)
            await self.cluster.create(topic.name, topic.partitions, own.replication, config)

    def send(self, messages: Sequence[Outgoing]) -> Awaitable[Sequence[Receipt]]:
        """Have these accepted by all brokers that must; each alone may be refused."""
        for outgoing in messages:
            if outgoing.delay:
                raise NotSupportedError(self.name, "delay=", "it keeps no message back")
        return self.sender.send(messages)

    def subscribe(self, source: Source, on_change: OnChange) -> AbstractAsyncContextManager[Subscription]:
        return self._subscribe(source, on_change)

    @asynccontextmanager
    async def _subscribe(self, source: Source, on_change: OnChange) -> AsyncIterator[Subscription]:
        from .consuming import KafkaSubscription

        subscription = KafkaSubscription(source, self, on_change)
        self._subscriptions.add(subscription)
        try:
            await subscription.join()
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            await subscription.leave()
