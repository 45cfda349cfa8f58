"""Administration of Fluvio, beside what its own client sees."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engines.fluvio_peer import client
from headwater import (
    Broker,
    ConfigurationError,
    ConnectError,
    Fluvio,
    FluvioBroker,
    GroupNotFoundError,
    NotSupportedError,
    Outgoing,
    Topic,
    TopicNotFoundError,
)
from headwater.engines.fluvio.cluster import Cluster
from headwater.engines.fluvio.connection import Address
from headwater.testing.contract.tools import reading, taken
from servers.proxy import Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.server]


@pytest.fixture
def topic() -> str:
    return f"orders-{os.urandom(4).hex()}"


@pytest.fixture
def group() -> str:
    return f"shop-{os.urandom(4).hex()}"


@pytest.fixture
async def broker(fluvio_endpoint: str, topic: str) -> AsyncIterator[FluvioBroker]:
    async with FluvioBroker(f"fluvio://{fluvio_endpoint}", session_timeout=3) as broker:
        await broker.declare([Topic(topic, partitions=2)])
        yield broker
        with suppress(TopicNotFoundError):  # the test deleted it
            await broker.admin.topics.delete(topic)


@pytest.fixture
def asked(fluvio_endpoint: str) -> Callable[..., Awaitable[Any]]:
    """Asks Fluvio's own client."""
    pytest.importorskip("fluvio")
    return lambda *question: client(fluvio_endpoint, *question)


async def handled(broker: Broker, topic: str, group: str, count: int) -> None:
    """Have the group be done with so many messages of partition 0, of ten."""
    await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(10)])
    async with reading(broker, topic, group, start="earliest") as place:
        await place.ack(await taken(place, count))


async def test_topics_and_partitions_are_as_the_client_sees_them(
    broker: FluvioBroker, asked: Callable[..., Awaitable[Any]], topic: str
) -> None:
    admin, other = broker.admin, f"{topic}.made"
    options = Fluvio(segment_size=4096, compression="gzip")
    await admin.topics.create(
        other, partitions=2, retention=timedelta(hours=1), retention_bytes=65_536, options=[options]
    )
    assert {topic, f"{topic}--made"} <= {*await asked("topics")}
    assert await asked("partitions", f"{topic}--made") == [f"{topic}--made-{n}" for n in range(2)]
    info = await admin.topics.describe(other)
    assert (info.retention, info.retention_bytes, info.replicas) == (timedelta(hours=1), 65_536, 1)
    told = {"compression": "gzip", "segment_size": "4096", "resolution": "provisioned"}
    assert told.items() <= info.config.items()
    await admin.partitions.add(other, 5)
    assert len(await asked("partitions", f"{topic}--made")) == 5
    await admin.topics.delete(other)
    assert f"{topic}--made" not in await asked("topics")
    await asked("create_topic", f"{topic}-theirs")
    assert (await admin.topics.describe(f"{topic}-theirs")).partitions == 1
    await asked("delete_topic", f"{topic}-theirs")
    with pytest.raises(TopicNotFoundError):
        await admin.topics.describe(f"{topic}-theirs")


async def test_topics_are_listed_while_others_delete_theirs(broker: FluvioBroker, topic: str) -> None:
    names = [f"{topic}-{n}" for n in range(5)]
    await broker.declare([Topic(name, partitions=4) for name in names])

    async def delete() -> None:
        for name in names:
            await broker.admin.topics.delete(name)

    deleting = asyncio.create_task(delete())
    while not deleting.done():
        assert topic in {info.name for info in await broker.admin.topics.list()}
    await deleting


async def test_positions_of_groups_are_as_the_client_sees_them(
    broker: FluvioBroker, asked: Callable[..., Awaitable[Any]], topic: str, group: str
) -> None:
    async def theirs() -> dict[int, int]:
        """What comes next by the client: it says what came last."""
        return {
            at: last + 1 for who, where, at, last in await asked("consumer_offsets") if (who, where) == (group, topic)
        }

    groups = broker.admin.groups
    await handled(broker, topic, group, 4)
    assert await theirs() == {0: 4, 1: 0}
    lag = await groups.lag(group, topic)
    assert [(one.partition, one.committed, one.latest, one.lag) for one in lag.partitions] == [
        (0, 4, 10, 6),
        (1, 0, 0, 0),
    ]
    moment = (await broker.publish(10, topic, partition=0)).timestamp
    for to, offset in (("latest", 11), ("earliest", 0), ({0: 7}, 7), (moment, 10), (moment + timedelta(days=1), 11)):
        await groups.reset(group, topic, to=to)  # type: ignore[arg-type]  # each is one
        assert (await theirs())[0] == offset
    await groups.delete(group)
    assert await theirs() == {}


