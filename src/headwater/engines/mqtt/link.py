"""A connection that is made again whenever it is lost, and the one place that logs its coming and going."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from ...errors import AuthenticationError, ConnectError
from ...retry import Retry
from .options import Hello, Settings

if TYPE_CHECKING:
    from .client import Connection

_log: Final = logging.getLogger("headwater.mqtt")
_AGAIN: Final = Retry(backoff=(0.1, 5.0))  # the wait between tries to connect
_LASTING: Final = 10.0  # seconds after which a connection counts as a good one ...
_SUSPICIOUS: Final = 3  # ... and how many bad ones in a row are no accident


class User(Protocol):
    """Who a link is for: what its connections tell, and when there is one."""

    async def prepare(self, connection: Connection) -> None:
        """Do what has to be done on every connection before it counts. What this raises ends it."""
        ...

    def on_down(self) -> None:
        """It is lost, and will be made again."""
        ...

    def on_message(self, arrived: Any) -> None:
        """A message, as paho gives it."""
        ...

    def on_confirmed(self, mid: int, reason: Any) -> None:
        """The server has what was published with this number, or paho's reason code says why not."""
        ...

    def on_quiet(self) -> None:
        """All that was read has been handed over, or there is room to write again."""
        ...


class Watch:
    """What is away: one warning when the first link is lost, one line when the last is back."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._away: set[Link] = set()

    @property
    def well(self) -> bool:
        return not self._away

    def lost(self, link: Link, why: str) -> None:
        if self.well:
            _log.warning("%s is away: %s; connecting again", self._url, why)
        self._away.add(link)

    def back(self, link: Link) -> None:
        self._away.discard(link)
        if self.well:
            _log.info("%s is back", self._url)

    def forget(self, link: Link) -> None:
        self._away.discard(link)


class Link:
    """Keeps its user connected, to any of the servers, from `open` to `close`."""

    def __init__(self, settings: Settings, hello: Hello, user: User, watch: Watch) -> None:
        self.connection: Connection | None = None
        self._settings = settings
        self._hello = hello
        self._user = user
        self._watch = watch
        self._tls = settings.tls()
        self._servers = itertools.cycle(settings.servers)
        self._keeping: asyncio.Task[None] | None = None

    async def open(self, patience: float = 0.0) -> None:
        """Raises AuthenticationError, what the user's `prepare` raises, and ConnectError after `patience` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        for tries in itertools.count(1):
            try:
                connection = await self._connect()
                break
            except ConnectError as error:
                delay = _AGAIN.delay(tries)
                if isinstance(error, AuthenticationError) or loop.time() + delay > deadline:
                    raise
                await asyncio.sleep(delay)
        self._keeping = asyncio.create_task(self._keep(connection), name="headwater mqtt link")

    async def close(self, *, end_session: bool = True) -> None:
        """Leave. Idempotent."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        connection, self.connection = self.connection, None
        if connection is not None:
            self._user.on_down()
            await connection.close(end_session=end_session)
        self._watch.forget(self)

    async def _connect(self) -> Connection:
        """Try each server once, from where the last try ended."""
        reasons: list[str] = []
        for host, port in itertools.islice(self._servers, len(self._settings.servers)):
            try:
                return await self._connect_to(host, port)
            except AuthenticationError:
                raise
            except ConnectError as error:
                reasons.append(error.reason)
        raise ConnectError(self._settings.url, "; ".join(reasons))

    async def _connect_to(self, host: str, port: int) -> Connection:
        from .client import Connection  # with paho, which only those need to have who use it

        connection = Connection(self._settings, self._hello, self._user)
        try:
            await connection.open(host, port, self._tls)
            await self._user.prepare(connection)
        except BaseException:
            self._user.on_down()
            connection.abort("it was not to be used")
            raise
        self.connection = connection
        self._hello = msgspec.structs.replace(self._hello, clean=self._hello.expiry == 0)
        return connection

    async def _keep(self, connection: Connection) -> None:
        loop, short_ones = asyncio.get_running_loop(), 0
        while True:
            opened = loop.time()
            why = await asyncio.shield(connection.lost)  # who cancels us closes it after that
            self.connection = None
            self._user.on_down()
            self._watch.lost(self, why)
            short_ones = short_ones + 1 if loop.time() - opened < _LASTING else 0
            if short_ones == _SUSPICIOUS:
                text = "%s ends the connection of %r again and again (%s): does another program use this client id?"
                _log.error(text, self._settings.url, self._hello.client_id, why)
            connection = await self._connect_again(short_ones)
            self._watch.back(self)

    async def _connect_again(self, short_ones: int) -> Connection:
        said = ""
        for tries in itertools.count(1 + short_ones):
            await asyncio.sleep(_AGAIN.delay(tries))
            try:
                return await self._connect()
            except Exception as error:  # whatever it is, the next try may do
                is_away = isinstance(error, ConnectError) and not isinstance(error, AuthenticationError)
                if not is_away and str(error) != said:  # it answers, and refuses: somebody should know, once
                    _log.error("cannot use %s: %s", self._settings.url, error)
                    said = str(error)
        raise AssertionError("counting never ends")
