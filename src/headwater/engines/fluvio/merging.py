"""Messages of several partitions on their way to one receiver."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from ...message import Message
from .apis import Place
from .streaming import PartitionStream, to_messages

NOTHING_STORED: Final = -1


class Claim:
    """A partition that is read here, from when it is taken until it is given up: how far it is done and stored."""

    __slots__ = ("done", "stored")

    def __init__(self, offset: int) -> None:
        self.done = self.stored = offset  # all below it


class Inlet:
    """One partition, read by a task of its own, which waits while what it read is not taken."""

    def __init__(self, stream: PartitionStream, topic: str, group: str | None, merge: Merge) -> None:
        self.claim = Claim(stream.offset)
        self.stream = stream
        self.ready: deque[Message] = deque()
        self.paused = False
        self._topic, self._group, self._merge = topic, group, merge
        self._taken = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"headwater fluvio {topic}[{stream.place[1]}]")

    async def _run(self) -> None:
        try:
            while True:
                records = await self.stream.read()
                self.ready.extend(to_messages(records, self._topic, self.stream.place[1], self._group, self.claim))
                self._taken.clear()
                self._merge.ring()
                await self._taken.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._merge.fail(error)

    def take(self, limit: int) -> list[Message]:
        ready = self.ready
        if limit >= len(ready):
            taken = list(ready)
            ready.clear()
            self._taken.set()
        else:
            taken = [ready.popleft() for _ in range(limit)]
        return taken

    async def close(self) -> None:
        """What was not taken is gone."""
        self.ready.clear()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.stream.close()


class Merge:
    """Gives what inlets have ready, of each in turn."""

    def __init__(self) -> None:
        self.inlets: dict[Place, Inlet] = {}  # by our name of the topic
        self._loop = asyncio.get_running_loop()
        self._sleeper: asyncio.Future[None] | None = None
        self._woken = False
        self._turn = 0
        self._failure: BaseException | None = None

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """As `Subscription.receive`. Raises what made reading impossible, after what came before."""
        deadline = self._loop.time() + wait
        while not (found := self._gather(limit)) and not self._woken:
            if self._failure is not None:
                raise self._failure
            rest = deadline - self._loop.time()
            if rest <= 0:
                break
            await self._sleep(rest)
        self._woken = False
        return found

    def _gather(self, limit: int) -> list[Message]:
        found: list[Message] = []
        inlets = list(self.inlets.values())
        self._turn += 1
        for number in range(len(inlets)):
            inlet = inlets[(self._turn + number) % len(inlets)]
            if inlet.ready and not inlet.paused:
                found += inlet.take(limit - len(found))
                if len(found) >= limit:
                    break
        return found

    async def _sleep(self, seconds: float) -> None:
        self._sleeper = self._loop.create_future()
        timer = self._loop.call_later(seconds, self.ring)
        try:
            await self._sleeper
        finally:
            timer.cancel()
            self._sleeper = None

    def ring(self) -> None:
        """There may be something to receive."""
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    def wake(self) -> None:
        """Make a waiting `receive` return at once."""
        self._woken = True
        self.ring()

    def fail(self, error: BaseException) -> None:
        """A partition cannot be read any more."""
        self._failure = error
        self.ring()

    def set_paused(self, places: frozenset[Place], paused: bool) -> None:
        for place in places:
            if (inlet := self.inlets.get(place)) is not None:
                inlet.paused = paused
        self.ring()

    async def close(self, places: frozenset[Place] | None = None) -> None:
        """Read these no longer, or none."""
        gone = [self.inlets.pop(place) for place in list(self.inlets) if places is None or place in places]
        for inlet in gone:
            await inlet.close()
