"""Messages for later: kept in a topic of their own until they are due, then moved by one elected process.

Partition 0 of the topic holds the waiting messages, partition 1 the marks that say which of them were moved.
A message and its mark go into one frame, so that a death at any moment neither loses nor doubles it.
"""

from __future__ import annotations

import asyncio
import heapq
from array import array
from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple, TypeVar

import msgspec

from ..clock import Clock
from ..errors import PartitionLostError
from .alarm import Alarm
from .members import Lease
from .store import Committed, Run, Store

TOPIC: Final = "hw.delays"
PARTITIONS: Final = 2
_WAITING, _MARKS = 0, 1

INDEXED: Final = 100_000  # waiting messages known by time; of those due later only the number is known
BATCH: Final = 256  # messages moved in one frame, and filed anew in one
_BATCH_BYTES: Final = 1 << 20
_SLACK: Final = 10_000  # moved messages remembered one by one before those that wait are filed anew
_CHECKPOINT: Final = 512  # marks after which one holds everything, and the older ones go
_SLEEP: Final = 3600.0

T = TypeVar("T")

_DUE: Final = Struct("<d")
_LOW: Final = Struct("<Q")


class Delayed(msgspec.Struct, array_like=True, frozen=True):
    """A waiting message. `headers` as they are stored; without a partition its key decides."""

    topic: str
    partition: int | None
    key: bytes | None
    headers: bytes
    body: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Delayed).decode

Sort = Callable[[Sequence[Delayed]], Sequence[Run]]


def encode_delayed(due: float, message: Delayed) -> bytes:
    """A waiting message as it is stored. `due` is in seconds since the epoch."""
    return _DUE.pack(due) + _encode(message)


class _Waiting(NamedTuple):
    due: float
    offset: int


_NEVER: Final = _Waiting(float("inf"), 0)


