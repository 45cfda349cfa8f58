"""What is measured on every engine, and how: rates from the first message to the last, in interleaved rounds."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import msgspec

from headwater import App, Broker, Outgoing, Topic

from ..report import Row, rate

ROUNDS = 3
AT_ONCE = (1, 100, 1000)
SECONDS = 1.0  # of one measurement of publishing
PREFETCH = 1000  # messages that every client may hold ready


class Reading(msgspec.Struct):
    """What all of them decode."""

    sensor: int
    value: float
    unit: str


BODY = msgspec.json.encode(Reading(7, 21.5, "u" * 60))
decode = msgspec.json.Decoder(Reading).decode
Send = Callable[[], Awaitable[Any]]


class Counter:
    """Counts messages, and knows the rate between the first and the last."""

    def __init__(self, count: int) -> None:
        self.count = self.left = count
        self.done = asyncio.Event()
        self._first = self._last = 0.0

    async def __call__(self, _reading: Reading) -> None:
        if self.left == self.count:
            self._first = time.perf_counter()
        self.left -= 1
        if not self.left:
            self._last = time.perf_counter()
            self.done.set()

    @property
    def rate(self) -> float:
        return (self.count - 1) / (self._last - self._first)


class Peer(Protocol):
    """One engine's bare client and FastStream on it, each the way its users write it.

    A topic is new for each round. `prepare` makes what has to be there before the first message, `fill` writes a
    backlog, and then `consume` or `faststream` handles all of it with acknowledgements: an async function is called
    with each decoded message.
    """

    name: str
    url: str
    messages: int  # of one round

    async def prepare(self, topic: str) -> None: ...
    async def fill(self, topic: str, count: int) -> None: ...
    async def consume(self, topic: str, handle: Counter) -> None: ...
    def faststream(self, topic: str, handle: Counter) -> AbstractAsyncContextManager[Any]: ...
    def publisher(self, topic: str) -> AbstractAsyncContextManager[Send]: ...
    def options(self, topic: str) -> tuple[Topic, ...]:
        """How our topic is declared, so that both have the same."""
        ...


_names = (f"readings-{number}" for number in itertools.count())


async def bare(peer: Peer) -> float:
    topic, handle = next(_names), Counter(peer.messages)
    await peer.prepare(topic)
    await peer.fill(topic, peer.messages)
    await peer.consume(topic, handle)
    return handle.rate


async def faststream(peer: Peer) -> float:
    topic, handle = next(_names), Counter(peer.messages)
    await peer.prepare(topic)
    await peer.fill(topic, peer.messages)
    async with peer.faststream(topic, handle):
        await asyncio.wait_for(handle.done.wait(), 120)
    return handle.rate


def our_app(peer: Peer, topic: str, handle: Counter) -> App:
    app = App("bench", broker=peer.url, topics=peer.options(topic))

    @app.subscriber(topic, dead_letter=False)
    async def take(reading: Reading) -> None:
        await handle(reading)

    return app


async def ours(peer: Peer) -> float:
    topic, handle = next(_names), Counter(peer.messages)
    app = our_app(peer, topic, handle)
    async with app:
        pass  # its group has a place from now on
    async with Broker(peer.url) as broker:
        for _ in range(0, peer.messages, 500):
            await broker.publish_many([Outgoing(BODY, topic) for _ in range(500)], timeout=60)
    async with app:
        await asyncio.wait_for(handle.done.wait(), 120)
    return handle.rate


async def publishing(send: Send, at_once: int) -> float:
    """Confirmed messages a second, of so many tasks that publish one after the other."""
    count, end = 0, time.perf_counter() + SECONDS

    async def work() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await send()
            count += 1

    begin = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return count / (time.perf_counter() - begin)


@asynccontextmanager
async def our_publisher(peer: Peer, topic: str) -> Any:
    async with our_app(peer, topic, Counter(1)):
        pass  # somebody keeps what is published, as for the peer
    async with Broker(peer.url) as broker:
        yield lambda: broker.publish(BODY, topic)


async def in_turn(*measures: Callable[[], Awaitable[float]]) -> list[float]:
    """The median of each, taken in turn after one warm-up."""
    for measure in measures:
        await measure()
    rounds = [[await measure() for measure in measures] for _ in range(ROUNDS)]
    return [statistics.median(values) for values in zip(*rounds, strict=True)]


async def rows(peer: Peer) -> list[Row]:
    us, client, framework = await in_turn(lambda: ours(peer), lambda: bare(peer), lambda: faststream(peer))
    bar = round(min(3.0, 0.95 * client / framework), 2)
    found = [
        Row(f"{peer.name}: consume", "the bare client", rate(us), rate(client), us / client, 0.8, 0.95),
        Row(f"{peer.name}: consume", "FastStream", rate(us), rate(framework), us / framework, bar, 5.0),
    ]
    topic, theirs = next(_names), next(_names)
    await peer.prepare(theirs)
    async with our_publisher(peer, topic) as mine, peer.publisher(theirs) as send:
        for count in AT_ONCE:
            us, client = await in_turn(lambda: publishing(mine, count), lambda: publishing(send, count))  # noqa: B023
            bar, aim = (0.9, 0.97) if count == 1 else (1.0, 2.0)
            measure = f"{peer.name}: publish, {count} at once"
            found.append(Row(measure, "the bare client", rate(us), rate(client), us / client, bar, aim))
    return found
