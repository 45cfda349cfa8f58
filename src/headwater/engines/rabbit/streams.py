"""What a stream keeps, found out by reading: RabbitMQ's own count is late."""

from __future__ import annotations

import asyncio
import math
from datetime import datetime
from typing import Any, Final, NamedTuple

import aiormq
from pamqp.commands import Basic

from ...errors import TopicNotFoundError
from .channel import open_channel
from .link import Link, is_passing, leave_channel

QUIET: Final = 0.1  # seconds without a message after which a stream is at its end
FIRST: Final = 5.0  # seconds for the first message of a stream that is said to have some
_MANY: Final = 1000


async def bounds(link: Link, stream: str) -> tuple[int, int]:
    """The offset of the first message, and the one the next message will get. Raises TopicNotFoundError."""
    try:
        async with link.channel() as channel:
            said = await channel.queue_declare(stream, passive=True)
    except aiormq.ChannelNotFoundEntity as error:
        if is_passing(error):
            raise
        raise TopicNotFoundError(stream, "or it keeps nothing: it has no stream") from None
    wait = FIRST if said.message_count else QUIET * 3
    first = await _read(link, stream, "first", 1, wait)
    if not first:
        return 0, 0
    last = await _read(link, stream, "last", _MANY, FIRST)
    return first[0].offset, max((one.offset for one in last), default=first[0].offset) + 1


async def first_since(link: Link, stream: str, moment: datetime) -> int | None:
    """The offset of the first message of this second or later, in a stream that has some messages."""
    since = int(moment.timestamp())
    last = await _read(link, stream, "last", _MANY, FIRST)
    if all(one.time < since for one in last):
        return None
    found = await _read(link, stream, moment, _MANY, FIRST, since)
    return next((one.offset for one in found if one.time >= since), None)


class _Place(NamedTuple):
    """A message of a stream; one without a time is later than all others."""

    offset: int
    time: float


async def _read(
    link: Link, stream: str, start: str | datetime, limit: int, wait: float, until: float = math.inf
) -> list[_Place]:
    """What comes from a place on: up to `limit`, or if that is many up to the end, or one of this time or later."""
    found = list[_Place]()
    came = asyncio.Event()

    def delivered(_frame: Basic.Deliver, properties: Basic.Properties, _body: bytes) -> None:
        offset: Any = (properties.headers or {}).get("x-stream-offset")
        found.append(_Place(offset, math.inf if properties.timestamp is None else properties.timestamp.timestamp()))
        came.set()

    async def unused(_: Any) -> None: ...

    channel = await open_channel(await link.connection(), on_delivered=delivered)
    try:
        await channel.basic_qos(prefetch_count=limit)
        await channel.basic_consume(stream, unused, arguments={"x-stream-offset": start})
        while True:
            async with asyncio.timeout(wait):
                await came.wait()  # set already, if some came before we were told that we may consume
            came.clear()
            if limit == 1 or until <= found[-1].time < math.inf:
                return found
            if len(found) % limit == 0:  # that many it sends without being told that they came
                await channel.basic_ack(len(found), multiple=True)
            wait = QUIET
    except TimeoutError:
        return found
    finally:
        await leave_channel(channel)
