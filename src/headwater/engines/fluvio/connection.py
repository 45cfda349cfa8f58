"""One connection to a server of Fluvio: many requests at once, each answered once, or again and again by a stream."""

from __future__ import annotations

import asyncio
import itertools
import os
import platform
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from ...errors import AuthenticationError, ConnectError
from .apis import VERSIONS, Api, Spoken, introduce, read_versions
from .wire import Fault, Reader, i16, i32, string, u16

T = TypeVar("T")

ANSWER_WITHIN: Final = 10.0  # seconds a server has to answer, where nobody says otherwise
MAX_FRAME: Final = 1 << 30  # bytes; more is no answer of Fluvio
FULL: Final = 1 << 20  # bytes not taken by the network yet, after which more has to wait

_LENGTH: Final = struct.Struct(">i")
_CORRELATION: Final = struct.Struct(">i")


class LostError(Exception):
    """The connection was lost before an answer came: what was asked may have been done, or not."""


class Address(NamedTuple):
    """Where a server is, and how it is spoken to."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    server_name: str | None = None  # that its certificate must have, if it is another one

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Connection(asyncio.Protocol):
    """Opened with `dial`. `lost` is set, to the reason, when it is over."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self.lost: asyncio.Future[str] = loop.create_future()
        self.spoken = Spoken({VERSIONS.key: (1, 2)}, "")
        self.heard = loop.time()  # when something came the last time
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Callable[[bytes | None], None]] = {}
        self._unheeded: set[int] = set()  # whose answers nobody waits for
        self._buffer = bytearray()
        self._transport: asyncio.Transport
        self._writable = asyncio.Event()
        self._writable.set()

    # --- asking ---------------------------------------------------------------------------------------

    async def ask(self, api: Api, body: bytes, read: Callable[[Reader], T], timeout: float = ANSWER_WITHIN) -> T:
        """The answer, as `read` reads it. Raises LostError, TimeoutError, and Fault for a refusal."""
        answer: asyncio.Future[bytes] = self._loop.create_future()

        def landed(data: bytes | None) -> None:
            if answer.done():
                return
            if data is None:
                answer.set_exception(LostError(self._reason))
            else:
                answer.set_result(data)

        version = self.spoken.version_of(api)
        number = self._send(api, version, body, landed)
        try:
            async with asyncio.timeout(timeout):
                await self._writable.wait()
                data = await answer
        finally:
            self._waiting.pop(number, None)
        return self._read(data, version, read)

    def listen(self, api: Api, body: bytes, heard: Callable[[Reader | None], None]) -> None:
        """Ask, and hear every answer that comes to it; None once the connection is lost. Raises LostError."""
        version = self.spoken.version_of(api)
        self._send(api, version, body, lambda data: heard(None if data is None else Reader(data, version)))

    def say(self, api: Api, body: bytes) -> None:
        """Ask, and heed no answer. Raises LostError."""
        number = self._write(api, self.spoken.version_of(api), body)
        self._unheeded.add(number)

    def _send(self, api: Api, version: int, body: bytes, landed: Callable[[bytes | None], None]) -> int:
        number = self._write(api, version, body)
        self._waiting[number] = landed
        return number

    def _write(self, api: Api, version: int, body: bytes) -> int:
        if self.lost.done():
            raise LostError(self._reason)
        number = next(self._numbers) & 0x7FFFFFFF
        head = u16(api.key) + i16(version) + i32(number) + _CLIENT
        self._transport.writelines((_LENGTH.pack(len(head) + len(body)), head, body))
        return number

    @staticmethod
    def _read(data: bytes, version: int, read: Callable[[Reader], T]) -> T:
        try:
            return read(Reader(data, version))
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise LostError(f"an answer that makes no sense: {error}") from error

    @property
    def _reason(self) -> str:
        return self.lost.result() if self.lost.done() else "closed"

    # --- what asyncio tells ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(FULL)

    def data_received(self, data: bytes) -> None:
        self.heard = self._loop.time()
        buffer = self._buffer
        buffer += data
        at, end = 0, len(buffer)
        while end - at >= 8:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if not 4 <= length <= MAX_FRAME:
                self.abort("what answers there is no Fluvio")
                return
            if end - at - 4 < length:
                break
            (number,) = _CORRELATION.unpack_from(buffer, at + 4)
            if number in self._unheeded:
                self._unheeded.discard(number)
            elif (landed := self._waiting.get(number)) is not None:
                landed(bytes(memoryview(buffer)[at + 8 : at + 4 + length]))
            at += 4 + length
        if at:
            del buffer[:at]

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._end(str(error) if error is not None else "the server closed the connection")

    def _end(self, reason: str) -> None:
        if self.lost.done():
            return
        self.lost.set_result(reason)
        self._writable.set()
        waiting, self._waiting = self._waiting, {}
        for landed in waiting.values():
            landed(None)

    def abort(self, reason: str) -> None:
        """End it at once; who waits for an answer gets LostError. Idempotent."""
        self._end(reason)
        self._transport.abort()


_CLIENT: Final = string("headwater")
WHO: Final = introduce(platform.system().lower(), platform.machine())


async def dial(address: Address, timeout: float) -> Connection:
    """A connection to this server, which says what it speaks. Raises ConnectError, AuthenticationError."""
    try:
        async with asyncio.timeout(timeout):
            return await _introduced(await _connected(address))
    except TimeoutError:
        reason = f"no answer within {timeout:g} s"
    except ssl.SSLError as error:
        raise AuthenticationError(str(address), f"TLS: {error.reason or error}") from error
    except OSError as error:
        reason = _reason(error)
    except (LostError, Fault) as error:
        reason = str(error)
    raise ConnectError(str(address), reason)


def _reason(error: OSError) -> str:
    """asyncio puts its own words into `strerror`, and no cause."""
    if error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)


async def _connected(address: Address) -> Connection:
    name = (address.server_name or address.host) if address.tls is not None else None
    connecting = asyncio.get_running_loop().create_connection(
        Connection, address.host, address.port, ssl=address.tls, server_hostname=name
    )
    return (await connecting)[1]


async def _introduced(connection: Connection) -> Connection:
    try:
        connection.spoken = await connection.ask(VERSIONS, WHO, read_versions)
    except BaseException:
        connection.abort("it was not taken")
        raise
    return connection
