"""How the tests read."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, Final

from ...broker import Broker
from ...engine import Assigned, Change, Source, Subscription
from ...message import Message, Outgoing

MakeBroker = Callable[[], Broker]
Restart = Callable[[], Awaitable[None]]

QUIET: Final = 0.15  # seconds without a message after which a test believes that none will come


def reading(
    broker: Broker,
    topic: str,
    group: str | None,
    *,
    start: Any = "latest",
    exclusive: bool = False,
    changes: list[Change] | None = None,
) -> AbstractAsyncContextManager[Subscription]:
    """A place in a topic; with `changes` it notes there what is assigned to it and taken from it."""
    can = broker.engine.capabilities(Source(topics=(topic,), group=group))
    source = Source(topics=(topic,), group=group if can.groups else None, start=start, exclusive=exclusive)

    async def note(change: Change) -> None:
        if changes is not None:
            changes.append(change)

    return broker.engine.subscribe(source, note)


async def taken(place: Subscription, count: int, within: float = 20.0) -> list[Message]:
    """Exactly so many messages."""
    found: list[Message] = []
    async with asyncio.timeout(within):
        while len(found) < count:
            found += await place.receive(count - len(found), 0.1)
    return found


async def published_around(broker: Broker, topic: str) -> datetime:
    """A moment between the numbers 0 to 2, in order on the topic, and 3 to 5."""
    for n in range(6):
        await broker.publish(n, topic, key="k")
        if n == 2:
            await asyncio.sleep(0.05)
            moment = datetime.now(UTC)
            await asyncio.sleep(0.05)
    return moment


async def nothing_more(place: Subscription) -> bool:
    """Whether no message comes for a while."""
    return not await place.receive(1, QUIET)


async def both_joined(broker: Broker, topic: str, one: Subscription, two: Subscription) -> None:
    """Return once both members have been given something, and nothing is left: an engine may take a while to share."""
    got, rounds = {one: 0, two: 0}, itertools.count()
    async with asyncio.timeout(20):
        while not all(got.values()):
            left = {f"warming up {next(rounds)}.{n}" for n in range(32)}
            await broker.publish_many([Outgoing(value, topic, key=str(n)) for n, value in enumerate(left)])
            while left:
                for place in got:
                    messages = await place.receive(100, 0.02)
                    got[place] += len(messages)
                    left -= {message.value for message in messages}
                    await place.ack(messages)


async def shared(
    one: Subscription, two: Subscription, count: int, *, acknowledge: bool = True
) -> tuple[list[int], list[int]]:
    """What each of two members was given of `count` numbers."""
    given: tuple[list[int], list[int]] = ([], [])

    async def work(place: Subscription, mine: list[int]) -> None:
        while len(given[0]) + len(given[1]) < count:
            messages = await place.receive(10, 0.05)
            mine += [message.value for message in messages]
            if acknowledge:
                await place.ack(messages)

    async with asyncio.timeout(20):
        await asyncio.gather(work(one, given[0]), work(two, given[1]))
    return given


def held(changes: Sequence[Change]) -> frozenset[tuple[str, int]]:
    """The partitions that a member holds after these changes."""
    mine = frozenset[tuple[str, int]]()
    for change in changes:
        mine = mine | change.partitions if isinstance(change, Assigned) else mine - change.partitions
    return mine


async def settled(condition: Callable[[], object], within: float = 20.0) -> None:
    """Return once the condition, which may be a coroutine function, holds."""
    async with asyncio.timeout(within):
        while True:
            holds = condition()
            if isinstance(holds, Awaitable):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(0.002)


async def received(place: Subscription, wait: float) -> list[Message]:
    return list(await place.receive(10, wait))


async def until_woken(place: Subscription) -> None:
    """Receive as a worker does, so that an engine that moves partitions while receiving can."""
    while True:
        await place.receive(10, 0.05)


async def until(condition: Callable[[], bool], place: Subscription) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await place.receive(10, 0.05)
