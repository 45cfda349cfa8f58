"""Management of streams and their groups, and what the servers say of themselves."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

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
from ...engine import Topic, option_of
from ...errors import ConfigurationError, ConnectError, GroupNotFoundError, TopicNotFoundError
from ...topics import is_internal
from . import names, places
from .options import Redis
from .patterns import all_streams
from .servers import Call, Servers, refused
from .trimming import Settings, settings_of_all
from .wire import Command, Disconnected, Refusal

if TYPE_CHECKING:
    from .engine import RedisEngine

ALIVE: Final = 15_000  # milliseconds since a consumer asked for something, after which it counts as gone
COUNTED: Final = 10_000  # entries that one step of a count reads
ANSWER: Final = 10.0  # seconds in which a server that is there has answered

# In one step, so that a group is never gone. What was pending goes with the old one: from the new position on messages
# come again anyway, and would come twice and count twice; those before it are not wanted any more.
_MOVE: Final = """
redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
return redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'ENTRIESREAD', ARGV[3])
"""

T = TypeVar("T")


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
            (text,) = await self._answered(node.ask([("INFO",)]))
            if isinstance(text, Refusal):
                raise refused(self._engine.url, "", ("INFO",), text)
            found.append((node.host or ("", 0), _lines(text)))
        return found

    async def _answered(self, asking: Awaitable[T]) -> T:
        """What is answered in time. Raises ConnectError; of the errors of the engine only Refusal passes."""
        try:
            async with asyncio.timeout(ANSWER):
                return await asking
        except TimeoutError:
            raise ConnectError(self._engine.url, f"no answer within {ANSWER:g} s") from None
        except Disconnected as error:
            raise ConnectError(self._engine.url, str(error)) from error


class StreamAdmin(ChannelAdmin):
    """The administration of streams. Offsets are ids: that of a message says that it comes next."""

    operations = ChannelAdmin.operations | {
        "list_topics",
        "describe_topic",
        "create_topic",
        "alter_topic",
        "delete_topic",
        "purge_topic",
        "list_partitions",
        "list_groups",
        "lag",
        "set_offsets",
        "offsets_at",
        "delete_group",
    }

    # --- topics ---------------------------------------------------------------------------------------

    async def list_topics(self) -> Sequence[TopicInfo]:
        topics = await self._topics()
        kept = await self._settings()
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
        about, settings = await self._stream(name), (await self._settings()).get(name, Settings())
        size, said = await self._ask([(name, ("MEMORY", "USAGE", name)), (name, ("INFO", "replication"))])
        return TopicInfo(
            name,
            1,
            about["length"],
            size,
            settings.retention,
            settings.bytes,
            is_internal(name),
            1 + int(_lines(said).get("connected_slaves", 0)),
            config=_config(about, settings),
        )

    async def create_topic(
        self,
        name: str,
        partitions: int | None,
        retention: timedelta | None,
        retention_bytes: int | None,
        options: Sequence[object],
    ) -> None:
        topic = Topic(name, partitions, retention, retention_bytes, tuple(options))
        await self._within(self._engine.declare([topic], "create"))

    async def alter_topic(
        self, name: str, retention: timedelta | None, retention_bytes: int | None, options: Sequence[object]
    ) -> None:
        await self._check(name)
        topic = Topic(name, None, retention, retention_bytes)
        await self._within(self._engine.alter(name, Settings.of(topic, option_of(options, Redis))))

    async def delete_topic(self, name: str) -> None:
        await self._check(name)
        await self._ask([(name, ("UNLINK", name, names.delayed(name)))])
        await self._within(self._engine.alter(name, None))

    async def purge_topic(self, name: str, before: Mapping[int, Any] | datetime | None) -> None:
        first = before if before is None else places.at(before) if isinstance(before, datetime) else _only(before)
        await self._check(name)
        if before is None:
            await self._ask([(name, ("XTRIM", name, "MAXLEN", 0))])
        elif first is not None:
            await self._ask([(name, ("XTRIM", name, "MINID", first))])

    async def list_partitions(self, topic: str) -> Sequence[PartitionInfo]:
        """The stream. One that keeps nothing has its earliest where its latest is."""
        about, servers = await self._stream(topic), self._engine.servers
        latest, leader = about["last-generated-id"].decode(), None
        if len(servers.nodes()) > 1:
            (said,) = await self._ask([(topic, ("INFO", "server"))])
            leader = _lines(said)["run_id"][:8]
        return [PartitionInfo(topic, 0, _first(about) or latest, latest, about["length"], leader)]

    async def offsets_at(self, topic: str, moment: datetime) -> Mapping[int, str]:
        latest = (await self._stream(topic))["last-generated-id"].decode()
        return {0: min(places.at(moment), places.following(latest), key=places.order)}

    async def _stream(self, name: str) -> dict[str, Any]:
        """What the server says of a stream. Raises TopicNotFoundError."""
        await self._check(name)
        (pairs,) = await self._ask([(name, ("XINFO", "STREAM", name))])
        if isinstance(pairs, Refusal):
            raise TopicNotFoundError(name)
        return _about(pairs)

    async def _check(self, name: str) -> None:
        """Raise TopicNotFoundError, or TopicNameError for a key that is no stream."""
        await self._within(self._engine.declare([Topic(name)], "check"))

    async def _topics(self) -> list[str]:
        return sorted(await self._within(all_streams(self._engine.servers), ("SCAN",)))

    async def _settings(self) -> dict[str, Settings]:
        return await self._within(settings_of_all(self._engine.servers), ("HGETALL",), names.SETTINGS)

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
        if topic is not None and topic not in topics:
            await self._check(topic)
            raise GroupNotFoundError(group, topic)
        return Lag(group, tuple([await self._lag_on(group, one) for one in topics if topic in (None, one)]))

    async def _lag_on(self, group: str, topic: str) -> PartitionLag:
        stream, groups = await self._ask([(topic, ("XINFO", "STREAM", topic)), (topic, ("XINFO", "GROUPS", topic))])
        if isinstance(stream, Refusal):
            raise TopicNotFoundError(topic)
        found = [about for about in map(_about, groups) if about["name"].decode() == group]
        if not found:
            raise GroupNotFoundError(group, topic)
        info = _about(stream)
        latest = info["entries-added"]
        left = await self._undelivered(topic, info, found[0])
        if found[0]["pending"]:
            left += found[0]["pending"] - await self._trimmed(group, topic, _first(info))
        return PartitionLag(topic, 0, latest - left, latest, left)

    async def _undelivered(self, topic: str, stream: Mapping[str, Any], group: Mapping[str, Any]) -> int:
        """How many messages a group was never given, of those there are."""
        first, position = _first(stream), group["last-delivered-id"].decode()
        if first is None or places.order(position) < places.order(first):  # the server counts what was trimmed, too
            return int(stream["length"])
        lag: int | None = group.get("lag")
        if lag is not None:
            return lag
        # The server lost count: after a deletion, or where somebody moved the group.
        return await self._count(topic, places.following(position), "+")

    async def _trimmed(self, group: str, topic: str, first: str | None) -> int:
        """How many of the pending messages are not there any more: nobody can be given them."""
        count, start, end = 0, "-", "+" if first is None else f"({first}"
        while True:
            (pending,) = await self._ask([(topic, ("XPENDING", topic, group, start, end, COUNTED))])
            found = [] if isinstance(pending, Refusal) else pending
            count += len(found)
            if len(found) < COUNTED:
                return count
            start = f"({found[-1][0].decode()}"

    async def _count(self, topic: str, start: str, end: str) -> int:
        """How many messages there are between these ids, both included."""
        count = 0
        while True:
            (entries,) = await self._ask([(topic, ("XRANGE", topic, start, end, "COUNT", COUNTED))])
            count += len(entries)
            if len(entries) < COUNTED:
                return count
            start = f"({entries[-1][0].decode()}"

    async def set_offsets(self, group: str, topic: str, offsets: Mapping[int, Any]) -> None:
        """Have a group begin at an id, with nothing pending: what it had not acknowledged is forgotten."""
        offset = _only(offsets)
        stream, info = await self._stream(topic), await self._group(group)
        if topic not in info.topics:
            raise GroupNotFoundError(group, topic)
        _refuse_members(info, "reset")
        if offset is not None:
            begin, delivered = await self._begin(topic, stream, offset)
            await self._ask([(topic, ("EVAL", _MOVE, 1, topic, group, begin, delivered))])

    async def _begin(self, topic: str, stream: Mapping[str, Any], offset: str) -> tuple[str, int]:
        """The id after which a group begins to be given this offset next, and how many were ever added up to it.

        The server cannot know the second, and without it has no lag. What is beyond the last is the latest.
        """
        latest, added, first = stream["last-generated-id"].decode(), stream["entries-added"], _first(stream)
        if offset == "latest" or places.order(offset) > places.order(latest):
            return latest, added
        if first is None or places.order(offset) <= places.order(first):
            return places.before(offset, latest), added - stream["length"]
        return places.before(offset, latest), added - await self._count(topic, offset, latest)

    async def delete_group(self, group: str) -> None:
        found = await self._group(group)
        _refuse_members(found, "delete")
        await self._ask([(topic, ("XGROUP", "DESTROY", topic, group)) for topic in found.topics])
        await self._ask([(names.patterns(group), ("DEL", names.patterns(group)))])

    async def _group(self, name: str) -> GroupInfo:
        for info in await self.list_groups():
            if info.name == name:
                return info
        raise GroupNotFoundError(name)

    async def _places(self) -> dict[str, list[str]]:
        """The groups there are, and the topics each is on."""
        topics = await self._topics()
        places = defaultdict[str, list[str]](list)
        for topic, groups in zip(topics, await self._ask([(t, ("XINFO", "GROUPS", t)) for t in topics]), strict=True):
            for about in [] if isinstance(groups, Refusal) else map(_about, groups):
                places[about["name"].decode(errors="backslashreplace")].append(topic)
        return places

    async def _connected(self) -> dict[str, str]:
        return await self._within(connected_clients(self._engine.servers), ("CLIENT", "LIST"))

    async def _ask(self, calls: Sequence[Call]) -> list[Any]:
        """All replies; Refusals are left only of what is not there. Raises ConnectError, AuthenticationError."""
        replies = await self._answered(self._engine.servers.ask(calls))
        for (key, command), reply in zip(calls, replies, strict=True):
            if isinstance(reply, Refusal) and not _is_missing(reply):
                raise refused(self._engine.url, key, command, reply)
        return replies

    async def _within(self, asking: Awaitable[T], command: Command = ("HSET",), key: str = names.SETTINGS) -> T:
        """What others ask for us; a refusal is of that command."""
        try:
            return await self._answered(asking)
        except Refusal as refusal:
            raise refused(self._engine.url, key, command, refusal) from None


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


def _lines(text: bytes) -> dict[str, str]:
    """What INFO says."""
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


def _first(stream: Mapping[str, Any]) -> str | None:
    """The id of the first entry, if there is one."""
    entry = stream["first-entry"]
    return None if entry is None else entry[0].decode()


def _only(offsets: Mapping[int, Any]) -> str | None:
    """The offset that is meant for the one partition there is. Raises ConfigurationError for what is no id."""
    offset: str | None = offsets.get(0)
    if offset not in (None, "latest"):
        places.order(offset)
    return offset


def _refuse_members(group: GroupInfo, action: str) -> None:
    if group.active:
        members = ", ".join(member.id for member in group.members)
        raise ConfigurationError(f"group {group.name!r} has live members ({members}): stop them, then {action} it")


def _config(stream: Mapping[str, Any], settings: Settings) -> dict[str, str]:
    """What else is said of a stream: of entries their ids, and the length we trim it to."""
    entries = {name: _text(stream[name][0]) for name in ("first-entry", "last-entry") if stream[name] is not None}
    plain = {name: _text(value) for name, value in stream.items() if isinstance(value, int | bytes)}
    trimmed = {} if settings.messages is None else {"maxlen": str(settings.messages)}
    return plain | entries | trimmed


def _text(value: int | bytes) -> str:
    return str(value) if isinstance(value, int) else value.decode()


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
