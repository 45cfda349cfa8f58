"""confluent-kafka: `consume(n)` in a loop that commits what it handled; produce with delivery callbacks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from fast_depends.msgspec import MsgSpecSerializer
from faststream.confluent import KafkaBroker

from headwater import Topic

from .measure import BODY, Counter, Reading, Send, decode

COUNT = 500
PARTITIONS = 4


class Kafka:
    name = "Kafka"
    messages = 100_000

    def __init__(self, url: str) -> None:
        self.url = url
        self.address = url.partition("://")[2]

    def options(self, topic: str) -> tuple[Topic, ...]:
        return (Topic(topic, partitions=PARTITIONS),)

    async def prepare(self, topic: str) -> None:
        admin = AdminClient({"bootstrap.servers": self.address})
        for future in admin.create_topics([NewTopic(topic, PARTITIONS, 1)]).values():
            await asyncio.wrap_future(future)

    async def fill(self, topic: str, count: int) -> None:
        producer = Producer({"bootstrap.servers": self.address})
        for number in range(count):
            producer.produce(topic, BODY, partition=number % PARTITIONS)
        await asyncio.to_thread(producer.flush)

    async def consume(self, topic: str, handle: Counter) -> None:
        consumer: Any = Consumer(
            {
                "bootstrap.servers": self.address,
                "group.id": f"bare-{topic}",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            }
        )
        consumer.subscribe([topic])
        while handle.left:
            for message in await asyncio.to_thread(consumer.consume, COUNT, 1.0):
                await handle(decode(message.value()))
            consumer.commit(asynchronous=True)
        await asyncio.to_thread(consumer.close)

    @asynccontextmanager
    async def faststream(self, topic: str, handle: Counter) -> AsyncIterator[None]:
        broker = KafkaBroker(self.address, logger=None, serializer=MsgSpecSerializer())

        @broker.subscriber(topic, group_id=f"fast-{topic}", auto_offset_reset="earliest")
        async def take(reading: Reading) -> None:
            await handle(reading)

        async with broker:
            await broker.start()
            yield

    @asynccontextmanager
    async def publisher(self, topic: str) -> AsyncIterator[Send]:
        loop = asyncio.get_running_loop()
        producer: Any = Producer({"bootstrap.servers": self.address, "enable.idempotence": True, "linger.ms": 0})
        closing = threading.Event()

        def poll() -> None:
            while not closing.is_set():
                producer.poll(0.1)

        def send() -> asyncio.Future[Any]:
            future: asyncio.Future[Any] = loop.create_future()

            def delivered(_error: Any, message: Any) -> None:
                loop.call_soon_threadsafe(_set, future, message)

            producer.produce(topic, BODY, on_delivery=delivered)
            return future

        polling = asyncio.create_task(asyncio.to_thread(poll))
        yield send
        closing.set()
        await polling


def _set(future: asyncio.Future[Any], message: Any) -> None:
    if not future.done():
        future.set_result(message)
