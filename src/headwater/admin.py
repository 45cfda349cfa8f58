"""Managing what an engine keeps: the typed results, what engines implement, and the uniform surface over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast

from .dead import DeadLetters
from .errors import GroupNotFoundError, NotSupportedError, TopicNotFoundError

if TYPE_CHECKING:
    from .broker import Broker

ResetTo = Literal["earliest", "latest"] | int | Mapping[int, int] | datetime


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """Offsets of one partition: `earliest` is the first kept, `latest` the one the next message will get."""

    topic: str
    partition: int
    earliest: int
    latest: int

    @property
    def messages(self) -> int:
        """How many messages are kept, as far as offsets tell."""
        return self.latest - self.earliest


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic and its settings. `size` is in bytes, or None where the engine cannot tell."""

    name: str
    partitions: int
    messages: int
    size: int | None = None
    retention: timedelta | None = None
    retention_bytes: int | None = None
    internal: bool = False


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """A live member of a group and the partitions it holds, as (topic, partition)."""

    id: str
    client: str
    partitions: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A consumer group: the topics it has a position on, and its live members."""

    name: str
    topics: tuple[str, ...]
    members: tuple[MemberInfo, ...] = ()

    @property
    def active(self) -> bool:
        return bool(self.members)


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """What a group has still to do on one partition: messages from `committed` to `latest`."""

    topic: str
    partition: int
    committed: int
    latest: int
    lag: int


@dataclass(frozen=True, slots=True)
class Lag:
    """What a group has still to do."""

    group: str
    partitions: tuple[PartitionLag, ...] = ()

    @property
    def total(self) -> int:
        return sum(partition.lag for partition in self.partitions)


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One server of a cluster, or the one process of an embedded engine."""

    id: str
    address: str
    controller: bool = False


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """The servers behind an engine."""

    engine: str
    version: str
    nodes: tuple[NodeInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the cluster is well, and what is wrong when it is not."""

    problems: tuple[str, ...] = field(default=())

    @property
    def healthy(self) -> bool:
        return not self.problems


class EngineAdmin(Protocol):
    """What an engine implements. Everything here exists or the engine's `operations` leave it out.

    Every method may raise NotSupportedError; topics and groups that are not there raise
    TopicNotFoundError and GroupNotFoundError.
    """

    operations: frozenset[str]  # names of the methods below that work on this engine

    async def list_topics(self) -> Sequence[TopicInfo]: ...
    async def create_topic(
        self,
        name: str,
        partitions: int | None,
        retention: timedelta | None,
        retention_bytes: int | None,
        options: Sequence[object],
    ) -> None: ...
    async def alter_topic(
        self, name: str, retention: timedelta | None, retention_bytes: int | None, options: Sequence[object]
    ) -> None: ...
    async def delete_topic(self, name: str) -> None: ...
    async def purge_topic(self, name: str, before: Mapping[int, int] | datetime | None) -> None:
        """Make messages below these offsets or before this time unreadable; all there are with None."""
        ...

    async def list_partitions(self, topic: str) -> Sequence[PartitionInfo]: ...
    async def add_partitions(self, topic: str, total: int) -> None: ...
    async def list_groups(self) -> Sequence[GroupInfo]: ...
    async def lag(self, group: str, topic: str | None) -> Lag: ...
    async def set_offsets(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """Move a group that has no live member; raises while it has one."""
        ...

    async def offsets_at(self, topic: str, moment: datetime) -> Mapping[int, int]:
        """Per partition, the first offset at or after this time (`latest` if there is none)."""
        ...

    async def delete_group(self, group: str) -> None: ...
    async def describe_cluster(self) -> ClusterInfo: ...
    async def health(self) -> Health: ...


OPERATIONS: Final = frozenset(
    (
        "list_topics",
        "create_topic",
        "alter_topic",
        "delete_topic",
        "purge_topic",
        "list_partitions",
        "add_partitions",
        "list_groups",
        "lag",
        "set_offsets",
        "offsets_at",
        "delete_group",
        "describe_cluster",
        "health",
    )
)
"""The names of EngineAdmin's methods, as they stand in its `operations`."""


class Admin:
    """The administration of a broker: one meaning on all engines.

    What the engine cannot do raises NotSupportedError and is False in `capabilities`.
    """

    def __init__(self, name: str, engine: EngineAdmin, broker: Broker) -> None:
        able = _Able(name, engine)
        self.topics = Topics(able)
        self.partitions = Partitions(able)
        self.groups = Groups(able)
        self.cluster = Cluster(able)
        self.dead = DeadLetters(broker, cast("EngineAdmin", able))  # it has them all, or says what it lacks
        self._engine = engine

    @property
    def capabilities(self) -> Mapping[str, bool]:
        """Which operations this engine has."""
        return {operation: operation in self._engine.operations for operation in sorted(OPERATIONS)}


class _Able:
    """An engine's administration, whose missing operations raise NotSupportedError."""

    def __init__(self, name: str, engine: EngineAdmin) -> None:
        self._name = name
        self._engine = engine
        self.operations = engine.operations

    def __getattr__(self, operation: str) -> Any:
        if operation not in self._engine.operations:
            raise NotSupportedError(self._name, operation)
        return getattr(self._engine, operation)


class Topics:
    """The topics of a broker."""

    def __init__(self, engine: _Able) -> None:
        self._engine = engine

    async def list(self, *, internal: bool = False) -> Sequence[TopicInfo]:
        """All topics by name; with `internal` also those Headwater made for itself."""
        topics: Sequence[TopicInfo] = await self._engine.list_topics()
        return sorted((topic for topic in topics if internal or not topic.internal), key=lambda topic: topic.name)

    async def describe(self, name: str) -> TopicInfo:
        """One topic. Raises TopicNotFoundError."""
        for topic in await self.list(internal=True):
            if topic.name == name:
                return topic
        raise TopicNotFoundError(name)

    async def create(
        self,
        name: str,
        *,
        partitions: int | None = None,
        retention: timedelta | None = None,
        retention_bytes: int | None = None,
        options: Sequence[object] = (),
    ) -> None:
        """Make a topic; one that is there stays as it is."""
        await self._engine.create_topic(name, partitions, retention, retention_bytes, options)

    async def alter(
        self,
        name: str,
        *,
        retention: timedelta | None = None,
        retention_bytes: int | None = None,
        options: Sequence[object] = (),
    ) -> None:
        """Change how long a topic keeps its messages; None keeps them for ever. Raises TopicNotFoundError."""
        await self._engine.alter_topic(name, retention, retention_bytes, options)

    async def delete(self, name: str) -> None:
        """Delete a topic and all its messages. Raises TopicNotFoundError."""
        await self._engine.delete_topic(name)

    async def purge(self, name: str, *, before: Mapping[int, int] | datetime | None = None) -> None:
        """Make the messages below these offsets, or before this time, unreadable; by default all there are."""
        await self._engine.purge_topic(name, before)


class Partitions:
    """The partitions of a topic."""

    def __init__(self, engine: _Able) -> None:
        self._engine = engine

    async def list(self, topic: str) -> Sequence[PartitionInfo]:
        """All partitions with their earliest and latest offsets. Raises TopicNotFoundError."""
        partitions: Sequence[PartitionInfo] = await self._engine.list_partitions(topic)
        return partitions

    async def add(self, topic: str, total: int) -> None:
        """Have `total` partitions. Keys move: what was published before stays where it is."""
        await self._engine.add_partitions(topic, total)


class Groups:
    """The consumer groups of a broker, by the names their subscribers gave."""

    def __init__(self, engine: _Able) -> None:
        self._engine = engine

    async def list(self) -> Sequence[GroupInfo]:
        groups: Sequence[GroupInfo] = await self._engine.list_groups()
        return sorted(groups, key=lambda group: group.name)

    async def describe(self, name: str) -> GroupInfo:
        """One group. Raises GroupNotFoundError."""
        for group in await self.list():
            if group.name == name:
                return group
        raise GroupNotFoundError(name)

    async def lag(self, group: str, topic: str | None = None) -> Lag:
        """What the group has still to do, on one topic or all of its own. Raises GroupNotFoundError."""
        lag: Lag = await self._engine.lag(group, topic)
        return lag

    async def reset(
        self, group: str, topic: str, *, to: ResetTo | None = None, shift: int | None = None, dry_run: bool = False
    ) -> Mapping[int, int]:
        """Move a group that has no live member; gives partition → offset, and only that with `dry_run`.

        `to` is "earliest", "latest", an offset, `{partition: offset}` or an aware datetime; `shift` moves by so many
        messages instead. Offsets end up within what is kept.
        """
        if (to is None) == (shift is None):
            raise ValueError("groups.reset() takes to= or shift=, one of them")
        partitions = await self._engine.list_partitions(topic)
        committed = {p.partition: p.committed for p in (await self.lag(group, topic)).partitions}
        wanted: Mapping[int, int] = await self._engine.offsets_at(topic, to) if isinstance(to, datetime) else {}
        offsets = {}
        for info in partitions:
            here = committed.get(info.partition, info.earliest)
            target = _target(info, here, to, shift, wanted)
            if target is not None:
                offsets[info.partition] = min(max(target, info.earliest), info.latest)
        if not dry_run:
            await self._engine.set_offsets(group, topic, offsets)
        return offsets

    async def delete(self, name: str) -> None:
        """Forget a group and its position. Raises GroupNotFoundError, and refuses while it has a live member."""
        await self._engine.delete_group(name)


def _target(
    info: PartitionInfo, here: int, to: ResetTo | None, shift: int | None, wanted: Mapping[int, int]
) -> int | None:
    match to:
        case None:
            return here + (shift or 0)
        case "earliest":
            return info.earliest
        case "latest":
            return info.latest
        case int():
            return to
        case datetime():
            return wanted.get(info.partition)
        case _:
            return to.get(info.partition)


class Cluster:
    """The servers behind a broker."""

    def __init__(self, engine: _Able) -> None:
        self._engine = engine

    async def describe(self) -> ClusterInfo:
        info: ClusterInfo = await self._engine.describe_cluster()
        return info

    async def health(self) -> Health:
        """Whether all is well, and what is not."""
        health: Health = await self._engine.health()
        return health
