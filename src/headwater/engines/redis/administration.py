"""Management of streams and their groups, and what the servers say of themselves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from ...admin import (
    ClusterInfo,
    GroupInfo,
    Health,
    Lag,
    MemberInfo,
    NodeInfo,
    PartitionLag,
    TopicInfo,
    named,
)
from ...engine import Topic, option_of
from ...errors import ConfigurationError, ConnectError, GroupNotFoundError, NotSupportedError, TopicNotFoundError
from ...topics import is_internal
from . import names
from .options import Redis
from .patterns import all_streams
from .servers import Call, Servers
from .trimming import Settings, settings_of_all
from .wire import Disconnected, Refusal

if TYPE_CHECKING:
    from .engine import RedisEngine

ALIVE: Final = 15_000  # milliseconds since a consumer asked for something, after which it counts as gone
COUNTED: Final = 10_000  # entries that one step of a count reads


class ChannelAdmin:
    """What can be asked where nothing is kept. What is missing here is missing in `operations`."""

    has_ids = True
    operations: frozenset[str] = frozenset(("describe_cluster", "health"))

    def __init__(self, engine: RedisEngine) -> None:
        self._engine = engine

    async def describe_cluster(self) -> ClusterInfo:
        nodes, version = [], ""
        for host, about in await self._about():
            version = about.get("redis_version", version)
            address = f"{host[0]}:{host[1]}"
            nodes.append(NodeInfo(about.get("run_id", address)[:8], address, about.get("role") == "master"))
        return ClusterInfo("redis", version, tuple(nodes))

    async def health(self) -> Health:
        problems: list[str] = []
        for host, about in await self._about():
            problems += (f"{host[0]}:{host[1]} {problem}" for problem in _problems(about))
        return Health(tuple(problems))

    async def _about(self) -> list[tuple[tuple[str, int], dict[str, str]]]:
        found = []
        for node in self._engine.servers.nodes():
            (text,) = await self._replies(node.ask([("INFO",)]))
            about = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
            found.append((node.host or ("", 0), about))
        return found

    async def _replies(self, asking: Any) -> list[Any]:
        try:
            replies: list[Any] = await asking
        except Disconnected as error:
            raise ConnectError(self._engine.url, str(error)) from error
        for reply in replies:
            if isinstance(reply, Refusal) and not _is_missing(reply):
                raise ConnectError(self._engine.url, str(reply))
        return replies


class StreamAdmin(ChannelAdmin):
    """The administration of streams. Offsets are ids here, so nothing that wants numbers is offered."""

    operations = ChannelAdmin.operations | {
        "list_topics",
        "describe_topic",
        "create_topic",
        "alter_topic",
        "delete_topic",
        "purge_topic",
        "list_groups",
        "lag",
        "delete_group",
    }

    # --- topics ---------------------------------------------------------------------------------------

    async def list_topics(self) -> Sequence[TopicInfo]:
        topics = await self._topics()
        kept = await settings_of_all(self._engine.servers)
        lengths = await self._ask([(topic, ("XLEN", topic)) for topic in topics])
        sizes = await self._ask([(topic, ("MEMORY", "USAGE", topic)) for topic in topics])
        found = []
        for topic, length, size in zip(topics, lengths, sizes, strict=True):
            settings = kept.get(topic, Settings())
            if isinstance(length, int):
                found.append(
                    TopicInfo(topic, 1, length, size, settings.retention, settings.bytes, internal=is_internal(topic))
                )
        return found

    async def describe_topic(self, name: str) -> TopicInfo:
        return named(await self.list_topics(), name)

    async def create_topic(
        self,
        name: str,
        partitions: int | None,
        retention: timedelta | None,
        retention_bytes: int | None,
        options: Sequence[object],
    ) -> None:
        topic = Topic(name, partitions, retention, retention_bytes, tuple(options))
        await self._engine.declare([topic], "create")

    async def alter_topic(
        self, name: str, retention: timedelta | None, retention_bytes: int | None, options: Sequence[object]
    ) -> None:
        await self._engine.declare([Topic(name)], "check")
        topic = Topic(name, None, retention, retention_bytes)
        await self._engine.alter(name, Settings.of(topic, option_of(options, Redis)))

    async def delete_topic(self, name: str) -> None:
        await self._engine.declare([Topic(name)], "check")
        await self._ask([(name, ("UNLINK", name, names.delayed(name)))])
        await self._engine.alter(name, None)

    async def purge_topic(self, name: str, before: Mapping[int, Any] | datetime | None) -> None:
        if isinstance(before, Mapping):
            raise NotSupportedError("redis", "purge before an offset", "give a datetime")
        await self._engine.declare([Topic(name)], "check")
        how = ("MAXLEN", 0) if before is None else ("MINID", math.ceil(before.timestamp() * 1000))
        await self._ask([(name, ("XTRIM", name, *how))])

    async def _topics(self) -> list[str]:
        try:
            return sorted(await all_streams(self._engine.servers))
        except (Disconnected, Refusal) as error:
            raise ConnectError(self._engine.url, str(error)) from error

    # --- groups ---------------------------------------------------------------------------------------

    async def list_groups(self) -> Sequence[GroupInfo]:
        places = await self._places()
        connected = await self._connected()
        found: list[GroupInfo] = []
        for group, topics in places.items():
            held = defaultdict[str, list[tuple[str, int]]](list)
            consumers = await self._ask([(topic, ("XINFO", "CONSUMERS", topic, group)) for topic in topics])
            for topic, members in zip(topics, consumers, strict=True):
                for about in [] if isinstance(members, Refusal) else map(_about, members):
                    name = about["name"].decode()
                    if name != names.FREE and (name in connected or about["idle"] < ALIVE):
                        held[name].append((topic, 0))
            infos = (MemberInfo(name, connected.get(name, ""), tuple(held[name])) for name in sorted(held))
            found.append(GroupInfo(group, tuple(topics), tuple(infos)))
        return found

    async def lag(self, group: str, topic: str | None) -> Lag:
        """What was not delivered, and what was and is not acknowledged. Positions are counts of messages."""
        topics = (await self._places()).get(group)
        if topics is None:
            raise GroupNotFoundError(group)
        return Lag(group, tuple([await self._lag_on(group, one) for one in topics if topic in (None, one)]))

    async def _lag_on(self, group: str, topic: str) -> PartitionLag:
        stream, groups = await self._ask([(topic, ("XINFO", "STREAM", topic)), (topic, ("XINFO", "GROUPS", topic))])
        if isinstance(stream, Refusal):
            raise TopicNotFoundError(topic)
        found = [about for about in map(_about, groups) if about["name"].decode() == group]
        if not found:
            raise GroupNotFoundError(group, topic)
        about, info = found[0], _about(stream)
        undelivered = about.get("lag")
        if undelivered is None:  # the server lost count: after a deletion, or a move of the group
            undelivered = await self._count_after(topic, about["last-delivered-id"].decode())
        latest = info.get("entries-added", info["length"])
        left = undelivered + about["pending"]
        return PartitionLag(topic, 0, latest - left, latest, left)

    async def _count_after(self, topic: str, offset: str) -> int:
        count = 0
        while True:
            (entries,) = await self._ask([(topic, ("XRANGE", topic, f"({offset}", "+", "COUNT", COUNTED))])
            count += len(entries)
            if len(entries) < COUNTED:
                return count
            offset = entries[-1][0].decode()

    async def delete_group(self, group: str) -> None:
        found = next((info for info in await self.list_groups() if info.name == group), None)
        if found is None:
            raise GroupNotFoundError(group)
        if found.active:
            raise ConfigurationError(f"group {group!r} has live members: stop them, then delete it")
        await self._ask([(topic, ("XGROUP", "DESTROY", topic, group)) for topic in found.topics])
        await self._ask([(names.patterns(group), ("DEL", names.patterns(group)))])

    async def _places(self) -> dict[str, list[str]]:
        """The groups there are, and the topics each is on."""
        topics = await self._topics()
        places = defaultdict[str, list[str]](list)
        for topic, groups in zip(topics, await self._ask([(t, ("XINFO", "GROUPS", t)) for t in topics]), strict=True):
            for about in [] if isinstance(groups, Refusal) else map(_about, groups):
                places[about["name"].decode(errors="backslashreplace")].append(topic)
        return places

    async def _connected(self) -> dict[str, str]:
        try:
            return await connected_clients(self._engine.servers)
        except (Disconnected, Refusal) as error:
            raise ConnectError(self._engine.url, str(error)) from error

    async def _ask(self, calls: Sequence[Call]) -> list[Any]:
        return await self._replies(self._engine.servers.ask(calls))


async def connected_clients(servers: Servers) -> dict[str, str]:
    """The names of the clients that are connected, and where they are. Raises Disconnected, Refusal."""
    found: dict[str, str] = {}
    for node in servers.nodes():
        (clients,) = await node.ask([("CLIENT", "LIST")])
        if isinstance(clients, Refusal):
            raise clients
        for line in clients.decode().splitlines():
            about = dict(part.split("=", 1) for part in line.split(" ") if "=" in part)
            found[about.get("name", "")] = about.get("addr", "")
    return found


def _about(pairs: Sequence[Any]) -> dict[str, Any]:
    """What the server says as names and values by turns."""
    return {name.decode(): value for name, value in zip(pairs[::2], pairs[1::2], strict=True)}


def _is_missing(refusal: Refusal) -> bool:
    """Whether it only says that what it was asked of is gone."""
    return refusal.code == "NOGROUP" or "no such key" in str(refusal)


def _problems(about: Mapping[str, str]) -> list[str]:
    found = []
    if about.get("loading") == "1":
        found.append("is still loading its data")
    if about.get("role") == "slave" and about.get("master_link_status") != "up":
        found.append("is a replica that has lost its master")
    if about.get("rdb_last_bgsave_status", "ok") != "ok":
        found.append("could not write its last snapshot")
    if about.get("aof_last_write_status", "ok") != "ok":
        found.append("could not write its append-only file")
    if about.get("maxmemory", "0") != "0" and about.get("maxmemory_policy", "").startswith("allkeys-"):
        found.append(f"deletes any key when memory is short: its maxmemory-policy is {about['maxmemory_policy']}")
    return found
