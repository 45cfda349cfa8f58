"""Reading in batches with `broker.stream`, beside the bare clients; and the embedded log, raw."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
import redis.asyncio as aioredis
import rstream
from confluent_kafka import Consumer, Producer, TopicPartition

from headwater import Broker, LocalBroker, Outgoing, RabbitBroker

from . import servers
from .report import Row, interleaved, rate, render

BODY = b"x" * 100
BATCH = 500
PARTITIONS = 4
FRAME = 1000  # messages of one append to the embedded log
EMBEDDED, KAFKA, JETSTREAM, REDIS, RABBIT = 1_000_000, 300_000, 40_000, 100_000, 40_000  # messages of one round
RAW = 1_000_000  # a second: what the embedded log is to reach

Read = Callable[[], Awaitable[float]]


async def ours(broker: Broker, count: int) -> float:
    """Messages a second from the first one on, as for the peers."""
    async with broker.stream("readings", start="earliest", limit=count) as stream:
        read, begin = len(await stream.some(BATCH)), time.perf_counter()
        rest = count - read
        async for batch in stream.batches(BATCH):
            read += len(batch)
        assert read == count
        return rest / (time.perf_counter() - begin)


async def fill(broker: Broker, count: int, partitions: int = 1) -> None:
    numbers = itertools.cycle(range(partitions))
    for _ in range(0, count, FRAME):
        number = next(numbers) if partitions > 1 else None
        await broker.publish_many([Outgoing(BODY, "readings", partition=number) for _ in range(FRAME)], timeout=60)


async def embedded() -> float:
    with tempfile.TemporaryDirectory() as folder:
        async with LocalBroker(folder, durability="process", partitions=1) as broker:
            await fill(broker, EMBEDDED)
            rates = [await ours(broker, EMBEDDED) for _ in range(4)]
    return sorted(rates[1:])[1]


def consume(address: str) -> float:
    """`consume(500)` in a loop, on partitions chosen by hand; each is asked for its error and its value."""
    consumer: Any = Consumer({"bootstrap.servers": address, "group.id": "bare", "enable.auto.commit": False})
    consumer.assign([TopicPartition("readings", number, 0) for number in range(PARTITIONS)])
    read = first = 0
    while read < KAFKA:
        bodies = [message.value() for message in consumer.consume(BATCH, 1.0) if message.error() is None]
        if bodies and not read:
            first, begin = len(bodies), time.perf_counter()
        read += len(bodies)
    taken = time.perf_counter() - begin
    consumer.close()
    return (read - first) / taken


@asynccontextmanager
async def kafka() -> AsyncIterator[tuple[Read, Read]]:
    from servers.kafka import KafkaServer  # the tests' own

    async with KafkaServer() as server, Broker(server.url) as broker:
        await broker.admin.topics.create("readings", partitions=PARTITIONS)
        producer: Any = Producer({"bootstrap.servers": server.address})
        for number in range(KAFKA):
            producer.produce("readings", BODY, partition=number % PARTITIONS)
            if not number % 10_000:
                producer.flush()
        producer.flush()
        yield (lambda: ours(broker, KAFKA)), (lambda: asyncio.to_thread(consume, server.address))


async def pull(address: str) -> float:
    """`fetch(500)` in a loop, from a consumer that wants no acknowledgement."""
    client = await nats.connect(address)
    config = nats.js.api.ConsumerConfig(ack_policy=nats.js.api.AckPolicy.NONE, mem_storage=True)
    place = await client.jetstream().pull_subscribe("readings", config=config)
    read = first = len(await place.fetch(BATCH, timeout=5))
    begin = time.perf_counter()
    while read < JETSTREAM:
        read += len(await place.fetch(min(BATCH, JETSTREAM - read), timeout=5))
    taken = time.perf_counter() - begin
    await client.close()
    return (read - first) / taken


@asynccontextmanager
async def jetstream() -> AsyncIterator[tuple[Read, Read]]:
    with servers.nats() as port:
        address = f"nats://127.0.0.1:{port}"
        async with Broker(address) as broker:
            await fill(broker, JETSTREAM)
            yield (lambda: ours(broker, JETSTREAM)), (lambda: pull(address))


async def follow(port: int) -> float:
    """`xread(count=500)` in a loop, with hiredis; each entry is asked for its body."""
    async with aioredis.Redis(port=port) as client:
        read = first = 0
        place: Any = "0-0"
        while read < REDIS:
            found: Any = await client.xread({"readings": place}, count=BATCH)
            entries = found[b"readings"][0] if isinstance(found, dict) else found[0][1]
            bodies = [fields[b"body"] for _, fields in entries]
            place = entries[-1][0]
            if not read:
                first, begin = len(bodies), time.perf_counter()
            read += len(bodies)
        return (read - first) / (time.perf_counter() - begin)


@asynccontextmanager
async def redis_streams() -> AsyncIterator[tuple[Read, Read]]:
    with servers.redis() as port:
        async with Broker(f"redis://127.0.0.1:{port}") as broker:
            await fill(broker, REDIS)
            yield (lambda: ours(broker, REDIS)), (lambda: follow(port))


async def subscribe(port: int) -> float:
    """The stream protocol, with credit for ten chunks; the body of each message is decoded."""
    done, read, begin = asyncio.Event(), 0, 0.0

    def take(message: Any, _: Any) -> None:
        nonlocal read, begin
        assert message.body
        begin = begin or time.perf_counter()
        read += 1
        if read == RABBIT:
            done.set()

    consumer = rstream.Consumer("127.0.0.1", port, username="guest", password="guest")
    await consumer.start()
    start = rstream.ConsumerOffsetSpecification(rstream.OffsetType.FIRST)
    await consumer.subscribe("readings", take, decoder=rstream.amqp_decoder, offset_specification=start)
    await done.wait()
    taken = time.perf_counter() - begin
    await consumer.close()
    return (read - 1) / taken


@asynccontextmanager
async def rabbit_streams() -> AsyncIterator[tuple[Read, Read]]:
    from servers.rabbit import RabbitServer  # the tests' own

    async with RabbitServer() as server, RabbitBroker(server.url, queue_type="stream") as broker:
        await fill(broker, RABBIT)
        yield (lambda: ours(broker, RABBIT)), (lambda: subscribe(server.stream_port))


PEERS = (
    ("Kafka", "confluent-kafka", kafka),
    ("JetStream", "nats-py", jetstream),
    ("Redis Streams", "redis-py", redis_streams),
    ("RabbitMQ, stream", "rstream", rabbit_streams),
)


async def measure() -> str:
    raw = await embedded()
    rows = [Row("embedded log, raw", "1M/s", rate(raw), rate(RAW), raw / RAW, 1.0)]
    for name, peer, opened in PEERS:
        async with opened() as (mine, theirs):
            us, them = await interleaved(mine, theirs, rounds=3)
        rows.append(Row(name, peer, rate(us), rate(them), us / them, 0.9))
    return render("Streams: 100 B in batches of up to 500", rows)


def main() -> str:
    return asyncio.run(measure())
