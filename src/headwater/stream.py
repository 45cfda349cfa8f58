"""Reading a topic from any place, message by message, without a group."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from types import TracebackType
from typing import Final, Self

from .codecs import Decode
from .engine import Change, Engine, Source, Subscription
from .errors import NotSupportedError
from .message import Message, Position

Until = datetime | Callable[[Message], bool]

READ_AHEAD: Final = 500  # messages taken from the engine at once


class Stream:
    """An async iterator over a topic; `broker.stream(...)` makes it.

    It reads on as messages come, takes part in no group and commits nothing. No more than one read-ahead is held,
    so a slow reader grows nothing. Leaving the loop early wants `async with stream:` or `await stream.close()`;
    closing its broker closes it too.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        source: Source,
        *,
        decode: Decode | None = None,
        limit: int | None = None,
        until: Until | None = None,
        wait: float | None = None,
    ) -> None:
        self._engine = engine
        self._source = source
        self._decode = decode
        self._left = limit
        self._until = until
        self._wait = wait
        self._ahead: deque[Message] = deque()
        self._last: dict[tuple[str, int], Message | Position] = {}  # fetched, or sought, in each partition
        self._going = asyncio.Event()  # unless it is paused
        self._going.set()
        self._place: AbstractAsyncContextManager[Subscription] | None = None
        self._subscription: Subscription | None = None
        self._closed = False
        self.on_open: Callable[[Stream], object] = _nobody_asks
        self.on_close: Callable[[Stream], object] = _nobody_asks

    async def open(self) -> None:
        """Take the place in the topic; the first message asked for does it too.

        Raises TopicNotFoundError, and NotSupportedError where the engine keeps nothing to start from.
        """
        if self._subscription is None:
            engine = self._engine()
            if self._source.start != "latest" and not engine.capabilities(self._source).replay:
                raise NotSupportedError(engine.name, "replay", "it keeps nothing: read from latest on")
            place = engine.subscribe(self._source, _nothing_moves)
            self._subscription = await place.__aenter__()
            self._place = place
            self.on_open(self)

    async def close(self) -> None:
        """Give the place up. Idempotent."""
        self._closed = True
        self._going.set()
        place, self._place = self._place, None
        if self._subscription is not None:
            self._subscription.wake()
        if place is not None:
            await place.__aexit__(None, None, None)
        self._ahead.clear()
        self.on_close(self)

    async def seek(self, position: Position | int) -> None:
        """The message at this position comes next. An int is an offset of the only topic's only partition."""
        await self.open()
        assert self._subscription is not None
        if not isinstance(position, Position):
            position = Position(self._source.topics[0], (self._source.partitions or (0,))[0], position)
        kept = [m for m in self._ahead if (m.topic, m.partition or 0) != (position.topic, position.partition)]
        self._ahead = deque(kept)
        await self._subscription.seek(position)
        self._last[position.topic, position.partition] = position

    @property
    def position(self) -> tuple[Position, ...]:
        """What comes next in each partition that gave something: `seek` to it, later or elsewhere, to go on there.

        Where offsets are no numbers (Redis) and nothing was read ahead, it is the last message, which would come again.
        """
        ahead = {(message.topic, message.partition or 0): message for message in reversed(self._ahead)}
        return tuple(_next_of(last, ahead.get(place)) for place, last in self._last.items())

    def pause(self) -> None:
        """Give nothing more until `resume`. What was read ahead is kept, and nothing beyond that is read."""
        self._going.clear()

    def resume(self) -> None:
        """Go on."""
        self._going.set()

    def batches(self, size: int) -> AsyncIterator[Sequence[Message]]:
        """The same messages in lists of 1 to `size`, as they come."""
        return self._batches(size)

    async def _batches(self, size: int) -> AsyncIterator[Sequence[Message]]:
        while batch := await self.some(size):
            yield batch

    async def some(self, size: int) -> list[Message]:
        """The next messages, 1 to `size` of them, as they come; none at the end."""
        batch: list[Message] = []
        while (not batch or self._ahead) and len(batch) < size and (message := await self._next()) is not None:
            batch.append(message)
        return batch

    def give_back(self, messages: Sequence[Message]) -> None:
        """These come next once more: they were taken, but nobody saw them."""
        self._ahead.extendleft(reversed(messages))
        if self._left is not None:
            self._left += len(messages)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        message = await self._next()
        if message is None:
            raise StopAsyncIteration
        return message

    async def _next(self) -> Message | None:
        if not self._going.is_set():
            await self._going.wait()
        if self._closed or self._left == 0:
            await self.close()
            return None
        if not self._ahead and not await self._fetch():
            await self.close()
            return None
        message = self._ahead.popleft()
        if self._decode is not None:
            message._decode = self._decode
        if self._is_past(message):
            await self.close()
            return None
        if self._left is not None:
            self._left -= 1
        return message

    async def _fetch(self) -> bool:
        """Wait for messages; False once the stream was closed, or was quiet for as long as it may."""
        await self.open()
        assert self._subscription is not None
        limit = READ_AHEAD if self._left is None else min(READ_AHEAD, self._left)
        deadline = None if self._wait is None else asyncio.get_running_loop().time() + self._wait
        while not self._closed:
            rest = 60.0 if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())
            messages = await self._subscription.receive(limit, rest)
            if messages:
                self._ahead.extend(messages)
                self._last |= {(message.topic, message.partition or 0): message for message in messages}
                return True
            if deadline is not None and asyncio.get_running_loop().time() >= deadline:
                return False
        return False

    def _is_past(self, message: Message) -> bool:
        if isinstance(self._until, datetime):
            return message.time > self._until.timestamp()
        return self._until is not None and self._until(message)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _next_of(last: Message | Position, ahead: Message | None) -> Position:
    """The place of what comes after this one."""
    if isinstance(last, Position):
        return last
    offset = last.offset if ahead is None else ahead.offset
    assert offset is not None, "what can be read from any place has offsets"
    behind = ahead is None and isinstance(offset, int)
    return Position(last.topic, last.partition or 0, offset + 1 if behind else offset)  # type: ignore[operator]  # an int


async def _nothing_moves(_change: Change) -> None:
    """A stream has its partitions for itself."""


def _nobody_asks(_stream: Stream) -> None:
    """Its broker asks, so that it can close what is still open."""
