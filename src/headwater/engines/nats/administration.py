"""Managing streams and consumers, as topics and groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec

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
from ...engine import Topic
from ...errors import (
    ConfigurationError,
    GroupNotFoundError,
    HeadwaterError,
    NotSupportedError,
    TopicNotFoundError,
)
from ...topics import is_internal
from . import roll
from .consumers import (
    ConsumerInfo,
    beginning,
    consumers_of,
    create_consumer,
    delete_consumer,
    reset_consumer,
)
from .streams import SECOND, StreamInfo, nanoseconds, seconds
from .subjects import check, schedules_of

if TYPE_CHECKING:
    from .engine import JetStreamEngine

_OPERATIONS: Final = OPERATIONS - {"add_partitions"}
NEARLY: Final = 0.9  # of a limit

_RESET_SINCE: Final = (2, 14)
_LIMITS: Final = {
    "memory": "max_memory",
    "storage": "max_storage",
    "streams": "max_streams",
    "consumers": "max_consumers",
}
_DURATIONS: Final = frozenset(("max_age", "duplicate_window", "subject_delete_marker_ttl"))


class JetStreamAdmin:
    """A topic is a subject that a stream keeps. It has one partition, 0, whose offsets are those of its stream.

    A group is all consumers that carry its name; a consumer that others made is a group of its own name.
    """

    has_ids = False
    operations = _OPERATIONS

    def __init__(self, engine: JetStreamEngine) -> None:
        self._engine = engine

    async def _stream(self, topic: str) -> StreamInfo:
        """Raises TopicNotFoundError."""
        check(topic)
        streams = self._engine.streams
        streams.forget(topic)
        return await streams.info(await streams.of(topic))

    # --- topics ---------------------------------------------------------------------------------------

    async def list_topics(self) -> Sequence[TopicInfo]:
        """Every subject that a stream names, and every one that has messages."""
        found: list[TopicInfo] = []
        for stream in await self._engine.streams.all():
            counts = await self._engine.streams.counts(stream.name)
            named = {subject for subject in stream.subjects if "*" not in subject and ">" not in subject}
            found += [_topic_info(name, counts.get(name, 0), stream) for name in sorted({*named, *counts})]
        return found

    async def describe_topic(self, name: str) -> TopicInfo:
        """With the configuration of its stream, which other topics may share."""
        stream = await self._stream(name)
        count = (await self._engine.streams.counts(stream.name, name)).get(name, 0)
        if not count and name not in stream.subjects:  # as the list has it
            raise TopicNotFoundError(name, f"the stream {stream.name!r} would take it, and has nothing of it")
        return replace(_topic_info(name, count, stream), config=_told(stream.config))

    async def create_topic(
        self,
        name: str,
        partitions: int | None,
        retention: timedelta | None,
        retention_bytes: int | None,
        options: Sequence[Any],
    ) -> None:
        check(name)
        self._engine.streams.forget(name)
        await self._engine.declare([Topic(name, partitions, retention, retention_bytes, tuple(options))], "create")

    async def alter_topic(
        self, name: str, retention: timedelta | None, retention_bytes: int | None, options: Sequence[Any]
    ) -> None:
        """Set both retentions, of all topics that share the stream."""
        config = (await self._stream(name)).config
        config |= {"max_age": nanoseconds(seconds(retention)), "max_bytes": retention_bytes or -1}
        if config["max_age"]:
            config["duplicate_window"] = min(config["duplicate_window"], config["max_age"])
        await self._engine.api.ask(f"STREAM.UPDATE.{config['name']}", config)

    async def delete_topic(self, name: str) -> None:
        """One that shares its stream leaves it, with all its messages."""
        stream = await self._stream(name)
        self._engine.streams.forget(name)
        if stream.subjects == [name]:
            await self._engine.api.ask(f"STREAM.DELETE.{stream.name}")
            return
        await self._purge(stream, name)
        if name in stream.subjects:
            left = [subject for subject in stream.config["subjects"] if subject not in (name, schedules_of(name))]
            await self._engine.api.ask(f"STREAM.UPDATE.{stream.name}", {**stream.config, "subjects": left})

    async def purge_topic(self, name: str, before: Mapping[int, int] | datetime | None) -> None:
        stream = await self._stream(name)
        if isinstance(before, datetime):
            before = await self.offsets_at(name, before)
        await self._purge(stream, name, None if before is None else before.get(0, 0))

    async def _purge(self, stream: StreamInfo, subject: str, before: int | None = None) -> None:
        if before is None or before > stream.earliest:
            which = {"filter": subject, **({} if before is None else {"seq": before})}
            await self._engine.api.ask(f"STREAM.PURGE.{stream.name}", which)

    # --- partitions -----------------------------------------------------------------------------------

    async def list_partitions(self, topic: str) -> Sequence[PartitionInfo]:
        stream = await self._stream(topic)
        count = (await self._engine.streams.counts(stream.name, topic)).get(topic, 0)
        leader, copies = stream.leader, stream.copies
        return [PartitionInfo(topic, 0, stream.earliest, stream.latest, count, leader, copies)]

    async def add_partitions(self, topic: str, total: int) -> None:
        raise NotSupportedError("nats", "add_partitions", "a stream has one")

    async def offsets_at(self, topic: str, moment: datetime) -> Mapping[int, int]:
        """Asked of a consumer that begins there, since only those know."""
        stream, api = await self._stream(topic), self._engine.api
        config = {"ack_policy": "none", "mem_storage": True, "num_replicas": 1, **beginning(moment, topic, stream)}
        question = {"stream_name": stream.name, "config": config}
        made = msgspec.convert(await api.ask(f"CONSUMER.CREATE.{stream.name}", question), ConsumerInfo)
        await delete_consumer(api, stream.name, made.name)
        return {0: made.delivered["stream_seq"] + 1}

    # --- groups ---------------------------------------------------------------------------------------

    async def _consumers(self) -> list[tuple[StreamInfo, ConsumerInfo]]:
        """All that outlive their readers, with their streams."""
        found: list[tuple[StreamInfo, ConsumerInfo]] = []
        for stream in await self._engine.streams.all():
            consumers = await consumers_of(self._engine.api, stream.name)
            found += [(stream, consumer) for consumer in consumers if consumer.config.get("durable_name")]
        return found

    async def _group(self, name: str, topic: str | None = None) -> list[tuple[StreamInfo, ConsumerInfo]]:
        """The consumers of a group. Raises GroupNotFoundError."""
        found = [
            (stream, consumer)
            for stream, consumer in await self._consumers()
            if consumer.group == name and topic in (None, consumer.topic)
        ]
        if not found:
            raise GroupNotFoundError(name, topic)
        return found

    async def list_groups(self) -> Sequence[GroupInfo]:
        groups: dict[str, list[ConsumerInfo]] = {}
        for _, consumer in await self._consumers():
            groups.setdefault(consumer.group, []).append(consumer)
        members = await self._members([consumer for consumers in groups.values() for consumer in consumers])
        return [
            GroupInfo(
                name,
                tuple(sorted({consumer.topic for consumer in consumers})),
                tuple(member for consumer in consumers for member in members[consumer.name]),
            )
            for name, consumers in groups.items()
        ]

    async def _members(self, consumers: Sequence[ConsumerInfo]) -> Mapping[str, list[MemberInfo]]:
        """Who reads from each: those of ours that answer, else whoever waits there for messages."""
        answers = await roll.call(self._engine.connection, {consumer.name for consumer in consumers})
        found: dict[str, list[MemberInfo]] = {}
        for consumer in consumers:
            held = ((consumer.topic, 0),)
            members = [MemberInfo(member.id, member.client, held) for member in answers[consumer.name]]
            if not members and consumer.num_waiting:
                members = [MemberInfo(consumer.name, f"{consumer.num_waiting} waiting", held)]
            found[consumer.name] = members
        return found

    async def lag(self, group: str, topic: str | None) -> Lag:
        return Lag(
            group,
            tuple(
                PartitionLag(
                    consumer.topic,
                    0,
                    int(consumer.ack_floor["stream_seq"]) + 1,
                    stream.latest,
                    consumer.num_pending + consumer.num_ack_pending,
                )
                for stream, consumer in await self._group(group, topic)
            ),
        )

    async def set_offsets(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """Where the server can, a consumer is moved; else it is made anew where it is to go on."""
        found = await self._group(group, topic)
        await self._refuse_while_active(group, found)
        for stream, consumer in found if offsets else ():
            if not await self._moved(stream, consumer, offsets[0]):
                await self._make_anew(stream, consumer, topic, offsets[0])

    async def _moved(self, stream: StreamInfo, consumer: ConsumerInfo, offset: int) -> bool:
        if self._engine.connection.version < _RESET_SINCE:
            return False
        return await reset_consumer(self._engine.api, stream.name, consumer.name, offset)

    async def _make_anew(self, stream: StreamInfo, consumer: ConsumerInfo, topic: str, offset: int) -> None:
        config = {name: value for name, value in consumer.config.items() if not name.startswith("opt_start")}
        config |= beginning(offset, topic, stream)
        await delete_consumer(self._engine.api, stream.name, consumer.name)
        await create_consumer(self._engine.api, stream.name, config, action="create")

    async def delete_group(self, group: str) -> None:
        found = await self._group(group)
        await self._refuse_while_active(group, found)
        for stream, consumer in found:
            await delete_consumer(self._engine.api, stream.name, consumer.name)

    async def _refuse_while_active(self, group: str, consumers: Sequence[tuple[StreamInfo, ConsumerInfo]]) -> None:
        found = await self._members([consumer for _, consumer in consumers])
        members = [member for one in found.values() for member in one]
        if members:
            names = ", ".join(sorted({f"{member.client} on {member.partitions[0][0]}" for member in members}))
            raise ConfigurationError(
                f"group {group!r} has {len(members)} live member(s) ({names}): stop them, then try again"
            )

    # --- the cluster ----------------------------------------------------------------------------------

    async def describe_cluster(self) -> ClusterInfo:
        await self._engine.check()
        info = self._engine.connection.info
        here = f"{info['host']}:{info['port']}"
        nodes = [NodeInfo(str(info.get("server_name", info["server_id"])), here, "cluster" not in info)]
        nodes += [NodeInfo(address, address) for address in info.get("connect_urls") or () if address != here]
        return ClusterInfo("nats", str(info["version"]), tuple(nodes))

    async def health(self) -> Health:
        """Whether it answers, every stream has a leader and its copies in step, and the account has room."""
        try:
            streams, account = await self._engine.streams.all(), await self._engine.api.ask("INFO")
        except HeadwaterError as error:
            return Health((str(error),))
        return Health((*_problems_of_account(account), *(text for stream in streams for text in _problems(stream))))


def _problems(stream: StreamInfo) -> Iterator[str]:
    cluster = stream.cluster or {}
    if stream.cluster is not None and not cluster.get("leader"):
        yield f"the stream {stream.name} has no leader"
    for replica in cluster.get("replicas") or ():
        if replica.get("offline") or not replica.get("current"):
            yield f"{replica['name']}, which keeps the stream {stream.name}, is away or behind"


def _problems_of_account(account: Mapping[str, Any]) -> Iterator[str]:
    """What JetStream says of us: limits that hold for all, or for each number of copies."""
    for tier, told in (account.get("tiers") or {"": account}).items():
        limits = told.get("limits") or {}
        for kept, limit in _LIMITS.items():
            if _is_nearly_full(told.get(kept, 0), limits.get(limit, -1)):
                of = f" for {tier}" if tier else ""
                yield f"the account has {told[kept]} of {limits[limit]} {kept}{of}: purge, or raise its limit"


def _is_nearly_full(kept: int, limit: int) -> bool:
    return limit > 0 and kept >= limit * NEARLY


def _told(config: Mapping[str, Any]) -> dict[str, str]:
    """The configuration of a stream as text, without what is not set."""
    found: dict[str, str] = {}
    for name, value in sorted(config.items()):
        if name in _DURATIONS and value:
            found[name] = f"{value / SECOND:g}s"
        elif isinstance(value, list):
            found[name] = ", ".join(map(str, value))
        elif isinstance(value, dict):
            found[name] = msgspec.json.encode(value).decode()
        elif value not in (None, False, "", 0):
            found[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return found


def _topic_info(name: str, messages: int, stream: StreamInfo) -> TopicInfo:
    age, size = stream.config.get("max_age", 0), stream.config.get("max_bytes", -1)
    return TopicInfo(
        name,
        1,
        messages,
        int(stream.state["bytes"]) if stream.subjects == [name] else None,
        timedelta(seconds=age / SECOND) if age else None,
        size if size > 0 else None,
        is_internal(name),
        int(stream.config.get("num_replicas", 1)),
    )
