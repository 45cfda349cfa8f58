"""The single active member of an exclusive group: a key with a deadline, which it renews."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable
from typing import Final

from . import names
from .listening import rung
from .servers import Servers, call
from .wire import Disconnected, Refusal

LOCK: Final = 10.0  # seconds after which the lock of a dead holder is free

SURE: Final = 0.9  # the part of it for which its holder relies on it: clocks differ a little

_RENEW: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
_GIVE_UP: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) redis.call('PUBLISH', ARGV[2], '') end
return 1
"""

_log: Final = logging.getLogger("headwater.redis")


class Lock:
    """Taken when it is free, renewed at a third of its time, and given up. `on_lost` is awaited if it was not renewed.

    Who holds it stops reading before its time is over at the server, whatever is heard from there.
    """

    def __init__(self, servers: Servers, group: str, topics: tuple[str, ...], seconds: float) -> None:
        self.on_lost: Callable[[], Awaitable[None]]
        self.held = asyncio.Event()
        self._servers = servers
        self._key, self._bell = names.lock(group, topics), names.bell(group)
        self._seconds = min(seconds, LOCK)
        self._token = os.urandom(12).hex()
        self._until = 0.0  # on the loop's clock
        self._rung = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def left(self) -> float:
        """Seconds for which it is surely ours."""
        return self._until - asyncio.get_running_loop().time()

    async def open(self) -> None:
        """Try once, then go on trying and renewing."""
        await self._take()
        self._task = asyncio.create_task(self._keep(), name=f"headwater redis {self._key}")

    async def stop(self) -> None:
        """Neither try nor renew any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def give_up(self) -> None:
        """Stop, and let somebody else have it if it is ours."""
        await self.stop()
        if self.held.is_set():
            self.held.clear()
            await call(self._servers, self._key, "EVAL", _GIVE_UP, 1, self._key, self._token, self._bell)

    def ring(self) -> None:
        """It may be free."""
        self._rung.set()

    async def _keep(self) -> None:
        while True:
            self._rung.clear()
            held, third = self.held.is_set(), self._seconds / 3
            try:
                async with asyncio.timeout(third):
                    await (self._renew() if held else self._take())
            except (Disconnected, Refusal, TimeoutError) as error:
                _log.debug("%s: %s", self._key, error)
            if self.held.is_set() and self.left <= 0:
                self.held.clear()
                _log.warning("the lock %s was lost: another member of the group may be active", self._key)
                await self.on_lost()
            wait = third / 2 if self.held.is_set() else random.uniform(0.5, 1.0) * third
            await rung(self._rung, wait)

    async def _take(self) -> None:
        asked = asyncio.get_running_loop().time()
        if await call(self._servers, self._key, "SET", self._key, self._token, "NX", "PX", self._milliseconds):
            self._until = asked + self._seconds * SURE
            self.held.set()

    async def _renew(self) -> None:
        asked = asyncio.get_running_loop().time()
        if await call(self._servers, self._key, "EVAL", _RENEW, 1, self._key, self._token, self._milliseconds):
            self._until = asked + self._seconds * SURE
        else:
            self._until = 0.0

    @property
    def _milliseconds(self) -> int:
        return int(self._seconds * 1000)
