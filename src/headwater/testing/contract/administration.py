"""Topics, partitions, groups and the cluster, managed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ...broker import Broker
from ...errors import ConfigurationError, GroupNotFoundError, TopicNotFoundError
from ...message import Outgoing
from .needs import needs
from .tools import QUIET, nothing_more, reading, taken

Call = Callable[[], Awaitable[Any]]


class Administration:
    """Topics, partitions, groups and the cluster, managed."""

    @needs("admin.list_topics", "admin.create_topic", "admin.delete_topic")
    async def test_topics_are_managed(self, broker: Broker, topic: str) -> None:
        topics, name = broker.admin.topics, f"{topic}-made"
        await topics.create(name, partitions=1)
        await topics.create(name)
        await broker.publish(1, name)
        info = await topics.describe(name)
        assert (info.name, info.partitions, info.messages) == (name, 1, 1)
        assert {str} >= {type(word) for setting in info.config.items() for word in setting}
        assert {topic, name} <= {found.name for found in await topics.list()}
        await topics.delete(name)
        assert name not in {found.name for found in await topics.list()}
        for call in (topics.describe, topics.delete):
            with pytest.raises(TopicNotFoundError):
                await call(name)

    @needs("partitions", "admin.list_partitions", "admin.add_partitions")
    async def test_partitions_are_listed_and_added(self, broker: Broker, topic: str) -> None:
        name = f"{topic}-two"
        await broker.admin.topics.create(name, partitions=2)
        await broker.publish_many([Outgoing(n, name, partition=1) for n in range(3)])
        first, second = await broker.admin.partitions.list(name)
        assert (first.partition, first.earliest, first.latest) == (0, 0, 0)
        assert (second.partition, second.messages) == (1, 3)
        await broker.admin.partitions.add(name, 4)
        assert len(await broker.admin.partitions.list(name)) == 4
        assert (await broker.publish(1, name, partition=3)).partition == 3

    @needs("groups", "settles", "replay", "admin.lag")
    async def test_the_lag_of_a_group_is_what_it_has_still_to_do(self, broker: Broker, topic: str, group: str) -> None:
        await broker.publish_many([Outgoing(n, topic) for n in range(10)])
        for _ in range(4):
            await broker.get(topic, group=group, timeout=10)
        lag = await broker.admin.groups.lag(group, topic)
        assert lag.total == 6
        assert sum(partition.lag for partition in lag.partitions) == 6
        with pytest.raises(GroupNotFoundError):
            await broker.admin.groups.lag(f"{group}-nobody")

    @needs("groups", "settles", "replay", "admin.lag", "admin.set_offsets")
    async def test_a_group_is_reset(self, broker: Broker, topic: str, group: str) -> None:
        receipts = await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(10)])
        for _ in range(10):
            await broker.get(topic, group=group, timeout=10)
        groups, fourth = broker.admin.groups, receipts[4].offset
        moves: list[tuple[str, Any, int]] = [("to", fourth, 6), ("to", "latest", 0), ("to", "earliest", 10)]
        if not broker.engine.admin.has_ids:  # type: ignore[union-attr]  # it has one, or this is skipped
            moves[1:1] = [("shift", 2, 4)]
        for how, value, left in moves:
            arguments: dict[str, Any] = {how: value}
            dry = await groups.reset(group, topic, dry_run=True, **arguments)
            assert await groups.reset(group, topic, **arguments) == dry
            assert (await groups.lag(group, topic)).total == left
        message = await broker.get(topic, group=group, timeout=10)
        assert message is not None
        assert message.value == 0

    @needs("groups", "settles", "replay", "admin.lag", "admin.set_offsets")
    async def test_what_a_group_left_unacknowledged_comes_once_after_a_reset(
        self, broker: Broker, topic: str, group: str
    ) -> None:
        await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(5)])
        async with reading(broker, topic, group, start="earliest") as place:
            await taken(place, 3)
        for to, left in (("latest", 0), ("earliest", 5)):
            await broker.admin.groups.reset(group, topic, to=to)
            assert (await broker.admin.groups.lag(group, topic)).total == left
        async with reading(broker, topic, group, start="earliest") as place:
            assert [message.value for message in await taken(place, 5)] == list(range(5))
            assert await nothing_more(place)

    @needs("groups", "settles", "replay", "admin.set_offsets")
    async def test_a_group_with_a_live_member_is_not_moved(self, broker: Broker, topic: str, group: str) -> None:
        await broker.publish_many([Outgoing(n, topic) for n in range(3)])
        async with reading(broker, topic, group, start="earliest") as place:
            await place.ack(await taken(place, 3))
            with pytest.raises(ConfigurationError, match=f"{group}.* live member.*stop them"):
                await broker.admin.groups.reset(group, topic, to="earliest")
        assert await broker.admin.groups.reset(group, topic, to="earliest")

    @needs("groups", "settles", "replay", "admin.list_groups", "admin.delete_group")
    async def test_groups_are_listed_and_deleted(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group, start="earliest") as place:
            await broker.publish(1, topic)
            await place.ack(await taken(place, 1))
            info = await broker.admin.groups.describe(group)
            assert (info.name, info.active, topic in info.topics) == (group, True, True)
            with pytest.raises(ConfigurationError):
                await broker.admin.groups.delete(group)
        await broker.admin.groups.delete(group)
        assert group not in {info.name for info in await broker.admin.groups.list()}
        with pytest.raises(GroupNotFoundError):
            await broker.admin.groups.describe(group)

    @needs("replay", "partitions", "admin.purge_topic", "admin.list_partitions")
    async def test_purged_messages_are_not_read_any_more(self, broker: Broker, topic: str) -> None:
        await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(10)])
        await broker.admin.topics.purge(topic, before={0: 6})
        assert (await broker.admin.partitions.list(topic))[0].earliest == 6
        async with broker.stream(topic, start="earliest", partitions=[0], wait=QUIET) as stream:
            assert [message.value async for message in stream] == [6, 7, 8, 9]
        await broker.admin.topics.purge(topic)
        assert (await broker.admin.partitions.list(topic))[0].messages == 0

    @needs("replay", "admin.purge_topic", "admin.list_partitions")
    async def test_a_purge_leaves_nothing_of_what_was_there(self, broker: Broker, topic: str) -> None:
        await broker.publish_many([Outgoing(n, topic) for n in range(3)])
        await broker.admin.topics.purge(topic)
        assert sum(partition.messages for partition in await broker.admin.partitions.list(topic)) == 0
        await broker.publish(3, topic)
        async with broker.stream(topic, start="earliest", limit=1) as stream:
            assert [message.value async for message in stream] == [3]

    @needs("admin.describe_topic", "admin.list_groups")
    async def test_what_is_not_there_is_named(self, broker: Broker, topic: str, group: str) -> None:
        admin, wrong = broker.admin, f"{topic}-nowhere"
        topics, partitions, groups = admin.topics, admin.partitions, admin.groups
        of_topics: dict[str, Call] = {
            "describe_topic": lambda: topics.describe(wrong),
            "alter_topic": lambda: topics.alter(wrong),
            "delete_topic": lambda: topics.delete(wrong),
            "purge_topic": lambda: topics.purge(wrong),
            "list_partitions": lambda: partitions.list(wrong),
            "add_partitions": lambda: partitions.add(wrong, 99),
        }
        of_groups: dict[str, Call] = {
            "list_groups": lambda: groups.describe(group),
            "lag": lambda: groups.lag(group),
            "set_offsets": lambda: groups.reset(group, topic, to="earliest"),
            "delete_group": lambda: groups.delete(group),
        }
        for error, name, calls in ((TopicNotFoundError, wrong, of_topics), (GroupNotFoundError, group, of_groups)):
            for operation, call in calls.items():
                if admin.capabilities[operation]:
                    with pytest.raises(error, match=name):
                        await call()

    @needs("admin.describe_cluster", "admin.health")
    async def test_the_cluster_says_how_it_is(self, broker: Broker) -> None:
        cluster = await broker.admin.cluster.describe()
        assert cluster.engine == broker.engine.name
        assert cluster.nodes
        assert (await broker.admin.cluster.health()).healthy
