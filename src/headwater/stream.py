"""Reading a topic from any place, message by message, without a group."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from operator import attrgetter
from types import TracebackType
from typing import Final, Self

from .codecs import Decode
from .engine import Change, Engine, Source, Subscription, Topic
from .errors import HeadwaterError, NotSupportedError, TopicNotFoundError
from .message import Message, Position
from .topics import is_pattern

Until = datetime | Callable[[Message], bool]
_Place = tuple[str, int]  # a partition of a topic
_PLACE: Final[Callable[[Message], _Place]] = attrgetter("topic", "partition")

READ_AHEAD: Final = 500  # messages taken from the engine at once
LOOK_AFTER: Final = 2.0  # quiet seconds after which a stream looks whether its topics are still there


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
        self._last: dict[_Place, Message | Position] = {}  # fetched, or sought, in each partition
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
        self._last = {(position.topic, position.partition): position for position in self.position}
        self._ahead.clear()  # nobody saw it, and `position` says so
        self.on_close(self)

    async def seek(self, position: Position | int) -> None:
        """The message at this position comes next. An int is an offset of the only topic's only partition.

        Raises OffsetOutOfRangeError, TopicNotFoundError: then it stays where it is.
        """
        await self.open()
        assert self._subscription is not None
        if not isinstance(position, Position):
            position = Position(self._source.topics[0], (self._source.partitions or (0,))[0], position)
        await self._subscription.seek(position)
        here, ahead = (position.topic, position.partition), list(self._ahead)
        self._ahead = deque(m for place, m in zip(_places_of(ahead), ahead, strict=True) if place != here)
        self._last[here] = position

    @property
    def position(self) -> tuple[Position, ...]:
        """What comes next in each partition that gave something: `seek` to it, later or elsewhere, to go on there.

        Where offsets are no numbers (Redis) and nothing was read ahead, it is the last message, which would come again.
        """
        waiting = list(reversed(self._ahead))
        ahead = dict(zip(_places_of(waiting), waiting, strict=True))
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
        """The next messages, 1 to `size` of them, as they come; none at the end.

        Raises TopicNotFoundError if the topic is deleted while it is read.
        """
        if await self._has_more() and (batch := self._take(size)):
            return batch
        await self.close()
        return []

    def give_back(self, messages: Sequence[Message]) -> None:
        """These come next once more: they were taken, but nobody saw them."""
        self._ahead.extendleft(reversed(messages))
        if self._left is not None:
            self._left += len(messages)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        batch = await self.some(1)
        if not batch:
            raise StopAsyncIteration
        return batch[0]

    async def _has_more(self) -> bool:
        """Wait until something was read ahead, and may be given; False at the end."""
        if not self._going.is_set():
            await self._going.wait()
        if self._closed or self._left == 0:
            return False
        return bool(self._ahead) or await self._fetch()

    def _take(self, size: int) -> list[Message]:
        """Up to `size` of what was read ahead; what is past the end stays there."""
        ahead, left = self._ahead, self._left
        count = min(size, len(ahead)) if left is None else min(size, len(ahead), left)
        if self._until is not None:
            count = next((index for index in range(count) if self._is_past(ahead[index])), count)
            # A batch that ends early is the last one: the next call finds what is past, and nothing before it.
        if count == len(ahead):
            batch = list(ahead)
            ahead.clear()
        else:
            batch = [ahead.popleft() for _ in range(count)]
        if self._decode is not None:
            for message in batch:
                message._decode = self._decode
        if left is not None:
            self._left = left - count
        return batch

    async def _fetch(self) -> bool:
        """Wait for messages; False once the stream was closed, or was quiet for as long as it may."""
        await self.open()
        assert self._subscription is not None
        time = asyncio.get_running_loop().time
        limit = READ_AHEAD if self._left is None else min(READ_AHEAD, self._left)
        deadline = None if self._wait is None else time() + self._wait
        while not self._closed:
            rest = LOOK_AFTER if deadline is None else min(LOOK_AFTER, max(0.0, deadline - time()))
            messages = await self._subscription.receive(limit, rest)
            if messages:
                self._ahead.extend(messages)
                self._last.update(zip(_places_of(messages), messages, strict=True))
                return True
            if deadline is not None and time() >= deadline:
                return False
            await self._look_for_topics()
        return False

    async def _look_for_topics(self) -> None:
        """Raise TopicNotFoundError if one is gone: not every engine would tell, and nothing would ever come."""
        if self._closed:
            return
        engine, names = self._engine(), [topic for topic in self._source.topics if not is_pattern(topic)]
        if not engine.available:
            return
        try:
            await engine.declare([Topic(name) for name in names], "check")
        except TopicNotFoundError as error:
            await self.close()
            hint = "it was deleted while it was read. Make it again, and open another stream"
            raise TopicNotFoundError(error.topic, hint) from error
        except (HeadwaterError, OSError, TimeoutError):
            pass  # the engine cannot say, or is away: it goes on by itself

    def _is_past(self, message: Message) -> bool:
        if isinstance(self._until, datetime):
            return message.time > self._until.timestamp()
        if self._until is None:
            return False
        message._decode = self._decode or message._decode  # it may look at the value
        return self._until(message)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _places_of(messages: Sequence[Message]) -> Iterable[_Place]:
    """The partition of each, without a step of Python's for each; engines without partitions have one, 0."""
    if messages and messages[0].partition is None:
        return [(message.topic, 0) for message in messages]
    return map(_PLACE, messages)


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
