"""Management of a Fluvio cluster."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
from ...engine import option_of
from ...errors import (
    ConfigurationError,
    ConnectError,
    GroupNotFoundError,
    HeadwaterError,
    NotSupportedError,
    TopicNotFoundError,
)
from ...topics import is_internal
from . import names, offsets
from .apis import PartitionState, Place, Spu, TopicSettings, TopicState
from .membership import View, live_members, new_probe, prefix_of
from .options import NOTHING, Fluvio
from .settings import Settings

if TYPE_CHECKING:
    from .cluster import Cluster
    from .engine import FluvioEngine

DEFAULT_RETENTION: Final = timedelta(days=7)  # Fluvio's own, where a topic was made without one
LEADER_ANSWERS_WITHIN: Final = 1.0  # seconds


class FluvioAdmin:
    """The administration of a Fluvio cluster. It changes no topic that is there, and removes no messages but by age."""

    has_ids = False
    operations = OPERATIONS - {"alter_topic", "purge_topic"}

    def __init__(self, engine: FluvioEngine) -> None:
        self._engine = engine

    @property
    def _cluster(self) -> Cluster:
        return self._engine.cluster

    # --- topics ---------------------------------------------------------------------------------------

    async def list_topics(self) -> Sequence[TopicInfo]:
        states = defaultdict[str, list[PartitionState]](list)
        for state in await self._cluster.partitions():
            states[state.topic].append(state)
        topics = await self._cluster.topics()
        kept = await self._kept([state for topic in topics for state in states[topic.name]])
        return [_topic(topic, states[topic.name], kept[topic.name]) for topic in topics]

    async def _kept(self, states: Sequence[PartitionState]) -> Mapping[str, int]:
        """How many messages each topic keeps, without those of partitions that nobody leads, or not any more."""
        led = [state for state in states if state.leader >= 0]
        found = defaultdict[str, int](int)
        for state, kept in zip(led, await asyncio.gather(*map(self._kept_on, led)), strict=True):
            found[state.topic] += kept
        return found

    async def _kept_on(self, state: PartitionState) -> int:
        try:
            earliest, latest = await self._cluster.range((state.topic, state.number))
        except TopicNotFoundError:  # it was deleted a moment ago
            return 0
        return latest - earliest

    async def describe_topic(self, name: str) -> TopicInfo:
        """With what it was made with, and whether it can be used."""
        native = names.native(name)
        topic, states = await self._cluster.topic(native), await self._cluster.partitions(native)
        return _topic(topic, states, (await self._kept(states))[native], config=_config(topic))

    async def create_topic(
        self,
        name: str,
        partitions: int | None,
        retention: timedelta | None,
        retention_bytes: int | None,
        options: Sequence[Any],
    ) -> None:
        """Make a topic; what is None is left to the broker's settings, and those to the cluster."""
        own = option_of(options, Fluvio) or NOTHING
        wanted = topic_settings(self._engine.settings, partitions, retention, retention_bytes, own)
        await self._cluster.create(names.native(name), wanted)

    async def alter_topic(
        self, name: str, retention: timedelta | None, retention_bytes: int | None, options: Sequence[Any]
    ) -> None:
        raise NotSupportedError("fluvio", "alter_topic", "it changes no topic but by adding partitions")

    async def delete_topic(self, name: str) -> None:
        await self._cluster.delete(names.native(name))

    async def purge_topic(self, name: str, before: Mapping[int, int] | datetime | None) -> None:
        raise NotSupportedError("fluvio", "purge_topic", "it removes messages by age and size only")

    # --- partitions -----------------------------------------------------------------------------------

    async def list_partitions(self, topic: str) -> Sequence[PartitionInfo]:
        native = names.native(topic)
        await self._cluster.topic(native)
        states = await self._cluster.partitions(native)
        ranges = await self._cluster.ranges([(native, state.number) for state in states])
        return [
            PartitionInfo(
                topic,
                state.number,
                *ranges[native, state.number],
                leader=str(state.leader),
                replicas=tuple(str(spu) for spu in state.replicas),
            )
            for state in states
        ]

    async def add_partitions(self, topic: str, total: int) -> None:
        await self._cluster.add_partitions(names.native(topic), total)

    async def _places(self, topic: str) -> list[Place]:
        native = names.native(topic)
        return [(native, number) for number in range((await self._cluster.topic(native)).settings.partitions)]

    # --- groups ---------------------------------------------------------------------------------------

    async def list_groups(self) -> Sequence[GroupInfo]:
        """Whoever stored an offset, other programs' consumers included; members are those of Headwater."""
        found = []
        for group, places in (await offsets.groups(self._cluster)).items():
            topics = sorted({place[0] for place in places})
            members = [member for topic in topics for member in await self._members(group, topic)]
            found.append(GroupInfo(group, tuple(names.ours(topic) for topic in topics), tuple(members)))
        return found

    async def _members(self, group: str, topic: str) -> list[MemberInfo]:
        """Who is in the group on this topic, and what each has once all have adopted the same view."""
        place = (topic, 0)
        prefix = prefix_of(group)
        if not any(one.consumer.startswith(prefix) for one in await self._cluster.stored(place)):
            return []
        probe = new_probe()
        await offsets.store(self._cluster, probe, {place: 0})
        stored = await self._cluster.stored(place)
        await self._cluster.delete_stored(place, probe)
        now = next((one.time for one in stored if one.consumer == probe), 0)  # by the server's clock
        members = live_members(stored, group, now, self._engine.settings.session_timeout)
        count = await self._cluster.count(topic)
        views = [View(tuple(member.name for member in members), count, exclusive) for exclusive in (False, True)]
        view = next((view for view in views if all(member.view == view.number for member in members)), None)
        return [
            MemberInfo(
                member.name,
                member.client,
                ()
                if view is None
                else tuple((names.ours(topic), number) for number in sorted(view.share(member.name))),
            )
            for member in members
        ]

    async def lag(self, group: str, topic: str | None) -> Lag:
        """Partitions without a position, of topics where the group has one, are read from their beginning."""
        places = None if topic is None else await self._places(topic)
        stored = await offsets.stored(self._cluster, group, None if topic is None else names.native(topic))
        if not stored:
            raise GroupNotFoundError(group, *(() if topic is None else (topic,)))
        if places is None:
            places = [place for native in sorted({name for name, _ in stored}) for place in await self._known(native)]
        found = []
        for place, (earliest, latest) in (await self._cluster.ranges(places)).items():
            committed = stored.get(place, earliest)
            at = min(max(committed, earliest), latest)
            found.append(PartitionLag(names.ours(place[0]), place[1], committed, latest, latest - at))
        return Lag(group, tuple(found))

    async def _known(self, native: str) -> list[Place]:
        return [(native, number) for number in range(await self._cluster.count(native))]

    async def set_offsets(self, group: str, topic: str, offsets_: Mapping[int, int]) -> None:
        native = names.native(topic)
        if not await offsets.stored(self._cluster, group):
            raise GroupNotFoundError(group)
        await self._refuse_while_active(group, [native])
        await offsets.store(self._cluster, group, {(native, number): offset for number, offset in offsets_.items()})

    async def _refuse_while_active(self, group: str, topics: Sequence[str]) -> None:
        members = [member for topic in topics for member in await self._members(group, topic)]
        if members:
            who = ", ".join(sorted({member.client for member in members}))
            raise ConfigurationError(
                f"group {group!r} has {len(members)} live member(s) ({who}): stop them, then try again"
            )

    async def offsets_at(self, topic: str, moment: datetime) -> Mapping[int, int]:
        """Looked for by halving, see `offsets.offsets_at`."""
        found = await offsets.offsets_at(self._cluster, await self._places(topic), moment)
        return {number: offset for (_, number), offset in found.items()}

    async def delete_group(self, group: str) -> None:
        stored = await offsets.stored(self._cluster, group)
        if not stored:
            raise GroupNotFoundError(group)
        await self._refuse_while_active(group, sorted({topic for topic, _ in stored}))
        for place in stored:
            await self._cluster.delete_stored(place, group)

    # --- the whole ------------------------------------------------------------------------------------

    async def describe_cluster(self) -> ClusterInfo:
        """The SPUs, which keep messages, and the controller."""
        nodes = [NodeInfo("sc", self._cluster.address, controller=True)]
        nodes += [NodeInfo(str(spu.id), f"{spu.host}:{spu.port}") for spu in await self._cluster.spus()]
        return ClusterInfo("fluvio", await self._cluster.version(), tuple(nodes))

    async def health(self) -> Health:
        """Whether the controller and all SPUs answer, and partitions have their leader and their copies."""
        try:
            return Health(tuple(await self._problems()))
        except HeadwaterError as error:
            return Health((str(error),))

    async def _problems(self) -> list[str]:
        spus = await self._cluster.spus()
        found = [said for said in await asyncio.gather(*map(self._problem_of, spus)) if said is not None]
        if not spus:
            found.append("there is no SPU: nothing can be kept")
        found += [
            f"topic {names.ours(topic.name)!r} is not usable: {topic.resolution} {topic.reason}".strip()
            for topic in await self._cluster.topics()
            if topic.resolution != "provisioned"
        ]
        online = {spu.id for spu in spus if spu.online}
        for state in await self._cluster.partitions():
            found += await self._problems_of(state, online)
        return found

    async def _problem_of(self, spu: Spu) -> str | None:
        """The controller takes one that hangs to be online as long as it is connected: it is asked itself."""
        name = f"SPU {spu.id} at {spu.host}:{spu.port}"
        if not spu.online:
            return f"{name} is offline"
        try:
            await self._cluster.greet(spu.id, LEADER_ANSWERS_WITHIN)
        except ConnectError as error:
            return f"{name} does not answer: {error.reason}"
        return None

    async def _problems_of(self, state: PartitionState, online: set[int]) -> list[str]:
        """The controller may miss that a partition is led for long: then its leader is asked."""
        name = f"{names.ours(state.topic)}[{state.number}]"
        if state.leader not in online:
            return [f"{name} has no leader: {state.resolution}"]
        if state.resolution == "online":
            return _behind(name, state, online)
        try:
            async with asyncio.timeout(LEADER_ANSWERS_WITHIN):
                await self._cluster.range((state.topic, state.number))
        except (HeadwaterError, TimeoutError):
            return [f"{name} has no leader: {state.resolution}"]
        return []


