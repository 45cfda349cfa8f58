"""Management: through AMQP where that is honest, through the management plugin's HTTP API for what only it knows."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

from ...admin import (
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
from ...errors import ConfigurationError, ConnectError, GroupNotFoundError, NotSupportedError, TopicNotFoundError
from ...topics import is_internal
from .management import ManagementApi
from .names import HUB, check_topic, takes, topic_and_group
from .policies import Kept, definition_of, kept, policy_name, policy_of

if TYPE_CHECKING:
    from .server import Server

STATISTICS: Final = 15.0  # seconds after which a queue has been counted for the first time
_LOOK_AGAIN: Final = 0.2  # seconds

_BY_AMQP: Final = frozenset(("create_topic", "delete_topic", "list_partitions", "offsets_at"))
_BY_HTTP: Final = frozenset((
    "list_topics",
    "describe_topic",
    "alter_topic",
    "purge_topic",
    "list_groups",
    "lag",
    "delete_group",
    "describe_cluster",
    "health",
))  # fmt: skip

_KEEPS_NOTHING: Final = 'an exchange keeps nothing: make the topic with options=[Rabbit(queue_type="stream")]'

T = TypeVar("T")
Queue = Mapping[str, Any]  # what the HTTP API says of one


class RabbitAdmin:
    """What works by AMQP always does; the rest needs `management`, the URL of the HTTP API."""

    has_ids = False

    def __init__(self, connected: Callable[[], Server], api: ManagementApi | None) -> None:
        self.operations = _BY_AMQP if api is None else _BY_AMQP | _BY_HTTP
        self._connected = connected
        self._given_api = api

    @property
    def _api(self) -> ManagementApi:
        if self._given_api is None:
            hint = "give RabbitBroker(management=...) the URL of the management plugin's HTTP API"
            raise NotSupportedError("rabbit", "listing", hint)
        return self._given_api

    # --- topics ---------------------------------------------------------------------------------------

    async def list_topics(self) -> Sequence[TopicInfo]:
        """Topics are exchanges. What they keep, if they keep anything, is in the stream of the same name."""
        api = self._api
        exchanges, policies = await api.get(f"exchanges/{api.vhost}"), await api.get(f"policies/{api.vhost}")
        streams = {queue["name"]: queue for queue in await self._queues() if _is_stream(queue)}
        return [
            _topic(exchange, streams.get(exchange["name"]), policies)
            for exchange in exchanges
            if exchange["name"] and not exchange["name"].startswith("amq.") and exchange["name"] != HUB
        ]

    async def describe_topic(self, name: str) -> TopicInfo:
        api, exchange = self._api, await self._exchange(name)
        policies, stream = await api.get(f"policies/{api.vhost}"), await self._stream(name)
        info = _topic(exchange, stream, policies)
        config = {name: str(exchange[name]).lower() for name in ("type", "durable", "auto_delete", "internal")}
        config |= {name: str(value) for name, value in exchange["arguments"].items()}
        if stream is not None:
            config |= {name: str(value) for name, value in stream["arguments"].items()}
        return replace(info, config=config)

    async def _exchange(self, name: str) -> Mapping[str, Any]:
        """Raises TopicNotFoundError."""
        api = self._api
        try:
            exchange: Mapping[str, Any] = await api.get(f"exchanges/{api.vhost}/{quote(name, safe='')}")
        except LookupError:
            raise TopicNotFoundError(name) from None
        return exchange

    async def _stream(self, topic: str) -> Queue | None:
        """What keeps the messages of a topic, if anything does."""
        api = self._api
        try:
            queue: Queue = await api.get(f"queues/{api.vhost}/{quote(topic, safe='')}")
        except LookupError:
            return None
        return queue if _is_stream(queue) else None

    async def create_topic(
        self,
        name: str,
        partitions: int | None,
        retention: timedelta | None,
        retention_bytes: int | None,
        options: Sequence[object],
    ) -> None:
        check_topic(name)
        await self._connected().declare([Topic(name, partitions, retention, retention_bytes, tuple(options))], "create")

    async def alter_topic(
        self, name: str, retention: timedelta | None, retention_bytes: int | None, options: Sequence[object]
    ) -> None:
        """By a policy, which has the last word over what the stream was made with.

        Raises ConfigurationError where an operator has a policy for it: only one applies to a queue.
        """
        api = self._api
        await self._exchange(name)
        stream, path = await self._stream(name), f"policies/{api.vhost}/{quote(policy_name(name), safe='')}"
        if stream is None:
            raise NotSupportedError("rabbit", f"retention ({name})", _KEEPS_NOTHING)
        other = policy_of(
            name, [one for one in await api.get(f"policies/{api.vhost}") if one["name"] != policy_name(name)]
        )
        if other is not None:
            raise ConfigurationError(
                f"the policy {other['name']!r} decides how long {name!r} is kept, and only one can: change it, or "
                f"have its pattern {other['pattern']!r} leave {name!r} out"
            )
        policy = definition_of(name, Kept(retention, retention_bytes), stream["arguments"])
        await (api.delete(path) if policy is None else api.put(path, policy))

    async def delete_topic(self, name: str) -> None:
        """The exchange and the stream. The queues of groups stay, with what is in them: delete the groups, too."""
        await self._connected().delete_topic(name)
        api = self._given_api
        if api is not None:
            names = {policy["name"] for policy in await api.get(f"policies/{api.vhost}")}
            if policy_name(name) in names:
                await api.delete(f"policies/{api.vhost}/{quote(policy_name(name), safe='')}")

    async def purge_topic(self, name: str, before: Mapping[int, int] | datetime | None) -> None:
        """Empty the queues of its groups: what their members hold unacknowledged stays theirs.

        A stream cannot be purged, nor a queue in part, nor one that a pattern fills from other topics, too.
        """
        await self._exchange(name)
        if await self._stream(name) is not None:
            hint = "a stream keeps what it has: shorten its retention with topics.alter, or delete the topic"
            raise NotSupportedError("rabbit", f"a purge ({name})", hint)
        if before is not None:
            raise NotSupportedError("rabbit", f"a purge of what is before a place ({name})", "a queue is emptied whole")
        queues = list[str]()
        for queue in await self._queues():
            topic, group = topic_and_group(queue["name"]) or ("", "")
            if topic != name and takes(topic, name):
                hint = f"group {group!r} has it in one queue with other topics of {topic!r}: delete the group"
                raise NotSupportedError("rabbit", f"a purge ({name})", hint)
            if topic == name:
                queues.append(queue["name"])
        await self._connected().purge_queues(queues)

    async def list_partitions(self, topic: str) -> Sequence[PartitionInfo]:
        """The one partition of a topic that keeps its messages."""
        earliest, latest = await self._kept(topic, self._connected().bounds(topic))
        stream = None if self._given_api is None else await self._stream(topic)
        if stream is None:
            return [PartitionInfo(topic, 0, earliest, latest)]
        leader = stream.get("leader") or stream.get("node")
        return [PartitionInfo(topic, 0, earliest, latest, None, leader, tuple(stream.get("members", ())))]

    async def offsets_at(self, topic: str, moment: datetime) -> Mapping[int, int]:
        """To the second: that is how exactly messages are stamped."""
        return {0: await self._kept(topic, self._connected().offset_at(topic, moment))}

    async def _kept(self, topic: str, asking: Awaitable[T]) -> T:
        """What a stream tells. Raises TopicNotFoundError, and NotSupportedError for a topic that has none."""
        try:
            return await asking
        except TopicNotFoundError:
            if self._connected().topology.is_kept(topic):  # its exchange may be there already: the stream comes second
                raise
            await self._connected().declare([Topic(topic)], "check")
            raise NotSupportedError("rabbit", f"offsets ({topic})", _KEEPS_NOTHING) from None

    async def add_partitions(self, topic: str, total: int) -> None:
        raise NotSupportedError("rabbit", "add_partitions", "a topic has none")

    # --- groups ---------------------------------------------------------------------------------------

    async def _queues(self) -> list[dict[str, Any]]:
        api = self._api
        queues: list[dict[str, Any]] = await api.get(f"queues/{api.vhost}")
        return queues

    async def _queues_of(self, group: str) -> dict[str, dict[str, Any]]:
        """By topic. Raises GroupNotFoundError."""
        found = {}
        for queue in await self._queues():
            names = topic_and_group(queue["name"])
            if names is not None and names[1] == group:
                found[names[0]] = queue
        if not found:
            raise GroupNotFoundError(group)
        return found

    async def list_groups(self) -> Sequence[GroupInfo]:
        topics, members = defaultdict[str, list[str]](list), await self._members()
        for queue in await self._queues():
            if (names := topic_and_group(queue["name"])) is not None:
                topics[names[1]].append(names[0])
        return [GroupInfo(group, tuple(sorted(found)), members.get(group, ())) for group, found in topics.items()]

    async def _members(self) -> dict[str, tuple[MemberInfo, ...]]:
        """By group: the connections that consume its queues."""
        api, held = self._api, defaultdict[tuple[str, str, str], set[tuple[str, int]]](set)
        for consumer in await api.get(f"consumers/{api.vhost}"):
            if (names := topic_and_group(consumer["queue"]["name"])) is not None:
                connection = (consumer.get("channel_details") or {}).get("connection_name", "")
                held[names[1], connection, consumer["consumer_tag"].rpartition(".")[0]].add((names[0], 0))
        found = defaultdict[str, tuple[MemberInfo, ...]](tuple)
        for (group, connection, client), partitions in sorted(held.items()):
            found[group] += (MemberInfo(connection, client, tuple(sorted(partitions))),)
        return found

    async def lag(self, group: str, topic: str | None) -> Lag:
        """Counts of what waits and what is unacknowledged, some seconds old: a queue has no offsets."""
        found = await self._counted(group)
        if topic is not None and topic not in found:
            await self._exchange(topic)
            raise GroupNotFoundError(group, topic)
        counts = {name: queue["messages"] for name, queue in found.items() if topic in (None, name)}
        return Lag(group, tuple(PartitionLag(name, 0, 0, count, count) for name, count in sorted(counts.items())))

    async def _counted(self, group: str) -> Mapping[str, Queue]:
        """The queues of a group by topic, once all of them were counted: new ones are not for some seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STATISTICS
        while True:
            found = await self._queues_of(group)
            missing = [queue["name"] for queue in found.values() if queue.get("messages") is None]
            if not missing:
                return found
            if loop.time() > deadline:
                raise ConnectError(self._api.url, f"it has not counted {', '.join(missing)}: are its statistics off?")
            await asyncio.sleep(_LOOK_AGAIN)

    async def set_offsets(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        raise NotSupportedError("rabbit", "set_offsets", "a queue gives out what it holds, from the first on")

    async def delete_group(self, group: str) -> None:
        names = [queue["name"] for queue in (await self._queues_of(group)).values()]
        if await self._connected().consumers_of(names):  # asked by AMQP: it knows at once
            members = ", ".join(member.id for member in (await self._members()).get(group, ())) or "just come"
            raise ConfigurationError(f"group {group!r} has live members ({members}): stop them, then delete it")
        await self._connected().delete_queues(names)

    # --- the cluster ----------------------------------------------------------------------------------

    async def describe_cluster(self) -> ClusterInfo:
        overview, nodes = await self._api.get("overview"), await self._api.get("nodes")
        name = overview.get("node")
        found = tuple(NodeInfo(node["name"], node["name"].partition("@")[2], node["name"] == name) for node in nodes)
        return ClusterInfo("rabbit", overview.get("rabbitmq_version", ""), found)

    async def health(self) -> Health:
        found = [problem for node in await self._api.get("nodes") for problem in _problems(node)]
        found += [problem for queue in await self._queues() for problem in _problems_of_queue(queue)]
        return Health(tuple(found))


def _topic(exchange: Mapping[str, Any], stream: Queue | None, policies: Sequence[Mapping[str, Any]]) -> TopicInfo:
    name = exchange["name"]
    if stream is None:
        return TopicInfo(name, 1, 0, internal=is_internal(name))
    limits = kept(stream["arguments"], policy_of(name, policies))
    return TopicInfo(
        name,
        1,
        stream.get("messages") or 0,
        None,  # it counts no bytes in streams
        limits.retention,
        limits.bytes,
        is_internal(name),
        len(stream.get("members", ())) or None,
    )


def _is_stream(queue: Queue) -> bool:
    return queue.get("type") == "stream" or queue.get("arguments", {}).get("x-queue-type") == "stream"


def _problems(node: Mapping[str, Any]) -> list[str]:
    signs = {
        "is not running": not node.get("running", True),
        "is short of memory: it takes no messages": node.get("mem_alarm"),
        "is short of disk: it takes no messages": node.get("disk_free_alarm"),
        f"is cut off from {', '.join(node.get('partitions') or ())}": node.get("partitions"),
    }
    return [f"{node['name']} {sign}" for sign, is_so in signs.items() if is_so]


def _problems_of_queue(queue: Queue) -> list[str]:
    """A queue with copies goes on while most of them are there."""
    members, online = queue.get("members", ()), queue.get("online", ())
    if members and len(online) <= len(members) // 2:
        return [f"queue {queue['name']} has no majority: {len(online)} of its {len(members)} copies are there"]
    return [f"queue {queue['name']} is down"] if queue.get("state") in ("down", "stopped", "crashed") else []
