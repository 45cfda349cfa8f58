"""Messages between the thread that consumes them and the loop that receives them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence

from ...message import Message
from .records import Place


class Handover:
    """Holds about `size` messages that were consumed and not received yet.

    The thread alone puts, the loop alone takes: what both touch is a deque, whose ends are safe to use beside each
    other. The loop is told only while it waits, once for each list that is put.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._loop = asyncio.get_running_loop()
        self._ready: deque[Message] = deque()
        self._withheld: dict[Place, list[Message]] = {}  # taken from the deque for partitions that are paused
        self._withheld_count = 0
        self._waiter: asyncio.Future[None] | None = None
        self._woken = False
        self.failure: BaseException | None = None  # why nothing comes any more
        self._wants_room = False
        self._has_room = threading.Event()

    # In the thread

    def put(self, messages: Sequence[Message]) -> None:
        """These were consumed."""
        self._ready.extend(messages)
        if self._waiter is not None:
            self._tell(self._notify)

    def fail(self, error: BaseException) -> None:
        """Nothing comes any more: `receive` raises this, after what came before."""
        self.failure = error
        self._tell(self._notify)

    @property
    def room(self) -> int:
        """How many more may be put."""
        return self.size - len(self._ready) - self._withheld_count

    def wait_for_room(self, timeout: float) -> bool:
        """Wait until half of it is free; False after `timeout` seconds, or when there is something else to do."""
        self._has_room.clear()
        self._wants_room = True
        try:
            if self.room <= 0:
                self._has_room.wait(timeout)
            return self.room > 0
        finally:
            self._wants_room = False

    def _tell(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed: nobody receives
            pass

    # On the loop

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """As `Subscription.receive`."""
        deadline = self._loop.time() + wait
        while not (taken := self._take(limit)) and not self._woken:
            if self.failure is not None:
                raise self.failure
            rest = deadline - self._loop.time()
            if rest <= 0:
                break
            await self._wait(rest)
        self._woken = False
        return taken

    async def _wait(self, timeout: float) -> None:
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout, self._notify)
        try:
            if not self._ready:  # the thread may have put some before it could see that we wait
                await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _take(self, limit: int) -> list[Message]:
        ready = self._ready
        taken = [ready.popleft() for _ in range(min(limit, len(ready)))]
        if taken and self._withheld:
            taken = [message for message in taken if not self._withhold(message)]
        if self._wants_room and self.room * 2 >= self.size:
            self._has_room.set()
        return taken

    def _withhold(self, message: Message) -> bool:
        held = self._withheld.get((message.topic, message.partition or 0))
        if held is None:
            return False
        held.append(message)
        self._withheld_count += 1
        return True

    def pause(self, places: frozenset[Place]) -> None:
        """Give nothing of these until `resume`."""
        for place in places:
            self._withheld.setdefault(place, [])

    def resume(self, places: frozenset[Place]) -> None:
        """Give what was withheld, and what comes."""
        for place in places:
            held = self._withheld.pop(place, [])
            self._withheld_count -= len(held)
            self._ready.extendleft(reversed(held))
        self._notify()

    def drop(self, wanted: Callable[[Message], bool]) -> None:
        """Keep only messages that are wanted."""
        ready = self._ready
        kept = [message for message in (ready.popleft() for _ in range(len(ready))) if wanted(message)]
        ready.extendleft(reversed(kept))
        for held in self._withheld.values():
            self._withheld_count -= len(held)
            held[:] = filter(wanted, held)
            self._withheld_count += len(held)
        self.interrupt()

    def forget(self, places: frozenset[Place]) -> None:
        """These are somebody else's: give nothing of them, and if they come back they are not paused."""
        self.drop(lambda message: (message.topic, message.partition or 0) not in places)
        for place in places:
            self._withheld.pop(place, None)

    @property
    def paused(self) -> frozenset[Place]:
        return frozenset(self._withheld)

    def wake(self) -> None:
        """Make a waiting `receive` return at once."""
        self._woken = True
        self._notify()

    def interrupt(self) -> None:
        """Let the thread look whether there is something else to do."""
        self._has_room.set()

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
