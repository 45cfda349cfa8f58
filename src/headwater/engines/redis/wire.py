"""One connection to one server: commands go out, their replies come back in the same order.

It is built on hiredis, the parser of the Redis client, and not on that client: this one takes a connection from a pool
for every command and waits for its reply, where here all that is said in one turn of the loop shares one write; it
turns stream entries into dicts, which loses repeated fields; and a cancelled caller costs it the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from ...errors import AuthenticationError, ConnectError, MissingExtraError
from .address import Host, Login, url_of

Command = tuple[Any, ...]  # words: str, bytes, int or float

DIAL_TIMEOUT: Final = 3.0  # seconds to connect and be let in
_LOGIN_REFUSED: Final = frozenset(("WRONGPASS", "NOAUTH", "NOPERM"))


class Refusal(Exception):
    """An error that a server answered with."""

    @property
    def code(self) -> str:
        """Its first word, such as WRONGTYPE."""
        return str(self).partition(" ")[0]


class Disconnected(Exception):
    """The connection was lost before the reply: what was said may have been done or not."""


class Wire(asyncio.Protocol):
    """A connection. `lost` is done, with the reason, once it is; what waits for a reply then gets Disconnected."""

    def __init__(self, host: Host) -> None:
        try:
            import hiredis
        except ImportError as error:
            raise MissingExtraError("hiredis", "redis") from error
        self.host = host
        self.id = 0  # what the server calls this connection, for CLIENT UNBLOCK
        self.on_push: Callable[[Any], None] | None = None  # takes what comes, once it listens to channels
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self._pack = hiredis.pack_command
        self._reader = hiredis.Reader(replyError=Refusal, protocolError=_Garbled)
        self._transport: asyncio.WriteTransport | None = None
        self._expected: deque[tuple[asyncio.Future[list[Any]], int]] = deque()
        self._replies: list[Any] = []
        self._heard = 0.0  # when the server last said something, or was asked something after a silence
        self._room: asyncio.Future[None] | None = None

    # --- asking ---------------------------------------------------------------------------------------

    def ask(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """Say all of these at once; their replies, Refusals among them. Raises Disconnected.

        Whoever waits may be cancelled: the replies are dropped, the connection goes on.
        """
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        if self._transport is None:
            future.set_exception(Disconnected("the connection is closed"))
            return future
        if not commands:
            future.set_result([])
            return future
        if not self._expected:
            self._heard = self._loop.time()
        self._expected.append((future, len(commands)))
        self._write(commands)
        return future

    def post(self, *commands: Command) -> None:
        """Say these and do not wait for the replies: what is lost with the connection is lost."""
        self.ask(commands).add_done_callback(_look_away)

    def tell(self, *commands: Command) -> None:
        """Say these where replies are pushes, too: while it listens to channels."""
        if self._transport is not None:
            self._write(commands)

    def _write(self, commands: Sequence[Command]) -> None:
        assert self._transport is not None
        pack = self._pack
        if len(commands) == 1:
            self._transport.write(pack(commands[0]))
        else:
            self._transport.write(b"".join([pack(command) for command in commands]))

    @property
    def full(self) -> bool:
        """Whether more is waiting to leave than should: see `room`."""
        return self._room is not None

    async def room(self) -> None:
        """Wait until the server takes what was said before. Raises Disconnected."""
        while self._room is not None:
            await asyncio.wait((self._room, self.lost), return_when=asyncio.FIRST_COMPLETED)
            if self.lost.done():
                raise Disconnected(self.lost.result())

    def silence(self) -> float:
        """Seconds for which the server has owed a reply and said nothing."""
        return self._loop.time() - self._heard if self._expected else 0.0

    @property
    def idle(self) -> bool:
        """Whether no reply is owed."""
        return not self._expected

    # --- what the event loop calls --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._heard = self._loop.time()

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        replies, expected, gets = self._replies, self._expected, self._reader.gets
        try:
            self._reader.feed(data)
            while (reply := gets()) is not False:
                if self.on_push is not None:
                    self.on_push(reply)
                    continue
                replies.append(reply)
                if len(replies) == expected[0][1]:
                    future, _ = expected.popleft()
                    if not future.done():
                        future.set_result(replies)
                    replies = self._replies = []
        except (_Garbled, IndexError) as error:
            self.abort(f"it said what nobody asked for: {error!r} {replies}")

    def connection_lost(self, error: Exception | None) -> None:
        self._end(str(error) if error else "the server closed the connection")

    def pause_writing(self) -> None:
        self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    # --- ending ---------------------------------------------------------------------------------------

    def abort(self, reason: str) -> None:
        """Drop the connection at once."""
        transport = self._transport
        self._end(reason)
        if transport is not None:
            transport.abort()

    async def close(self) -> None:
        """Drop the connection, and give the event loop a turn to do so."""
        self.abort("it was closed here")
        await asyncio.sleep(0)

    def _end(self, reason: str) -> None:
        self._transport = None
        if self.lost.done():
            return
        self.lost.set_result(reason)
        while self._expected:
            future, _ = self._expected.popleft()
            if not future.done():
                future.set_exception(Disconnected(reason))

    def hold(self) -> None:
        """Read nothing until `release`: what comes stays with the server."""
        if self._transport is not None:
            cast(asyncio.ReadTransport, self._transport).pause_reading()

    def release(self) -> None:
        if self._transport is not None:
            cast(asyncio.ReadTransport, self._transport).resume_reading()


class _Garbled(Exception):
    """Bytes that are not Redis's protocol."""


def _look_away(future: asyncio.Future[list[Any]]) -> None:
    if not future.cancelled():
        future.exception()


async def dial(host: Host, login: Login, name: str, *, timeout: float = DIAL_TIMEOUT) -> Wire:
    """Connect, log in and say who we are. Raises ConnectError, AuthenticationError."""
    url = url_of(host, login.tls is not None)
    wire = Wire(host)
    try:
        async with asyncio.timeout(timeout):
            name_to_check = None if login.tls is None else host[0]
            await asyncio.get_running_loop().create_connection(
                lambda: wire, *host, ssl=login.tls, server_hostname=name_to_check
            )
            await _log_in(wire, login, name, url)
    except (OSError, TimeoutError, Disconnected) as error:
        wire.abort("no connection")
        reason = f"no answer within {timeout:g} s" if isinstance(error, TimeoutError) else str(error)
        raise ConnectError(url, reason) from error
    except BaseException:
        wire.abort("not let in")
        raise
    return wire


async def _log_in(wire: Wire, login: Login, name: str, url: str) -> None:
    commands: list[Command] = []
    if login.password is not None:
        commands.append(("AUTH", *([login.username] if login.username else []), login.password))
    commands += [("CLIENT", "SETNAME", name), ("CLIENT", "ID"), ("SELECT", login.db), ("PING",)]
    replies = dict(zip([command[0] for command in commands], await wire.ask(commands), strict=True))
    replies["SELECT"] = None if login.db == 0 else replies["SELECT"]  # a sentinel and a cluster have one only
    for word in ("AUTH", "PING", "SELECT"):
        refusal = replies.get(word)
        if isinstance(refusal, Refusal):
            if word == "AUTH" or refusal.code in _LOGIN_REFUSED:
                raise AuthenticationError(url, str(refusal))
            raise ConnectError(url, str(refusal))
    if isinstance(replies["CLIENT"], int):
        wire.id = replies["CLIENT"]
