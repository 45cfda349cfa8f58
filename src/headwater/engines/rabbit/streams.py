"""What a stream keeps, found out by reading: RabbitMQ's own count is late."""

from __future__ import annotations

import asyncio
from typing import Any, Final

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
    first = await _offsets(link, stream, "first", 1, wait)
    if not first:
        return 0, 0
    last = await _offsets(link, stream, "last", _MANY, FIRST)
    return first[0], max(last, default=first[0]) + 1


async def _offsets(link: Link, stream: str, start: str, limit: int, wait: float) -> list[int]:
    """The offsets from a place on: up to `limit`, or the end if that is many."""
    found = list[int]()
    came = asyncio.Event()

    def delivered(_frame: Basic.Deliver, properties: Basic.Properties, _body: bytes) -> None:
        offset: Any = (properties.headers or {}).get("x-stream-offset")
        found.append(offset)
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
            if limit == 1:
                return found
            if len(found) % limit == 0:  # that many it sends without being told that they came
                await channel.basic_ack(len(found), multiple=True)
            wait = QUIET
    except TimeoutError:
        return found
    finally:
        await leave_channel(channel)
