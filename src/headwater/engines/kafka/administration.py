"""Management of a Kafka cluster."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

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
from ...errors import ConfigurationError, GroupNotFoundError, HeadwaterError
from ...topics import is_internal
from .options import NOTHING, Kafka

if TYPE_CHECKING:
    from confluent_kafka.admin import ConfigEntry  # type: ignore[attr-defined]  # it says not that it exports it

    from .cluster import Cluster
    from .engine import KafkaEngine

RETENTION: Final = "retention.ms"
RETENTION_BYTES: Final = "retention.bytes"
CLEANUP: Final = "cleanup.policy"
FOR_EVER: Final = "-1"

_ALWAYS_TOLD: Final = frozenset(
    (
        CLEANUP,
        RETENTION,
        RETENTION_BYTES,
        "compression.type",
        "max.message.bytes",
        "message.timestamp.type",
        "min.insync.replicas",
        "segment.bytes",
    )
)


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
        topics = await self._cluster.layout()
        places = [(name, number) for name, topic in topics.items() for number in topic.partitions]
        ranges = await self._cluster.ranges(places)
        configs = await self._cluster.configs(topics)
        copies = {name: [p.replicas for p in topic.partitions.values()] for name, topic in topics.items()}
        kept = defaultdict[str, int](int)
        for (name, _), (earliest, latest) in ranges.items():
            kept[name] += latest - earliest
        return [_topic(name, copies[name], kept[name], configs[name]) for name in topics]

    async def describe_topic(self, name: str) -> TopicInfo:
        """With what its configuration has besides defaults. The client library does not tell sizes."""
        copies = [partition.replicas for partition in (await self._cluster.described(name)).partitions]
        ranges, configs = await asyncio.gather(
            self._cluster.ranges([(name, number) for number in range(len(copies))]), self._cluster.configs([name])
        )
        config = {
            setting: entry.value
            for setting, entry in sorted(configs[name].items())
            if entry.value is not None and (setting in _ALWAYS_TOLD or not entry.is_default)
        }
        messages = sum(latest - earliest for earliest, latest in ranges.values())
        return replace(_topic(name, copies, messages, configs[name]), config=config)

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
        """Raises ConfigurationError for a topic that is only compacted: there Kafka lets nobody do that."""
        places = await self._places(name)
        if (await self._cluster.configs([name]))[name][CLEANUP].value == "compact":
            raise ConfigurationError(
                f"{name!r} is compacted, and Kafka purges no such topic: publish tombstones, Kafka(tombstone=True), or "
                f"give it a retention as well: topics.alter({name!r}, retention=..., options=[Kafka(compact=True)])"
            )
        if isinstance(before, Mapping):
            wanted = {(name, number): offset for number, offset in before.items()}
            latest = await self._cluster.offsets(list(wanted), "latest")
            offsets = {place: min(offset, latest[place]) for place, offset in wanted.items()}
        else:
            offsets = await self._cluster.offsets(places, before or "latest")
        await self._cluster.delete_below(offsets)

    # Partitions

    async def list_partitions(self, topic: str) -> Sequence[PartitionInfo]:
        partitions = sorted((await self._cluster.described(topic)).partitions, key=lambda partition: partition.id)
        ranges = await self._cluster.ranges([(topic, partition.id) for partition in partitions])
        return [
            PartitionInfo(
                topic,
                partition.id,
                *ranges[topic, partition.id],
                leader=None if partition.leader is None else str(partition.leader.id),
                replicas=tuple(str(node.id) for node in partition.replicas),
            )
            for partition in partitions
        ]

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
        groups = await self._groups()
        topics_of = await asyncio.gather(*(self._cluster.stored(group.group_id) for group in groups))
        found = []
        for group, stored in zip(groups, topics_of, strict=True):
            members = tuple(_member(member) for member in group.members)
            topics = {topic for topic, _ in stored} | {topic for m in members for topic, _ in m.partitions}
            found.append(GroupInfo(group.group_id, tuple(sorted(topics)), members))
        return found

    async def _groups(self) -> list[Any]:
        """All groups; what is deleted while we ask is asked for no more."""
        names = await self._cluster.group_names()
        while True:
            try:
                return await self._cluster.groups(names)
            except GroupNotFoundError:
                left = {*await self._cluster.group_names()}
                if left.issuperset(names):
                    raise
                names = [name for name in names if name in left]

    async def lag(self, group: str, topic: str | None) -> Lag:
        """Partitions without a position, of topics where the group has one, are read from their beginning."""
        stored = await self._cluster.stored(group, None if topic is None else await self._places(topic))
        if not stored:
            await self._check_group(group)
            if topic is not None:
                raise GroupNotFoundError(group, topic)
        counts = await self._cluster.partitions({name for name, _ in stored})
        places = [(name, number) for name, count in sorted(counts.items()) for number in range(count)]
        found = []
        for place, (earliest, latest) in (await self._cluster.ranges(places)).items():
            committed = stored.get(place, earliest)
            at = min(max(committed, earliest), latest)
            found.append(PartitionLag(*place, committed, latest, latest - at))
        return Lag(group, tuple(found))

    async def _check_group(self, name: str) -> None:
        """Raise GroupNotFoundError unless there is such a group."""
        if name not in await self._cluster.group_names():
            raise GroupNotFoundError(name)

    async def set_offsets(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        await self._check_group(group)
        await self._refuse_while_active(group)
        await self._cluster.store(group, {(topic, number): offset for number, offset in offsets.items()})

    async def _refuse_while_active(self, group: str) -> None:
        members = [member for found in await self._cluster.groups([group]) for member in found.members]
        if members:
            names = ", ".join(sorted({f"{member.client_id} at {member.host.lstrip('/')}" for member in members}))
            raise ConfigurationError(
                f"group {group!r} has {len(members)} live member(s) ({names}): stop them, then try again"
            )

    async def offsets_at(self, topic: str, moment: datetime) -> Mapping[int, int]:
        found = await self._cluster.offsets(await self._places(topic), moment)
        return {number: offset for (_, number), offset in sorted(found.items())}

    async def delete_group(self, group: str) -> None:
        await self._refuse_while_active(group)
        await self._cluster.delete_group(group)

    # The whole

    async def describe_cluster(self) -> ClusterInfo:
        """Kafka does not tell its version."""
        found = await self._cluster.nodes()
        controller = found.controller.id if found.controller is not None else None
        nodes = [NodeInfo(node.id_string, f"{node.host}:{node.port}", node.id == controller) for node in found.nodes]
        return ClusterInfo("kafka", "", tuple(nodes))

    async def health(self) -> Health:
        """Whether all nodes answer, one controls, and every partition has a leader and all its copies in step."""
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
    if own.compact is not None:
        config[CLEANUP] = "delete" if not own.compact else "compact,delete" if config else "compact"
    return config | {name: str(value) for name, value in own.config.items()}


def _topic(name: str, copies: Sequence[Any], messages: int, config: Mapping[str, ConfigEntry]) -> TopicInfo:
    """A topic; `copies` has who keeps each of its partitions."""
    values = {setting: entry.value for setting, entry in config.items()}
    return TopicInfo(
        name,
        len(copies),
        messages,
        None,
        _age(values.get(RETENTION)),
        _size(values.get(RETENTION_BYTES)),
        internal=is_internal(name) or name.startswith("__"),
        replicas=len(copies[0]) if copies else None,
        compacted="compact" in (values.get(CLEANUP) or ""),
    )


def _age(milliseconds: str | None) -> timedelta | None:
    return None if milliseconds in (None, FOR_EVER) else timedelta(milliseconds=int(milliseconds or 0))


def _size(size: str | None) -> int | None:
    return None if size in (None, FOR_EVER) else int(size or 0)


def _member(member: Any) -> MemberInfo:
    assignment = member.assignment.topic_partitions if member.assignment else ()
    return MemberInfo(member.member_id, member.client_id, tuple(sorted((p.topic, p.partition) for p in assignment)))
