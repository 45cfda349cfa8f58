"""The uniform surface of administration: one meaning on all engines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, cast

from ..dead import DeadLetters
from ..engine import Topic
from ..errors import ConfigurationError, GroupNotFoundError, NotSupportedError, TopicNotFoundError
from .engine import OPERATIONS, EngineAdmin
from .ensuring import TopicChange, ensure
from .results import ClusterInfo, GroupInfo, Health, Lag, PartitionInfo, TopicInfo
from .watching import LagSample, watch_health, watch_lag

if TYPE_CHECKING:
    from ..broker import Broker

ResetTo = Literal["earliest", "latest"] | int | str | Mapping[int, int | str] | datetime
"""Where a group is to go on: an offset (a str where offsets are ids), one for each partition, or a time."""


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

    async def ensure(
        self, topics: Sequence[Topic], *, delete: bool = False, dry_run: bool = False
    ) -> Sequence[TopicChange]:
        """Have these topics, with these settings; gives what differed, and was mended unless it is a `dry_run`.

        A setting of None is left to the engine. Topics that are not named are left alone; with `delete` they are
        deleted, but for those Headwater made. Raises ConfigurationError, before anything is done, where partitions
        would have to be taken away.
        """
        return await ensure(self, topics, delete=delete, dry_run=dry_run)

    def watch_lag(self, group: str, topic: str | None = None, *, every: float = 2.0) -> AsyncIterator[LagSample]:
        """The lag of a group now, and then `every` so many seconds, with rates. Raises GroupNotFoundError."""
        return watch_lag(self.groups, group, topic, every)

    def watch_cluster(self, *, every: float = 5.0) -> AsyncIterator[Health]:
        """The health of the cluster now, and then whenever it has changed; looks `every` so many seconds.

        A server that cannot be reached is a problem like others.
        """
        return watch_health(self.cluster, every)


class _Able:
    """An engine's administration, whose missing operations raise NotSupportedError."""

    def __init__(self, name: str, engine: EngineAdmin) -> None:
        self.name = name
        self._engine = engine
        self.operations, self.has_ids = engine.operations, engine.has_ids

    def check_offsets(self, offsets: Iterable[int | str]) -> None:
        """Raise ConfigurationError for numbers where offsets are ids, and the other way round."""
        wanted = str if self._engine.has_ids else int
        for offset in offsets:
            if not isinstance(offset, wanted):
                kind = "ids, such as '1700000000000-0'" if wanted is str else "numbers"
                raise ConfigurationError(f"{offset!r} is no offset of {self.name}: they are {kind}")

    def __getattr__(self, operation: str) -> Any:
        if operation not in self._engine.operations:
            raise NotSupportedError(self.name, operation)
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
        """One topic, with all its settings. Raises TopicNotFoundError."""
        topic: TopicInfo = await self._engine.describe_topic(name)
        return topic

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

    async def purge(self, name: str, *, before: Mapping[int, int | str] | datetime | None = None) -> None:
        """Make the messages below these offsets, or before this time, unreadable; by default all there are."""
        if isinstance(before, Mapping):
            self._engine.check_offsets(before.values())
            _check_partitions(name, await self._engine.list_partitions(name), before)
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
    ) -> Mapping[int, int | str]:
        """Move a group that has no live member; gives partition → offset, and only that with `dry_run`.

        `to` is "earliest", "latest", an offset, `{partition: offset}` or an aware datetime; `shift` moves by so many
        messages instead. Offsets end up within what is kept. Raises TopicNotFoundError for a partition that is not
        there, NotSupportedError for a shift where offsets are ids, which cannot be counted with.
        """
        if (to is None) == (shift is None):
            raise ValueError("groups.reset() takes to= or shift=, one of them")
        if shift is not None and self._engine.has_ids:
            raise NotSupportedError(self._engine.name, "a shift", "its offsets are ids: give to=")
        partitions: Sequence[PartitionInfo] = await self._engine.list_partitions(topic)
        if isinstance(to, Mapping):
            _check_partitions(topic, partitions, to)
        committed = {p.partition: p.committed for p in (await self.lag(group, topic)).partitions}
        wanted = await self._engine.offsets_at(topic, to) if isinstance(to, datetime) else {}
        offsets = dict[int, int | str]()
        for info in partitions:
            here = committed.get(info.partition, info.earliest)
            target = _target(info, here, to, shift, wanted)
            if target is not None:
                self._engine.check_offsets([target])
                offsets[info.partition] = _within(info, target)
        if not dry_run:
            await self._engine.set_offsets(group, topic, offsets)
        return offsets

    async def delete(self, name: str) -> None:
        """Forget a group and its position. Raises GroupNotFoundError, and refuses while it has a live member."""
        await self._engine.delete_group(name)


def _check_partitions(topic: str, there: Sequence[PartitionInfo], named: Iterable[int]) -> None:
    for unknown in sorted(set(named) - {info.partition for info in there}):
        plural = "" if len(there) == 1 else "s"
        raise TopicNotFoundError(f"{topic}[{unknown}]", f"it has {len(there)} partition{plural}, from 0 on")


def _target(
    info: PartitionInfo, here: int | str, to: ResetTo | None, shift: int | None, wanted: Mapping[int, int | str]
) -> int | str | None:
    match to:
        case None:
            assert isinstance(here, int), "a shift of ids was refused"
            return here + (shift or 0)
        case "earliest":
            return info.earliest
        case "latest":
            return info.latest if isinstance(info.latest, int) else "latest"  # no id says what comes after the last one
        case int() | str():
            return to
        case datetime():
            return wanted.get(info.partition)
        case _:
            return to.get(info.partition)


def _within(info: PartitionInfo, target: int | str) -> int | str:
    """The offset, or the end of what is kept that is nearest; ids may lie between those that there are."""
    if isinstance(target, int) and isinstance(info.earliest, int) and isinstance(info.latest, int):
        return min(max(target, info.earliest), info.latest)
    return target


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
