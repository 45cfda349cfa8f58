"""aio-pika on a quorum queue: a consumer with prefetch that acknowledges each, publishes with confirms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from fast_depends.msgspec import MsgSpecSerializer
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

from headwater import Topic

from .measure import BODY, PREFETCH, Counter, Reading, Send, decode

QUORUM = {"x-queue-type": "quorum"}


class Rabbit:
    name = "RabbitMQ"
    messages = 10_000

    def __init__(self, url: str) -> None:
        self.url = url

    def options(self, topic: str) -> tuple[Topic, ...]:
        return ()

    async def prepare(self, topic: str) -> None:
        async with await aio_pika.connect(self.url) as connection:
            channel = await connection.channel()
            await channel.declare_queue(topic, durable=True, arguments=QUORUM)

    async def fill(self, topic: str, count: int) -> None:
        async with self.publisher(topic) as send:
            for _ in range(0, count, 500):
                await asyncio.gather(*(send() for _ in range(500)))

    async def consume(self, topic: str, handle: Counter) -> None:
        async with await aio_pika.connect(self.url) as connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=PREFETCH)
            queue = await channel.declare_queue(topic, durable=True, arguments=QUORUM)

            async def take(message: AbstractIncomingMessage) -> None:
                await handle(decode(message.body))
                await message.ack()

            await queue.consume(take)
            await asyncio.wait_for(handle.done.wait(), 120)

    @asynccontextmanager
    async def faststream(self, topic: str, handle: Counter) -> AsyncIterator[None]:
        broker = RabbitBroker(
            self.url,
            logger=None,
            serializer=MsgSpecSerializer(),
            default_channel=Channel(prefetch_count=PREFETCH),
        )

        @broker.subscriber(RabbitQueue(topic, queue_type=QueueType.QUORUM, durable=True))
        async def take(reading: Reading) -> None:
            await handle(reading)

        async with broker:
            await broker.start()
            yield

    @asynccontextmanager
    async def publisher(self, topic: str) -> AsyncIterator[Send]:
        async with await aio_pika.connect(self.url) as connection:
            channel = await connection.channel(publisher_confirms=True)
            exchange = channel.default_exchange

            def send() -> object:
                message = aio_pika.Message(
                    BODY, content_type="application/json", delivery_mode=aio_pika.DeliveryMode.PERSISTENT
                )
                return exchange.publish(message, topic)

            yield send  # type: ignore[misc]  # a coroutine is awaitable
