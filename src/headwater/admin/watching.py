"""How things go on: the lag of a group, and the health of a cluster, looked at again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..errors import ConnectError, NotConnectedError
from .results import Health, Lag

if TYPE_CHECKING:
    from .surface import Cluster, Groups


@dataclass(frozen=True, slots=True)
class LagSample:
    """The lag of a group at one time, and how it moved since the look before; None at the first one.

    `published` and `handled` are messages a second: what was added to the group's topics, and what the group is done
    with. `remaining` is in seconds: until it has caught up if both go on like this, None if it never will.
    """

    time: datetime
    lag: Lag
    published: float | None = None
    handled: float | None = None

    @property
    def total(self) -> int:
        return self.lag.total

    @property
    def remaining(self) -> float | None:
        if self.lag.total == 0:
            return 0.0
        if self.published is None or self.handled is None or self.handled <= self.published:
            return None
        return self.lag.total / (self.handled - self.published)


async def watch_lag(groups: Groups, group: str, topic: str | None, every: float) -> AsyncIterator[LagSample]:
    """See `Admin.watch_lag`."""
    before: tuple[float, Lag] | None = None
    while True:
        lag = await groups.lag(group, topic)
        now = time.monotonic()
        published, handled = _rates(lag, now, *before) if before is not None else (None, None)
        yield LagSample(datetime.now(UTC), lag, published, handled)
        before = now, lag
        await asyncio.sleep(every)


def _rates(lag: Lag, now: float, then: float, before: Lag) -> tuple[float, float]:
    """Messages a second that were published and handled, from the ends of partitions and what is left of them."""
    ends = {(one.topic, one.partition): one for one in before.partitions}
    published = left = 0
    for one in lag.partitions:
        if (known := ends.get((one.topic, one.partition))) is not None:
            published += max(0, one.latest - known.latest)
            left += one.lag - known.lag
    seconds = max(1e-9, now - then)
    return published / seconds, max(0, published - left) / seconds


async def watch_health(cluster: Cluster, every: float) -> AsyncIterator[Health]:
    """See `Admin.watch_cluster`."""
    before: Health | None = None
    while True:
        try:
            health = await cluster.health()
        except (ConnectError, NotConnectedError, TimeoutError) as error:
            health = Health((str(error) or "it does not answer",))
        if health != before:
            yield health
        before = health
        await asyncio.sleep(every)
