"""The engine over the embedded log: a directory, no server."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

from ...admin import EngineAdmin
from ...clock import SYSTEM_CLOCK, Clock
from ...engine import Ack, Capabilities, DeclareMode, OnChange, Source, Start, Subscription, Topic
from ...errors import (
    ConfigurationError,
    NotConnectedError,
    StoreError,
    StoreNotFoundError,
    TopicNameError,
    TopicNotFoundError,
)
from ...log import groups
from ...log.alarm import Alarm
from ...log.bells import Bells
from ...log.cursors import CursorPage
from ...log.frames import CursorCommit
from ...log.groups import Group
from ...log.journal import Durability
from ...log.members import Member
from ...log.roster import LEASE
from ...log.store import SEGMENT_BYTES, Store, TopicWanted
from ...message import Outgoing, Receipt
from ...topics import REPLIES, is_pattern, match
from .administration import LocalAdmin
from .catalogue import StoreCatalogue, this_boot
from .consuming import GroupSubscription
from .following import Following, start_offset
from .postponing import Postponing, postponed
from .sending import Parcel, Sorter, UnknownTopicsError, receipts_of, streams_of
from .syncing import Syncer
from .upkeep import Upkeep

PARTITIONS: Final = 8  # of a topic whose owner said nothing
LARGE: Final = 256 << 10  # bytes from which a send leaves the event loop
CLEAN_INTERVAL: Final = 30.0  # seconds

_WITH_GROUP: Final = Capabilities(
    ack=Ack.EACH,
    counts_deliveries=True,
    delayed_send=True,
    headers=True,
    keys=True,
    partitions=True,
    patterns=True,
    groups=True,
    exclusive=True,
    replay=True,
    durable=True,
    atomic_batch=True,
    atomic_commit=True,
)
_WITHOUT_GROUP: Final = Capabilities(
    delayed_send=True,
    headers=True,
    keys=True,
    partitions=True,
    patterns=True,
    groups=True,
    replay=True,
    durable=True,
    atomic_batch=True,
)


_log: Final = logging.getLogger("headwater.local")


class LocalEngine:
    """Messages in a directory of this machine, shared by any number of processes.

    Durability "fsync" (the default) acknowledges what is on disk, with one fsync for all who wait at that
    moment; "process" acknowledges what the kernel has: it survives the death of processes, not a power cut.
    """

    name = "local"
    available = True  # as long as its process is

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "fsync",
        create: bool = True,
        auto_create: bool = True,
        partitions: int = PARTITIONS,
        clean_interval: float = CLEAN_INTERVAL,
        lease: float = LEASE,
        segment_bytes: int = SEGMENT_BYTES,
        client: str = "",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`create` lets a publish or a declaration make a missing directory, `auto_create` a missing topic.

        Such a topic gets `partitions` partitions.

        Expired messages are removed every `clean_interval` seconds; a member that hangs for `lease` seconds
        loses its partitions. `client` names this process to those who look at a group.
        """
        if durability not in ("fsync", "process"):
            raise ConfigurationError(f"durability={durability!r}: give 'fsync' or 'process'")
        self.path = Path(path)
        self.clock = clock
        self.durable = durability == "fsync"
        self.lease = lease
        self.client = client or f"{Path(sys.argv[0] or 'python').name}@{socket.gethostname()}:{os.getpid()}"
        self._durability: Durability = durability
        self._create, self._auto_create, self.partitions = create, auto_create, partitions
        self._clean_interval, self._segment_bytes = clean_interval, segment_bytes
        self._store: Store | None = None
        self._connected = False
        self._connecting = asyncio.Lock()

    # Connection

    @property
    def store(self) -> Store:
        """The open store. Raises StoreNotFoundError while there is none, NotConnectedError when not connected."""
        if self._store is None:
            raise StoreNotFoundError(self.path) if self._connected else NotConnectedError(f"local://{self.path}")
        return self._store

    @property
    def admin(self) -> EngineAdmin | None:
        """Management of topics and groups."""
        return LocalAdmin(self)

    def capabilities(self, source: Source) -> Capabilities:
        """The same for every source with a group; without one nothing is kept."""
        return _WITH_GROUP if source.group is not None else _WITHOUT_GROUP

    def reply_topic(self, mark: str) -> str:
        return REPLIES

    def check_topic(self, name: str) -> None:
        """Up to 255 bytes of text that prints, without braces and without blanks around it."""
        if not name or "{" in name or "}" in name or name != name.strip():
            raise TopicNameError(name, "a name is not empty, and has neither braces nor blanks around it")
        if not name.isprintable() or len(name.encode()) > 255:
            raise TopicNameError(name, "a name has up to 255 bytes, all of which print")

    async def connect(self) -> None:
        """Open the directory. Where there is no store it is left alone until something is declared or sent.

        Raises what is wrong with a store that is there. Idempotent.
        """
        self._connected = True
        try:
            await self._make_sure(create=False)
        except StoreNotFoundError:
            pass  # a reader says so when it reads
        except BaseException:
            self._connected = False
            raise

    async def _make_sure(self, *, create: bool) -> Store:
        """The store, opened, or made where there is none. Raises StoreNotFoundError unless it may be made."""
        async with self._connecting:
            if self._store is None:
                if not self._connected:
                    raise NotConnectedError(f"local://{self.path}")
                store = await self._opened(create and self._create)
                try:
                    self._begin(store)
                except BaseException:
                    store.close()
                    raise
                self._store = store
            return self._store

    async def _opened(self, create: bool) -> Store:
        """The store; cancelled, it is closed once its thread has it."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._open, create))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            if opening.exception() is None:
                opening.result().close()
            raise

    def _open(self, create: bool) -> Store:
        boot = this_boot()

        def apply(cursors: Sequence[CursorCommit], number: int) -> None:
            for cursor in cursors:
                page = self._own_page(cursor)
                if page is None or not groups.stage(page, cursor.next, number, boot):
                    groups.stage_elsewhere(self.path, cursor, number, boot)

        self._subscriptions: list[GroupSubscription | Following] = []
        store = Store.open(
            self.path,
            create=create,
            durability=self._durability,
            segment_bytes=self._segment_bytes,
            clock=self.clock.time,
            apply_cursors=apply,
        )
        (self.path / "bells").mkdir(exist_ok=True)
        return store

    def _own_page(self, cursor: CursorCommit) -> CursorPage | None:
        for subscription in list(self._subscriptions):
            if isinstance(subscription, GroupSubscription) and subscription.group == cursor.group:
                page = subscription.page_of(cursor.stream)
                if page is not None:
                    return page
        return None

    def _begin(self, store: Store) -> None:
        self.catalogue = StoreCatalogue(store, durable=self.durable)
        self.bells = Bells(self.path / "bells", self._rung, lambda: store.visible_end)
        self.bells.hang()
        self._sorter = Sorter(store)
        self._syncer = Syncer(store, self.bells.ring) if self.durable else None
        self.upkeep = Upkeep(store, self.catalogue, self.group_subscriptions, self._clean_interval)
        self._postponing = Postponing(self, store)
        self._upkeep_task = asyncio.create_task(self.upkeep.run(), name=f"upkeep of {self.path}")

    async def close(self) -> None:
        """Give everything back: locks, the bell, files. Idempotent; `connect` may follow."""
        async with self._connecting:
            self._connected = False
            store = self._store
            if store is None:
                return
            self._upkeep_task.cancel()
            await asyncio.gather(self._upkeep_task, return_exceptions=True)
            await self._postponing.stop()
            self._store = None
            self.upkeep.close()
            if self._syncer is not None:
                await asyncio.to_thread(self._syncer.close)
            self.bells.close()
            await asyncio.to_thread(store.close)

    async def check(self) -> None:
        """Raise unless a message could be taken now. A store that is not there yet is made by the first one."""
        if self._connected and self._store is None and self._create:
            return
        store = self.store
        if not os.access(store.path, os.W_OK):
            raise StoreError(store.path, "not writable by this process")
        await asyncio.to_thread(_pass_the_fence, store)

    # Topics

    async def declare(self, topics: Sequence[Topic], mode: DeclareMode) -> None:
        """Make what is missing, raise TopicNotFoundError for it, or do nothing. Existing topics stay as they are.

        Unless it only checks, it makes the store as well.
        """
        store = self.store if mode == "check" else await self._make_sure(create=True)
        if mode == "off":
            return
        have = store.topics()
        missing = [topic for topic in topics if topic.name not in have and not is_pattern(topic.name)]
        if not missing:
            return
        if mode == "check":
            raise TopicNotFoundError(missing[0].name)
        for topic in missing:
            self.check_topic(topic.name)
        wanted = [
            TopicWanted(
                topic.name,
                topic.partitions or self.partitions,
                topic.retention.total_seconds() if topic.retention is not None else None,
                topic.retention_bytes,
            )
            for topic in missing
        ]
        await asyncio.to_thread(store.create_topics, wanted)
        self.topics_changed()

    async def create(self, names: set[str]) -> None:
        """Make these topics with the usual number of partitions. Raises TopicNotFoundError if that is off."""
        for name in names:
            self.check_topic(name)
        if not self._auto_create:
            raise TopicNotFoundError(min(names), "it was not declared, and auto_create is off")
        await self.declare([Topic(name) for name in sorted(names)], "create")

    def topics_changed(self) -> None:
        """Have everybody look at the topics again."""
        self.bells.ring(None)
        self._rung()

    # Sending

    def send(self, messages: Sequence[Outgoing]) -> Sequence[Receipt] | Awaitable[Sequence[Receipt]]:
        """Accept all of these or none, in one frame.

        With durability "process" a small send is done at once; else the result is to be awaited. The receipt
        of a delayed message has no partition and no offset yet.
        """
        store = self._store
        if store is None:
            return self._send_to_new_store(messages)
        if not messages:
            return ()
        try:
            outgoing = messages
            for message in messages:
                if message.delay:
                    outgoing = postponed(messages, self.clock.time(), self._sorter)
                    self._postponing.wanted()
                    break
            parcels = self._sorter.sort(outgoing)
        except UnknownTopicsError as unknown:
            return self._send_to_new_topics(messages, unknown.topics)
        if (len(messages) == 1 and len(messages[0].body) <= LARGE) or _size(parcels) <= LARGE:
            return self._append(store, messages, parcels)
        return self._append_in_thread(messages, parcels)

    async def _send_to_new_store(self, messages: Sequence[Outgoing]) -> Sequence[Receipt]:
        await self._make_sure(create=True)
        receipts = self.send(messages)
        return await receipts if isinstance(receipts, Awaitable) else receipts

    async def _send_to_new_topics(self, messages: Sequence[Outgoing], topics: set[str]) -> Sequence[Receipt]:
        own = {topic for topic in topics if Postponing.owns(topic)}
        if own:
            await self._postponing.make_topic()
        if topics - own:
            await self.create(topics - own)
        receipts = self.send(messages)
        return await receipts if isinstance(receipts, Awaitable) else receipts

    def _append(
        self, store: Store, messages: Sequence[Outgoing], parcels: list[Parcel]
    ) -> Sequence[Receipt] | Awaitable[Sequence[Receipt]]:
        committed = store.append([parcel.run for parcel in parcels])
        receipts = receipts_of(messages, parcels, committed)
        if self._syncer is not None:
            return self._syncer.durable(committed.end, streams_of(parcels), receipts)
        self.bells.ring(streams_of(parcels))
        return receipts

    async def _append_in_thread(self, messages: Sequence[Outgoing], parcels: list[Parcel]) -> Sequence[Receipt]:
        runs = [parcel.run for parcel in parcels]
        committed = await asyncio.to_thread(self.store.append, runs)
        if self._syncer is not None:
            return await self._syncer.durable(
                committed.end, streams_of(parcels), receipts_of(messages, parcels, committed)
            )
        self.bells.ring(streams_of(parcels))
        return receipts_of(messages, parcels, committed)

    async def _transact(
        self, sends: Sequence[Outgoing], cursors: Sequence[CursorCommit], guard: Callable[[], None]
    ) -> Sequence[Receipt]:
        """Records and cursors in one frame; returns once it is as durable as promised."""
        while True:
            try:
                outgoing = sends
                if any(message.delay for message in sends):
                    outgoing = postponed(sends, self.clock.time(), self._sorter)
                    self._postponing.wanted()
                parcels = self._sorter.sort(outgoing) if sends else []
                break
            except UnknownTopicsError as unknown:
                own = {topic for topic in unknown.topics if Postponing.owns(topic)}
                if own:
                    await self._postponing.make_topic()
                if unknown.topics - own:
                    await self.create(unknown.topics - own)
        if not parcels and not cursors:
            return ()
        runs = [parcel.run for parcel in parcels]
        if _size(parcels) <= LARGE:
            committed = self.store.append(runs, cursors, guard)
        else:
            committed = await asyncio.to_thread(self.store.append, runs, cursors, guard)
        receipts = receipts_of(sends, parcels, committed) if sends else []
        if self._syncer is not None:
            return await self._syncer.durable(committed.end, streams_of(parcels), receipts)
        self.bells.ring(streams_of(parcels))
        return receipts

    # Receiving

    def subscribe(self, source: Source, on_change: OnChange) -> AbstractAsyncContextManager[Subscription]:
        """Take a place in a source. Leaving the context gives it up, unsettled messages go to others."""
        if source.group is None:
            return self._follow(source, on_change)
        return self._consume(source, source.group, on_change)

    @asynccontextmanager
    async def _follow(self, source: Source, on_change: OnChange) -> AsyncIterator[Subscription]:
        store, key = self.store, object()
        following = Following(source, store, Alarm(self.bells), lambda streams: self.bells.listen(key, streams))
        self._subscriptions.append(following)
        try:
            await following.announce(on_change)
            yield following
        finally:
            self._subscriptions.remove(following)
            if self._store is not None:
                self.bells.listen(key, ())

    @asynccontextmanager
    async def _consume(self, source: Source, group: str, on_change: OnChange) -> AsyncIterator[Subscription]:
        store = self.store
        subscription = GroupSubscription(group, store, Alarm(self.bells), self._transact)
        self._check_start(source)

        def leases_changed() -> None:
            subscription.leases_changed()
            self.bells.listen(subscription, [lease.stream for lease in member.leases.values()])

        member = Member(
            Group(self.path, group, self.catalogue, create=True, lease=self.lease),
            source.topics,
            exclusive=source.exclusive,
            client=self.client,
            bell=self.bells.id,
            call=self.bells.call,
            on_change=on_change,
            on_leases=leases_changed,
        )
        subscription.member = member
        self._subscriptions.append(subscription)

        skipped = 0

        def start(topic: str, partition: int, stream: int) -> int:
            nonlocal skipped
            offset = start_offset(store, source.start, topic, partition, stream)
            skipped += offset - store.earliest(stream)
            return offset

        try:
            await member.join(start)
            if skipped:
                _log.info("the new group %r begins at %s and skips %d message(s)", group, source.start, skipped)
            self._postponing.wanted()
            yield subscription
        finally:
            try:
                await member.leave()
            finally:
                self._subscriptions.remove(subscription)
                if self._store is not None:
                    self.bells.listen(subscription, ())

    def _check_start(self, source: Source) -> None:
        start: Start = source.start
        if not isinstance(start, int):
            return
        topics = self.store.topics()
        reached = [name for name in topics if any(match(pattern, name) is not None for pattern in source.topics)]
        if sum(len(topics[name].streams) for name in reached) > 1:
            raise ConfigurationError(
                f"start={start} is the offset of one partition, and {', '.join(source.topics)} has more: give "
                f"{{partition: offset, ...}}, 'earliest', 'latest' or an aware datetime"
            )

    def group_subscriptions(self) -> list[GroupSubscription]:
        """The places in groups that this engine has now."""
        return [s for s in self._subscriptions if isinstance(s, GroupSubscription)]

    def _rung(self) -> None:
        for subscription in self._subscriptions:
            subscription.stir()
        self._postponing.stir()


def _size(parcels: Sequence[Parcel]) -> int:
    return sum(sum(map(len, parcel.run.values)) for parcel in parcels)


def _pass_the_fence(store: Store) -> None:
    with store.fence():
        pass
