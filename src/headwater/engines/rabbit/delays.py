"""Waiting on the server: a ladder of queues whose messages expire, each after twice the time of the one below it.

A delay is a binary number of milliseconds. A message waits in the queue of each of its ones, from the highest down, and
what is no one is passed by; so a few queues serve all delays, and no message ever waits behind one with another delay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from ...errors import NotSupportedError
from .link import Link
from .wire import DELAY_LEVEL, DELAYED_TO, table_entries

Table = dict[str, Any]

LEVELS: Final = 32  # the longest delay is 2**32 milliseconds, 49 days
_ONES: Final = 6  # binary digits that a delay keeps: it is at most 3 % late, and six queues see it
_EXIT: Final = "hw.delayed"  # passes a message on to the exchange that is named in it


def rounded(delay: float) -> int:
    """A delay in seconds as milliseconds with few ones, not shorter."""
    milliseconds = max(1, round(delay * 1000))
    rest = max(0, milliseconds.bit_length() - _ONES)
    milliseconds = -(-milliseconds >> rest) << rest
    if milliseconds.bit_length() > LEVELS:
        raise NotSupportedError("rabbit", f"a delay of {delay:g} s", "49 days are the longest")
    return milliseconds


@lru_cache(maxsize=1024)
def levels_of(delay: float) -> tuple[int, ...]:
    """The levels at which a delay in seconds waits, the highest first. Raises NotSupportedError for one too long."""
    milliseconds = rounded(delay)
    return tuple(level for level in reversed(range(LEVELS)) if milliseconds >> level & 1)


def rung(level: int) -> str:
    """The exchange where a message comes in that may wait at this level; the queue is called alike."""
    return f"hw.delay.{level:02}"


def entries(levels: Sequence[int], exchange: str) -> bytes:
    """What a delayed message says of itself: where it waits, and where it goes in the end."""
    return table_entries({**{f"{DELAY_LEVEL}{level}": "1" for level in levels}, DELAYED_TO: exchange})


class Ladder:
    """The rungs that were needed so far. They stay: an unused queue that expired would take its messages along."""

    def __init__(self) -> None:
        self._height = -1  # up to where the exchanges are there
        self._queues: set[int] = set()
        self._exits: set[str] = set()
        self._building = asyncio.Lock()

    def forget(self) -> None:
        """Whatever there is may be gone."""
        self._height = -1
        self._queues.clear()
        self._exits.clear()

    async def build(self, link: Link, levels: Sequence[int], exchange: str) -> None:
        """Have these levels, and the way from the lowest to an exchange."""
        if exchange in self._exits and self._queues.issuperset(levels):
            return
        async with self._building, link.channel() as channel:
            if self._height < 0:
                await channel.exchange_declare(_EXIT, exchange_type="headers", durable=True)
            for level in range(self._height + 1, levels[0] + 1):
                arguments: Table = {"alternate-exchange": _below(level)}  # for those that do not wait here
                await channel.exchange_declare(rung(level), exchange_type="headers", durable=True, arguments=arguments)
                self._height = level
            for level in levels:
                if level not in self._queues:
                    await channel.queue_declare(rung(level), durable=True, arguments=_arguments(level))
                    here: Table = {"x-match": "all", f"{DELAY_LEVEL}{level}": "1"}
                    await channel.queue_bind(rung(level), rung(level), arguments=here)
                    self._queues.add(level)
            there: Table = {"x-match": "all", DELAYED_TO: exchange}
            await channel.exchange_bind(exchange, _EXIT, arguments=there)
            self._exits.add(exchange)


def _below(level: int) -> str:
    return rung(level - 1) if level else _EXIT


def _arguments(level: int) -> Table:
    """A queue that gives up no message before the next one has it."""
    return {
        "x-queue-type": "quorum",
        "x-message-ttl": 1 << level,
        "x-dead-letter-exchange": _below(level),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
