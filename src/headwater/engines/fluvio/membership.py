"""How the processes of a group share a topic's partitions, though Fluvio has nobody who shares them out.

Each member stores a sign of life, as a consumer of its own, and with it the number of the last view of the group that
it has adopted: the live members, in the order they came, and the partitions, which determine who has which. A member
that sees a new view finishes and gives up what is somebody else's by it, and only then adopts it; it begins with what
is newly its own once every live member has adopted the same. So no partition has two members, but for one that was
taken for dead and is not: it finds that out by its own clock, and what it was doing is done again.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol
from urllib.parse import quote, unquote

from ...errors import ConfigurationError, HeadwaterError, OffsetOutOfRangeError, TopicNotFoundError
from .apis import Place, Stored
from .cluster import Cluster
from .link import log
from .streaming import PartitionStream

LOOK_EVERY: Final = 1.0  # seconds
BEATS: Final = 3  # in the time after which a member is taken for dead
RECOUNT_EVERY: Final = 5.0  # seconds between two looks at how many partitions there are
FORGET_AFTER: Final = 600  # seconds after which what is left of a dead member is removed
LITTLE: Final = 1  # bytes of messages that a stream is sent that nobody reads
_PREFIX: Final = "hw"


class Member(NamedTuple):
    """A live member of a group: its name as a consumer, and the view it has adopted."""

    name: str
    view: int

    @property
    def client(self) -> str:
        """The process it is."""
        return unquote(self.name.split("/")[-1])


class View(NamedTuple):
    """Who is in a group, the one that came first first, and how many partitions they share."""

    members: tuple[str, ...]
    partitions: int
    exclusive: bool

    @property
    def number(self) -> int:
        """The same for everybody who sees the same; never 0."""
        text = f"{self.partitions}/{self.exclusive}/{'|'.join(self.members)}"
        return zlib.crc32(text.encode()) + 1

    def share(self, name: str) -> frozenset[int]:
        """The partitions of this member: as many as others have, or one more; with `exclusive` the first has all."""
        rank, count = self.members.index(name), len(self.members)
        if self.exclusive:
            return frozenset(range(self.partitions)) if rank == 0 else frozenset()
        return frozenset(range(self.partitions * rank // count, self.partitions * (rank + 1) // count))


def prefix_of(group: str) -> str:
    """What the names of a group's members begin with."""
    return f"{_PREFIX}/{quote(group, safe='')}/"


def is_ours(consumer: str) -> bool:
    """Whether a consumer is the sign of life of a member, or a probe, and no group."""
    return consumer.startswith(f"{_PREFIX}/")


def new_probe() -> str:
    """A name to store something by for a moment, which no member of any group has."""
    return f"{_PREFIX}//{os.urandom(8).hex()}"


def new_name(group: str, client: str) -> str:
    """A name that nobody has; of those of a group, later ones come after earlier ones."""
    who = quote(f"{client}@{socket.gethostname()}:{os.getpid()}", safe="")
    return f"{prefix_of(group)}{time.time_ns():019d}-{os.urandom(4).hex()}/{who}"


def live_members(stored: Sequence[Stored], group: str, now: int, timeout: float) -> list[Member]:
    """Those whose sign of life is no older than this by the server's clock."""
    prefix = prefix_of(group)
    return sorted(
        Member(one.consumer, one.offset)
        for one in stored
        if one.consumer.startswith(prefix) and now - one.time <= timeout
    )


class Sharing(Protocol):
    """Who takes partitions and gives them up."""

    async def prepare(self, topic: str, partitions: int) -> None:
        """Have the group have a position on each of these. One member at a time is asked."""
        ...

    async def take(self, topic: str, numbers: frozenset[int]) -> None: ...
    async def give_up(self, topic: str, numbers: frozenset[int]) -> None:
        """Finish what is in flight, and store what is done."""
        ...

    async def lose(self, topic: str, numbers: frozenset[int]) -> None:
        """Somebody else may have them already."""
        ...

    def doubt(self, topic: str) -> None:
        """What was stored may be gone: store all of it again."""
        ...

    def fail(self, error: BaseException) -> None:
        """The group cannot go on here."""
        ...


