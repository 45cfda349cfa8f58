"""One server that is kept connected: found again with backoff after it was lost, and pinged while it is quiet."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from ...errors import AuthenticationError, ConnectError
from ...retry import Retry
from .address import Host, url_of
from .wire import Command, Disconnected, Wire

PING_EVERY: Final = 0.5  # seconds
SILENT_AFTER: Final = 1.5  # seconds without an owed reply after which the server counts as unavailable ...
DEAD_AFTER: Final = 6.0  # ... and after which its connections are dropped and made anew
_BACKOFF: Final = Retry(backoff=(0.05, 2.0))

_log: Final = logging.getLogger("headwater.redis")

Find = Callable[[], Awaitable[Wire]]  # connects to the server, wherever it is now; raises ConnectError
Dial = Callable[[Host, str], Awaitable[Wire]]  # one more connection to a host, with the name it gets there


class Closed(Disconnected):
    """This server is none of ours any more: nothing was said to it."""


class Node:
    """A server, with one connection that all commands share and others for those that wait there.

    It logs once when the server goes away and once when it is back.
    """

    def __init__(self, find: Find, dial: Dial) -> None:
        self.on_lost: Callable[[], object] = lambda: None
        self._find = find
        self._dial = dial
        self._wire: Wire | None = None
        self._up = asyncio.Event()
        self._others: set[Wire] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._away_since: float | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()

    @property
    def available(self) -> bool:
        return self._wire is not None and self._away_since is None

    @property
    def host(self) -> Host | None:
        """Where it was found; None while it is away."""
        return None if self._wire is None else self._wire.host

    async def open(self) -> None:
        """Connect, unless that was done. Raises ConnectError."""
        if self._keeper is not None:
            return
        self._take(await self._find())
        self._keeper = asyncio.create_task(self._keep(), name="headwater redis connection")
        self._tick(self._loop.time())

    async def close(self) -> None:
        """Drop all connections; who waits for one gets Closed."""
        self._closed = True
        self._up.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        for wire in (*self._others, *([self._wire] if self._wire else [])):
            await wire.close()
        self._wire = None

    # --- asking ---------------------------------------------------------------------------------------

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Replies to these, Refusals among them; waits while the server is away. Raises Disconnected."""
        wire = self._wire or await self._connected()
        if wire.full:
            await wire.room()
        return await wire.ask(commands)

    def say(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """Say these now, as `ask`; while the server is away they fail at once."""
        if self._wire is not None:
            return self._wire.ask(commands)
        failed: asyncio.Future[list[Any]] = self._loop.create_future()
        failed.set_exception(Disconnected("the server is away"))
        return failed

    def post(self, *commands: Command) -> None:
        """Say these now and do not wait; while the server is away they are forgotten."""
        if self._wire is not None:
            self._wire.post(*commands)

    async def another(self, name: str) -> Wire:
        """One more connection to the same server, which is dropped with it. Raises ConnectError, Disconnected."""
        host = (self._wire or await self._connected()).host
        wire = await self._dial(host, name)
        self._others.add(wire)
        wire.lost.add_done_callback(lambda _: self._others.discard(wire))
        return wire

    async def _connected(self) -> Wire:
        while self._wire is None:
            await self._up.wait()
            if self._closed:
                raise Closed("this server was left")
        return self._wire

    def drop(self, reason: str) -> None:
        """Have it found anew: it is not the one it was."""
        if self._wire is not None:
            self._wire.abort(reason)

    # --- staying connected ----------------------------------------------------------------------------

    def _take(self, wire: Wire) -> None:
        self._wire = wire
        self._up.set()

    async def _keep(self) -> None:
        while True:
            assert self._wire is not None
            reason, host = await self._wire.lost, self._wire.host
            self._wire = None
            self._up.clear()
            for wire in list(self._others):
                wire.abort(reason)
            self._went_away(host, reason)
            self.on_lost()
            self._take(await self._found_again())
            self._came_back()

    async def _found_again(self) -> Wire:
        for tries in itertools.count(1):
            try:
                return await self._find()
            except ConnectError as error:
                refused = isinstance(error, AuthenticationError) and tries == 1
                _log.log(logging.ERROR if refused else logging.DEBUG, "no connection again: %s", error)
                await asyncio.sleep(_BACKOFF.delay(tries))
        raise AssertionError

    def _tick(self, due: float) -> None:
        """Notice a server that hangs: its connection stays, and nothing is answered."""
        now = self._loop.time()
        self._timer = self._loop.call_later(PING_EVERY, self._tick, now + PING_EVERY)
        wire = self._wire
        if wire is None or now - due > PING_EVERY:  # late: it was this process that hung, let it hear first
            return
        silence = wire.silence()
        if silence > DEAD_AFTER:
            wire.abort(f"no answer for {silence:.1f} s")
        elif silence > SILENT_AFTER:
            self._went_away(wire.host, "it does not answer")
        elif self._away_since is not None:
            self._came_back()
        if wire.idle:
            wire.post(("PING",))

    def _went_away(self, host: Host, reason: str) -> None:
        if self._away_since is None:
            self._away_since = self._loop.time()
            _log.warning("%s is away: %s", url_of(host), reason)

    def _came_back(self) -> None:
        if self._away_since is not None and self._wire is not None:
            away, self._away_since = self._loop.time() - self._away_since, None
            _log.info("%s is back after %.1f s", url_of(self._wire.host), away)
