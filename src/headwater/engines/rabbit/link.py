"""One connection to RabbitMQ that comes back by itself, and knows whether the server answers."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aiormq
from aiormq import Connection
from yarl import URL

from ...errors import AuthenticationError, ConnectError
from ...retry import Retry
from .address import Address, Host
from .channel import DirectChannel, DirectConnection, open_channel

ATTEMPT: Final = 5.0  # seconds for one server to let us in
PULSE: Final = 1.0  # seconds between two questions whether the server is there ...
PATIENCE: Final = 1.5  # ... and how long the answer may take
FAREWELL: Final = 2.0  # seconds that a polite end may take
BACKOFF: Final = Retry(backoff=(0.1, 5.0))

LOST: Final = (aiormq.AMQPError, aiormq.ChannelInvalidStateError, OSError)
"""What a call raises whose connection or channel went away, or that the server refused by closing them."""

_NOT_READY: Final = re.compile(r"down or inaccessible|does not have a replica on the local node")
_REFUSED: Final = (403, 530)  # the reply codes for credentials, and for a virtual host that is not there or not ours


class Link:
    """One connection. `open` reaches the server; from then on the link is kept until `close`.

    `on_change` is told when `available` changed: with the reason when the server went away, with None when it is back.
    """

    def __init__(
        self,
        address: Address,
        name: str,
        heartbeat: int,
        context: ssl.SSLContext | None,
        on_change: Callable[[str | None], None],
    ) -> None:
        self.available = False
        self._address = address
        self._name = name
        self._heartbeat = heartbeat
        self._context = context
        self._on_change = on_change
        self._turns = itertools.cycle(address.hosts)
        self._opening = asyncio.Lock()
        self._socket: _Socket | None = None
        self._pulse: DirectChannel | None = None
        self._up: asyncio.Future[Connection]
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Reach a server. Raises ConnectError, AuthenticationError. Idempotent."""
        async with self._opening:
            if self._keeper is None:
                self._up = asyncio.get_running_loop().create_future()
                connection = await self._reach_any()
                self._up.set_result(connection)
                self.available = True
                self._keeper = asyncio.create_task(self._keep(connection), name=f"headwater {self._name}")

    async def close(self) -> None:
        """Leave. Idempotent; who waits for the connection is cancelled."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        self.available = False
        if self._up.done():
            await self._leave(self._up.result())
        self._up.cancel()

    async def connection(self) -> Connection:
        """The connection, once there is one."""
        return await asyncio.shield(self._up)

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[DirectChannel]:
        """A channel for a few calls. What the server refuses closes it, and nothing else."""
        channel = await open_channel(await self.connection())
        try:
            yield channel
        finally:
            await leave_channel(channel)

    # --- staying connected ----------------------------------------------------------------------------

    async def _keep(self, connection: Connection) -> None:
        while True:
            reason = await self._watch(connection)
            self._up = asyncio.get_running_loop().create_future()
            self._say(reason)
            await self._leave(connection)
            connection = await self._come_back()
            self._up.set_result(connection)
            self._say(None)

    async def _watch(self, connection: Connection) -> str:
        """Ask every now and then whether the server is there. Returns why it is lost, once it is."""
        lost = connection.closing
        while not lost.done():
            asking = asyncio.create_task(self._ask(connection))
            try:
                await asyncio.wait({lost, asking}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
                if not asking.done() and not lost.done():
                    self._say(f"no answer within {PATIENCE:g} s")
                    await asyncio.wait({lost, asking}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            if not lost.done():
                self._say(None)
                await asyncio.wait({lost}, timeout=PULSE)
        error = None if lost.cancelled() else lost.exception()
        return described(error) if error is not None else "the connection was closed"

    async def _ask(self, connection: Connection) -> None:
        if self._pulse is None or self._pulse.is_closed:
            self._pulse = await open_channel(connection)
        await self._pulse.basic_qos(prefetch_count=1)

    def _say(self, reason: str | None) -> None:
        if self.available != (reason is None):
            self.available = reason is None
            self._on_change(reason)

    # --- coming and going -----------------------------------------------------------------------------

    async def _come_back(self) -> Connection:
        for tries in itertools.count(1):
            try:
                return await self._reach_any()
            except ConnectError:  # whatever the reason is, the server may take us again
                await asyncio.sleep(BACKOFF.delay(tries))
        raise AssertionError  # it counts for ever

    async def _reach_any(self) -> Connection:
        """A connection to the first server that lets us in. Raises ConnectError with what each said."""
        reasons = list[str]()
        for _ in self._address.hosts:
            host = next(self._turns)
            try:
                return await self._reach(host)
            except AuthenticationError:
                raise
            except ConnectError as error:
                reasons.append(error.reason if len(self._address.hosts) == 1 else str(error))
        raise ConnectError(self._address.named(host), "; ".join(reasons))

    async def _reach(self, host: Host) -> Connection:
        address, name = self._address, self._address.named(host)
        query = {"heartbeat": str(self._heartbeat), "name": self._name}
        url = URL.build(
            scheme="amqp", host=host[0], port=host[1], user=address.user, password=address.password, query=query
        )
        try:
            async with asyncio.timeout(ATTEMPT):
                self._socket = _Socket(*await asyncio.open_connection(*host, ssl=self._context))
                connection = DirectConnection(url, transport_factory=self._socket)
                connection.vhost = address.vhost
                await connection.connect()
        except TimeoutError:
            raise ConnectError(name, f"no answer within {ATTEMPT:g} s") from None
        except (aiormq.AuthenticationError, aiormq.ProbableAuthenticationError) as error:
            raise AuthenticationError(name, described(error)) from None
        except aiormq.ConnectionClosed as error:
            refused = bool(error.args) and error.args[0] in _REFUSED
            raise (AuthenticationError if refused else ConnectError)(name, described(error)) from None
        except LOST as error:
            raise ConnectError(name, described(error)) from error
        return connection

    async def _leave(self, connection: Connection) -> None:
        with suppress(*LOST, TimeoutError):
            async with asyncio.timeout(FAREWELL):
                await connection.close()
        if self._socket is not None:
            self._socket.abort()


class _Socket(aiormq.TransportFactory):
    """An open socket, which can be dropped: a connection cannot, while its server hangs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._streams = reader, writer

    async def create(self, url: URL, **_: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return self._streams

    def abort(self) -> None:
        self._streams[1].transport.abort()


async def leave_channel(channel: DirectChannel) -> None:
    """Close a channel: what it was given and did not settle goes back. One that is gone already is none the worse."""
    with suppress(*LOST, TimeoutError, asyncio.QueueFull):
        await channel.close(timeout=FAREWELL)


def is_passing(error: BaseException) -> bool:
    """Whether it may go well another time: the connection was lost, or what was asked for is not ready yet."""
    return not isinstance(error, aiormq.AMQPChannelError) or _NOT_READY.search(described(error)) is not None


def described(error: BaseException) -> str:
    """What the server or the system said, without the names of the client's classes."""
    if isinstance(error, ConnectionError) and error.errno and not isinstance(error, aiormq.AMQPError):
        return os.strerror(error.errno)
    said = [str(part) for part in error.args if part not in (None, "")]
    return " ".join(said) or type(error).__name__
