"""Redis on several servers: a cluster, whose slots move, and a master that sentinels replace."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from headwater import App, Broker, ConnectError, HeadwaterError, Outgoing, RedisBroker, Retry
from headwater.engines.redis.servers import slot_of
from headwater.testing.contract import EngineContract, MakeBroker
from servers.fixtures import require
from servers.redis import RedisCluster, RedisSentinels, say
from waiting import until

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    require("redis")
    with RedisCluster() as cluster:
        yield cluster


class TestRedisCluster(EngineContract):
    @pytest.fixture
    def make_broker(self, cluster: RedisCluster) -> MakeBroker:
        return lambda: RedisBroker(cluster.url)


@pytest.mark.parametrize("key", ["orders", "{orders}.x", "hw:delayed:{orders}", "{}orders", "a{b}c{d}", "é"])
async def test_a_key_has_the_slot_that_the_server_says(cluster: RedisCluster, key: str) -> None:
    assert say(cluster.masters[0], f'CLUSTER KEYSLOT "{key}"') == f":{slot_of(key)}\r\n".encode()


async def test_one_publish_and_one_subscription_span_the_cluster(cluster: RedisCluster) -> None:
    topics = [f"spread-{n}" for n in range(12)]
    app, seen = App("shop", RedisBroker(cluster.url)), Counter[str]()

    @app.subscriber(*topics, "found.{name}", concurrency=4)
    async def handle(body: str) -> None:
        seen[body] += 1

    async with app:
        assert len({app.broker.engine.servers.node_of(topic) for topic in topics}) == 3  # type: ignore[attr-defined]
        await app.publish_many([Outgoing(f"{topic}/{n}", topic) for n in range(50) for topic in topics])
        await app.publish_many([Outgoing(f"later/{topic}", topic, delay=0.1) for topic in topics])
        await app.publish_many([Outgoing(f"found/{n}", f"found.{n}") for n in range(6)])
        await until(lambda: len(seen) == 618, within=20)
        assert set(seen.values()) == {1}
        assert (await app.admin.groups.lag("shop")).total == 0
        assert len((await app.admin.cluster.describe()).nodes) == 3


async def test_slots_that_move_are_followed(cluster: RedisCluster) -> None:
    topic = next(name for name in (f"moving-{n}" for n in range(100)) if slot_of(name) < 5000)
    source, target = cluster.masters[0], cluster.masters[2]
    names = [say(server, "CLUSTER MYID").split()[1].decode() for server in (source, target)]
    slot, seen = slot_of(topic), list[int]()
    app = App("shop", RedisBroker(cluster.url))

    @app.subscriber(topic)
    async def handle(n: int) -> None:
        seen.append(n)

    async with app:
        await app.publish(0, topic)
        await until(lambda: seen == [0])
        say(target, f"CLUSTER SETSLOT {slot} IMPORTING {names[0]}")
        say(source, f"CLUSTER SETSLOT {slot} MIGRATING {names[1]}")
        assert say(source, f"MIGRATE 127.0.0.1 {target.port} {topic} 0 5000").startswith(b"+OK")
        await app.publish(1, topic)  # asked for elsewhere
        for server in (target, source, cluster.masters[1]):
            say(server, f"CLUSTER SETSLOT {slot} NODE {names[1]}")
        await app.publish(2, topic)  # moved
        await until(lambda: sorted(set(seen)) == [0, 1, 2], within=15)


async def test_a_master_that_dies_is_replaced_by_its_replica() -> None:
    require("redis")
    async with RedisCluster() as cluster:
        topic = next(name for name in (f"lost-{n}" for n in range(100)) if slot_of(name) < 5000)
        app, seen = App("shop", RedisBroker(cluster.url, lease=5)), set[int]()

        @app.subscriber(topic)
        async def handle(n: int) -> None:
            seen.add(n)

        async with app:
            await app.publish(0, topic)
            await until(lambda: seen == {0})
            await cluster.masters[0].kill()
            await until(lambda: not app.is_ready, within=3)
            await published(app, range(1, 20), topic)
            await until(lambda: seen == set(range(20)), within=15)
            await until(lambda: app.is_ready, within=10)


async def test_a_master_that_dies_is_replaced_by_the_one_that_sentinels_name() -> None:
    require("redis")
    async with RedisSentinels() as servers:
        app, seen = App("shop", RedisBroker(servers.url, lease=5)), set[int]()

        @app.subscriber("orders")
        async def handle(n: int) -> None:
            seen.add(n)

        async with app:
            await app.publish(0, "orders")
            await until(lambda: seen == {0})
            await servers.master.kill()
            await until(lambda: not app.is_ready, within=3)
            await published(app, range(1, 20), "orders")
            await until(lambda: seen == set(range(20)), within=15)
            assert app.is_ready
            assert str(servers.replica.port) in (await app.admin.cluster.describe()).nodes[0].address
        with pytest.raises(ConnectError, match="knows no master 'nobody'"):
            await Broker(servers.url.replace("mymaster", "nobody")).connect()


async def published(app: App, numbers: Any, topic: str) -> None:
    """Each of them accepted, however often that takes."""
    for number in numbers:
        while True:
            try:
                await app.publish(number, topic, timeout=5)
                break
            except HeadwaterError:
                await asyncio.sleep(Retry(backoff=(0.05, 0.1)).delay(1))
