"""Topics that match a pattern and come later: heard of at once where Headwater writes them, else found by looking."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from ...topics import match
from . import names
from .listening import Bells, rung
from .patterns import streams_matching
from .servers import Servers
from .wire import Disconnected, Refusal

LOOK_AGAIN: Final = 30.0  # seconds

_log: Final = logging.getLogger("headwater.redis")


class Discovery:
    """Tells a subscription the topics that match its patterns."""

    def __init__(
        self, servers: Servers, bells: Bells, patterns: Sequence[str], take_in: Callable[[set[str]], Awaitable[None]]
    ) -> None:
        self._servers, self._bells, self._patterns, self._take_in = servers, bells, patterns, take_in
        self._heard = set[str]()
        self._look = False  # whether something may have been missed
        self._rung = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Returns once new topics are heard of."""
        await self._bells.hang(names.NEW_TOPICS, self._hear)
        self._task = asyncio.create_task(self._run(), name="headwater redis discovery")

    async def close(self) -> None:
        self._bells.take_down(names.NEW_TOPICS, self._hear)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _hear(self, what: bytes) -> None:
        topic = what.decode(errors="backslashreplace")
        if not topic:
            self._look = True
        elif any(match(pattern, topic) is not None for pattern in self._patterns):
            self._heard.add(topic)
        else:
            return
        self._rung.set()

    async def _run(self) -> None:
        while True:
            if not await rung(self._rung, LOOK_AGAIN):
                self._look = True
            self._rung.clear()
            heard, self._heard = self._heard, set()
            look, self._look = self._look, False
            try:
                if look:
                    heard |= await streams_matching(self._servers, self._patterns)
                await self._take_in(heard)
            except (Disconnected, Refusal) as error:
                self._look = True
                _log.debug("no look for new topics: %s", error)
