"""Fluvio beside its own Python client, on the cluster that FLUVIO_ENDPOINT names: `make bench ARGS=fluvio`."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from headwater import App, Broker, Outgoing

from .engines.measure import BODY, Counter, Reading, decode, in_turn, publishing
from .report import Row, rate, render

MESSAGES = 20_000  # of one round
FRAME = 1000  # messages that are sent at once
BATCH = 500
_topics = (f"bench-{os.getpid()}-{number}" for number in itertools.count())


async def new_topic(broker: Broker, count: int = 0) -> str:
    """A topic of one partition, with so many messages."""
    topic = next(_topics)
    await broker.admin.topics.create(topic, partitions=1)
    for _ in range(0, count, FRAME):
        await broker.publish_many([Outgoing(BODY, topic) for _ in range(FRAME)], timeout=60)
    return topic


async def our_frames(broker: Broker, topic: str) -> float:
    begin = time.perf_counter()
    for _ in range(0, MESSAGES, FRAME):
        await broker.publish_many([Outgoing(BODY, topic) for _ in range(FRAME)], timeout=60)
    return MESSAGES / (time.perf_counter() - begin)


async def their_frames(producer: Any) -> float:
    """It waits for confirmations in the end only."""
    begin = time.perf_counter()
    for _ in range(0, MESSAGES, FRAME):
        await producer.async_send_all([(b"", BODY)] * FRAME)
    await producer.async_flush()
    return MESSAGES / (time.perf_counter() - begin)


async def our_stream(broker: Broker, topic: str) -> float:
    read, begin = 0, time.perf_counter()
    async with broker.stream(topic, start="earliest", limit=MESSAGES) as stream:
        async for batch in stream.batches(BATCH):
            read += len(batch)
    return read / (time.perf_counter() - begin)


async def their_records(client: Any, topic: str, handle: Callable[[bytes], Awaitable[None]] | None) -> float:
    """Records a second. It leaves some out, where a fetch ends within a batch, so the last batch is not waited for."""
    from fluvio import Offset

    consumer = await asyncio.to_thread(client.partition_consumer, topic, 0)
    records = await consumer.async_stream(Offset.beginning())
    read, last, begin = 0, -1, time.perf_counter()
    while last < MESSAGES - FRAME - 1:
        record = await records.__anext__()
        value, last, read = bytes(record.value()), record.offset(), read + 1
        if handle is not None:
            await handle(value)
    return read / (time.perf_counter() - begin)


async def our_handler(broker: Broker, url: str) -> float:
    topic, handle = await new_topic(broker, MESSAGES), Counter(MESSAGES)
    app = App("bench", broker=url)

    @app.subscriber(topic, start="earliest", dead_letter=False)
    async def take(reading: Reading) -> None:
        await handle(reading)

    async with app:
        await asyncio.wait_for(handle.done.wait(), 120)
    return handle.rate


async def their_handler(broker: Broker, client: Any) -> float:
    """Nothing is kept of where it is: its consumers that do that are synchronous."""
    topic, handle = await new_topic(broker, MESSAGES), Counter(MESSAGES)

    async def take(value: bytes) -> None:
        await handle(decode(value))

    return await their_records(client, topic, take)


async def measure(endpoint: str) -> str:
    from fluvio import Fluvio, FluvioConfig

    url, rows = f"fluvio://{endpoint}", list[Row]()

    def row(name: str, us: float, them: float) -> None:
        rows.append(Row(name, "fluvio", rate(us), rate(them), us / them, 0.9))

    async with Broker(url) as broker:
        client = await asyncio.to_thread(Fluvio.connect_with_config, FluvioConfig.new(endpoint))
        topic = await new_topic(broker)
        producer = await asyncio.to_thread(client.topic_producer, topic)

        async def send() -> None:
            await (await producer.async_send(b"", BODY)).async_wait()

        for count in (1, 100, 1000):
            ours = lambda: publishing(lambda: broker.publish(BODY, topic), count)  # noqa: B023, E731
            row(f"publish, {count} at once", *await in_turn(ours, lambda: publishing(send, count)))  # noqa: B023
        row("1000 in one call", *await in_turn(lambda: our_frames(broker, topic), lambda: their_frames(producer)))
        topic = await new_topic(broker, MESSAGES)
        row("stream", *await in_turn(lambda: our_stream(broker, topic), lambda: their_records(client, topic, None)))
        row("handler", *await in_turn(lambda: our_handler(broker, url), lambda: their_handler(broker, client)))
    return render("Fluvio", rows)


def main() -> str:
    endpoint = os.environ.get("FLUVIO_ENDPOINT")
    if endpoint is None:
        return "Fluvio: left out, FLUVIO_ENDPOINT=host:port names no cluster\n"
    return asyncio.run(measure(endpoint))
