"""What 5 million stored messages in 1,000 topics change: publishing, consuming and opening, beside an empty store."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time

from headwater import App, LocalBroker, Outgoing, Topic

from .report import Row, render

STORED = 5_000_000
TOPICS = 1000
KEYS = 10_000
BURST = 5000
MESSAGES = 50_000
ROUNDS = 5


async def fill(folder: str) -> None:
    async with LocalBroker(folder, durability="process") as broker:
        await broker.declare([Topic(f"topic-{number}") for number in range(TOPICS)])
        keys = [f"key-{number}" for number in range(KEYS)]
        for burst in range(STORED // BURST):
            begin = burst * BURST
            await broker.publish_many(
                [
                    Outgoing(b"x" * 100, f"topic-{burst % TOPICS}", key=keys[number % KEYS])
                    for number in range(begin, begin + BURST)
                ]
            )


async def opening(folder: str) -> float:
    begin = time.perf_counter()
    async with LocalBroker(folder, durability="process") as broker:
        await broker.ping()
        return time.perf_counter() - begin


async def publishing(folder: str) -> float:
    """Seconds for so many messages of 10 publishers."""
    async with LocalBroker(folder, durability="process") as broker:
        await broker.publish(b"", "fresh")

        async def work() -> None:
            for _ in range(MESSAGES // 10):
                await broker.publish(b"x" * 100, "fresh")

        begin = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(10)))
        return time.perf_counter() - begin


async def consuming(folder: str, group: str) -> float:
    """Seconds from the first to the last of so many new messages."""
    app = App("bench", broker=LocalBroker(folder, durability="process"))
    left, done, first = MESSAGES, asyncio.Event(), 0.0

    @app.subscriber("fresh", group=group)
    async def handle(body: bytes) -> None:
        nonlocal left, first
        first = first or time.perf_counter()
        left -= 1
        if not left:
            done.set()

    async with app:
        for _ in range(MESSAGES // 1000):
            await app.publish_many([Outgoing(b"x" * 100, "fresh") for _ in range(1000)])
        await done.wait()
        return time.perf_counter() - first


async def measure() -> str:
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as full:
        await fill(full)
        found: dict[str, list[float]] = {}
        for round in range(ROUNDS + 1):
            for name, folder in (("empty", empty), ("full", full)):
                times = [await opening(folder), await publishing(folder), await consuming(folder, f"group-{round}")]
                if round:  # the first warms up
                    for what, seconds in zip(("open", "publish", "consume"), times, strict=True):
                        found.setdefault(f"{name} {what}", []).append(seconds)
    median = {name: statistics.median(values) for name, values in found.items()}
    rows = []
    for what in ("publish", "consume", "open"):
        us, them = median[f"full {what}"], median[f"empty {what}"]
        bar = None if what == "open" else 1 / 1.2
        rows.append(Row(what, "an empty store", f"{us * 1e3:.1f} ms", f"{them * 1e3:.1f} ms", them / us, bar, 0.97))
    if median["full open"] <= 0.05:
        rows.append(
            Row(
                "open within 50 ms",
                "50 ms",
                f"{median['full open'] * 1e3:.1f} ms",
                "50 ms",
                0.05 / median["full open"],
                1,
                1,
            )
        )
    return render(f"{STORED:,} messages in {TOPICS:,} topics and {KEYS:,} keys stored", rows)


def main() -> str:
    return asyncio.run(measure())
