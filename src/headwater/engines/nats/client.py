"""nats-py as far as Headwater uses it: it reaches a server, proves who asks, and reads.

This is the only place that knows what is inside of nats-py. Its own queues, headers and way back are left aside: it
keeps one header of a name, strips values, hands each message through a task, lets go of a hung server only once its
buffer is empty, and gives up for good on some errors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from nats.aio.client import Client as NatsClient
from nats.errors import Error, StaleConnectionError

OnMessage = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Takes the subject, where to answer, the body, and the block of headers as it travelled."""

_log: Final = logging.getLogger("headwater.nats")
_LEAVE: Final = 2.0  # seconds a server has to take a farewell


class Client(NatsClient):
    """One connection to one server, until it is lost; what was written before that may have arrived or not."""

    def __init__(
        self,
        routes: Mapping[int, OnMessage],
        lost: Callable[[Client, Exception], None],
        complain: Callable[[Exception], None],
    ) -> None:
        super().__init__()
        self._routes = routes
        self._lost = lost
        self._complain = complain
        self._connecting = True
        self._asked: set[asyncio.Future[bool]] = set()

    async def reach(self, server: str, **options: Any) -> None:
        """Connect to this server. Raises what prevented it, at once."""
        try:
            await self.connect(server, allow_reconnect=False, error_cb=self._on_error, **options)
        except BaseException:
            self.abandon()
            raise
        self._connecting = False

    async def _on_error(self, error: Exception) -> None:
        if self._connecting:
            raise error  # it would try for ever
        self._complain(error)

    @property
    def info(self) -> Mapping[str, Any]:
        """What the server says of itself."""
        return self._server_info

    @property
    def discovered(self) -> list[str]:
        """The other servers of the cluster, as far as this one knows, as host:port."""
        return [server.netloc.rpartition("@")[2] for server in self.discovered_servers]

    @property
    def backlog(self) -> int:
        """Bytes that were written and that the network has not taken yet."""
        transport: asyncio.WriteTransport = self._transport._io_writer.transport  # type: ignore[union-attr]  # TCP
        return transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Send this after everything that was written before."""
        self._transport.write(data)  # type: ignore[union-attr]  # connected

    async def drained(self) -> None:
        """Wait until the network has taken most of what was written."""
        await self._transport.drain()  # type: ignore[union-attr]  # connected

    def ping(self, data: bytes = b"") -> asyncio.Future[bool]:
        """Send this; done once the server has taken it and all before. Fails with ConnectionResetError."""
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pongs.append(answered)
        self._asked.add(answered)
        answered.add_done_callback(self._asked.discard)
        self.write(data + b"PING\r\n")
        return answered

    def abandon(self) -> None:
        """Let go of it at once, whatever state it is in."""
        self._status = NatsClient.CLOSED
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        for answered in [*self._asked]:
            if not answered.done():
                answered.set_exception(ConnectionResetError("the connection was lost"))
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def leave(self) -> None:
        """Send what was written, and close. A server that takes nothing any more is left after some seconds."""
        try:
            async with asyncio.timeout(_LEAVE):
                await self.close()
        except (OSError, TimeoutError, Error):
            pass  # it went away by itself, or it hangs
        finally:
            self.abandon()

    # --- what nats-py does otherwise ------------------------------------------------------------------

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        route = self._routes.get(sid)
        if route is not None:
            try:
                route(subject, reply, data, headers)
            except Exception:  # anybody can send anything: it must not end the reading
                _log.exception("a message on %r is none that belongs there", subject)

    async def _process_pong(self) -> None:
        self._pings_outstanding = 0
        answered = self._pongs.pop(0) if self._pongs else None
        if answered is not None and not answered.done():  # who gave up waiting must not end the reading
            answered.set_result(True)

    async def _process_op_err(self, error: Exception) -> None:
        self._lost(self, error)

    async def _process_err(self, text: str) -> None:
        if "permissions violation" in text:
            self._complain(Error(text.strip("'")))
        else:
            self._lost(self, StaleConnectionError() if "stale" in text else Error(text.strip("'")))

    def _connect_command(self) -> bytes:
        if "tls" in self.options and not self._server_info.get("tls_required"):
            raise Error("the server offers no TLS, and this connection wants it")  # before it is told a password
        return super()._connect_command()
