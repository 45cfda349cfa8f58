"""Managing what an engine keeps: the typed results, what engines implement, and the uniform surface over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, Protocol

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
