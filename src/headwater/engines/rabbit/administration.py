"""Management: through AMQP where that is honest, through the management plugin's HTTP API for what only it knows."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

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
    named,
)
from ...engine import Topic
from ...errors import AuthenticationError, ConfigurationError, ConnectError, GroupNotFoundError, NotSupportedError
from ...topics import is_internal
from .names import HUB, check_topic, topic_and_group

if TYPE_CHECKING:
    from .server import Server

TIMEOUT: Final = 5.0  # seconds for an answer of the HTTP API

_BY_AMQP: Final = frozenset(("create_topic", "delete_topic", "list_partitions"))
_BY_HTTP: Final = frozenset(
    ("list_topics", "describe_topic", "list_groups", "lag", "delete_group", "describe_cluster", "health")
)


class ManagementApi:
    """The HTTP API of the management plugin. Its statistics are some seconds old."""

    def __init__(self, url: str, vhost: str, user: str, password: str) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        user, password = unquote(parts.username or user), unquote(parts.password or password)
        self._url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.vhost = quote(vhost, safe="")

    async def get(self, path: str) -> Any:
        """Raises ConnectError, AuthenticationError; LookupError for what is not there."""
        return await asyncio.to_thread(self._ask, path)

    def _ask(self, path: str) -> Any:
        request = Request(f"{self._url}/api/{path}", headers={"Authorization": f"Basic {self._token}"})
        try:
            with urlopen(request, timeout=TIMEOUT) as answer:
                return json.load(answer)
        except HTTPError as error:
            if error.code == 404:
                raise LookupError(path) from None
            kind = AuthenticationError if error.code in (401, 403) else ConnectError
            raise kind(self._url, f"{error.code} {error.reason}") from None
        except (URLError, OSError) as error:
            raise ConnectError(self._url, str(getattr(error, "reason", error))) from None


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
        exchanges = await api.get(f"exchanges/{api.vhost}")
        streams = {queue["name"]: queue for queue in await self._queues() if queue.get("type") == "stream"}
        return [
            TopicInfo(name, 1, streams.get(name, {}).get("messages") or 0, internal=is_internal(name))
            for name in (exchange["name"] for exchange in exchanges)
            if name and not name.startswith("amq.") and name != HUB
        ]

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
        check_topic(name)
        await self._connected().declare([Topic(name, partitions, retention, retention_bytes, tuple(options))], "create")

    async def alter_topic(
        self, name: str, retention: timedelta | None, retention_bytes: int | None, options: Sequence[object]
    ) -> None:
        raise NotSupportedError("rabbit", "alter_topic", "an operator sets a policy")

    async def delete_topic(self, name: str) -> None:
        """The exchange and the stream. The queues of groups stay, with what is in them: delete the groups, too."""
        await self._connected().delete_topic(name)

    async def purge_topic(self, name: str, before: Mapping[int, int] | datetime | None) -> None:
        raise NotSupportedError("rabbit", "purge_topic", "a stream cannot be purged, and an exchange keeps nothing")

    async def list_partitions(self, topic: str) -> Sequence[PartitionInfo]:
        """The one partition of a topic that keeps its messages."""
        earliest, latest = await self._connected().bounds(topic)
        return [PartitionInfo(topic, 0, earliest, latest)]

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
        api, topics, members = self._api, defaultdict[str, list[str]](list), defaultdict[str, list[MemberInfo]](list)
        for queue in await self._queues():
            if (names := topic_and_group(queue["name"])) is not None:
                topics[names[1]].append(names[0])
        for consumer in await api.get(f"consumers/{api.vhost}"):
            if (names := topic_and_group(consumer["queue"]["name"])) is not None:
                connection = (consumer.get("channel_details") or {}).get("connection_name", "")
                members[names[1]].append(MemberInfo(connection, consumer["consumer_tag"].rpartition(".")[0]))
        return [GroupInfo(group, tuple(sorted(found)), tuple(members[group])) for group, found in topics.items()]

    async def lag(self, group: str, topic: str | None) -> Lag:
        """Counts: a queue has no offsets."""
        found = await self._queues_of(group)
        counts = {name: queue.get("messages") or 0 for name, queue in found.items() if topic in (None, name)}
        return Lag(group, tuple(PartitionLag(name, 0, 0, count, count) for name, count in sorted(counts.items())))

    async def set_offsets(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        raise NotSupportedError("rabbit", "set_offsets", "a queue gives out what it holds, from the first on")

    async def offsets_at(self, topic: str, moment: datetime) -> Mapping[int, int]:
        raise NotSupportedError("rabbit", "offsets_at", "read with start=moment")

    async def delete_group(self, group: str) -> None:
        queues = await self._queues_of(group)
        if any(queue.get("consumers") for queue in queues.values()):
            raise ConfigurationError(f"group {group!r} has live members: stop them, then delete it")
        await self._connected().delete_queues([queue["name"] for queue in queues.values()])

    # --- the cluster ----------------------------------------------------------------------------------

    async def describe_cluster(self) -> ClusterInfo:
        overview, nodes = await self._api.get("overview"), await self._api.get("nodes")
        name = overview.get("node")
        found = tuple(NodeInfo(node["name"], node["name"].partition("@")[2], node["name"] == name) for node in nodes)
        return ClusterInfo("rabbit", overview.get("rabbitmq_version", ""), found)

    async def health(self) -> Health:
        return Health(tuple(problem for node in await self._api.get("nodes") for problem in _problems(node)))


def _problems(node: Mapping[str, Any]) -> list[str]:
    signs = {
        "is not running": not node.get("running", True),
        "is short of memory: it takes no messages": node.get("mem_alarm"),
        "is short of disk: it takes no messages": node.get("disk_free_alarm"),
        "is cut off from others": node.get("partitions"),
    }
    return [f"{node['name']} {sign}" for sign, is_so in signs.items() if is_so]
