"""Makes a client that pushes messages one that is asked for them, and says when it has enough."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from .message import Message


class Inbox:
    """Messages a client pushed, until they are received. It holds `size` of them, and tells whether there is room.

    A client that can be held back stops delivering once it is `full`, and goes on when `on_room` is called: half of it
    is free again. One that cannot has to drop what `put` did not take, and count it.
    """

    def __init__(self, size: int, on_room: Callable[[], object] | None = None) -> None:
        self.size = size
        self._on_room = on_room
        self._messages: deque[Message] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._full = False
        self._woken = False
        self._paused = False
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def full(self) -> bool:
        """Whether `put` takes no more."""
        return len(self._messages) >= self.size

    def put(self, message: Message) -> bool:
        """Take this message; False, and it is not taken, if there is no room."""
        if self.full:
            return False
        self._messages.append(message)
        self._full = self._full or self.full
        if not self._paused:
            self._notify()
        return True

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """As `Subscription.receive`. Raises what `fail` was given, once everything before it was received."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while (self._paused or not self._messages) and not self._woken and (rest := deadline - loop.time()) > 0:
            if self._failure is not None and not self._messages:
                raise self._failure
            self._waiter = loop.create_future()
            timer = loop.call_later(rest, self._notify)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        self._woken = False
        return () if self._paused else self._take(limit)

    def _take(self, limit: int) -> list[Message]:
        messages = self._messages
        if limit >= len(messages):
            taken = list(messages)
            messages.clear()
        else:
            taken = [messages.popleft() for _ in range(limit)]
        if self._full and len(messages) * 2 <= self.size:
            self._full = False
            if self._on_room is not None:
                self._on_room()
        return taken

    def wake(self) -> None:
        """Make a waiting `receive` return at once."""
        self._woken = True
        self._notify()

    def fail(self, error: BaseException) -> None:
        """Nothing comes any more: `receive` raises this."""
        self._failure = error
        self._notify()

    def pause(self) -> None:
        """`receive` gives nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._notify()

    def clear(self) -> list[Message]:
        """Everything that was not received, which it holds no longer."""
        left = list(self._messages)
        self._messages.clear()
        self._full = False
        return left

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
