"""The lag of a group while messages are published and handled, beside a plain count of both."""

from __future__ import annotations

import asyncio
import time

from headwater import Broker, Outgoing
from headwater.engine import Subscription
from headwater.testing.contract.tools import reading, settled

BATCH = 50


class Counts:
    """What was published and acknowledged so far, and when."""

    def __init__(self) -> None:
        self.asked = self.published = self.acknowledged = 0  # asked for: some of it may be there already
        self._history = [(time.monotonic(), 0)]

    def acknowledge(self, count: int) -> None:
        self.acknowledged += count
        self._history.append((time.monotonic(), self.acknowledged))

    def acknowledged_before(self, moment: float) -> int:
        return max(count for when, count in self._history if when <= moment or not count)


async def lag_is_right_under_load(
    broker: Broker, topic: str, group: str, total: int, behind: float, start: str = "earliest"
) -> None:
    """Fail if the lag is ever more than it can be, or is not exact at rest.

    Acknowledgements may reach the server `behind` seconds after they were made.
    """
    counts = Counts()
    async with asyncio.timeout(30), reading(broker, topic, group, start=start) as place:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_publish(broker, topic, counts, total))
            tasks.create_task(_handle(place, counts, total // 2))
            samples = await _sample(broker, topic, group, counts, total, behind)
        assert samples
        await _is(broker, topic, group, counts.published - counts.acknowledged)
        await _handle(place, counts, total)
        await _is(broker, topic, group, 0)


async def _publish(broker: Broker, topic: str, counts: Counts, total: int) -> None:
    while counts.published < total:
        counts.asked += BATCH
        await broker.publish_many([Outgoing(n, topic, key=str(n)) for n in range(BATCH)], timeout=20)
        counts.published += BATCH
        await asyncio.sleep(0)


async def _handle(place: Subscription, counts: Counts, total: int) -> None:
    while counts.acknowledged < total:
        messages = await place.receive(min(20, total - counts.acknowledged), 0.05)
        await place.ack(messages)
        counts.acknowledge(len(messages))
        await asyncio.sleep(0)


async def _sample(broker: Broker, topic: str, group: str, counts: Counts, total: int, behind: float) -> int:
    samples = 0
    while counts.published < total or counts.acknowledged < total // 2:
        done = counts.acknowledged_before(time.monotonic() - behind)
        lag = (await broker.admin.groups.lag(group, topic)).total
        assert 0 <= lag <= counts.asked - done, f"a lag of {lag}: {counts.asked} were published, {done} acknowledged"
        samples += 1
        await asyncio.sleep(0)  # an engine in this process never waits by itself
    return samples


async def _is(broker: Broker, topic: str, group: str, lag: int) -> None:
    async def right() -> bool:
        return (await broker.admin.groups.lag(group, topic)).total == lag

    await settled(right, within=10)
    assert await right()  # and it stays so
