"""What an engine implements of administration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from ..errors import TopicNotFoundError
from .results import ClusterInfo, GroupInfo, Health, Lag, PartitionInfo, TopicInfo


class EngineAdmin(Protocol):
    """What an engine implements. Everything here exists or the engine's `operations` leave it out.

    Every method may raise NotSupportedError; topics and groups that are not there raise
    TopicNotFoundError and GroupNotFoundError.
    """

    operations: frozenset[str]  # names of the methods below that work on this engine
    has_ids: bool  # whether offsets are ids, and str, instead of numbers

    async def list_topics(self) -> Sequence[TopicInfo]: ...
    async def describe_topic(self, name: str) -> TopicInfo:
        """One topic, with its `config`."""
        ...

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
    async def purge_topic(self, name: str, before: Mapping[int, Any] | datetime | None) -> None:
        """Make messages below these offsets or before this time unreadable; all there are with None."""
        ...

    async def list_partitions(self, topic: str) -> Sequence[PartitionInfo]: ...
    async def add_partitions(self, topic: str, total: int) -> None: ...
    async def list_groups(self) -> Sequence[GroupInfo]: ...
    async def lag(self, group: str, topic: str | None) -> Lag: ...
    async def set_offsets(self, group: str, topic: str, offsets: Mapping[int, Any]) -> None:
        """Move a group that has no live member; raises while it has one. Where offsets are ids, one may be "latest"."""
        ...

    async def offsets_at(self, topic: str, moment: datetime) -> Mapping[int, Any]:
        """Per partition, the first offset at or after this time (`latest` if there is none)."""
        ...

    async def delete_group(self, group: str) -> None: ...
    async def describe_cluster(self) -> ClusterInfo: ...
    async def health(self) -> Health: ...


OPERATIONS: Final = frozenset(
    (
        "list_topics",
        "describe_topic",
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


def named(topics: Sequence[TopicInfo], name: str) -> TopicInfo:
    """The one of this name, for engines that have no question of its own for it. Raises TopicNotFoundError."""
    for topic in topics:
        if topic.name == name:
            return topic
    raise TopicNotFoundError(name)
