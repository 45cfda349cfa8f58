"""Management of a memory store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

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
    named,
)
from ...engine import Topic
from ...errors import ConfigurationError, GroupNotFoundError
from ...topics import is_internal
from .store import Cursor, Group, MemoryStore, Partition, Place

if TYPE_CHECKING:
    from .engine import MemoryEngine


class MemoryAdmin:
    """The administration of a memory store."""

    has_ids = False
    operations = OPERATIONS

    def __init__(self, store: MemoryStore, engine: MemoryEngine) -> None:
        self._store = store
        self._engine = engine

    async def list_topics(self) -> Sequence[TopicInfo]:
        return [
            TopicInfo(
                name,
                len(partitions),
                sum(len(partition.records) for partition in partitions),
                sum(len(record.body) for partition in partitions for record in partition.records),
                *self._store.retention[name],
                internal=is_internal(name),
                replicas=1,
            )
            for name, partitions in self._store.topics.items()
        ]

    async def describe_topic(self, name: str) -> TopicInfo:
        found = named(await self.list_topics(), name)
        return replace(found, config={"store": self._store.name or "private"})

    async def create_topic(
        self,
        name: str,
        partitions: int | None,
        retention: timedelta | None,
        retention_bytes: int | None,
        options: Sequence[Any],
    ) -> None:
        self._engine.check_topic(name)
        await self._engine.declare([Topic(name, partitions, retention, retention_bytes)], "create")

    async def alter_topic(
        self, name: str, retention: timedelta | None, retention_bytes: int | None, options: Sequence[Any]
    ) -> None:
        self._store.partitions(name)
        self._store.retention[name] = (retention, retention_bytes)

    async def delete_topic(self, name: str) -> None:
        self._store.partitions(name)
        del self._store.topics[name], self._store.retention[name]
        for group in self._store.groups.values():
            for place in [place for place in group.cursors if place[0] == name]:
                del group.cursors[place]
        for reader in self._store.readers:
            reader.places = [place for place in reader.places if place[0] != name]
            reader.find_places()
        self._engine.topics_change()

    async def purge_topic(self, name: str, before: Mapping[int, int] | datetime | None) -> None:
        for number, partition in enumerate(self._store.partitions(name)):
            if isinstance(before, datetime):
                partition.trim(partition.at(before.timestamp()))
            else:
                partition.trim(partition.latest if before is None else before.get(number, 0))

    async def list_partitions(self, topic: str) -> Sequence[PartitionInfo]:
        return [
            PartitionInfo(topic, number, partition.earliest, partition.latest, len(partition.records))
            for number, partition in enumerate(self._store.partitions(topic))
        ]

    async def add_partitions(self, topic: str, total: int) -> None:
        partitions = self._store.partitions(topic)
        if total < len(partitions):
            raise ConfigurationError(f"{topic!r} has {len(partitions)} partitions, and partitions only grow")
        partitions.extend(Partition() for _ in range(total - len(partitions)))
        self._engine.topics_change()

    async def list_groups(self) -> Sequence[GroupInfo]:
        return [
            GroupInfo(
                group.name,
                tuple(sorted({topic for topic, _ in group.cursors})),
                tuple(
                    MemberInfo(str(number), member.source.client, tuple(member.places))
                    for number, member in enumerate(group.members)
                ),
            )
            for group in self._store.groups.values()
        ]

    def _group(self, name: str) -> Group:
        if name not in self._store.groups:
            raise GroupNotFoundError(name)
        return self._store.groups[name]

    async def lag(self, group: str, topic: str | None) -> Lag:
        cursors = self._group(group).cursors
        if topic is not None:
            self._store.partitions(topic)
            if all(name != topic for name, _ in cursors):
                raise GroupNotFoundError(group, topic)
        return Lag(
            group,
            tuple(
                self._partition_lag((name, number), cursor)
                for (name, number), cursor in sorted(cursors.items())
                if topic in (None, name)
            ),
        )

    def _partition_lag(self, place: Place, cursor: Cursor) -> PartitionLag:
        partition = self._store.topics[place[0]][place[1]]
        due = max(cursor.done_up_to, partition.earliest)  # what was purged is nobody's to do
        done = sum(1 for offset in cursor.done if offset >= due)
        return PartitionLag(*place, cursor.done_up_to, partition.latest, partition.latest - due - done)

    async def set_offsets(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        found = self._group(group)
        self._store.partitions(topic)
        self._refuse_while_active(found)
        for number, offset in offsets.items():
            found.cursors.setdefault((topic, number), Cursor(offset)).rewind(offset)

    def _refuse_while_active(self, group: Group) -> None:
        if group.members:
            names = ", ".join(sorted({member.source.client for member in group.members}))
            raise ConfigurationError(
                f"group {group.name!r} has {len(group.members)} live member(s) ({names}): stop them, then try again"
            )

    async def offsets_at(self, topic: str, moment: datetime) -> Mapping[int, int]:
        return {n: p.at(moment.timestamp()) for n, p in enumerate(self._store.partitions(topic))}

    async def delete_group(self, group: str) -> None:
        self._refuse_while_active(self._group(group))
        del self._store.groups[group]

    async def describe_cluster(self) -> ClusterInfo:
        return ClusterInfo("memory", "", (NodeInfo("0", "this process", True),))

    async def health(self) -> Health:
        return Health()
