"""A server that is kept connected: found again with backoff after it was lost, and asked for a sign of life."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from ...errors import AuthenticationError, ConnectError
from ...retry import Retry
from .apis import VERSIONS
from .connection import WHO, Connection, LostError

PING_EVERY: Final = 1.0  # seconds
LOOK_EVERY: Final = 0.25  # seconds between two looks whether an answer that is owed has come
SILENT_AFTER: Final = 2.0  # seconds without an owed answer after which the server counts as unavailable ...
DEAD_AFTER: Final = 6.0  # ... and after which its connection is dropped and made anew
_BACKOFF: Final = Retry(backoff=(0.05, 2.0))

log: Final = logging.getLogger("headwater.fluvio")

Dial = Callable[[], Awaitable[Connection]]  # to the server, wherever it is now; raises ConnectError


class Link:
    """One server. It logs once when the server goes away and once when it is back.

    One that is not `watched` logs nothing and asks for no sign of life: somebody else does, and says `drop`.
    """

    def __init__(self, name: str, dial: Dial, *, watched: bool = True) -> None:
        self.name = name
        self._dial = dial
        self._watched = watched
        self._connection: Connection | None = None
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._pinger: asyncio.Task[None] | None = None
        self._away_since: float | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()

    @property
    def available(self) -> bool:
        return self._connection is not None and self._away_since is None

    async def open(self) -> None:
        """Connect, and stay connected. Raises ConnectError."""
        self._take(await self._dial())
        self._keeper = asyncio.create_task(self._keep(), name=f"headwater fluvio {self.name}")
        if self._watched:
            self._pinger = asyncio.create_task(self._ping(), name=f"headwater fluvio {self.name} ping")

    def drop(self, reason: str) -> None:
        """Connect anew; who waits for an answer gets LostError."""
        if self._connection is not None:
            self._connection.abort(reason)

    async def close(self) -> None:
        """Drop the connection; who waits for one gets LostError."""
        self._closed = True
        self._up.set()
        tasks = [task for task in (self._keeper, self._pinger) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.drop("closed here")
        self._connection = None

    async def connection(self) -> Connection:
        """The connection; waits while the server is away. Raises LostError once this is closed."""
        while self._connection is None:
            if self._closed:
                raise LostError("closed here")
            await self._up.wait()
        return self._connection

    def _take(self, connection: Connection) -> None:
        self._connection = connection
        self._up.set()

    async def _keep(self) -> None:
        while True:
            assert self._connection is not None
            reason = await asyncio.shield(self._connection.lost)
            self._connection = None
            self._up.clear()
            self._went_away(reason)
            self._take(await self._found_again())
            self._came_back()

    async def _found_again(self) -> Connection:
        for tries in itertools.count(1):
            try:
                return await self._dial()
            except ConnectError as error:
                refused = isinstance(error, AuthenticationError) and tries == 1
                log.log(logging.ERROR if refused else logging.DEBUG, "no connection again: %s", error)
                await asyncio.sleep(_BACKOFF.delay(tries))
        raise AssertionError

    async def _ping(self) -> None:
        """Notice a server that hangs: its connection stays, and nothing is answered."""
        asked: float | None = None  # when the answer that is owed was asked for
        while True:
            slept = await self._sleep(LOOK_EVERY if asked is not None else PING_EVERY)
            connection = self._connection
            if connection is None or connection.lost.done():
                asked = None
            elif asked is None:
                connection.say(VERSIONS, WHO)
                asked = self._loop.time()
            elif connection.heard >= asked:
                asked = None
                self._came_back()
            elif slept > 2 * LOOK_EVERY:  # it was this process that hung: let it hear first
                asked += slept
            else:
                self._miss(connection, self._loop.time() - asked)

    async def _sleep(self, seconds: float) -> float:
        began = self._loop.time()
        await asyncio.sleep(seconds)
        return self._loop.time() - began

    def _miss(self, connection: Connection, silence: float) -> None:
        if silence > DEAD_AFTER:
            connection.abort(f"no answer for {silence:.1f} s")
        elif silence > SILENT_AFTER:
            self._went_away("it does not answer")

    def _went_away(self, reason: str) -> None:
        if self._away_since is None:
            self._away_since = self._loop.time()
            log.log(logging.WARNING if self._watched else logging.DEBUG, "%s is away: %s", self.name, reason)

    def _came_back(self) -> None:
        if self._away_since is not None:
            away, self._away_since = self._loop.time() - self._away_since, None
            log.log(logging.INFO if self._watched else logging.DEBUG, "%s is back after %.1f s", self.name, away)
