"""Consuming through a typed handler with acknowledgement, beside Redis Streams and JetStream."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import nats
import redis.asyncio as aioredis

from headwater import App, LocalBroker, Outgoing

from . import servers
from .report import Row, interleaved, rate, render

MESSAGES = 100_000
THEIRS = 20_000  # enough for a slower peer to show its rate
FRAMES = (10, 1000)


class Reading(msgspec.Struct):
    sensor: int
    value: float
    unit: str


BODY = msgspec.json.encode(Reading(7, 21.5, "u" * 60))


@asynccontextmanager
async def ours(frame: int) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """A log filled in frames of this many messages; each measurement is a new group that reads all of it."""
    with tempfile.TemporaryDirectory() as folder:
        async with LocalBroker(folder, durability="process") as broker:
            batch = [Outgoing(BODY, "readings") for _ in range(frame)]
            for _ in range(MESSAGES // frame):
                await broker.publish_many(batch)
        groups = iter(range(1000))

        async def consume() -> float:
            app = App("bench", broker=LocalBroker(folder, durability="process"))
            left = MESSAGES
            done = asyncio.Event()

            @app.subscriber("readings", group=f"bench{next(groups)}", start="earliest")
            async def handle(reading: Reading) -> None:
                nonlocal left
                left -= 1
                if not left:
                    done.set()

            async with app:
                begin = time.perf_counter()
                await done.wait()
                taken = time.perf_counter() - begin
            return MESSAGES / taken

        yield consume


@asynccontextmanager
async def redis_group() -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """XREADGROUP 500 and one XACK for them, decoding the same type."""
    decode = msgspec.json.Decoder(Reading).decode
    with servers.redis() as port:
        client = aioredis.Redis(host="127.0.0.1", port=port)
        for _ in range(THEIRS // 500):
            pipeline = client.pipeline(transaction=False)
            for _ in range(500):
                pipeline.xadd("readings", {b"b": BODY})
            await pipeline.execute()
        groups = iter(range(1000))

        async def handle(_reading: Reading) -> None: ...

        async def consume() -> float:
            group = f"bench{next(groups)}"
            await client.xgroup_create("readings", group, id="0")
            left = THEIRS
            begin = time.perf_counter()
            while left:
                found = await client.xreadgroup(group, "one", {"readings": ">"}, count=500)
                entries = found["readings"] if isinstance(found, dict) else found[0][1]
                entries = entries[0] if isinstance(found, dict) else entries
                for _, fields in entries:
                    await handle(decode(fields[b"b"]))
                await client.xack("readings", group, *(identity for identity, _ in entries))
                left -= len(entries)
            return THEIRS / (time.perf_counter() - begin)

        yield consume
        await client.aclose()


@asynccontextmanager
async def jetstream_pull() -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """fetch(500) and an ack for each, decoding the same type."""
    decode = msgspec.json.Decoder(Reading).decode
    with servers.nats() as port:
        client = await nats.connect(f"nats://127.0.0.1:{port}")
        stream = client.jetstream()
        await stream.add_stream(name="readings", subjects=["readings"])
        for _ in range(THEIRS // 500):
            await asyncio.gather(*(stream.publish("readings", BODY) for _ in range(500)))
        groups = iter(range(1000))

        async def handle(_reading: Reading) -> None: ...

        async def consume() -> float:
            place = await stream.pull_subscribe("readings", durable=f"bench{next(groups)}")
            left = THEIRS
            begin = time.perf_counter()
            while left:
                for message in await place.fetch(min(500, left), timeout=5):
                    await handle(decode(message.data))
                    await message.ack()
                    left -= 1
            taken = time.perf_counter() - begin
            with contextlib.suppress(Exception):
                await place.unsubscribe()
            return THEIRS / taken

        yield consume
        await client.close()


async def measure() -> str:
    rows = []
    for name, open_peer in (("Redis XREADGROUP + XACK", redis_group), ("JetStream pull + ack", jetstream_pull)):
        async with open_peer() as peer:
            for frame in FRAMES:
                async with ours(frame) as mine:
                    us, them = await interleaved(mine, peer, rounds=3)
                bar, aim = (2.5, 4.0) if frame == 10 else (8.0, 15.0)
                rows.append(Row(f"frames of {frame}", name, rate(us), rate(them), us / them, bar, aim))
    return render("Consuming through a typed handler, with acknowledgement", rows)


def main() -> str:
    return asyncio.run(measure())
