"""Management of a Kafka cluster."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
from ...errors import ConfigurationError, GroupNotFoundError, HeadwaterError
from ...topics import is_internal
from .options import NOTHING, Kafka

if TYPE_CHECKING:
    from .cluster import Cluster
    from .engine import KafkaEngine

RETENTION = "retention.ms"
RETENTION_BYTES = "retention.bytes"
FOR_EVER = "-1"


class KafkaAdmin:
    """The administration of a Kafka cluster."""

    has_ids = False
    operations = OPERATIONS

    def __init__(self, engine: KafkaEngine) -> None:
        self._engine = engine

    @property
    def _cluster(self) -> Cluster:
        return self._engine.cluster

    # Topics

    async def list_topics(self) -> Sequence[TopicInfo]:
        """`messages` is what offsets tell: of a compacted or transactional topic it may be fewer."""
        topics = await self._cluster.topics()
        ranges = await self._cluster.ranges([(name, n) for name, count in topics.items() for n in range(count)])
        configs = await self._cluster.configs(topics)
        kept = defaultdict[str, int](int)
        for (name, _), (earliest, latest) in ranges.items():
            kept[name] += latest - earliest
        return [
            TopicInfo(
                name,
                count,
                kept[name],
                None,
                _age(configs[name].get(RETENTION)),
                _size(configs[name].get(RETENTION_BYTES)),
                internal=is_internal(name) or name.startswith("__"),
            )
            for name, count in topics.items()
        ]

    async def describe_topic(self, name: str) -> TopicInfo:
        return named(await self.list_topics(), name)

    async def create_topic(
        self,
        name: str,
        partitions: int | None,
        retention: timedelta | None,
        retention_bytes: int | None,
        options: Sequence[Any],
    ) -> None:
        """Make a topic; what is None is left to the cluster."""
        self._engine.check_topic(name)
        own = next((option for option in options if isinstance(option, Kafka)), NOTHING)
        config = topic_config(retention, retention_bytes, own)
        await self._cluster.create(name, partitions, own.replication, config)

    async def alter_topic(
        self, name: str, retention: timedelta | None, retention_bytes: int | None, options: Sequence[Any]
    ) -> None:
        await self._cluster.existing(name)
        own = next((option for option in options if isinstance(option, Kafka)), NOTHING)
        for_ever = {RETENTION: FOR_EVER, RETENTION_BYTES: FOR_EVER}
        await self._cluster.configure(name, for_ever | topic_config(retention, retention_bytes, own))

    async def delete_topic(self, name: str) -> None:
        await self._cluster.delete(name)

    async def purge_topic(self, name: str, before: Mapping[int, int] | datetime | None) -> None:
        places = await self._places(name)
        if isinstance(before, Mapping):
            await self._cluster.delete_below({place: before[place[1]] for place in places if place[1] in before})
        else:
            await self._cluster.delete_below(await self._cluster.offsets(places, before or "latest"))

    # Partitions

    async def list_partitions(self, topic: str) -> Sequence[PartitionInfo]:
        ranges = await self._cluster.ranges(await self._places(topic))
        return [PartitionInfo(*place, *kept) for place, kept in sorted(ranges.items())]

    async def add_partitions(self, topic: str, total: int) -> None:
        count = await self._cluster.existing(topic)
        if total < count:
            raise ConfigurationError(f"{topic!r} has {count} partitions, and partitions only grow")
        if total > count:
            await self._cluster.add_partitions(topic, total)

    async def _places(self, topic: str) -> list[tuple[str, int]]:
        return [(topic, number) for number in range(await self._cluster.existing(topic))]

    # Groups

    async def list_groups(self) -> Sequence[GroupInfo]:
        groups = await self._cluster.groups(await self._cluster.group_names())
        topics_of = await asyncio.gather(*(self._cluster.stored(group.group_id) for group in groups))
        found = []
        for group, stored in zip(groups, topics_of, strict=True):
            members = tuple(_member(member) for member in group.members)
            topics = {topic for topic, _ in stored} | {topic for m in members for topic, _ in m.partitions}
            found.append(GroupInfo(group.group_id, tuple(sorted(topics)), members))
        return found

    async def lag(self, group: str, topic: str | None) -> Lag:
        stored = await self._cluster.stored(group, None if topic is None else await self._places(topic))
        if not stored:
            await self._group(group)
        found = []
        for place, (earliest, latest) in (await self._cluster.ranges(sorted(stored))).items():
            at = min(max(stored[place], earliest), latest)
            found.append(PartitionLag(*place, stored[place], latest, latest - at))
        return Lag(group, tuple(found))

    async def _group(self, name: str) -> None:
        """Raise GroupNotFoundError unless there is such a group."""
        if name not in await self._cluster.group_names():
            raise GroupNotFoundError(name)

    async def set_offsets(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        await self._group(group)
        await self._cluster.store(group, {(topic, number): offset for number, offset in offsets.items()})

    async def offsets_at(self, topic: str, moment: datetime) -> Mapping[int, int]:
        found = await self._cluster.offsets(await self._places(topic), moment)
        return {number: offset for (_, number), offset in sorted(found.items())}

    async def delete_group(self, group: str) -> None:
        await self._cluster.delete_group(group)

    # The whole

    async def describe_cluster(self) -> ClusterInfo:
        """Kafka does not tell its version."""
        found = await self._cluster.nodes()
        controller = found.controller.id if found.controller is not None else None
        nodes = [NodeInfo(node.id_string, f"{node.host}:{node.port}", node.id == controller) for node in found.nodes]
        return ClusterInfo("kafka", "", tuple(nodes))

    async def health(self) -> Health:
        """Whether it answers, has a controller, and every partition has a leader and all its copies in step."""
        try:
            problems = list(await self._cluster.problems())
        except HeadwaterError as error:
            problems = [str(error)]
        return Health(tuple(problems))


def topic_config(retention: timedelta | None, retention_bytes: int | None, own: Kafka) -> dict[str, str]:
    """A topic's configuration in Kafka's words."""
    config: dict[str, str] = {}
    if retention is not None:
        config[RETENTION] = str(round(retention.total_seconds() * 1000))
    if retention_bytes is not None:
        config[RETENTION_BYTES] = str(retention_bytes)
    return config | {name: str(value) for name, value in own.config.items()}


def _age(milliseconds: str | None) -> timedelta | None:
    return None if milliseconds in (None, FOR_EVER) else timedelta(milliseconds=int(milliseconds or 0))


def _size(size: str | None) -> int | None:
    return None if size in (None, FOR_EVER) else int(size or 0)


def _member(member: Any) -> MemberInfo:
    assignment = member.assignment.topic_partitions if member.assignment else ()
    return MemberInfo(member.member_id, member.client_id, tuple(sorted((p.topic, p.partition) for p in assignment)))
