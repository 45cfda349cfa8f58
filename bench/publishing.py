"""Publishing to the embedded log through `broker.publish`, beside Redis Streams and JetStream."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal

import nats
import redis.asyncio as aioredis

from headwater import LocalBroker

from . import servers
from .report import Row, interleaved, rate, render

SECONDS = 0.6  # of one measurement
PUBLISHERS = (1, 10, 1000)
SIZES = (100, 1024)
Publish = Callable[[], Awaitable[Any]]
Send = Callable[[bytes], Awaitable[Any]]


async def rate_of(publish: Publish, publishers: int) -> float:
    """Confirmed messages a second, of tasks that each publish one after the other."""
    count = 0
    end = time.perf_counter() + SECONDS

    async def work() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await publish()
            count += 1

    begin = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(publishers)))
    return count / (time.perf_counter() - begin)


class Coalescer:
    """What a careful user of redis-py writes: one pipeline for all XADDs of a turn of the loop."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.waiting: list[tuple[bytes, asyncio.Future[Any]]] = []
        self.task: asyncio.Task[None] | None = None

    def add(self, body: bytes) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting.append((body, future))
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self.flush())
        return future

    async def flush(self) -> None:
        while self.waiting:
            batch, self.waiting = self.waiting, []
            pipeline = self.client.pipeline(transaction=False)
            for body, _ in batch:
                pipeline.xadd("bench", {b"b": body})
            for (_, future), receipt in zip(batch, await pipeline.execute(), strict=True):
                future.set_result(receipt)


@asynccontextmanager
async def ours(durability: Literal["fsync", "process"]) -> AsyncIterator[Send]:
    with tempfile.TemporaryDirectory() as folder:
        async with LocalBroker(folder, durability=durability) as broker:
            yield lambda body: broker.publish(body, "bench")


@asynccontextmanager
async def redis_streams(fsync: str, *, pipelined: bool) -> AsyncIterator[Send]:
    with servers.redis(fsync=fsync) as port:
        pool = aioredis.BlockingConnectionPool(host="127.0.0.1", port=port, max_connections=64)
        client = aioredis.Redis(connection_pool=pool)
        coalescer = Coalescer(client)
        if pipelined:
            yield coalescer.add
        else:
            yield lambda body: client.xadd("bench", {b"b": body})
        await client.aclose()
        await pool.disconnect()


@asynccontextmanager
async def jetstream(*, sync_always: bool) -> AsyncIterator[Send]:
    with servers.nats(sync_always=sync_always) as port:
        client = await nats.connect(f"nats://127.0.0.1:{port}")
        stream = client.jetstream()
        await stream.add_stream(name="bench", subjects=["bench"])
        yield lambda body: stream.publish("bench", body)
        await client.close()


Bars = dict[int, tuple[float, float]]  # publishers → bar, aim
_PLAIN: Bars = {1: (8, 10), 10: (10, 20), 1000: (12, 30)}
_PIPELINED: Bars = {1: (8, 10), 10: (5, 10), 1000: (3.5, 7)}
_JETSTREAM: Bars = {1: (10, 15), 10: (6, 13), 1000: (5, 12)}
_SYNCED: Bars = {1: (1.7, 2), 10: (2, 5), 1000: (4, 6)}


async def compare(name: str, mine: Send, peer: Send, bars: Bars, size: int, publishers: int) -> Row:
    body = b"x" * size
    us, them = await interleaved(
        lambda: rate_of(lambda: mine(body), publishers), lambda: rate_of(lambda: peer(body), publishers), rounds=3
    )
    measure = f"{size} B, {publishers} publisher{'s' if publishers > 1 else ''}"
    return Row(measure, name, rate(us), rate(them), us / them, *bars[publishers])


async def measure() -> str:
    tables = []
    for durability, peers in (
        ("process", {
            "Redis everysec, XADD": (lambda: redis_streams("everysec", pipelined=False), _PLAIN),
            "Redis everysec, pipelined": (lambda: redis_streams("everysec", pipelined=True), _PIPELINED),
            "JetStream file": (lambda: jetstream(sync_always=False), _JETSTREAM),
        }),
        ("fsync", {
            "Redis always, pipelined": (lambda: redis_streams("always", pipelined=True), _SYNCED),
            "JetStream sync always": (lambda: jetstream(sync_always=True), _SYNCED),
        }),
    ):  # fmt: skip
        rows: list[Row] = []
        for name, (open_peer, bars) in peers.items():
            async with AsyncExitStack() as stack:
                mine = await stack.enter_async_context(ours(durability))  # type: ignore[arg-type]  # one of two
                peer = await stack.enter_async_context(open_peer())
                rows += [await compare(name, mine, peer, bars, size, n) for size in SIZES for n in PUBLISHERS]
        tables.append(render(f"Publishing, durability={durability}", rows))
    return "\n".join(tables)


def main() -> str:
    return asyncio.run(measure())