class Delays:
    """What waits, as the elected process knows it. Memory is bounded whatever waits.

    Made anew with each election; all methods but `run` block.
    """

    def __init__(self, store: Store, lease: Lease, sort: Sort, *, durable: bool) -> None:
        """`lease` is the election; `sort` finds the partitions of due messages, leaving out deleted topics."""
        topic = store.topic(TOPIC)
        self._store, self._lease, self._sort, self._durable = store, lease, sort, durable
        self._waiting, self._marks = topic.streams[_WAITING], topic.streams[_MARKS]
        self._index: list[_Waiting] = []
        self._horizon = _NEVER  # whatever comes before is in the index
        self._low = 0  # everything below was moved
        self._moved: set[int] = set()  # from there on
        self._seen = 0  # the next record to look at
        self._marks_since = 0

    def load(self) -> None:
        """Know what waits, from the marks and the messages themselves."""
        position = self._store.earliest(self._marks)
        while chunks := self._store.read_columns(self._marks, position, 1000):
            for chunk in chunks:
                for value in chunk.values:
                    self._low = max(self._low, _LOW.unpack_from(value)[0])
                    self._moved.update(array("Q", value[_LOW.size :]))
                position = chunk.base + len(chunk.values)
        self._low = max(self._low, self._store.earliest(self._waiting))
        self._moved = {offset for offset in self._moved if offset >= self._low}
        self._settle_low()
        self._rescan()

    def _rescan(self) -> None:
        """Index the messages that are due first, of all that wait."""
        self._seen = self._low
        self._index, self._horizon = [], _NEVER
        self.look()

    def look(self) -> None:
        """Take in what came since the last look."""
        for due, offset in self._dues(self._seen):
            self._seen = offset + 1
            waiting = _Waiting(due, offset)
            if waiting < self._horizon and offset not in self._moved:
                heapq.heappush(self._index, waiting)
                if len(self._index) > INDEXED:
                    self._forget_the_latest()

    def _dues(self, position: int) -> Iterator[tuple[float, int]]:
        while chunks := self._store.read_columns(self._waiting, position, 1000):
            for chunk in chunks:
                for offset, value in zip(chunk.offsets, chunk.values, strict=True):
                    yield _DUE.unpack_from(value)[0], offset
                position = chunk.base + len(chunk.values)

    def _forget_the_latest(self) -> None:
        self._index.sort()
        self._horizon = self._index[INDEXED // 2]
        del self._index[INDEXED // 2 :]

    @property
    def next_due(self) -> float | None:
        """When the next message is due, in seconds since the epoch; None while nothing waits."""
        if not self._index and self._horizon is not _NEVER:
            return 0.0  # nobody knows before `move` has looked
        return self._index[0].due if self._index else None

    def move(self, now: float) -> Committed | None:
        """Move some of what is due at `now`. None when nothing is.

        Raises PartitionLostError when another process was elected.
        """
        if not self._index and self._horizon is not _NEVER:
            self._rescan()
        due: list[_Waiting] = []
        messages: list[Delayed] = []
        size = 0
        while self._index and self._index[0].due <= now and len(due) < BATCH and size < _BATCH_BYTES:
            due.append(heapq.heappop(self._index))
            message = self._read(due[-1].offset)
            if message is not None:
                messages.append(message)
                size += len(message.body)
        return self._commit(self._sort(messages), [waiting.offset for waiting in due]) if due else None

    def _read(self, offset: int) -> Delayed | None:
        chunks = self._store.read_columns(self._waiting, offset, 1)
        if not chunks or chunks[0].base != offset:
            return None  # purged
        return _decode(chunks[0].values[0][_DUE.size :])

    def _commit(self, runs: Sequence[Run], moved: Sequence[int]) -> Committed:
        values = [self._mark(moved)]
        self._marks_since += 1
        committed = self._store.append([*runs, Run(self._marks, (None,), (b"",), values)], guard=self._guard)
        if self._durable:
            self._store.sync(committed.end)
        self._moved.update(moved)
        self._settle_low()
        self._keep_small()
        return committed

    def _guard(self) -> None:
        if not self._lease.live or self._lease.page.retired:
            raise PartitionLostError(TOPIC, _WAITING, TOPIC)

    def _mark(self, moved: Sequence[int] | set[int]) -> bytes:
        return _LOW.pack(self._low) + array("Q", moved).tobytes()

    def _settle_low(self) -> None:
        while self._low in self._moved:
            self._moved.discard(self._low)
            self._low += 1

    # Keeping both partitions short

    def _keep_small(self) -> None:
        waiting = self._store.latest(self._waiting) - self._low - len(self._moved)
        if len(self._moved) > _SLACK + 2 * waiting:
            self._file_anew()
        elif self._marks_since >= _CHECKPOINT:
            self._checkpoint()

    def _file_anew(self) -> None:
        """Put the oldest that wait behind the newest: a message for next year must not pin today's."""
        old: list[int] = []
        values: list[bytes] = []
        position, size = self._low, 0
        for chunk in self._store.read_columns(self._waiting, position, 4 * BATCH):
            for offset, value in zip(chunk.offsets, chunk.values, strict=True):
                if offset not in self._moved and len(old) < BATCH and size < _BATCH_BYTES:
                    old.append(offset)
                    values.append(value)
                    size += len(value)
        if not old:
            return
        nothing = [None] * len(old)
        again = Run(self._waiting, nothing, [b""] * len(old), values)
        self._commit_anew(again, old)

    def _commit_anew(self, again: Run, old: list[int]) -> None:
        mark = Run(self._marks, (None,), (b"",), [self._mark(old)])
        committed = self._store.append([again, mark], guard=self._guard)
        if self._durable:
            self._store.sync(committed.end)
        gone = set(old)
        self._index = [waiting for waiting in self._index if waiting.offset not in gone]
        heapq.heapify(self._index)
        self._moved |= gone
        self._settle_low()
        self.look()

    def _checkpoint(self) -> None:
        """One mark that holds everything; the older ones and the moved messages can go."""
        mark = Run(self._marks, (None,), (b"",), [self._mark(self._moved)])
        committed = self._store.append([mark], guard=self._guard)
        if self._durable:
            self._store.sync(committed.end)
        self._store.purge({self._marks: committed.bases[0], self._waiting: self._low})
        self._marks_since = 0


async def run(delays: Delays, clock: Clock, alarm: Alarm, moved: Callable[[], None]) -> None:
    """Move messages as they become due, until cancelled or another process is elected.

    `moved` is called after each frame, for those who wait for the messages.
    """
    await _in_thread(delays.load)
    while True:
        alarm.arm()
        await _in_thread(delays.look)
        due = delays.next_due
        if due is None or due > clock.time():
            timer = clock.call_later(due - clock.time(), alarm.ring) if due is not None else None
            try:
                await alarm.sleep(_SLEEP)
            finally:
                if timer is not None:
                    timer.cancel()
        elif await _in_thread(delays.move, clock.time()) is not None:
            moved()


async def _in_thread(call: Callable[..., T], *args: object) -> T:
    """What a thread has begun is waited for, also when cancelled: the store must not be closed under it."""
    working = asyncio.ensure_future(asyncio.to_thread(call, *args))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        raise
