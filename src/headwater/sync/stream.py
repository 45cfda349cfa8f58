"""Reading a topic from synchronous code: a plain iterator."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from .. import forks
from ..errors import NotConnectedError
from ..message import Message, Position
from ..stream import READ_AHEAD, Stream

if TYPE_CHECKING:
    from .courier import Courier

T = TypeVar("T")

CLOSING: Final = 30.0  # seconds


class SyncStream(Iterator[Message]):
    """A plain iterator over a topic; `SyncBroker.stream` makes it.

    As `Stream`, blocking: it waits for the next message for ever unless `wait`, `until` or `limit` end it. One thread
    reads it. Interrupted, it is closed: what was on its way to it then is lost to it.
    """

    def __init__(self, courier: Courier, stream: Stream) -> None:
        self._courier = courier
        self._stream = stream
        self._ahead: deque[Message] = deque()
        self._reading: asyncio.Task[list[Message]] | None = None
        self._generation = forks.generation

    def __next__(self) -> Message:
        if not self._ahead:
            self._ahead.extend(self._read(READ_AHEAD))
        if not self._ahead:
            raise StopIteration
        return self._ahead.popleft()

    def batches(self, size: int) -> Iterator[Sequence[Message]]:
        """The same messages in lists of 1 to `size`, as they come."""
        while batch := [self._ahead.popleft() for _ in range(min(size, len(self._ahead)))] or self._read(size):
            yield batch

    def seek(self, position: Position | int) -> None:
        """The message at this position comes next. An int is an offset of the only topic's only partition."""

        async def seek(_rest: float) -> None:
            self._give_back()
            await self._stream.seek(position)

        self._call(seek)

    def _give_back(self) -> None:
        """What was taken for us and not asked for comes next once more."""
        self._stream.give_back(self._ahead)
        self._ahead.clear()

    @property
    def position(self) -> tuple[Position, ...]:
        """As `Stream.position`."""

        async def position(_rest: float) -> tuple[Position, ...]:
            self._give_back()
            return self._stream.position

        return self._call(position)

    def pause(self) -> None:
        """As `Stream.pause`. Another thread resumes it."""

        async def pause(_rest: float) -> None:
            self._give_back()
            self._stream.pause()

        self._call(pause)

    def resume(self) -> None:
        """Go on."""

        async def resume(_rest: float) -> None:
            self._stream.resume()

        self._call(resume)

    def open(self) -> None:
        """Take the place in the topic; the first message asked for does it too. Raises as `Stream.open`."""
        self._call(lambda _rest: self._stream.open())

    def close(self) -> None:
        """Give the place up. Idempotent."""
        self._ahead.clear()
        if self._generation == forks.generation:
            self._courier.call(lambda _rest: self._stream.close(), CLOSING, self._courier.unsent)

    def _read(self, size: int) -> list[Message]:
        try:
            return self._call(lambda _rest: self._some(size))
        except BaseException:
            self.close()  # what was taken for us is lost: it cannot go on as if nothing had been
            raise

    async def _some(self, size: int) -> list[Message]:
        self._reading = asyncio.create_task(self._stream.some(size))
        return await asyncio.shield(self._reading)  # it is not cancelled: closing wakes it

    def _call(self, work: Callable[[float], Coroutine[Any, Any, T]]) -> T:
        if self._generation != forks.generation:
            raise NotConnectedError(repr(self._stream), "it was opened before a fork: open another one here")
        return self._courier.call(work, math.inf, self._courier.unsent)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