async def test_what_is_wrong_is_named(broker: FluvioBroker, topic: str, group: str) -> None:
    topics, partitions, groups = broker.admin.topics, broker.admin.partitions, broker.admin.groups
    await handled(broker, topic, group, 1)
    for call in (topics.describe, topics.delete, partitions.list, lambda name: partitions.add(name, 2)):
        with pytest.raises(TopicNotFoundError, match=f"'{topic}x'"):
            await call(f"{topic}x")
    for reset in (groups.lag(group, f"{topic}x"), groups.reset(group, f"{topic}x", to="latest")):
        with pytest.raises(TopicNotFoundError, match=f"'{topic}x'"):
            await reset
    for unknown in (groups.lag(f"{group}x"), groups.reset(f"{group}x", topic, to="latest"), groups.delete(f"{group}x")):
        with pytest.raises(GroupNotFoundError, match=f"'{group}x'"):
            await unknown
    with pytest.raises(ConfigurationError, match="has 2 partitions, none can be taken away"):
        await partitions.add(topic, 1)
    with pytest.raises(ConfigurationError, match="10 seconds at least"):
        await topics.create(f"{topic}x", retention=timedelta(seconds=9))
    with pytest.raises(ConfigurationError, match="2048 at least"):
        await topics.create(f"{topic}x", retention_bytes=2047)
    with pytest.raises(NotSupportedError, match="fluvio does not support"):
        await topics.alter(topic, retention=timedelta(days=1))
    with pytest.raises(NotSupportedError, match="fluvio does not support"):
        await topics.purge(topic)
    assert [found.name for found in await topics.list() if found.name.startswith(topic)] == [topic]


async def test_a_group_with_members_is_not_moved_and_they_are_named(
    broker: FluvioBroker, topic: str, group: str
) -> None:
    await handled(broker, topic, group, 1)
    async with reading(broker, topic, group):
        for call in (broker.admin.groups.reset(group, topic, to="latest"), broker.admin.groups.delete(group)):
            with pytest.raises(ConfigurationError, match=rf"1 live member\(s\) \(.*:{os.getpid()}\): stop them"):
                await call
        found = await asyncio.gather(*(broker.admin.groups.describe(group) for _ in range(8)))
        assert {member.partitions for info in found for member in info.members} == {((topic, 0), (topic, 1))}
    assert not (await broker.admin.groups.describe(group)).active
    names = {info.name for info in await broker.admin.groups.list()}
    assert group in names
    assert not [name for name in names if name.startswith("hw")]  # what we keep for ourselves


async def test_groups_are_managed_although_a_topic_of_theirs_was_deleted(
    broker: FluvioBroker, topic: str, group: str
) -> None:
    await broker.declare([Topic(f"{topic}.two")])
    for name in (topic, f"{topic}.two"):
        await handled(broker, name, group, 1)
    async with reading(broker, f"{topic}.two", group):
        await broker.admin.topics.delete(f"{topic}.two")
        assert (await broker.admin.groups.describe(group)).topics
    assert (await broker.admin.groups.lag(group)).total == 9
    await broker.admin.groups.delete(group)


async def test_the_cluster_is_described_and_well(broker: FluvioBroker, fluvio_endpoint: str) -> None:
    cluster = await broker.admin.cluster.describe()
    assert cluster.engine == "fluvio"
    assert cluster.version.count(".") == 2
    controllers = [node.address for node in cluster.nodes if node.controller]
    assert controllers == [fluvio_endpoint]
    assert len(cluster.nodes) >= 2
    assert (await broker.admin.cluster.health()).problems == ()


async def test_an_spu_that_falls_silent_ends_every_call_in_time(
    broker: FluvioBroker, topic: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.engines.fluvio.cluster.ANSWER_WITHIN", 0.3)
    monkeypatch.setattr("headwater.engines.fluvio.administration.LEADER_ANSWERS_WITHIN", 0.3)
    await handled(broker, topic, group, 1)
    cluster: Cluster = broker.engine.cluster  # type: ignore[attr-defined]  # Fluvio's
    real = await cluster.address_of((await cluster.spus())[0].id)
    async with Proxy(real.port) as proxy:

        async def elsewhere(cluster: Cluster, _spu: int) -> Address:
            return real._replace(port=proxy.port)

        monkeypatch.setattr(Cluster, "address_of", elsewhere)
        async with FluvioBroker(broker.url or "", dial_timeout=0.3) as far:
            await far.admin.groups.lag(group, topic)
            proxy.stall()
            for call in (
                far.admin.topics.list(),
                far.admin.topics.describe(topic),
                far.admin.partitions.list(topic),
                far.admin.groups.list(),
                far.admin.groups.lag(group, topic),
                far.admin.groups.reset(group, topic, to="latest"),
                far.engine.admin.offsets_at(topic, datetime.now(UTC)),  # type: ignore[union-attr]  # it has one
                far.admin.groups.delete(group),
            ):
                with pytest.raises(ConnectError):
                    await asyncio.wait_for(call, 3)
            assert any("does not answer" in told for told in (await far.admin.cluster.health()).problems)
    assert (await broker.admin.groups.lag(group, topic)).partitions[0].committed == 1


async def test_a_topic_that_the_cluster_has_no_place_for_is_told_as_that(broker: FluvioBroker, topic: str) -> None:
    wide = f"{topic}-wide"
    with pytest.raises(ConfigurationError, match=rf"no place for topic '{wide}'.* wants 9 copies"):
        await broker.admin.topics.create(wide, options=[Fluvio(replication=9)])
    await broker.admin.topics.delete(wide)
    assert wide not in [info.name for info in await broker.admin.topics.list()]
