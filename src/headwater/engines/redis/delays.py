"""Delayed messages: they wait in a sorted set beside their stream until somebody adds them to it.

Adding and removing is one script, so that nothing is lost or doubled whenever the process that runs it dies. Every
engine that consumes, or has delayed something, does it for all topics; the server's own clock decides what is due.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Final

from . import names
from .listening import Bells, rung
from .servers import Servers, call
from .wire import Command, Disconnected, Refusal

BURST: Final = 100  # messages that one run of the script adds
MARK: Final = 12  # bytes that tell two equal messages apart
LOOK_AGAIN: Final = 5.0  # seconds; whoever delays something that is due earlier says so

_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
_HOLD: Final = (
    _NOW
    + """
local due = now + tonumber(ARGV[1])
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
redis.call('ZADD', KEYS[1], due, ARGV[2])
if not first[2] or due < tonumber(first[2]) then redis.call('PUBLISH', ARGV[3], '') end
return 1
"""
)
_ADD: Final = (
    _NOW
    + """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, tonumber(ARGV[1]))
for _, member in ipairs(due) do
  local fields, at = {}, 1 + tonumber(ARGV[2])
  while at <= #member do fields[#fields + 1], at = struct.unpack('>I4c0', member, at) end
  local added = redis.pcall('XADD', KEYS[2], '*', unpack(fields))
  if type(added) == 'table' and added.err then return redis.error_reply(added.err) end
  redis.call('ZREM', KEYS[1], member)
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return first[2] and math.max(0, tonumber(first[2]) - now) or -1
"""
)

_log: Final = logging.getLogger("headwater.redis")


def held(topic: str, delay: float, fields: Sequence[bytes]) -> Command:
    """The command that keeps an entry for `delay` seconds."""
    packed = b"".join([len(field).to_bytes(4, "big") + field for field in fields])
    member = os.urandom(MARK) + packed  # two equal messages are two members
    return ("EVAL", _HOLD, 1, names.delayed(topic), max(1, round(delay * 1000)), member, names.DELAYS)


class Delays:
    """Adds what is due, and sleeps until the next is."""

    def __init__(self, servers: Servers, bells: Bells) -> None:
        self._servers, self._bells = servers, bells
        self._rung = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Do so from now on."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="headwater redis delays")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        await self._bells.hang(names.DELAYS, lambda _: self._rung.set())
        while True:
            self._rung.clear()
            wait = await self._add_what_is_due()
            if wait > 0:
                await rung(self._rung, wait)

    async def _add_what_is_due(self) -> float:
        """Seconds until there is more to do."""
        try:
            topics = [name.decode() for name in await call(self._servers, names.DELAYS, "SMEMBERS", names.DELAYS)]
            if not topics:
                return LOOK_AGAIN
            replies = await self._servers.ask([
                (topic, ("EVAL", _ADD, 2, names.delayed(topic), topic, BURST, MARK)) for topic in topics
            ])  # fmt: skip
        except (Disconnected, Refusal) as error:
            _log.debug("no look at delayed messages: %s", error)
            return LOOK_AGAIN
        for topic, reply in zip(topics, replies, strict=True):
            if isinstance(reply, Refusal):
                _log.warning("delayed messages of %r cannot be added to it: %s", topic, reply)
        waits = [reply / 1000 for reply in replies if isinstance(reply, int) and reply >= 0]
        return min([LOOK_AGAIN, *waits])
