"""The RabbitMQ engine: what it can do, and the server it does it with."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final

import msgspec

from ...clock import SYSTEM_CLOCK, Clock
from ...engine import Ack, Capabilities, DeclareMode, OnChange, Source, Subscription, Topic
from ...errors import MissingExtraError, NotConnectedError, NotSupportedError
from ...message import Outgoing, Receipt
from ...topics import is_pattern
from . import names
from .address import Address
from .administration import RabbitAdmin
from .management import ManagementApi
from .options import QueueType, rabbit_of

if TYPE_CHECKING:
    from .server import Server

_QUEUE: Final = Capabilities(
    ack=Ack.EACH,
    nack=True,
    reject=True,
    delayed_send=True,
    headers=True,
    patterns=True,
    groups=True,
    exclusive=True,
    durable=True,
)
_QUORUM: Final = msgspec.structs.replace(_QUEUE, counts_deliveries=True, counts_unbegun=True)
_READER: Final = Capabilities(delayed_send=True, headers=True, patterns=True, groups=True, durable=True)
_REPLAYED: Final = msgspec.structs.replace(_READER, replay=True)


class RabbitEngine:
    """RabbitMQ 3.10 or later."""

    name = "rabbit"
    clock: Clock = SYSTEM_CLOCK

    def __init__(
        self,
        address: Address,
        *,
        heartbeat: int = 10,
        queue_type: QueueType = "quorum",
        auto_create: bool = True,
        management: str | None = None,
        client: str = "headwater",
        ca: str | None = None,
        cert: str | None = None,
        key: str | None = None,
        verify: bool = True,
    ) -> None:
        """
        Args:
            address: where the servers are and who asks.
            heartbeat: seconds between the signs of life on a quiet connection; one without two of them is dropped.
            queue_type: of the queues that are made for groups.
            auto_create: whether exchanges that are missing are made.
            management: where its HTTP API is, such as "http://localhost:15672"; administration needs it.
            client: what the connections are called on the server.
            ca: file with the certificates to trust, instead of the system's.
            cert: file with the client's certificate.
            key: file with its key.
            verify: False trusts any server.
        """
        self._address = address
        self._heartbeat = heartbeat
        self._queue_type = queue_type
        self._auto_create = auto_create
        self._client = client
        self._tls = (ca, cert, key, verify)
        api = None if management is None else ManagementApi(management, address.vhost, address.user, address.password)
        self.admin = RabbitAdmin(self._connected, api)
        self._server: Server | None = None
        self._connecting = asyncio.Lock()

    # --- connecting -----------------------------------------------------------------------------------

    @property
    def available(self) -> bool:
        return self._server is not None and self._server.available

    async def connect(self) -> None:
        async with self._connecting:
            if self._server is not None:
                return
            try:
                from .server import Server
            except ImportError as error:
                raise MissingExtraError("aio-pika", "rabbit") from error
            server = Server(
                self._address,
                heartbeat=self._heartbeat,
                context=await asyncio.to_thread(_context, *self._tls) if self._address.tls else None,
                client=self._client,
                queue_type=self._queue_type,
                auto_create=self._auto_create,
            )
            await server.open()
            self._server = server

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.close()

    async def check(self) -> None:
        await self._connected().check()

    def _connected(self) -> Server:
        if self._server is None:
            raise NotConnectedError(self.name)
        return self._server

    # --- what it can do -------------------------------------------------------------------------------

    def capabilities(self, source: Source) -> Capabilities:
        if source.group is None:
            return _REPLAYED if self._is_kept(source) else _READER
        kind = rabbit_of(source.options).queue_type or self._queue_type
        return _QUEUE if kind == "classic" else _QUORUM

    def _is_kept(self, source: Source) -> bool:
        kind = rabbit_of(source.options).queue_type or self._queue_type
        return all(not is_pattern(topic) and names.keeps(topic, kind) for topic in source.topics)

    def check_topic(self, name: str) -> None:
        names.check_topic(name)

    def reply_topic(self, mark: str) -> str:
        return f"{names.QUEUE_PREFIX}{names.REPLY_QUEUE}{mark}"

    # --- doing it -------------------------------------------------------------------------------------

    async def declare(self, topics: Sequence[Topic], mode: DeclareMode) -> None:
        await self._connected().declare(topics, mode)

    async def send(self, messages: Sequence[Outgoing]) -> Sequence[Receipt]:
        return await self._connected().sender.send(messages)

    def subscribe(self, source: Source, on_change: OnChange) -> AbstractAsyncContextManager[Subscription]:
        if source.partitions not in (None, (0,)):
            raise NotSupportedError(self.name, f"partitions={source.partitions}", "a topic has none")
        new_group_gets_what_comes = source.group is not None and source.start == "earliest"  # as `get` asks for
        if source.start != "latest" and not new_group_gets_what_comes and not self.capabilities(source).replay:
            hint = 'a queue keeps nothing from before it was made: give options=[Rabbit(queue_type="stream")]'
            raise NotSupportedError(self.name, f"start={source.start!r}", hint)
        return self._connected().subscribe(source)


def _context(ca: str | None, cert: str | None, key: str | None, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    if cert is not None:
        context.load_cert_chain(cert, key)
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
