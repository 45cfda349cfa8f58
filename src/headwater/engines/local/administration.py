"""Managing the topics and groups of a store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from ... import __version__
from ...admin import (
    OPERATIONS,
    ClusterInfo,
    GroupInfo,
    Health,
    Lag,
    MemberInfo,
    NodeInfo,
    PartitionInfo,
    PartitionLag,
    TopicInfo,
)
from ...errors import (
    ConfigurationError,
    GroupNotFoundError,
    HeadwaterError,
    OffsetOutOfRangeError,
    StoreCorruptError,
    TopicNotFoundError,
)
from ...log.cursors import blank_page
from ...log.groups import Group, Place, State, cursor_name, delete_group, group_names
from ...log.store import Store, TopicEntry
from ...topics import INTERNAL_PREFIX, is_internal

if TYPE_CHECKING:
    from .engine import LocalEngine

T = TypeVar("T")


class LocalAdmin:
    """Administration of one store. Everything is done in a thread: most of it waits for the disk."""

    has_ids = False
    operations = OPERATIONS

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    @property
    def _store(self) -> Store:
        return self._engine.store

    # Topics

    async def list_topics(self) -> Sequence[TopicInfo]:
        """All topics by name, Headwater's own among them, marked as internal."""
        return await asyncio.to_thread(
            lambda: [self._describe(topic) for _, topic in sorted(self._store.topics().items())]
        )

    def _describe(self, topic: TopicEntry) -> TopicInfo:
        store = self._store
        return TopicInfo(
            topic.name,
            len(topic.streams),
            sum(store.latest(stream) - store.earliest(stream) for stream in topic.streams),
            None,
            None if topic.retention is None else timedelta(seconds=topic.retention),
            topic.retention_bytes,
            is_internal(topic.name),
            replicas=1,
        )

    async def describe_topic(self, name: str) -> TopicInfo:
        """With about the size of its frames, where they are, and as which streams of the store."""

        def describe() -> TopicInfo:
            topic, sizes = self._store.topic(name), self._store.sizes()
            return replace(
                self._describe(topic), size=sum(sizes[stream] for stream in topic.streams), config=self._config(topic)
            )

        return await asyncio.to_thread(describe)

    def _config(self, topic: TopicEntry) -> dict[str, str]:
        return {
            "store": str(self._store.path),
            "streams": ", ".join(map(str, topic.streams)),
            "durability": "fsync" if self._engine.durable else "process",
        }

    async def create_topic(
        self,
        name: str,
        partitions: int | None,
        retention: timedelta | None,
        retention_bytes: int | None,
        options: Sequence[object],
    ) -> None:
        """Have a topic; one that is there stays as it is."""
        self._engine.check_topic(name)
        total = self._engine.partitions if partitions is None else partitions
        if total < 1:
            raise ConfigurationError(f"topic {name!r} with {total} partitions: give at least 1")
        await self._engine.declare((), "create")  # the store, if this is its first topic
        await self._change(lambda: self._store.create_topic(name, total, _seconds(retention), retention_bytes))

    async def alter_topic(
        self, name: str, retention: timedelta | None, retention_bytes: int | None, options: Sequence[object]
    ) -> None:
        """Set both retentions; None keeps for ever."""
        await self._change(lambda: self._store.alter_topic(name, _seconds(retention), retention_bytes))

    async def delete_topic(self, name: str) -> None:
        """Forget a topic, its messages, and where groups were on it."""
        await self._change(lambda: self._store.delete_topic(name))

    async def purge_topic(self, name: str, before: Mapping[int, int] | datetime | None) -> None:
        """Make messages below these offsets or before this time unreadable; all there are with None."""

        def purge() -> None:
            streams = self._store.topic(name).streams
            if isinstance(before, Mapping):
                self._store.purge({_stream(name, streams, p): offset for p, offset in before.items()})
            elif before is None:
                self._store.purge({stream: self._store.latest(stream) for stream in streams})
            else:
                moment = before.timestamp()
                self._store.purge({stream: self._store.offset_at(stream, moment) for stream in streams})

        await self._change(purge)

    async def _change(self, change: Callable[[], object]) -> None:
        await asyncio.to_thread(change)
        self._engine.topics_changed()

    # Partitions

    async def list_partitions(self, topic: str) -> Sequence[PartitionInfo]:
        """What each partition keeps."""
        return await asyncio.to_thread(
            lambda: [
                PartitionInfo(topic, partition, self._store.earliest(stream), self._store.latest(stream))
                for partition, stream in enumerate(self._store.topic(topic).streams)
            ]
        )

    async def add_partitions(self, topic: str, total: int) -> None:
        """Have `total` partitions. Keys move to others from now on; what is stored stays where it is."""
        have = len(self._store.topic(topic).streams)
        if total < have:
            raise ConfigurationError(f"topic {topic!r} has {have} partitions: their number only grows")
        await self._change(lambda: self._store.add_partitions(topic, total))

    # Groups

    async def list_groups(self) -> Sequence[GroupInfo]:
        """All groups but Headwater's own."""

        def all_groups() -> list[GroupInfo]:
            return [self._group_info(name) for name in _visible_groups(self._store)]

        return await asyncio.to_thread(all_groups)

    def _group_info(self, name: str) -> GroupInfo:
        with self._group(name) as group:
            state = group.load()
            members = [
                MemberInfo(entry.id, entry.client, tuple(sorted(state.held_by(entry.id))))
                for entry in group.living(state)
            ]
            return GroupInfo(name, tuple(sorted(state.places)), tuple(members))

    async def lag(self, group: str, topic: str | None) -> Lag:
        """What the group has still to do, on one topic or all it has a position on."""
        return await asyncio.to_thread(self._lag, group, topic)

    def _lag(self, name: str, topic: str | None) -> Lag:
        with self._group(name) as group, group.changing() as state:
            if topic is not None and topic not in state.places:
                if topic not in self._store.topics():
                    raise TopicNotFoundError(topic)
                raise GroupNotFoundError(name, topic)
            streams = self._engine.catalogue.streams()
            lags = [
                self._partition_lag(group, at, place)
                for at, place in state.all_places()
                if topic in (None, at[0]) and place.stream in streams.get(at[0], ())
            ]
        return Lag(name, tuple(lags))

    def _partition_lag(self, group: Group, at: tuple[str, int], place: Place) -> PartitionLag:
        page, latest = group.page(*at, place), self._store.latest(place.stream)
        committed = page.watermark
        due = max(committed, self._store.earliest(place.stream))
        return PartitionLag(*at, committed, latest, max(0, latest - due - page.done_ahead(latest)))

    async def set_offsets(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """Move a group that has no live member.

        Raises ConfigurationError while it has one, GroupNotFoundError, TopicNotFoundError, and
        OffsetOutOfRangeError for what is neither kept nor the next.
        """
        await asyncio.to_thread(self._set_offsets, group, topic, offsets)

    def _set_offsets(self, name: str, topic: str, offsets: Mapping[int, int]) -> None:
        store = self._store
        streams = store.topic(topic).streams
        for partition, offset in offsets.items():
            stream = _stream(topic, streams, partition)
            earliest, latest = store.earliest(stream), store.latest(stream)
            if not earliest <= offset <= latest:
                raise OffsetOutOfRangeError(topic, partition, offset, earliest, latest)
        with self._group(name) as group, group.changing() as state:
            self._refuse_while_active(group, state)
            # A transaction before the reset must not be replayed over it, so the reset names the last one.
            frame, _ = self._engine.catalogue.harden()
            group.bury(state)
            group.catch_up(state)
            self._have_places(state, topic, streams)
            # New pages instead of the old ones, which may be what is damaged.
            pages = {
                (topic, partition): blank_page(
                    cursor_name(name, topic, partition, streams[partition]), state.generation + 1, offset, frame
                )
                for partition, offset in self._offsets(state, topic, streams, offsets).items()
            }
            if pages:
                group.write_pages(state, pages)
            state.resolved.add(topic)
            group.save(state)

    def _have_places(self, state: State, topic: str, streams: Sequence[int]) -> None:
        places = state.places.setdefault(topic, [])
        places += [Place(stream, "", 0) for stream in streams[len(places) :]]

    def _offsets(
        self, state: State, topic: str, streams: Sequence[int], offsets: Mapping[int, int]
    ) -> Mapping[int, int]:
        """Those asked for, and the earliest for partitions the group had no position on."""
        new = {p: self._store.earliest(streams[p]) for p, place in enumerate(state.places[topic]) if not place.file}
        return {**new, **offsets}

    def _refuse_while_active(self, group: Group, state: State) -> None:
        living = group.living(state)
        if living:
            names = ", ".join(entry.client for entry in living)
            raise ConfigurationError(f"group {group.name!r} has live members ({names}): stop them, then try again")

    async def offsets_at(self, topic: str, moment: datetime) -> Mapping[int, int]:
        """Per partition, the first offset at or after this time (`latest` if there is none)."""
        return await asyncio.to_thread(
            lambda: {
                partition: self._store.offset_at(stream, moment.timestamp())
                for partition, stream in enumerate(self._store.topic(topic).streams)
            }
        )

    async def delete_group(self, group: str) -> None:
        """Forget a group that has no live member. Raises ConfigurationError, GroupNotFoundError."""

        def delete() -> None:
            with self._group(group) as opened, opened.roster.locked():
                try:
                    self._refuse_while_active(opened, opened.load())
                except StoreCorruptError:  # deleting it is the way out
                    if opened.is_lived_in():
                        raise
                delete_group(self._store.path, group)

        await asyncio.to_thread(delete)

    @contextmanager
    def _group(self, name: str) -> Iterator[Group]:
        group = Group(self._store.path, name, self._engine.catalogue, lease=self._engine.lease)
        try:
            yield group
        finally:
            group.close()

    # The whole

    async def describe_cluster(self) -> ClusterInfo:
        """The one directory there is."""
        node = NodeInfo("local", str(self._store.path), controller=True)
        return ClusterInfo("local", __version__, (node,))

    async def health(self) -> Health:
        """Whether a message could be taken, and what went wrong behind."""
        problems = [self._engine.upkeep.problem] if self._engine.upkeep.problem else []
        try:
            await self._engine.check()
        except HeadwaterError as error:
            problems.append(str(error))
        problems += [
            f"group {subscription.group!r}: {subscription.member.failure}"
            for subscription in self._engine.group_subscriptions()
            if subscription.member is not None and subscription.member.failure is not None
        ]
        return Health(tuple(problems))


def _visible_groups(store: Store) -> list[str]:
    return [name for name in group_names(store.path) if not name.startswith(INTERNAL_PREFIX)]


def _stream(topic: str, streams: Sequence[int], partition: int) -> int:
    if not 0 <= partition < len(streams):
        raise TopicNotFoundError(f"{topic}[{partition}]", f"it has {len(streams)} partitions")
    return streams[partition]


def _seconds(age: timedelta | None) -> float | None:
    return None if age is None else age.total_seconds()
