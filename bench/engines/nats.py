"""nats-py on JetStream: a pull consumer, and publishes that await their acknowledgement."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import nats
from fast_depends.msgspec import MsgSpecSerializer
from faststream.nats import JStream, NatsBroker, PullSub

from headwater import Topic

from .measure import BODY, PREFETCH, Counter, Reading, Send, decode

FETCH = 500


class Nats:
    name = "JetStream"
    messages = 20_000

    def __init__(self, url: str) -> None:
        self.url = url

    def options(self, topic: str) -> tuple[Topic, ...]:
        return ()

    async def prepare(self, topic: str) -> None:
        client = await nats.connect(self.url)
        await client.jetstream().add_stream(name=topic, subjects=[topic])
        await client.close()

    async def fill(self, topic: str, count: int) -> None:
        client = await nats.connect(self.url)
        stream = client.jetstream()
        for _ in range(0, count, FETCH):
            await asyncio.gather(*(stream.publish(topic, BODY) for _ in range(FETCH)))
        await client.close()

    async def consume(self, topic: str, handle: Counter) -> None:
        client = await nats.connect(self.url)
        config = nats.js.api.ConsumerConfig(max_ack_pending=2 * PREFETCH)
        place = await client.jetstream().pull_subscribe(topic, durable=f"bare-{topic}", config=config)
        while handle.left:
            for message in await place.fetch(min(FETCH, handle.left), timeout=5):
                await handle(decode(message.data))
                await message.ack()
        with contextlib.suppress(Exception):
            await place.unsubscribe()
        await client.close()

    @asynccontextmanager
    async def faststream(self, topic: str, handle: Counter) -> AsyncIterator[None]:
        broker = NatsBroker(self.url, logger=None, serializer=MsgSpecSerializer())

        @broker.subscriber(
            topic, stream=JStream(topic, declare=False), durable=f"fast-{topic}", pull_sub=PullSub(batch_size=FETCH)
        )
        async def take(reading: Reading) -> None:
            await handle(reading)

        async with broker:
            await broker.start()
            yield

    @asynccontextmanager
    async def publisher(self, topic: str) -> AsyncIterator[Send]:
        client = await nats.connect(self.url)
        stream: Any = client.jetstream()
        yield lambda: stream.publish(topic, BODY)
        await client.close()
