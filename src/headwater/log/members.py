"""The life of one member of a group: it joins, takes and gives partitions, notices deaths, and leaves.

There is no coordinator. Whoever notices a change (a member that came, left, died or hangs; a new topic)
writes the group's next generation; each member then does its own part: it gives what it should not have
any more, after its messages are finished, and takes what it should have as soon as nobody holds it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import Final, ParamSpec, TypeVar

from ..engine import Assigned, Lost, OnChange, Revoked
from ..topics import match
from .cursors import CursorPage
from .groups import Group, State, TopicPartition
from .groups import Member as MemberState
from .roster import DeathWatch
from .terms import TermEndedError

P = ParamSpec("P")
T = TypeVar("T")

TICK: Final = 1.0  # seconds between heartbeats, and between looks at the others


class Lease:
    """One partition while this member has it. `live` ends before somebody else begins."""

    __slots__ = ("epoch", "leaving", "live", "page", "partition", "paused", "position", "stream", "topic")

    def __init__(self, topic: str, partition: int, stream: int, page: CursorPage, position: int, epoch: int) -> None:
        self.topic, self.partition, self.stream = topic, partition, stream
        self.page, self.position, self.epoch = page, position, epoch
        self.live = True
        self.leaving = False
        self.paused = False

    @property
    def at(self) -> TopicPartition:
        return self.topic, self.partition


class Member:
    """One member of a group, in the running loop. `leases` is what it has.

    `on_change` hears of each change before it takes effect, one at a time. Revoked is awaited before the
    partitions are given, and they deliver nothing meanwhile. `failure` is the last error of the work behind,
    for `receive` to raise.
    """

    def __init__(
        self,
        group: Group,
        topics: tuple[str, ...],
        *,
        exclusive: bool,
        client: str,
        bell: str,
        call: Callable[[str], None],
        on_change: OnChange,
        on_leases: Callable[[], None],
    ) -> None:
        """`call` rings another member's bell; `on_leases` hears when `leases` has changed."""
        self.group = group
        self.leases: dict[TopicPartition, Lease] = {}
        self.failure: Exception | None = None
        self._topics, self._exclusive, self._client = topics, exclusive, client
        self._bell, self._call = bell, call
        self._on_change, self._on_leases = on_change, on_leases
        self._id = ""
        self._seen = (-1, -1)
        self._peers: list[tuple[str, int]] = []
        self._stir = asyncio.Event()
        self._leaving = False
        self._watch = DeathWatch(self._stir.set)
        self._timer: asyncio.TimerHandle | None = None
        self._life: asyncio.Task[None] | None = None

    async def join(self, starts: Callable[[str, int, int], int]) -> None:
        """Become a member. `starts` decides, once per group, the first offset of (topic, partition, stream).

        The first partitions are assigned before this returns, unless others have to give them first.
        """
        await self._step(self._enter, starts)
        self._tick()
        await self._settle_in()
        self._life = asyncio.create_task(self._live(), name=f"member of {self.group.name}")

    async def leave(self) -> None:
        """Finish what is in flight, then leave what is held to others. Idempotent."""
        self._leaving = True
        self._stir.set()
        try:
            if self._life is not None:
                await self._life
            if self.leases:
                await self._revoke(set(self.leases))
            if not self.group.roster.closed:
                await self._step(self._go)
        finally:
            if self._life is not None:
                self._life.cancel()
            if self._timer is not None:
                self._timer.cancel()
            self._watch.close()
            self.group.close()

    def notice(self) -> None:
        """Something may have changed. Cheap: two loads."""
        if (self.group.roster.generation, self.group.catalogue.version) != self._seen:
            self._stir.set()

    # In the loop

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)
        roster = self.group.roster
        roster.beat()
        self.notice()
        if self.failure is not None or not all(roster.is_alive(peer, slot) for peer, slot in self._peers):
            self._stir.set()

    async def _live(self) -> None:
        while True:
            await self._stir.wait()
            self._stir.clear()
            if self._leaving:
                return
            try:
                await self._settle_in()
                self.failure = None
            except Exception as error:  # the next tick tries again; until then `receive` says why
                self.failure = error
                self._on_leases()

    async def _settle_in(self) -> None:
        """Take and give until there is nothing more to do for this member now."""
        while not self._leaving:
            state = await self._step(self._look)
            self._follow(state)
            if self._id not in state.members:
                # The others took us for dead: stopped, or a loop that did not turn for a whole lease.
                await self._lose(set(self.leases))
                await self._step(self._enter, None)
                continue
            held = state.held_by(self._id)
            await self._lose(self.leases.keys() - held)
            if await self._take():
                continue
            surplus = held - state.owned_by(self._id)
            if not surplus:
                return
            await self._revoke(surplus)
            await self._step(self._give, surplus)

    def _follow(self, state: State) -> None:
        self._seen = (state.generation, self._seen[1])
        self._peers = [(name, member.slot) for name, member in state.members.items() if name != self._id]
        self._watch.follow([self.group.roster.entry(slot) for _, slot in self._peers])
        mine = {lease.page.path.name for lease in self.leases.values()}
        self.group.close_files(mine)

    async def _lose(self, lost: Iterable[TopicPartition]) -> None:
        gone = [self._drop(at) for at in lost]
        if gone:
            self._on_leases()
            await self._on_change(Lost(frozenset(lease.at for lease in gone), max(lease.epoch for lease in gone)))

    async def _take(self) -> bool:
        leases = await self._step(self._acquire)
        if leases:
            await self._on_change(Assigned(frozenset(lease.at for lease in leases), leases[0].epoch))
            self.leases.update((lease.at, lease) for lease in leases)
            self._on_leases()
        return bool(leases)

    async def _revoke(self, surplus: set[TopicPartition]) -> None:
        leases = [self.leases[at] for at in surplus if at in self.leases]
        for lease in leases:
            lease.leaving = lease.paused = True
        await self._on_change(Revoked(frozenset(surplus), max((lease.epoch for lease in leases), default=0)))
        for lease in leases:
            self._drop(lease.at)
            if not lease.page.retired:
                lease.page.give_back(lease.position)
        self._on_leases()

    def _drop(self, at: TopicPartition) -> Lease:
        lease = self.leases.pop(at)
        lease.live = False
        return lease

    async def _step(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a step in a thread, and again from the beginning if this process was stopped in the middle of it."""
        for _ in range(3):
            try:
                return await asyncio.to_thread(step, *args, **kwargs)
            except TermEndedError:
                continue
        return await asyncio.to_thread(step, *args, **kwargs)

    # In a thread: each takes the group's lock and waits for the disk

    def _enter(self, starts: Callable[[str, int, int], int] | None) -> None:
        group = self.group
        with group.changing() as state:
            group.bury(state)
            group.catch_up(state)
            known = {pattern for pattern in self._topics if pattern in state.resolved}
            fresh = set(self._topics) - known
            self._id = os.urandom(16).hex()
            slot = group.roster.enter(self._id, self._bell, self._client)
            state.members[self._id] = MemberState(slot, self._topics, self._exclusive, state.generation + 1)

            def start(topic: str, partition: int, stream: int) -> int:
                asked = starts is not None and any(match(pattern, topic) is not None for pattern in fresh)
                if starts is None or not asked or any(match(p, topic) is not None for p in known):
                    return group.catalogue.earliest(stream)
                return starts(topic, partition, stream)

            group.catch_up(state, start)
            state.resolved.update(self._topics)
            self._publish(state)

    def _look(self) -> State:
        group = self.group
        version = group.catalogue.version
        with group.changing() as state:
            buried, caught_up = group.bury(state), group.catch_up(state)
            if buried or caught_up:
                self._publish(state)
        self._seen = (state.generation, version)
        return state

    def _acquire(self) -> list[Lease]:
        group = self.group
        with group.changing() as state:
            free = {
                at: group.page(*at, place)
                for at, place in state.all_places()
                if place.owner == self._id and not place.holder
            }
            if not free:
                return []
            # From here on no transaction of a former owner can commit, and all it committed is in the pages.
            with group.catalogue.fence():
                for page in free.values():
                    page.retire()
            settled = group.catalogue.harden()
            file = group.write_pages(state, {at: page.copied(state.generation + 1) for at, page in free.items()})
            leases = []
            for topic, partition in free:
                place = state.places[topic][partition]
                place.holder = self._id
                page = file.page(place.page, free[topic, partition].name)
                page.settle(*settled)
                epoch = state.generation + 1
                leases.append(Lease(topic, partition, place.stream, page, page.watermark, epoch))
            group.save(state)
        return leases

    def _give(self, surplus: set[TopicPartition]) -> None:
        with self.group.changing() as state:
            for at, place in state.all_places():
                if at in surplus and place.holder == self._id:
                    place.holder = ""
            self._publish(state, assign=False)

    def _go(self) -> None:
        with self.group.changing() as state:
            self.group.roster.leave()
            state.members.pop(self._id, None)
            for _, place in state.all_places():
                if place.holder == self._id:
                    place.holder = ""
            self.group.bury(state)
            self._publish(state)

    def _publish(self, state: State, *, assign: bool = True) -> None:
        """Write the next generation and ring the others."""
        if assign:
            state.assign()
        self.group.save(state)
        for name, member in state.members.items():
            if name != self._id:
                self._call(self.group.roster.entry(member.slot).bell)
