"""redis-py on Streams: XREADGROUP and one XACK for what it gave, XADD from a pool of connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio as aioredis
from fast_depends.msgspec import MsgSpecSerializer
from faststream.redis import RedisBroker, StreamSub

from headwater import Topic

from .measure import BODY, Counter, Reading, Send, decode

COUNT = 500


class Redis:
    name = "Redis Streams"
    messages = 20_000

    def __init__(self, url: str) -> None:
        self.url = url

    def options(self, topic: str) -> tuple[Topic, ...]:
        return ()

    async def prepare(self, topic: str) -> None:
        async with aioredis.Redis.from_url(self.url) as client:
            await client.xgroup_create(topic, "bench", id="0", mkstream=True)

    async def fill(self, topic: str, count: int) -> None:
        async with aioredis.Redis.from_url(self.url) as client:
            for _ in range(0, count, COUNT):
                pipeline = client.pipeline(transaction=False)
                for _ in range(COUNT):
                    pipeline.xadd(topic, {b"data": BODY})
                await pipeline.execute()

    async def consume(self, topic: str, handle: Counter) -> None:
        async with aioredis.Redis.from_url(self.url) as client:
            while handle.left:
                found: Any = await client.xreadgroup("bench", "one", {topic: ">"}, count=COUNT)
                entries = found[topic.encode()][0] if isinstance(found, dict) else found[0][1]
                for _, fields in entries:
                    await handle(decode(fields[b"data"]))
                await client.xack(topic, "bench", *(identity for identity, _ in entries))

    @asynccontextmanager
    async def faststream(self, topic: str, handle: Counter) -> AsyncIterator[None]:
        broker = RedisBroker(self.url, logger=None, serializer=MsgSpecSerializer())

        @broker.subscriber(stream=StreamSub(topic, group="bench", consumer="one", max_records=COUNT))
        async def take(reading: Reading) -> None:
            await handle(reading)

        async with broker:
            await broker.start()
            yield

    @asynccontextmanager
    async def publisher(self, topic: str) -> AsyncIterator[Send]:
        pool = aioredis.BlockingConnectionPool.from_url(self.url, max_connections=64)
        client = aioredis.Redis(connection_pool=pool)
        yield lambda: client.xadd(topic, {b"data": BODY})
        await client.aclose()
        await pool.disconnect()