def _behind(name: str, state: PartitionState, online: set[int]) -> list[str]:
    leader, *others = state.copies
    behind = [copy.spu for copy in others if 0 <= copy.written < leader.written or copy.spu not in online]
    return [f"{name}: the copy on SPU {spu} is away or behind" for spu in behind]


def topic_settings(
    settings: Settings,
    partitions: int | None,
    retention: timedelta | None,
    retention_bytes: int | None,
    own: Fluvio,
) -> TopicSettings:
    """What a topic is made with. Raises ConfigurationError for what Fluvio cannot keep."""
    seconds = None if retention is None else round(retention.total_seconds())
    if seconds is not None and not 10 <= seconds < 1 << 32:
        raise ConfigurationError(f"retention of {retention}: Fluvio keeps messages for 10 seconds at least")
    if retention_bytes is not None and retention_bytes < 2048:
        raise ConfigurationError(f"retention_bytes={retention_bytes}: Fluvio takes 2048 at least")
    segment = own.segment_size
    if retention_bytes is not None and segment is None:  # one that is larger than all is refused
        segment = min(1 << 30, max(1024, retention_bytes // 2))
    return TopicSettings(
        partitions or settings.partitions,
        own.replication or settings.replication,
        seconds,
        segment,
        retention_bytes,
        own.compression or "any",
    )


def _topic(
    topic: TopicState, partitions: Sequence[PartitionState], messages: int, config: Mapping[str, str] = {}
) -> TopicInfo:
    """A topic; its `size` is what SPUs told the controller some seconds ago."""
    made = topic.settings
    sizes = [state.size for state in partitions]
    name = names.ours(topic.name)
    return TopicInfo(
        name,
        made.partitions,
        messages,
        sum(sizes) if sizes and min(sizes) >= 0 else None,
        DEFAULT_RETENTION if made.retention is None else timedelta(seconds=made.retention),
        made.max_partition_size,
        internal=is_internal(name) or made.system,
        replicas=made.replicas,
        config=config,
    )


def _config(topic: TopicState) -> dict[str, str]:
    made = topic.settings
    told = {
        "compression": made.compression,
        "resolution": topic.resolution,
        "reason": topic.reason or None,
        "retention_seconds": made.retention,
        "segment_size": made.segment_size,
        "max_partition_size": made.max_partition_size,
    }
    return {name: str(value) for name, value in told.items() if value is not None}
