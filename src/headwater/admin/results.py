"""What administration tells: of topics, partitions, groups and servers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta


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
