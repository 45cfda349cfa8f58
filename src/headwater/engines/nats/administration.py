"""Managing streams and consumers, as topics and groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    named,
)
from ...engine import Topic
from ...errors import ConfigurationError, GroupNotFoundError, NotSupportedError
from ...topics import is_internal
from .consumers import ConsumerInfo, beginning, consumers_of, create_consumer, delete_consumer
from .streams import SECOND, StreamInfo, nanoseconds, seconds
from .subjects import check, schedules_of

if TYPE_CHECKING:
    from .engine import JetStreamEngine

_OPERATIONS: Final = OPERATIONS - {"add_partitions"}


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
        return named(await self.list_topics(), name)

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
        return [PartitionInfo(topic, 0, stream.earliest, stream.latest)]

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
        return [
            GroupInfo(
                name,
                tuple(sorted({consumer.topic for consumer in consumers})),
                tuple(
                    MemberInfo(consumer.name, f"{consumer.num_waiting} waiting", ((consumer.topic, 0),))
                    for consumer in consumers
                    if consumer.num_waiting
                ),
            )
            for name, consumers in groups.items()
        ]

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
        """A consumer cannot be moved: it is made anew where it is to go on."""
        for stream, consumer in await self._group(group, topic):
            self._check_unused(group, consumer)
            config = {name: value for name, value in consumer.config.items() if not name.startswith("opt_start")}
            config |= beginning(offsets[0], topic, stream)
            await delete_consumer(self._engine.api, stream.name, consumer.name)
            await create_consumer(self._engine.api, stream.name, config, action="create")

    async def delete_group(self, group: str) -> None:
        found = await self._group(group)
        for _, consumer in found:
            self._check_unused(group, consumer)
        for stream, consumer in found:
            await delete_consumer(self._engine.api, stream.name, consumer.name)

    def _check_unused(self, group: str, consumer: ConsumerInfo) -> None:
        if consumer.num_waiting:
            raise ConfigurationError(f"group {group!r} has live members on {consumer.topic!r}: stop them first")

    # --- the cluster ----------------------------------------------------------------------------------

    async def describe_cluster(self) -> ClusterInfo:
        await self._engine.check()
        info = self._engine.connection.info
        here = f"{info['host']}:{info['port']}"
        nodes = [NodeInfo(str(info.get("server_name", info["server_id"])), here, "cluster" not in info)]
        nodes += [NodeInfo(address, address) for address in info.get("connect_urls") or () if address != here]
        return ClusterInfo("nats", str(info["version"]), tuple(nodes))

    async def health(self) -> Health:
        problems: list[str] = []
        for stream in await self._engine.streams.all():
            cluster = stream.cluster or {}
            if stream.cluster is not None and not cluster.get("leader"):
                problems.append(f"the stream {stream.name} has no leader")
            problems += [
                f"{replica['name']}, which keeps the stream {stream.name}, is away or behind"
                for replica in cluster.get("replicas") or ()
                if replica.get("offline") or not replica.get("current")
            ]
        return Health(tuple(problems))


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
    )
