"""The Redis engine: connects, declares, sends, and gives places in streams and channels."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final, cast

import msgspec

from ...admin import EngineAdmin
from ...clock import SYSTEM_CLOCK, Clock
from ...engine import Ack, Capabilities, DeclareMode, OnChange, Source, Subscription, Topic, option_of
from ...errors import ConnectError, NotConnectedError, NotSupportedError, TopicNameError, TopicNotFoundError
from ...message import Outgoing, Receipt
from ...topics import is_pattern
from . import names
from .address import Address, Login, url_of
from .administration import ChannelAdmin, StreamAdmin, connected_clients
from .channels import ChannelSubscription
from .consuming import Member
from .delays import Delays
from .discovery import Discovery
from .following import Following
from .listening import Bells
from .options import Redis
from .sending import Sender
from .servers import Call, Cluster, OneServer, Servers, refused
from .trimming import Settings, Trimming
from .wire import Disconnected, Refusal

CHECK_WITHIN: Final = 2.0  # seconds
BULK_LIMIT: Final = 512 * 1024 * 1024  # bytes of one value, unless the server is told otherwise

_STREAM: Final = Capabilities(
    delayed_send=True, headers=True, patterns=True, replay=True, durable=True, ack=Ack.NONE
)  # fmt: skip
_CHANNEL: Final = Capabilities(headers=True, patterns=True)
_counter: Final = itertools.count(1)


class RedisEngine:
    """Redis Streams, or with `streams=False` its channels, on one server, a cluster, or the master sentinels name.

    Args:
        address: where the servers are.
        streams: False publishes to channels instead: nothing is kept, and who is not there misses it.
        lease: seconds after which what a member that died had is given to another.
        auto_create: whether publishing to a topic that is not there makes it.
        maxlen: about how many messages each stream keeps; by default all.
        clean_interval: seconds between two looks at which messages have expired.
        client: who we are, for servers that show the names of their clients.
        tls_ca: file of the authorities to trust, instead of the system's.
        tls_cert: file of our certificate, with its key unless that is in `tls_key`.
        tls_key: file of our key.
        tls_verify: False trusts any certificate.
        sentinel_username: for the sentinels, where they ask.
        sentinel_password: for the sentinels, where they ask.
    """

    name = "redis"
    clock: Clock = SYSTEM_CLOCK

    def __init__(
        self,
        address: Address,
        *,
        streams: bool = True,
        lease: float = 60.0,
        auto_create: bool = True,
        maxlen: int | None = None,
        clean_interval: float = 30.0,
        client: str = "headwater",
        tls_ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        tls_verify: bool = True,
        sentinel_username: str | None = None,
        sentinel_password: str | None = None,
    ) -> None:
        self.address = address
        self.streams = streams
        self.lease = lease
        self._auto_create, self._maxlen, self._clean_interval = auto_create, maxlen, clean_interval
        self._client = _printable(client)
        self._tls = (tls_ca, tls_cert, tls_key, tls_verify)
        self._sentinel_username, self._sentinel_password = sentinel_username, sentinel_password
        self._servers: Servers | None = None
        self._sender: Sender
        self._bells: Bells
        self._delays: Delays
        self._trimming: Trimming
        self._numbers: Iterator[int]  # of our members
        self._with_group = msgspec.structs.replace(
            _STREAM, ack=Ack.EACH, lease=lease, counts_deliveries=True, groups=True, exclusive=True
        )

    # --- what it is -----------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Its servers, for errors."""
        return ",".join(url_of(host, self.address.tls) for host in self.address.hosts)

    @property
    def available(self) -> bool:
        return self._servers is not None and self._servers.available

    @property
    def servers(self) -> Servers:
        """The servers. Raises NotConnectedError."""
        if self._servers is None:
            raise NotConnectedError(self.url)
        return self._servers

    @property
    def admin(self) -> EngineAdmin:
        return cast(EngineAdmin, StreamAdmin(self) if self.streams else ChannelAdmin(self))

    def capabilities(self, source: Source) -> Capabilities:
        if not self.streams or _is_answers(source):
            return _CHANNEL
        return _STREAM if source.group is None else self._with_group

    def check_topic(self, name: str) -> None:
        if not name or "{" in name or "}" in name or name != name.strip():
            raise TopicNameError(name, "a name is not empty, and has neither braces nor blanks around it")
        if name.startswith(names.PREFIX):
            raise TopicNameError(name, f"names that begin with {names.PREFIX} are Headwater's own")

    def reply_topic(self, mark: str) -> str:
        return names.ANSWERS + mark

    # --- lifecycle ------------------------------------------------------------------------------------

    async def connect(self) -> None:
        if self._servers is not None:
            return
        servers = self._make_servers()
        try:
            await servers.open()
            limit = await self._bulk_limit(servers)
        except BaseException as error:
            await servers.close()
            if isinstance(error, Disconnected):
                raise ConnectError(self.url, str(error)) from error
            raise
        self._servers, self._numbers = servers, itertools.count(1)
        self._sender = Sender(
            servers,
            self.clock,
            self.check_topic,
            url=self.url,
            streams=self.streams,
            auto_create=self._auto_create,
            maxlen=self._maxlen,
            limit=limit,
        )
        self._bells = Bells(servers, self._client)
        self._delays = Delays(servers, self._bells)
        self._sender.on_delay = self._delays.begin
        self._trimming = Trimming(servers, self._clean_interval)

    def _make_servers(self) -> Servers:
        address, tls = self.address, self._tls_context()
        login = Login(address.username, address.password, address.db, tls)
        if address.kind == "cluster":
            return Cluster(address, login, self._client)
        sentinel = None
        if address.kind == "sentinel":
            sentinel = Login(self._sentinel_username, self._sentinel_password, 0, tls)
        return OneServer(address, login, self._client, sentinel)

    def _tls_context(self) -> ssl.SSLContext | None:
        if not self.address.tls:
            return None
        authorities, certificate, key, verify = self._tls
        context = ssl.create_default_context(cafile=authorities)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        if not verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    @staticmethod
    async def _bulk_limit(servers: Servers) -> int:
        """The most bytes a value may have; who may not ask gets what is usual."""
        (found,) = await servers.ask([("", ("CONFIG", "GET", "proto-max-bulk-len"))])
        return int(found[1]) if isinstance(found, list) and len(found) == 2 else BULK_LIMIT

    async def close(self) -> None:
        servers, self._servers = self._servers, None
        if servers is not None:
            await self._trimming.close()
            await self._delays.close()
            await self._bells.close()
            await servers.close()

    async def check(self) -> None:
        try:
            async with asyncio.timeout(CHECK_WITHIN):
                for node in self.servers.nodes():
                    (reply,) = await node.ask([("PING",)])
                    if isinstance(reply, Refusal):
                        raise ConnectError(self.url, str(reply))
        except (TimeoutError, Disconnected) as error:
            raise ConnectError(self.url, str(error) or f"no answer within {CHECK_WITHIN:g} s") from error

    # --- topics ---------------------------------------------------------------------------------------

    async def declare(self, topics: Sequence[Topic], mode: DeclareMode) -> None:
        if not self.streams or mode == "off":
            return
        wanted = {topic.name: topic for topic in topics if not is_pattern(topic.name)}
        kinds = await self.servers.ask([(name, ("TYPE", name)) for name in wanted])
        missing: list[Topic] = []
        for topic, kind in zip(wanted.values(), kinds, strict=True):
            if isinstance(kind, Refusal):
                raise refused(self.url, topic.name, ("TYPE",), kind)
            if kind == b"none":
                missing.append(topic)
            elif kind != b"stream":
                raise TopicNameError(topic.name, f"its key holds something else on {self.url}: {kind!r}")
        if mode == "check" and missing:
            raise TopicNotFoundError(missing[0].name)
        await self._create(missing)

    async def _create(self, topics: Sequence[Topic]) -> None:
        """An empty stream is what is left when its only group is gone."""
        calls: list[Call] = []
        for topic in topics:
            self.check_topic(topic.name)
            if topic.partitions not in (None, 1):
                raise NotSupportedError("redis", "partitions", f"the stream {topic.name!r} is one")
            name = topic.name
            calls.append((name, ("XGROUP", "CREATE", name, "hw.made", "$", "MKSTREAM")))
            calls.append((name, ("XGROUP", "DESTROY", name, "hw.made")))
            calls.append((name, ("PUBLISH", names.NEW_TOPICS, name)))
        for (key, command), reply in zip(calls, await self.servers.ask(calls), strict=True):
            if isinstance(reply, Refusal) and reply.code != "BUSYGROUP":
                raise refused(self.url, key, command, reply)
        for topic in topics:
            settings = Settings.of(topic, option_of(topic.options, Redis))
            if settings is not None:
                await self._trimming.keep(topic.name, settings)

    async def alter(self, name: str, settings: Settings | None) -> None:
        """Change how long a topic keeps its messages."""
        await self._trimming.keep(name, settings)

    # --- sending --------------------------------------------------------------------------------------

    def send(self, messages: Sequence[Outgoing]) -> Sequence[Receipt] | Awaitable[Sequence[Receipt]]:
        if self._servers is None:
            raise NotConnectedError(self.url)
        return self._sender.send(messages) if messages else ()

    # --- receiving ------------------------------------------------------------------------------------

    def subscribe(self, source: Source, on_change: OnChange) -> AbstractAsyncContextManager[Subscription]:
        if source.partitions not in (None, (0,)):
            raise NotSupportedError("redis", "partitions", "a stream is one")
        if not self.streams or _is_answers(source):
            return self._listen(source)
        return self._follow(source) if source.group is None else self._consume(source, source.group, on_change)

    @asynccontextmanager
    async def _listen(self, source: Source) -> AsyncIterator[Subscription]:
        channels = ChannelSubscription(self.servers, source, _printable(source.client), self.clock)
        try:
            await channels.open()
            yield channels
        finally:
            await channels.close()

    @asynccontextmanager
    async def _follow(self, source: Source) -> AsyncIterator[Subscription]:
        following = Following(self.servers, source, _printable(source.client), self.url)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(following.close)
            await self._discover(stack, source, following)
            await following.open()
            yield following

    @asynccontextmanager
    async def _consume(self, source: Source, group: str, on_change: OnChange) -> AsyncIterator[Subscription]:
        servers = self.servers
        member = Member(servers, source, await self._consumer_name(source.client), self.lease, on_change)
        bell = names.bell(group)
        async with AsyncExitStack() as stack:
            await self._bells.hang(bell, member.ring)
            stack.callback(self._bells.take_down, bell, member.ring)
            stack.push_async_callback(member.close)
            await self._discover(stack, source, member)
            await member.open()
            self._delays.begin()
            self._trimming.begin()
            yield member

    async def _consumer_name(self, client: str) -> str:
        """What a member is called at the server.

        A worker that is started again has the name it had, and so finds at once what it had received when it died.
        Anybody else, and who finds its name taken, has one that nobody had.
        """
        base = f"{client}.{socket.gethostname()}"
        worker = os.environ.get("HEADWATER_WORKER_ID")
        if worker is not None:
            name = _printable(f"{base}.{worker}.{next(self._numbers)}")
            try:
                if name not in await connected_clients(self.servers):
                    return name
            except Refusal:
                pass  # who may not look cannot know
        return _printable(f"{base}.{os.getpid()}.{next(_counter)}")

    async def _discover(self, stack: AsyncExitStack, source: Source, reader: Following | Member) -> None:
        patterns = [topic for topic in source.topics if is_pattern(topic)]
        if patterns:
            discovery = Discovery(self.servers, self._bells, patterns, reader.take_in)
            await discovery.open()
            stack.push_async_callback(discovery.close)


def _is_answers(source: Source) -> bool:
    return all(topic.startswith(names.ANSWERS) for topic in source.topics) and bool(source.topics)


def _printable(name: str) -> str:
    """A name that the server takes for a client."""
    return re.sub(r"[^!-~]", "_", name)
