"""From a publish in one process to a handler in another, at a steady 2,000 messages a second."""

from __future__ import annotations

import asyncio
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import nats
import redis.asyncio as aioredis

from headwater import App, LocalBroker

from . import servers
from .report import Row, render

RATE = 2000
SECONDS = 3.0
ROUNDS = 3
_TIME = struct.Struct("d")


async def publish_steadily(publish: Callable[[bytes], Awaitable[Any]]) -> None:
    """Publish the moment of sending, every half a millisecond, without piling up after a slow one."""
    begin = time.perf_counter()
    for number in range(int(RATE * SECONDS)):
        wait = begin + number / RATE - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        await publish(_TIME.pack(time.monotonic()).ljust(100, b"x"))


async def child(kind: str, where: str) -> None:
    """The publishing process."""
    if kind == "ours":
        async with LocalBroker(where, durability="process") as broker:
            await publish_steadily(lambda body: broker.publish(body, "bench"))
    elif kind == "redis":
        client = aioredis.Redis(port=int(where))
        await publish_steadily(lambda body: client.xadd("bench", {b"b": body}))
        await client.aclose()
    else:
        connection = await nats.connect(f"nats://127.0.0.1:{where}")
        stream = connection.jetstream()
        await publish_steadily(lambda body: stream.publish("bench", body))
        await connection.close()


class Delays:
    """Seconds from publish to handler."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.done = asyncio.Event()

    def note(self, body: bytes) -> None:
        self.seconds.append(time.monotonic() - _TIME.unpack_from(body)[0])
        if len(self.seconds) >= RATE * SECONDS:
            self.done.set()

    def percentiles(self) -> tuple[float, float]:
        cuts = statistics.quantiles(self.seconds[RATE // 4 :], n=100)
        return cuts[49], cuts[98]


async def with_child(kind: str, where: str, delays: Delays) -> tuple[float, float]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.latency", kind, where)
    try:
        await asyncio.wait_for(delays.done.wait(), SECONDS * 10)
    finally:
        await process.wait()
    return delays.percentiles()


async def ours() -> tuple[float, float]:
    delays = Delays()
    with tempfile.TemporaryDirectory() as folder:
        app = App("bench", broker=LocalBroker(folder, durability="process"))

        @app.subscriber("bench")
        async def handle(body: bytes) -> None:
            delays.note(body)

        async with app:
            return await with_child("ours", folder, delays)


async def redis_streams() -> tuple[float, float]:
    delays = Delays()
    with servers.redis() as port:
        client = aioredis.Redis(port=port)
        await client.xgroup_create("bench", "bench", id="$", mkstream=True)

        async def consume() -> None:
            while True:
                found: Any = await client.xreadgroup("bench", "one", {"bench": ">"}, count=500, block=1000)
                for _, entries in found.items() if isinstance(found, dict) else found:
                    for batch in entries if isinstance(found, dict) else [entries]:
                        for _, fields in batch:
                            delays.note(fields[b"b"])
                        await client.xack("bench", "bench", *(identity for identity, _ in batch))

        return await _beside(consume, "redis", str(port), delays)


async def jetstream() -> tuple[float, float]:
    delays = Delays()
    with servers.nats() as port:
        client = await nats.connect(f"nats://127.0.0.1:{port}")
        stream = client.jetstream()
        await stream.add_stream(name="bench", subjects=["bench"])

        async def handle(message: Any) -> None:
            delays.note(message.data)
            await message.ack()

        await stream.subscribe("bench", durable="bench", cb=handle, manual_ack=True)
        found = await with_child("jetstream", str(port), delays)
        await client.close()
        return found


async def _beside(work: Callable[[], Awaitable[None]], kind: str, where: str, delays: Delays) -> tuple[float, float]:
    task = asyncio.ensure_future(work())
    try:
        return await with_child(kind, where, delays)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def measure() -> str:
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for name, run in (("ours", ours), ("Redis Streams", redis_streams), ("JetStream", jetstream)):
            found.setdefault(name, []).append(await run())
    medians = {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
    rows = []
    for peer in ("Redis Streams", "JetStream"):
        for index, name in enumerate(("p50", "p99")):
            mine, theirs = medians["ours"][index], medians[peer][index]
            bar, aim = (2.0, 3.0) if name == "p99" else (None, None)
            rows.append(Row(f"{name} at {RATE}/s", peer, _micros(mine), _micros(theirs), theirs / mine, bar, aim))
    return render("From process to process", rows)


def _micros(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs"


def main() -> str:
    return asyncio.run(measure())


if __name__ == "__main__":
    asyncio.run(child(*sys.argv[1:]))
