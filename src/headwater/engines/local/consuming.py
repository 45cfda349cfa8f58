"""A member's place in a group: delivers what its leases hold, and settles it in their cursors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from operator import attrgetter

from ...errors import NotSupportedError, OffsetOutOfRangeError, PartitionLostError, TopicNotFoundError
from ...log.alarm import Alarm
from ...log.cursors import WINDOW, CursorPage
from ...log.frames import Chunk, CursorCommit
from ...log.members import Lease, Member
from ...log.store import Store
from ...message import Message, Outgoing, Position, Receipt
from .records import slice_of, to_messages

MAX_BYTES = 1 << 20  # of values read from one partition at once

Transact = Callable[[Sequence[Outgoing], Sequence[CursorCommit], Callable[[], None]], Awaitable[Sequence[Receipt]]]
Partitions = frozenset[tuple[str, int]]


class GroupSubscription:
    """One member of a group, receiving. Made by `LocalEngine.subscribe`.

    Acknowledgements may come in any order and are stored before `ack` returns; those of a lease that ended
    are dropped.
    """

    def __init__(self, group: str, store: Store, alarm: Alarm, transact: Transact) -> None:
        self.group = group
        self.member: Member | None = None  # set before anything is received
        self.touched = False  # cursors changed since they were last brought to the disk
        self._store, self._alarm, self._transact = store, alarm, transact
        self._leases: list[Lease] = []
        self._turn = 0
        self._dry: int | None = None  # where the journal ended when nothing was left to deliver
        self._held_back = False  # something was left for want of room past a watermark
        self._committed: dict[Lease, int] = {}

    # What the engine and the member tell

    def stir(self) -> None:
        """A bell rang."""
        if self.member is not None:
            self.member.notice()
        self._alarm.ring()

    def leases_changed(self) -> None:
        """The member's leases are others now."""
        assert self.member is not None
        self._leases = list(self.member.leases.values())
        self._turn = 0
        self._committed = {lease: at for lease, at in self._committed.items() if lease.live}
        self._look_again()

    def page_of(self, stream: int) -> CursorPage | None:
        """The cursor this member has for a stream. Called from any thread."""
        return next((lease.page for lease in self._leases if lease.stream == stream and lease.live), None)

    def _look_again(self) -> None:
        self._dry = None
        self._alarm.ring()

    # Receiving

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """The next messages, as many as are there up to `limit`; () after `wait` quiet seconds or a `wake`."""
        await self._alarm.take_turns()
        if found := self._gather(limit):
            return found
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while not self._alarm.was_woken():
            self._alarm.arm()
            if found := self._gather(limit):
                return found
            if self.member is not None and self.member.failure is not None:
                raise self.member.failure
            left = deadline - loop.time()
            if left <= 0:
                break
            await self._alarm.sleep(left)
        return ()

    def wake(self) -> None:
        """Make a waiting `receive` return at once."""
        self._alarm.wake()

    def _gather(self, limit: int) -> list[Message]:
        visible = self._store.visible_end
        if visible == self._dry:
            return []
        self._held_back = False
        found: list[Message] = []
        committed = self._store.committed
        turn, leases = self._turn, self._leases
        for i, lease in enumerate(leases[turn:] + leases[:turn], turn + 1):
            if lease.position < committed(lease.stream):
                self._read(lease, limit - len(found), found)
                if len(found) >= limit:
                    self._turn = i % len(leases)
                    return found
        if not found:
            self._dry = visible
        return found

    def _read(self, lease: Lease, limit: int, found: list[Message]) -> None:
        have = len(found)
        while self._read_once(lease, limit, found) and len(found) == have:
            # All that was read is done already: go to what is not.
            lease.position = lease.page.next_run(lease.position, WINDOW)[0]

    def _read_once(self, lease: Lease, limit: int, found: list[Message]) -> bool:
        """Deliver what comes next on a partition; False if there is nothing to read."""
        if lease.paused or not lease.live:
            return False
        page, position = lease.page, lease.position
        room = page.limit - position
        if room <= 0:
            self._held_back = True
            return False
        try:
            chunks = self._store.read_columns(lease.stream, position, min(limit, room), MAX_BYTES)
        except TopicNotFoundError:  # deleted: the member hears of it too, and gives the lease up
            return False
        if not chunks:
            return False
        if page.retired:  # taken over while this process was stopped; the member finds out in a moment
            lease.paused = True
            return False
        for chunk in chunks:
            if chunk.base > lease.position:
                page.advance(chunk.base)  # what lay before expired
            self._deliver(lease, chunk, found)
        return lease.position > position

    def _deliver(self, lease: Lease, chunk: Chunk, found: list[Message]) -> None:
        page = lease.page
        at, end = chunk.base, chunk.base + len(chunk.values)
        while at < end:
            first, count, attempt = page.next_run(at, end - at)
            if not count:
                at = first
                break
            if attempt == 1:
                page.deliver(first, count)
            part = slice_of(chunk, first, first + count)
            found += to_messages(lease.topic, lease.partition, part, self.group, attempt, lease)
            at = first + count
        lease.position = at

    def pause(self, partitions: Partitions) -> None:
        """Receive nothing more from these until `resume`."""
        self._set_paused(partitions, True)

    def resume(self, partitions: Partitions) -> None:
        """Receive from these again."""
        self._set_paused(partitions, False)
        self._look_again()

    def _set_paused(self, partitions: Partitions, paused: bool) -> None:
        assert self.member is not None
        for at in partitions:
            lease = self.member.leases.get(at)
            if lease is not None and not lease.leaving:
                lease.paused = paused

    async def seek(self, position: Position) -> None:
        """Move the group on this partition: the watermark becomes this offset, also backwards.

        Raises TopicNotFoundError for a partition this member does not have, OffsetOutOfRangeError.
        """
        assert self.member is not None
        lease = self.member.leases.get((position.topic, position.partition))
        if lease is None:
            hint = f"group {self.group!r} has it elsewhere, or not at all"
            raise TopicNotFoundError(f"{position.topic}[{position.partition}]", hint)
        offset = int(position.offset)
        earliest, latest = self._store.earliest(lease.stream), self._store.latest(lease.stream)
        if not earliest <= offset <= latest:
            raise OffsetOutOfRangeError(lease.topic, lease.partition, offset, earliest, latest)
        lease.page.reset(offset, self._store.number)
        lease.position = offset
        self._committed.pop(lease, None)
        self.touched = True
        self._look_again()

    # Settling

    def begin(self, message: Message) -> None:
        """Note that this attempt begins, so that the count survives our death."""
        lease: Lease = message.token
        if lease.live:
            lease.page.begin(message.offset, message.attempt)  # type: ignore[arg-type]  # ours are ints

    async def ack(self, messages: Sequence[Message]) -> None:
        """These are done, in any order; when this returns it is stored. What is no longer ours is dropped."""
        count = len(messages)
        if not count:
            return
        lease: Lease = messages[0].token
        offsets: list[int] = [m.offset for m in messages]  # type: ignore[misc]  # ours are ints
        first = offsets[0]
        in_a_row = offsets[-1] - first == count - 1 and offsets == list(range(first, first + count))
        if in_a_row and (count == 1 or len({m.token for m in messages}) == 1):
            if lease.live:
                lease.page.ack(first, count)
        else:
            for message in messages:
                if message.token.live:
                    message.token.page.ack(message.offset)
        self.touched = True
        if self._held_back:
            self._look_again()

    async def commit(self, acks: Sequence[Message], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        """Acknowledge and send in one frame: after a death at any moment both happened, or neither.

        The acknowledged must reach up from what was committed before without a gap, else ValueError. Raises
        PartitionLostError, with nothing done, if somebody else has one of the partitions now.
        """
        nexts: dict[Lease, int] = {}
        for lease, group in groupby(sorted(acks, key=_by_lease), key=attrgetter("token")):
            nexts[lease] = self._next_after(lease, [m.offset for m in group])  # type: ignore[misc]  # ours are ints
        cursors = [CursorCommit(self.group, lease.stream, to) for lease, to in nexts.items()]

        def guard() -> None:
            for lease in nexts:
                if not lease.live or lease.page.retired:
                    raise PartitionLostError(lease.topic, lease.partition, self.group)

        guard()
        before = {lease: self._committed.get(lease) for lease in nexts}
        self._committed.update(nexts)
        try:
            receipts = await self._transact(sends, cursors, guard)
        except BaseException:
            for lease, at in before.items():
                if at is None:
                    self._committed.pop(lease, None)
                else:
                    self._committed[lease] = at
            raise
        for lease, to in nexts.items():
            if lease.live:
                lease.page.advance(to)
        self.touched = True
        if self._held_back:
            self._look_again()
        return receipts

    def _next_after(self, lease: Lease, offsets: list[int]) -> int:
        page = lease.page
        if not lease.live:
            raise PartitionLostError(lease.topic, lease.partition, self.group)
        to = max(self._committed.get(lease, 0), page.watermark)
        for offset in offsets:
            if offset == to:
                to += 1
            elif offset > to:
                first, count, _ = page.next_run(to, offset - to)
                if count or first < offset:
                    raise ValueError(
                        f"commit of {lease.topic!r}[{lease.partition}] offset {offset} leaves a gap from {to}: "
                        f"commit the messages below it first, or with it"
                    )
                to = offset + 1
        return to

    async def nack(self, messages: Sequence[Message], delay: float) -> None:
        """Not of this engine: the core tries again in place."""
        raise NotSupportedError("local", "nack", "the core retries in place")

    async def reject(self, messages: Sequence[Message], reason: str) -> None:
        """Not of this engine: the core sends dead letters."""
        raise NotSupportedError("local", "reject", "the core writes dead letters")

    async def extend(self, messages: Sequence[Message]) -> None:
        """There are no leases on messages; does nothing."""


def _by_lease(message: Message) -> tuple[int, int]:
    return id(message.token), message.offset  # type: ignore[return-value]  # ours are ints
