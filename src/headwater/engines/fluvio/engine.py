"""The engine over Fluvio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Final

from ...clock import SYSTEM_CLOCK, Clock
from ...engine import Ack, Capabilities, DeclareMode, OnChange, Source, Subscription, Topic, option_of
from ...errors import MissingExtraError, NotConnectedError, TopicNotFoundError
from ...message import Outgoing, Receipt
from ...topics import REPLIES
from . import names
from .administration import FluvioAdmin, topic_settings
from .cluster import Cluster
from .options import NOTHING, Fluvio
from .settings import Settings

if TYPE_CHECKING:
    from .consuming import FluvioSubscription
    from .sending import Sender

_WITHOUT_GROUP: Final = Capabilities(
    headers=True, keys=True, partitions=True, groups=True, exclusive=True, replay=True, durable=True
)
_WITH_GROUP: Final = Capabilities(
    ack=Ack.UP_TO,
    headers=True,
    keys=True,
    partitions=True,
    groups=True,
    exclusive=True,
    replay=True,
    durable=True,
)


class FluvioEngine:
    """A Fluvio cluster, spoken to in its own protocol."""

    name = "fluvio"

    def __init__(self, settings: Settings, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.settings = settings
        self.clock = clock
        self.admin = FluvioAdmin(self)
        self._cluster: Cluster | None = None
        self._sender: Sender | None = None
        self._subscriptions = set["FluvioSubscription"]()
        self._connecting = asyncio.Lock()

    @property
    def available(self) -> bool:
        """Whether the controller and the SPUs that were spoken to could be reached when they were last heard of."""
        return self._cluster is not None and self._cluster.available

    @property
    def cluster(self) -> Cluster:
        """What is asked. Raises NotConnectedError."""
        if self._cluster is None:
            raise NotConnectedError(f"Fluvio at {self.settings.address}")
        return self._cluster

    def capabilities(self, source: Source) -> Capabilities:
        """The same for every source with a group; without one nothing is kept."""
        return _WITHOUT_GROUP if source.group is None else _WITH_GROUP

    def check_topic(self, name: str) -> None:
        """Lower case letters, digits, single hyphens and dots: up to 63 characters, where a dot counts for two."""
        names.native(name)

    def reply_topic(self, mark: str) -> str:
        return REPLIES  # a topic for each requester would be a burden to the cluster

    # --- connection -----------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Reach the cluster. Raises ConnectError, AuthenticationError, MissingExtraError. Idempotent."""
        async with self._connecting:
            if self._cluster is not None:
                return
            try:
                from .sending import Sender
            except ModuleNotFoundError as error:
                raise MissingExtraError("google-crc32c", "fluvio") from error
            cluster = Cluster(self.settings)
            sender = Sender(self.settings, cluster)
            await cluster.open()
            self._cluster, self._sender = cluster, sender

    async def close(self) -> None:
        """Leave all groups and give up what was not delivered. Idempotent."""
        for subscription in list(self._subscriptions):
            await subscription.leave()
        sender, self._sender = self._sender, None
        cluster, self._cluster = self._cluster, None
        if sender is not None:
            await sender.close()
        if cluster is not None:
            await cluster.close()
        await asyncio.sleep(0)  # what was aborted is closed in the loop's next turn

    async def check(self) -> None:
        """Raise ConnectError unless the cluster answers and can keep something."""
        await self.cluster.check()

    # --- topics and messages --------------------------------------------------------------------------

    async def declare(self, topics: Sequence[Topic], mode: DeclareMode) -> None:
        if mode == "off":
            return
        there = {state.name for state in await self.cluster.topics()}
        for topic in topics:
            native = names.native(topic.name)
            if native in there:
                continue
            if mode == "check":
                raise TopicNotFoundError(topic.name)
            own = option_of(topic.options, Fluvio) or NOTHING
            wanted = topic_settings(self.settings, topic.partitions, topic.retention, topic.retention_bytes, own)
            await self.cluster.create(native, wanted)

    def send(self, messages: Sequence[Outgoing]) -> Awaitable[Sequence[Receipt]]:
        """Have these accepted by all SPUs that must; each alone may be refused."""
        if self._sender is None:
            raise NotConnectedError(f"Fluvio at {self.settings.address}")
        return self._sender.send(messages)

    def subscribe(self, source: Source, on_change: OnChange) -> AbstractAsyncContextManager[Subscription]:
        return self._subscribe(source, on_change)

    @asynccontextmanager
    async def _subscribe(self, source: Source, on_change: OnChange) -> AsyncIterator[Subscription]:
        from .consuming import FluvioSubscription

        subscription = FluvioSubscription(source, self, on_change)
        self._subscriptions.add(subscription)
        try:
            await subscription.join()
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            await subscription.leave()
