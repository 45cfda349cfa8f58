"""A place in a source of Fluvio: a member of a group, or a reader on its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from ...engine import Assigned, Change, Lost, OnChange, Revoked, Source
from ...errors import HeadwaterError, NotSupportedError, TopicNotFoundError
from ...message import Message, Outgoing, Position, Receipt
from . import names, offsets
from .apis import Place
from .link import log
from .membership import RECOUNT_EVERY, Membership
from .merging import NOTHING_STORED, Inlet, Merge
from .options import NOTHING, Fluvio
from .streaming import PartitionStream

if TYPE_CHECKING:
    from .engine import FluvioEngine

JOIN_WAIT: Final = 30.0  # seconds until a member has taken part in its group
LEAVE_WITHIN: Final = 10.0  # seconds for the last acknowledgements to be stored
LEAST_FETCH: Final = 1 << 16  # bytes read ahead of each partition, however many there are


class FluvioSubscription:
    """Made by `FluvioEngine.subscribe`."""

    def __init__(self, source: Source, engine: FluvioEngine, on_change: OnChange) -> None:
        self.source = source
        self._engine, self._cluster, self._settings = engine, engine.cluster, engine.settings
        self._on_change = on_change
        self._modules = (source.option(Fluvio) or NOTHING).modules
        self._merge = Merge()
        self._memberships: list[Membership] = []
        self._beside: asyncio.Task[None] | None = None  # stores what is done, or looks for new partitions
        self._known: dict[Place, int] = {}  # how far partitions were done that we lost before it was stored
        self._epoch = 0
        self._leaving = False

    # --- coming and going -----------------------------------------------------------------------------

    async def join(self) -> None:
        """Take the place: nothing that is published from now on is missed."""
        topics = [names.native(topic) for topic in self.source.topics]
        places = [place for topic in topics for place in await self._cluster.recount(topic)]
        if self.source.group is None:
            await self._read(places)
        else:
            await self._take_part(self.source.group, topics)

    async def _read(self, places: Sequence[Place]) -> None:
        source = self.source
        wanted = [place for place in places if source.partitions is None or place[1] in source.partitions]
        self._open(await offsets.first(self._cluster, source, wanted))
        if source.partitions is None:
            self._beside = asyncio.create_task(self._keep_looking(), name="headwater fluvio partitions")

    async def _keep_looking(self) -> None:
        """Read partitions that are added, from their beginning."""
        topics = {place[0] for place in self._merge.inlets}
        while True:
            await asyncio.sleep(RECOUNT_EVERY)
            try:
                there = [place for topic in topics for place in await self._cluster.recount(names.native(topic))]
                new = [place for place in there if (names.ours(place[0]), place[1]) not in self._merge.inlets]
                self._open(await offsets.resolve(self._cluster, "earliest", new))
            except HeadwaterError as error:  # one that was deleted is told of by its stream
                log.debug("the partitions cannot be looked at: %s", error)

    async def _take_part(self, group: str, topics: Sequence[str]) -> None:
        for topic in topics:
            membership = Membership(
                self._cluster, topic, group, self, client=self.source.client, exclusive=self.source.exclusive
            )
            self._memberships.append(membership)
            await membership.open()
        self._beside = asyncio.create_task(self._keep_storing(), name="headwater fluvio acknowledgements")
        joining = [membership.joined for membership in self._memberships]
        await asyncio.wait(joining, timeout=JOIN_WAIT, return_when=asyncio.FIRST_EXCEPTION)
        for joined in joining:
            if joined.done():
                joined.result()
        if not all(joined.done() for joined in joining):
            log.warning("group %r has not shared its partitions yet, it goes on without us", group)

    async def leave(self) -> None:
        """Give the place up: what is not acknowledged goes to others at once. Idempotent."""
        self._leaving = True
        if self._beside is not None:
            self._beside.cancel()
            await asyncio.gather(self._beside, return_exceptions=True)
        memberships, self._memberships = self._memberships, []
        for membership in memberships:
            await membership.close()
        await self._merge.close()

    def _open(self, starts: Mapping[Place, int]) -> None:
        fetch = max(LEAST_FETCH, self._settings.fetch_bytes // max(1, len(starts)))
        for place, offset in starts.items():
            stream = PartitionStream(
                self._cluster,
                place,
                offset,
                fetch_bytes=fetch,
                consumer=self.source.group,
                modules=self._modules,
            )
            topic = names.ours(place[0])
            self._merge.inlets[topic, place[1]] = Inlet(stream, topic, self.source.group, self._merge)

    # --- what a membership tells ----------------------------------------------------------------------

    async def prepare(self, topic: str, partitions: int) -> None:
        """Have the group have a position on all partitions, as it did or did not begin before."""
        places = [(topic, number) for number in range(partitions)]
        skipped, new = await offsets.prepare(self._cluster, self.source, places, self._positions(topic))
        if new and skipped:
            source = self.source
            log.info("the new group %r begins at %s and skips %d message(s)", source.group, source.start, skipped)

    def _positions(self, topic: str) -> dict[Place, int]:
        """How far this process has got on a topic, as the cluster may lose what was stored."""
        inlets = self._merge.inlets.items()
        read = {(topic, number): inlet.claim.done for (name, number), inlet in inlets if name == names.ours(topic)}
        return {place: done for place, done in self._known.items() if place[0] == topic} | read

    def doubt(self, topic: str) -> None:
        """What was stored may be gone: store all of it again."""
        for (name, _), inlet in self._merge.inlets.items():
            if name == names.ours(topic):
                inlet.claim.stored = NOTHING_STORED

    async def take(self, topic: str, numbers: frozenset[int]) -> None:
        """These are ours: go on where the group is."""
        assert self.source.group is not None
        stored, known = await offsets.stored(self._cluster, self.source.group, topic), self._positions(topic)
        places = [(topic, number) for number in sorted(numbers)]
        starts: dict[Place, int] = {}
        for place, (earliest, latest) in (await self._cluster.ranges(places)).items():
            offset = starts[place] = offsets.furthest(stored.get(place, 0), known.get(place), latest)
            if offset < earliest:
                text = "group %r: %s[%d] expired from offset %d to %d while nobody read it"
                log.warning(text, self.source.group, names.ours(topic), place[1], offset, earliest)
                starts[place] = earliest
        self._epoch += 1
        await self._on_change(Assigned(_ours(topic, numbers), self._epoch))
        self._open(starts)
        for place in places:
            self._merge.inlets[names.ours(topic), place[1]].claim.stored = stored.get(place, NOTHING_STORED)
            self._known.pop(place, None)

    async def give_up(self, topic: str, numbers: frozenset[int]) -> None:
        """These go to somebody else: have the core finish what is in flight, store it, and stop."""
        places = _ours(topic, numbers)
        for place in places:
            self._merge.inlets[place].ready.clear()
            self._merge.inlets[place].paused = True
        if not self._leaving:
            self._epoch += 1
            await self._drain(Revoked(places, self._epoch))
        try:
            async with asyncio.timeout(LEAVE_WITHIN if self._engine.available else 0):
                await self._store_done(places)
        except (HeadwaterError, TimeoutError) as error:
            log.warning("the last acknowledgements could not be stored, what they were for comes again: %s", error)
            self._remember(topic, places)
        await self._merge.close(places)

    def _remember(self, topic: str, places: frozenset[Place]) -> None:
        for place in places:
            self._known[topic, place[1]] = self._merge.inlets[place].claim.done

    async def _drain(self, change: Change) -> None:
        try:
            async with asyncio.timeout(self._settings.drain_timeout):
                await self._on_change(change)
        except TimeoutError:
            text = "group %r: messages of %d partition(s) that move were still handled after %.3g s; others get them"
            log.warning(text, self.source.group, len(change.partitions), self._settings.drain_timeout)
            await self._on_change(Lost(change.partitions, change.epoch))

    def fail(self, error: BaseException) -> None:
        """Nothing more can be received."""
        self._merge.fail(error)

    async def lose(self, topic: str, numbers: frozenset[int]) -> None:
        """These may be somebody else's already: drop what is in flight."""
        places = _ours(topic, numbers)
        self._remember(topic, places)
        await self._merge.close(places)
        self._epoch += 1
        await self._on_change(Lost(places, self._epoch))

    # --- receiving ------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """The next messages, as many as are there up to `limit`; () after `wait` quiet seconds or a `wake`."""
        return await self._merge.receive(limit, wait)

    def wake(self) -> None:
        """Make a waiting `receive` return at once."""
        self._merge.wake()

    def pause(self, partitions: frozenset[Place]) -> None:
        """Receive nothing more from these until `resume`."""
        self._merge.set_paused(partitions, True)

    def resume(self, partitions: frozenset[Place]) -> None:
        """Receive from these again."""
        self._merge.set_paused(partitions, False)

    async def seek(self, position: Position) -> None:
        """The message at this position comes next; a group is moved there, also backwards.

        Raises TopicNotFoundError for a partition that is not read here, OffsetOutOfRangeError.
        """
        place = (position.topic, position.partition)
        if place not in self._merge.inlets:
            raise TopicNotFoundError(f"{position.topic}[{position.partition}]", "it is not read here")
        native = (names.native(position.topic), position.partition)
        offset = int(position.offset)
        offsets.check(native, offset, await self._cluster.range(native))
        before = self._merge.inlets.get(place)
        if before is None:  # it went to another member meanwhile
            raise TopicNotFoundError(f"{position.topic}[{position.partition}]", "it is not read here")
        self._open({native: offset})
        inlet = self._merge.inlets[place]
        inlet.paused, inlet.claim.stored = before.paused, before.claim.stored
        await before.close()

    # --- settling -------------------------------------------------------------------------------------

    def begin(self, message: Message) -> None:
        """Attempts are not counted by the server; does nothing."""

    async def ack(self, messages: Sequence[Message]) -> None:
        """These are done, and with them all below them; stored a moment later, and before partitions move."""
        for message in messages:
            message.token.done = message.offset + 1  # type: ignore[operator]  # ours are ints

    async def _keep_storing(self) -> None:
        while True:
            await asyncio.sleep(self._settings.commit_interval)
            try:
                await self._store_done(frozenset(self._merge.inlets))
            except HeadwaterError as error:
                log.debug("acknowledgements could not be stored, they are tried again: %s", error)

    async def _store_done(self, places: frozenset[Place]) -> None:
        """One that cannot be stored keeps no other from it. Raises what the first of those says, in the end."""
        inlets = [inlet for place in places if (inlet := self._merge.inlets.get(place)) is not None]
        behind = [inlet for inlet in inlets if inlet.claim.done != inlet.claim.stored]
        for outcome in await asyncio.gather(*map(self._store, behind), return_exceptions=True):
            if outcome is not None:
                raise outcome

    @staticmethod
    async def _store(inlet: Inlet) -> None:
        done = inlet.claim.done
        await inlet.stream.store(done - 1)
        inlet.claim.stored = done

    async def commit(self, acks: Sequence[Message], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        raise NotSupportedError("fluvio", "commit", "it has no transactions")

    async def nack(self, messages: Sequence[Message], delay: float) -> None:
        raise NotSupportedError("fluvio", "nack", "the core retries in place")

    async def reject(self, messages: Sequence[Message], reason: str) -> None:
        raise NotSupportedError("fluvio", "reject", "the core writes dead letters")

    async def extend(self, messages: Sequence[Message]) -> None:
        """There are no leases on messages; does nothing."""


def _ours(topic: str, numbers: frozenset[int]) -> frozenset[Place]:
    return frozenset((names.ours(topic), number) for number in numbers)
