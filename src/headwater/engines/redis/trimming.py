"""How long topics keep their messages: kept at the server for each, and one engine at a time acts on it."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Final

import msgspec

from ...engine import Topic
from . import names
from .options import Redis
from .servers import Servers, call
from .wire import Disconnected, Refusal

_log: Final = logging.getLogger("headwater.redis")


class Settings(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a topic keeps: messages of so many seconds, about so many bytes, so many messages."""

    seconds: float | None = None
    bytes: int | None = None
    messages: int | None = None

    @staticmethod
    def of(topic: Topic, option: Redis | None) -> Settings | None:
        """The settings of a declared topic, or None where it keeps everything."""
        seconds = None if topic.retention is None else topic.retention.total_seconds()
        settings = Settings(seconds, topic.retention_bytes, None if option is None else option.maxlen)
        return None if settings == Settings() else settings

    @property
    def retention(self) -> timedelta | None:
        return None if self.seconds is None else timedelta(seconds=self.seconds)


class Trimming:
    """Trims streams, every `interval` seconds on one of the engines that consume."""

    def __init__(self, servers: Servers, interval: float) -> None:
        self._servers, self._interval = servers, interval
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Do so from now on."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="headwater redis trimming")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def keep(self, topic: str, settings: Settings | None) -> None:
        """Have this topic keep so much from now on; everything with None."""
        if settings is None:
            await call(self._servers, names.SETTINGS, "HDEL", names.SETTINGS, topic)
        else:
            encoded = msgspec.json.encode(settings)
            await call(self._servers, names.SETTINGS, "HSET", names.SETTINGS, topic, encoded)
            self.begin()

    async def _run(self) -> None:
        while True:
            try:
                held = ("SET", names.CLEANING, "1", "NX", "PX", int(self._interval * 900))
                if await call(self._servers, names.CLEANING, *held):
                    for topic, settings in (await settings_of_all(self._servers)).items():
                        await self._trim(topic, settings)
            except (Disconnected, Refusal) as error:
                _log.debug("nothing was trimmed: %s", error)
            await asyncio.sleep(self._interval)

    async def _trim(self, topic: str, settings: Settings) -> None:
        if settings.seconds is not None:
            seconds, microseconds = await call(self._servers, topic, "TIME")
            oldest = int(seconds) * 1000 + int(microseconds) // 1000 - int(settings.seconds * 1000)
            await call(self._servers, topic, "XTRIM", topic, "MINID", max(0, oldest))
        if settings.messages is not None:
            await call(self._servers, topic, "XTRIM", topic, "MAXLEN", settings.messages)
        if settings.bytes is not None:
            await self._trim_to_size(topic, settings.bytes)

    async def _trim_to_size(self, topic: str, size: int) -> None:
        """The server counts messages: so many are kept as have this size, if all are about alike."""
        length, used = await self._servers.ask([(topic, ("XLEN", topic)), (topic, ("MEMORY", "USAGE", topic))])
        if isinstance(length, int) and isinstance(used, int) and used > size:
            await call(self._servers, topic, "XTRIM", topic, "MAXLEN", length * size // used)


async def settings_of_all(servers: Servers) -> dict[str, Settings]:
    """The topics that do not keep everything. Raises Disconnected, Refusal."""
    found = await call(servers, names.SETTINGS, "HGETALL", names.SETTINGS)
    return {
        name.decode(): msgspec.json.decode(settings, type=Settings)
        for name, settings in zip(found[::2], found[1::2], strict=True)
    }
