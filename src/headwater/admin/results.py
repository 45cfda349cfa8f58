"""What administration tells: of topics, partitions, groups and servers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """One partition: `earliest` is the first offset kept, `latest` the one the next message will get.

    Where offsets are no numbers (Redis), `latest` is the last one given out, and `count` says how many messages are
    kept. `leader` and `replicas` are ids of nodes, where the engine has several.
    """

    topic: str
    partition: int
    earliest: int | str
    latest: int | str
    count: int | None = None
    leader: str | None = None
    replicas: tuple[str, ...] = ()

    @property
    def messages(self) -> int:
        """How many messages are kept, as far as the engine, or its offsets, tell."""
        if self.count is None and isinstance(self.earliest, int) and isinstance(self.latest, int):
            return self.latest - self.earliest
        return self.count or 0


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic and its settings. `size` is in bytes, or None where the engine cannot tell.

    `replicas` is how many copies of each partition there are. A `compacted` topic keeps the last message of each key.
    `config` has what else the engine says of it, by the engine's own names; only `describe` fills it.
    """

    name: str
    partitions: int
    messages: int
    size: int | None = None
    retention: timedelta | None = None
    retention_bytes: int | None = None
    internal: bool = False
    replicas: int | None = None
    compacted: bool = False
    config: Mapping[str, str] = field(default_factory=dict, hash=False)


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
    """The servers behind an engine. `config` has what else it says of itself, by its own names."""

    engine: str
    version: str
    nodes: tuple[NodeInfo, ...] = ()
    config: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the cluster is well, and what is wrong when it is not."""

    problems: tuple[str, ...] = field(default=())

    @property
    def healthy(self) -> bool:
        return not self.problems
