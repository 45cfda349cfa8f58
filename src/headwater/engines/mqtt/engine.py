"""The MQTT engine: one connection to publish, one for each subscription."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import ExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, cast

import msgspec

from ...admin import EngineAdmin
from ...clock import SYSTEM_CLOCK, Clock
from ...engine import Ack, Capabilities, DeclareMode, OnChange, Source, Topic
from ...errors import ConfigurationError, ConnectError, MissingExtraError, NotConnectedError, NotSupportedError
from ...message import Outgoing, Receipt
from .administration import MqttAdmin
from .identity import lasting_id, passing_id
from .link import Link, Watch
from .names import Names
from .options import Hello, Mqtt, Settings

if TYPE_CHECKING:
    from .sending import Sender
    from .subscription import MqttSubscription

MEANWHILE: Final = 300  # seconds for which the server keeps what comes for a reader that was cut off; 5.0 only

PATIENCE: Final = 10.0  # seconds for which a subscription waits for a server that is away


class MqttEngine:
    """Carries messages over MQTT servers."""

    name = "mqtt"
    clock: Clock = SYSTEM_CLOCK

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.admin = cast(EngineAdmin, MqttAdmin(self))  # `operations` says how much of it
        self._names = Names(settings.map_separators)
        self._watch = Watch(settings.url)
        self._publishing: tuple[Link, Sender] | None = None

    @property
    def available(self) -> bool:
        return self._publishing is not None and self._watch.well

    def capabilities(self, source: Source) -> Capabilities:
        options = source.option(Mqtt) or Mqtt()
        keeps = source.group is not None and (self.settings.qos if options.qos is None else options.qos) > 0
        return Capabilities(
            ack=Ack.UP_TO if keeps else Ack.NONE,
            headers=self.settings.five,
            patterns=True,
            groups=True,
            durable=keeps and self._session_expiry(options) > 0,
            redistributes=False,
        )

    def check_topic(self, name: str) -> None:
        self._names.checked(name)

    def reply_topic(self, mark: str) -> str:
        return self._names.replies(mark)

    def _session_expiry(self, options: Mqtt) -> float:
        return self.settings.session_expiry if options.session_expiry is None else options.session_expiry

    # --- lifecycle ------------------------------------------------------------------------------------

    async def connect(self) -> None:
        if self._publishing is not None:
            return
        if find_spec("paho") is None:
            raise MissingExtraError("paho-mqtt", "mqtt")
        from .sending import Sender

        settings, will = self.settings, self.settings.will
        if will is not None:
            will = msgspec.structs.replace(will, topic=self._names.out(will.topic))
        sender = Sender(settings, self._names)
        hello = Hello(client_id=passing_id(settings, "headwater"), clean=True, will=will)
        link = Link(settings, hello, sender, self._watch)
        await link.open()
        self._publishing = link, sender

    async def close(self) -> None:
        publishing, self._publishing = self._publishing, None
        if publishing is not None:
            await publishing[0].close()

    async def check(self) -> None:
        if self._publishing is None:
            raise NotConnectedError(self.name)
        connection = self._publishing[0].connection
        if connection is None:
            raise ConnectError(self.settings.url, "it is away, and being connected to again")
        await connection.ping()

    async def declare(self, topics: Sequence[Topic], mode: DeclareMode) -> None:
        """Every topic is there as soon as somebody names it; what else was wanted of one, MQTT has not."""
        for topic in topics:
            self.check_topic(topic.name)
            if mode == "create" and (topic.partitions or 1) > 1:
                raise NotSupportedError(self.name, f"partitions={topic.partitions} ({topic.name})")
            if mode == "create" and (topic.retention is not None or topic.retention_bytes is not None):
                hint = "it keeps messages for sessions only: see Mqtt(session_expiry=...)"
                raise NotSupportedError(self.name, f"retention ({topic.name})", hint)

    def send(self, messages: Sequence[Outgoing]) -> Sequence[Receipt] | Awaitable[Sequence[Receipt]]:
        if self._publishing is None:
            raise NotConnectedError(self.name)
        return self._publishing[1].send(messages)

    # --- subscribing ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def subscribe(self, source: Source, on_change: OnChange) -> AsyncIterator[MqttSubscription]:
        """Take a place. A member of a group leaves its session behind: what it did not settle waits there for it."""
        from .subscription import MqttSubscription  # with paho

        options = source.option(Mqtt) or Mqtt()
        self._check(source, options)
        keeps = self.capabilities(source).durable
        with ExitStack() as exits:
            if keeps:
                client_id = exits.enter_context(lasting_id(self.settings, source))
                hello = Hello(client_id=client_id, clean=False, expiry=self._session_expiry(options))
            else:
                meanwhile = MEANWHILE if self.settings.five else 0
                hello = Hello(client_id=passing_id(self.settings, source.client), clean=True, expiry=meanwhile)
            subscription = MqttSubscription(self.settings, self._names, source)
            link = Link(self.settings, hello, subscription, self._watch)
            await link.open(PATIENCE)
            try:
                yield subscription
            finally:
                await link.close(end_session=not keeps)

    def _check(self, source: Source, options: Mqtt) -> None:
        if source.start != "latest":
            hint = "it keeps nothing to start from; Mqtt(retained=True) begins with the retained messages"
            raise NotSupportedError(self.name, f"start={source.start!r}", hint)
        if source.partitions not in (None, (0,)):
            raise NotSupportedError(self.name, f"partitions={list(source.partitions or ())}", "its topics have none")
        if source.exclusive:
            raise NotSupportedError(self.name, "exclusive", "the members of a group always share")
        group = source.group
        if group is not None and (not group or any(mark in group for mark in "/+#\0")):
            raise ConfigurationError(f"the group {group!r}: on MQTT a group has a name without '/', '+' and '#'")
        if group is not None and options.retained:
            raise NotSupportedError(self.name, "retained messages for a group", "give the subscriber broadcast=True")