class Membership:
    """One member of one group on one topic."""

    def __init__(
        self, cluster: Cluster, topic: str, group: str, sharing: Sharing, *, client: str, exclusive: bool
    ) -> None:
        self.name = new_name(group, client)
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # it took part in a view
        self._cluster, self._sharing = cluster, sharing
        self._topic, self._group, self._exclusive = topic, group, exclusive
        self._timeout = cluster.settings.session_timeout
        self._place: Place = (topic, 0)
        self._sign = PartitionStream(cluster, self._place, 0, fetch_bytes=LITTLE, consumer=self.name)
        self._loop = asyncio.get_running_loop()
        self._adopted = 0
        self._held: frozenset[int] = frozenset()
        self._safe_until = 0.0  # until when nobody takes us for dead
        self._counted = 0.0
        self._storing, self._changing = asyncio.Lock(), asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Raises ConnectError, TopicNotFoundError."""
        await self._start_afresh()
        await self._beat()
        self._tasks = [
            asyncio.create_task(self._live(), name="headwater fluvio sign of life"),
            asyncio.create_task(self._share(), name="headwater fluvio sharing"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A member that does not live or share any more must not go on as if it did."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not self.joined.done():
            self.joined.set_exception(error)
            self.joined.exception()  # who receives hears of it, too
        self._sharing.fail(error)

    async def _start_afresh(self) -> None:
        """Signs of life are stored through a stream, which is not read: it begins where nothing more comes."""
        self._sign.close()
        self._sign.offset = (await self._cluster.range(self._place))[1]

    async def close(self) -> None:
        """Leave: what it had goes to the others at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sign.close()
        held, self._held = self._held, frozenset()
        if held:
            await self._sharing.give_up(self._topic, held)
        if self._cluster.available:
            try:
                async with asyncio.timeout(self._timeout / BEATS):
                    await self._cluster.delete_stored(self._place, self.name)
            except (HeadwaterError, TimeoutError) as error:
                log.debug("a member of group %r is missed only later: %s", self._group, error)

    # --- living ---------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        async with self._storing:  # an older view must not be stored over a newer one
            began = self._loop.time()
            await self._sign.store(self._adopted)
            self._safe_until = began + self._timeout

    async def _live(self) -> None:
        while True:
            await asyncio.sleep(self._timeout / BEATS)
            if self._loop.time() > self._safe_until:
                await self._died()
            try:
                async with asyncio.timeout(self._timeout):
                    await self._beat()
            except (HeadwaterError, TimeoutError) as error:
                log.debug("group %r gets no sign of life from us: %s", self._group, error)
                self._sharing.doubt(self._topic)
                self._sign.close()
                self._cluster.leader_changed(self._place)

    async def _died(self) -> None:
        """The others have taken us for dead."""
        async with self._changing:
            held, self._held, self._adopted = self._held, frozenset(), 0
            if held:
                log.warning("group %r went on without us: no sign of life from here for too long", self._group)
                await self._sharing.lose(self._topic, held)

    # --- sharing --------------------------------------------------------------------------------------

    async def _share(self) -> None:
        while True:
            try:
                await self._look()
            except (ConfigurationError, OffsetOutOfRangeError, TopicNotFoundError):
                raise  # it will not get better
            except HeadwaterError as error:
                log.debug("group %r cannot be looked at: %s", self._group, error)
            await asyncio.sleep(LOOK_EVERY if self.joined.done() else LOOK_EVERY / 10)

    async def _look(self) -> None:
        """See who is there, and do what follows from it."""
        stored = await self._cluster.stored(self._place)
        now = next((one.time for one in stored if one.consumer == self.name), None)
        if self.joined.done() and all(one.consumer != self._group for one in stored):
            self._sharing.doubt(self._topic)  # seen with 0.18: another SPU leads the offsets, and has none
        if now is None:  # it was removed: say again that we live
            await self._beat()
            return
        members = live_members(stored, self._group, now, self._timeout)
        view = View(tuple(member.name for member in members), await self._count(), self._exclusive)
        if view.number != self._adopted:
            await self._adopt(view)
        elif all(member.view == view.number for member in members):
            await self._begin(view)
            if view.members[0] == self.name:
                await self._clear_away(stored, now)

    async def _count(self) -> int:
        if self._loop.time() - self._counted > RECOUNT_EVERY:
            await self._cluster.recount(self._topic)
            self._counted = self._loop.time()
        return await self._cluster.count(self._topic)

    async def _adopt(self, view: View) -> None:
        async with self._changing:
            if not_ours := self._held - view.share(self.name):
                self._held -= not_ours
                await self._sharing.give_up(self._topic, not_ours)
        if view.members[0] == self.name:
            await self._sharing.prepare(self._topic, view.partitions)
        self._adopted = view.number
        await self._beat()

    async def _begin(self, view: View) -> None:
        async with self._changing:
            if self._adopted != view.number or self._loop.time() > self._safe_until:
                return  # we were taken for dead meanwhile
            new = view.share(self.name) - self._held
            if new:
                await self._sharing.take(self._topic, new)
                self._held |= new
            if not self.joined.done():
                self.joined.set_result(None)

    async def _clear_away(self, stored: Sequence[Stored], now: int) -> None:
        for one in stored:
            if is_ours(one.consumer) and now - one.time > FORGET_AFTER:
                await self._cluster.delete_stored(one.place, one.consumer)
