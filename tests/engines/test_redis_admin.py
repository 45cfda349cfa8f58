"""Administration of Redis Streams, looked at with another program's client: what it says, and what it does there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from headwater import (
    App,
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    GroupNotFoundError,
    NotSupportedError,
    Outgoing,
    Redis,
    RedisBroker,
    TopicNameError,
    TopicNotFoundError,
)
from headwater.cli import main
from headwater.engines.redis import administration
from headwater.testing.contract.tools import nothing_more, published_around, reading, taken
from servers.fixtures import require
from servers.proxy import Proxy
from servers.redis import RedisCluster, RedisSentinels, RedisServer, say
from waiting import until

from .lagging import lag_is_right_under_load

pytestmark = pytest.mark.server

redis = pytest.importorskip("redis.asyncio", reason="other programs are played by redis-py")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    require("redis")
    with RedisServer() as server:
        yield server


@pytest.fixture
async def other(server: RedisServer) -> AsyncIterator[Any]:
    """Another program on the same server, which begins with nothing."""
    client = redis.Redis(port=server.port, decode_responses=True)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def broker(server: RedisServer, other: Any) -> AsyncIterator[RedisBroker]:
    async with RedisBroker(server.url, lease=1) as broker:
        yield broker


async def ten(broker: RedisBroker) -> list[str]:
    """The ids of ten messages, 0 to 9, on the topic orders."""
    receipts = await broker.publish_many([Outgoing(n, "orders") for n in range(10)])
    return [str(receipt.offset) for receipt in receipts]


async def handled(broker: RedisBroker, count: int) -> None:
    """The group shop has had so many messages from the beginning on, and has acknowledged all but the last."""
    async with reading(broker, "orders", "shop", start="earliest") as place:
        await place.ack((await taken(place, count))[:-1])


async def comes_next(broker: RedisBroker, count: int) -> list[int]:
    """What the group is given, and that no more is."""
    async with reading(broker, "orders", "shop") as place:
        messages = await taken(place, count)
        assert await nothing_more(place)
        await place.ack(messages)
    return sorted(message.value for message in messages)


# --- topics -------------------------------------------------------------------------------------------


async def test_a_topic_is_described_in_the_words_of_the_server(broker: RedisBroker, other: Any) -> None:
    options = [Redis(maxlen=500)]
    await broker.admin.topics.create("orders", retention=timedelta(hours=1), retention_bytes=10**6, options=options)
    ids = await ten(broker)
    await other.xgroup_create("orders", "shop", "0")
    info, said = await broker.admin.topics.describe("orders"), await other.xinfo_stream("orders")
    assert (info.name, info.partitions, info.messages, info.replicas) == ("orders", 1, 10, 1)
    assert (info.retention, info.retention_bytes) == (timedelta(hours=1), 10**6)
    assert info.size == await other.memory_usage("orders")
    assert (info.config["first-entry"], info.config["last-entry"], info.config["maxlen"]) == (ids[0], ids[-1], "500")
    for name in ("groups", "length", "radix-tree-keys", "radix-tree-nodes", "entries-added", "last-generated-id"):
        assert info.config[name] == str(said[name])


async def test_a_topic_with_nothing_in_it_is_described_too(broker: RedisBroker) -> None:
    await broker.admin.topics.create("orders")
    info, (partition,) = await broker.admin.topics.describe("orders"), await broker.admin.partitions.list("orders")
    assert (info.messages, info.config["last-generated-id"]) == (0, "0-0")
    assert "first-entry" not in info.config
    assert (partition.earliest, partition.latest, partition.count) == ("0-0", "0-0", 0)


async def test_a_partition_has_its_first_id_its_last_and_a_count(broker: RedisBroker, other: Any) -> None:
    ids = await ten(broker)
    await other.xdel("orders", ids[0], ids[9])
    (partition,) = await broker.admin.partitions.list("orders")
    assert (partition.partition, partition.earliest, partition.latest) == (0, ids[1], ids[9])
    assert partition.messages == await other.xlen("orders") == 8


async def test_topics_are_made_altered_and_deleted_as_others_see_it(broker: RedisBroker, other: Any) -> None:
    topics = broker.admin.topics
    await topics.create("orders", retention=timedelta(hours=1))
    assert await other.type("orders") == "stream"
    await topics.alter("orders", retention_bytes=5000)
    assert await other.hget("hw:topics", "orders") == '{"bytes":5000}'
    await broker.publish(1, "orders", delay=100)
    await topics.delete("orders")
    assert await other.exists("orders", "hw:delayed:{orders}") == 0
    assert not await other.hexists("hw:topics", "orders")


async def test_what_is_before_an_id_or_a_time_is_purged(broker: RedisBroker, other: Any) -> None:
    ids = await ten(broker)
    await broker.admin.topics.purge("orders", before={0: ids[4]})
    assert [entry[0] for entry in await other.xrange("orders")] == ids[4:]
    moment = await published_around(broker, "orders")
    await broker.admin.topics.purge("orders", before=moment)
    assert [entry["body"] for _, entry in await other.xrange("orders")] == ["3", "4", "5"]
    await broker.admin.topics.purge("orders", before={})
    assert await other.xlen("orders") == 3
    await broker.admin.topics.purge("orders")
    assert await other.xlen("orders") == 0


async def test_what_others_made_is_listed_and_the_server_is_as_it_says(
    server: RedisServer, broker: RedisBroker, other: Any
) -> None:
    await other.xadd("theirs", {"a": 1})
    await other.xgroup_create("theirs", "them", "0")
    await other.set("text", "x")
    assert [info.name for info in await broker.admin.topics.list()] == ["theirs"]
    assert [(info.name, info.topics) for info in await broker.admin.groups.list()] == [("them", ("theirs",))]
    told, found = await other.info(), await broker.admin.cluster.describe()
    (node,) = found.nodes
    assert (found.version, node.address, node.controller) == (told["redis_version"], server.address, True)
    assert told["run_id"].startswith(node.id)
    await broker.admin.groups.delete("them")
    assert await other.xinfo_groups("theirs") == []


# --- lag ----------------------------------------------------------------------------------------------


async def test_what_was_purged_is_not_to_be_done_any_more(broker: RedisBroker, other: Any) -> None:
    ids = await ten(broker)
    await handled(broker, 4)
    await broker.admin.topics.purge("orders", before={0: ids[7]})
    assert (await other.xpending("orders", "shop"))["pending"] == 1  # the server goes on counting it
    assert (await broker.admin.groups.lag("shop", "orders")).total == 3
    await broker.admin.topics.purge("orders")
    assert (await broker.admin.groups.lag("shop", "orders")).total == 0


async def test_the_lag_is_what_is_left_on_each_topic_of_a_group(broker: RedisBroker, other: Any) -> None:
    await broker.publish_many([Outgoing(n, topic) for topic in ("orders", "invoices") for n in range(5)])
    for topic, count in (("orders", 2), ("invoices", 3)):
        await other.xgroup_create(topic, "shop", "0")
        await other.xreadgroup("shop", "them", {topic: ">"}, count=count, noack=True)
    lag = await broker.admin.groups.lag("shop")
    assert {one.topic: one.lag for one in lag.partitions} == {"invoices": 2, "orders": 3}
    assert (await broker.admin.groups.lag("shop", "orders")).total == 3


async def test_the_lag_is_counted_after_others_moved_the_group_or_deleted_messages(
    broker: RedisBroker, other: Any
) -> None:
    ids = await ten(broker)
    await handled(broker, 1)
    await other.xack("orders", "shop", ids[0])
    await other.xgroup_setid("orders", "shop", ids[3])
    (info,) = await other.xinfo_groups("orders")
    assert info["lag"] is None
    assert (await broker.admin.groups.lag("shop", "orders")).total == 6
    await other.xdel("orders", ids[8])
    assert (await broker.admin.groups.lag("shop", "orders")).total == 5


# --- moving a group -----------------------------------------------------------------------------------


async def test_a_group_goes_on_where_it_was_moved_and_nothing_is_pending(broker: RedisBroker, other: Any) -> None:
    ids = await ten(broker)
    await broker.publish(1, "others")
    await handled(broker, 6)
    assert (await other.xpending("orders", "shop"))["pending"] == 1
    for to, expected in (("earliest", 0), (ids[4], 4), ({0: ids[9]}, 9), ("latest", 10), ("0-1", 0), (ids[1], 1)):
        groups: Any = broker.admin.groups
        dry = await groups.reset("shop", "orders", to=to, dry_run=True)
        assert await groups.reset("shop", "orders", to=to) == dry
        assert (await groups.lag("shop", "orders")).total == 10 - expected
        (info,) = await other.xinfo_groups("orders")
        assert (info["lag"], info["pending"], info["consumers"]) == (10 - expected, 0, 0)
        assert await comes_next(broker, 10 - expected) == list(range(expected, 10))


async def test_a_dry_run_moves_nothing(broker: RedisBroker, other: Any) -> None:
    ids = await ten(broker)
    await handled(broker, 5)
    before = await other.xinfo_groups("orders")
    assert await broker.admin.groups.reset("shop", "orders", to="earliest", dry_run=True) == {0: ids[0]}
    assert await other.xinfo_groups("orders") == before


async def test_a_group_is_moved_to_a_moment(broker: RedisBroker, other: Any) -> None:
    moment = await published_around(broker, "orders")
    await other.xgroup_create("orders", "shop", "$")
    (offset,) = (await broker.admin.groups.reset("shop", "orders", to=moment)).values()
    assert offset == f"{-int(-moment.timestamp() * 1000 // 1)}-0"
    assert await comes_next(broker, 3) == [3, 4, 5]
    await broker.admin.groups.reset("shop", "orders", to=datetime.now(UTC) + timedelta(days=1))
    assert (await broker.admin.groups.lag("shop", "orders")).total == 0
    await broker.publish(6, "orders")  # it comes before that moment, and is the next one all the same
    assert await comes_next(broker, 1) == [6]


async def test_an_id_beyond_the_last_is_the_latest_and_one_that_is_gone_the_next(
    broker: RedisBroker, other: Any
) -> None:
    ids = await ten(broker)
    await other.xgroup_create("orders", "shop", "0")
    await broker.admin.groups.reset("shop", "orders", to="9999999999999-0")
    await broker.publish(10, "orders")
    assert await comes_next(broker, 1) == [10]
    await other.xdel("orders", ids[4])
    await broker.admin.groups.reset("shop", "orders", to=ids[4])
    assert (await broker.admin.groups.lag("shop", "orders")).total == 6
    assert await comes_next(broker, 6) == [5, 6, 7, 8, 9, 10]


async def test_the_lag_after_a_move_stays_right_while_messages_come(broker: RedisBroker, other: Any) -> None:
    ids = await ten(broker)
    await other.xgroup_create("orders", "shop", "0")
    await broker.admin.groups.reset("shop", "orders", to=ids[3])
    await broker.publish_many([Outgoing(n, "orders") for n in range(5)])
    (info,) = await other.xinfo_groups("orders")
    assert info["lag"] == (await broker.admin.groups.lag("shop", "orders")).total == 12


async def test_one_topic_of_a_group_is_moved_and_the_others_stay(broker: RedisBroker, other: Any) -> None:
    await broker.publish_many([Outgoing(n, topic) for topic in ("orders", "invoices") for n in range(5)])
    for topic in ("orders", "invoices"):
        await other.xgroup_create(topic, "shop", "$")
    await broker.admin.groups.reset("shop", "orders", to="earliest")
    lag = await broker.admin.groups.lag("shop")
    assert {one.topic: one.lag for one in lag.partitions} == {"invoices": 0, "orders": 5}


async def test_a_group_with_live_members_is_neither_moved_nor_deleted(broker: RedisBroker, other: Any) -> None:
    await ten(broker)
    async with reading(broker, "orders", "shop", start="earliest") as place:
        await taken(place, 3)
        (name,) = [consumer["name"] for consumer in await other.xinfo_consumers("orders", "shop")]
        before = await other.xinfo_groups("orders")
        for call in (broker.admin.groups.reset("shop", "orders", to="latest"), broker.admin.groups.delete("shop")):
            with pytest.raises(ConfigurationError, match=rf"'shop' has live members \({name}\): stop them"):
                await call
        assert (await other.xinfo_groups("orders"))[0]["pending"] == before[0]["pending"] == 3


@pytest.mark.parametrize("offset", ["yesterday", "1-2-3", "-"])
async def test_what_is_no_id_is_refused(broker: RedisBroker, other: Any, offset: str) -> None:
    await ten(broker)
    await other.xgroup_create("orders", "shop", "0")
    with pytest.raises(ConfigurationError, match="no offset of Redis"):
        await broker.admin.groups.reset("shop", "orders", to=offset)
    with pytest.raises(ConfigurationError, match="no offset of Redis"):
        await broker.admin.topics.purge("orders", before={0: offset})
    with pytest.raises(ConfigurationError, match="they are ids"):
        await broker.admin.groups.reset("shop", "orders", to=5)
    with pytest.raises(TopicNotFoundError, match=r"orders\[3\].*it has 1 partition, from 0 on"):
        await broker.admin.topics.purge("orders", before={3: "1-0"})
    with pytest.raises(NotSupportedError, match="shift"):
        await broker.admin.groups.reset("shop", "orders", shift=-1)


# --- names, permissions, absences ---------------------------------------------------------------------


async def test_wrong_names_are_named(broker: RedisBroker, other: Any) -> None:
    await broker.publish(1, "orders")
    await broker.publish(1, "invoices")
    await other.xgroup_create("orders", "shop", "0")
    await other.set("text", "x")
    topics, partitions, groups = broker.admin.topics, broker.admin.partitions, broker.admin.groups
    for call in (
        topics.describe("ordres"),
        topics.alter("ordres"),
        topics.delete("ordres"),
        topics.purge("ordres"),
        partitions.list("ordres"),
        groups.lag("shop", "ordres"),
        groups.reset("shop", "ordres", to="earliest"),
    ):
        with pytest.raises(TopicNotFoundError, match="'ordres'"):
            await call
    for call in (
        groups.lag("shp"),
        groups.describe("shp"),
        groups.delete("shp"),
        groups.reset("shp", "orders", to="latest"),
    ):
        with pytest.raises(GroupNotFoundError, match="'shp'"):
            await call
    for call in (groups.lag("shop", "invoices"), groups.reset("shop", "invoices", to="latest")):
        with pytest.raises(GroupNotFoundError, match="'shop' on topic 'invoices'"):
            await call
    with pytest.raises(TopicNameError, match=r"'text'.*something else"):
        await topics.describe("text")


def test_the_shell_knows_the_names_that_are_near(
    server: RedisServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["headwater"])
    say(server, "XGROUP CREATE orders shop 0 MKSTREAM")
    for command, told in (
        (["topics", "show", server.url, "ordres"], "no topic 'ordres': did you mean 'orders'?"),
        (["groups", "lag", server.url, "shopp"], "no group 'shopp': did you mean 'shop'?"),
    ):
        with pytest.raises(SystemExit):
            main(command)
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("right", "operation"),
    [
        ("+xgroup", lambda admin: admin.groups.reset("shop", "orders", to="earliest")),
        ("+xgroup|destroy", lambda admin: admin.groups.delete("shop")),
        ("+xgroup|create", lambda admin: admin.topics.create("new")),
        ("+client|list", lambda admin: admin.groups.list()),
        ("+scan", lambda admin: admin.topics.list()),
        ("+xtrim", lambda admin: admin.topics.purge("orders")),
        ("+xinfo|stream", lambda admin: admin.partitions.list("orders")),
        ("+info", lambda admin: admin.cluster.health()),
        ("the key 'hw:topics'", lambda admin: admin.topics.describe("orders")),
    ],
)
async def test_a_user_without_a_right_is_told_which(
    server: RedisServer, broker: RedisBroker, other: Any, right: str, operation: Any
) -> None:
    await ten(broker)
    await other.xgroup_create("orders", "shop", "0")
    denied = [] if "key" in right else [f"-{right[1:]}"]
    keys = ["orders", "new"] if "key" in right else ["*"]
    await other.acl_setuser(
        "ann", enabled=True, reset=True, nopass=True, keys=keys, channels=["*"], commands=["+@all", *denied]
    )
    async with RedisBroker(server.url.replace("redis://", "redis://ann:x@")) as hers:
        with pytest.raises(AuthenticationError, match=re.escape(f"give {right} to this user")):
            await operation(hers.admin)
    assert len(await other.xinfo_groups("orders")) == 1


@pytest.mark.parametrize(
    ("keys", "commands", "right"),
    [("*", "-xread", "+xread"), ("*", "-xinfo", "+xinfo|stream"), ("x", "+xread", "the key")],
)
async def test_a_user_who_may_not_read_a_stream_is_told_which_right_it_lacks(
    server: RedisServer, broker: RedisBroker, other: Any, keys: str, commands: str, right: str
) -> None:
    await ten(broker)
    await other.acl_setuser("bob", enabled=True, reset=True, nopass=True, keys=[keys], commands=["+@all", commands])
    async with RedisBroker(server.url.replace("redis://", "redis://bob:x@")) as his, asyncio.timeout(5):
        with pytest.raises(AuthenticationError, match=re.escape(f"give {right}")):
            await anext(his.stream("orders", start="earliest"))


async def test_a_server_that_hangs_or_is_away_is_an_error_in_time(
    server: RedisServer, broker: RedisBroker, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(administration, "ANSWER", 0.3)
    await ten(broker)
    await other.xgroup_create("orders", "shop", "0")
    async with Proxy(server.port) as proxy, RedisBroker(f"redis://{proxy.address}") as far:
        proxy.stall()
        for call in (
            far.admin.topics.list(),
            far.admin.topics.describe("orders"),
            far.admin.topics.create("new"),
            far.admin.groups.reset("shop", "orders", to="latest"),
            far.admin.cluster.health(),
        ):
            with pytest.raises(ConnectError, match=r"no answer within 0\.3 s"):
                await call
        await proxy.refuse()
        await proxy.cut()
        with pytest.raises(ConnectError):
            await far.admin.groups.list()
    assert (await other.xinfo_groups("orders"))[0]["last-delivered-id"] == "0-0"


# --- a topic that is deleted --------------------------------------------------------------------------


async def test_a_reader_of_a_deleted_topic_goes_on_when_it_is_made_again(broker: RedisBroker, other: Any) -> None:
    await ten(broker)
    async with broker.stream("orders", start="earliest") as stream:
        assert [(await anext(stream)).value for _ in range(10)] == list(range(10))
        await broker.admin.topics.delete("orders")
        assert await other.exists("orders") == 0
        coming = asyncio.ensure_future(anext(stream))
        assert not (await asyncio.wait([coming], timeout=0.1))[0]
        await broker.publish(10, "orders")
        assert (await asyncio.wait_for(coming, 10)).value == 10


async def test_a_stream_ends_when_its_topic_stays_deleted(broker: RedisBroker, other: Any) -> None:
    await ten(broker)
    async with broker.stream("orders", start="earliest") as stream, asyncio.timeout(15):
        assert len([await anext(stream) for _ in range(10)]) == 10
        await other.delete("orders")
        with pytest.raises(TopicNotFoundError, match=r"'orders'.*deleted while it was read"):
            await anext(stream)


async def test_a_subscriber_of_a_deleted_topic_goes_on_when_it_is_made_again(
    server: RedisServer, broker: RedisBroker, other: Any
) -> None:
    app, seen = App("shop", RedisBroker(server.url)), list[int]()

    @app.subscriber("orders")
    async def handle(n: int) -> None:
        seen.append(n)

    async with app:
        await broker.publish(1, "orders")
        await until(lambda: seen == [1])
        await broker.admin.topics.delete("orders")
        await broker.publish(2, "orders")
        await until(lambda: seen == [1, 2], within=15)


async def test_reading_begins_at_the_first_that_is_left_after_an_id_that_is_gone(
    broker: RedisBroker, other: Any
) -> None:
    ids = await ten(broker)
    await other.xtrim("orders", minid=ids[5], approximate=False)
    async with broker.stream("orders", start=ids[2], limit=5) as stream:
        assert [message.value async for message in stream] == [5, 6, 7, 8, 9]


# --- several servers ----------------------------------------------------------------------------------


async def test_everything_is_managed_in_a_cluster() -> None:
    require("redis")
    async with RedisCluster() as cluster, RedisBroker(cluster.url) as broker:
        topics, admin = [f"spread-{n}" for n in range(6)], broker.admin
        client = redis.RedisCluster("127.0.0.1", cluster.masters[0].port, decode_responses=True)
        for topic in topics:
            await admin.topics.create(topic, retention=timedelta(hours=1))
            await broker.publish_many([Outgoing(n, topic) for n in range(4)])
            await client.xgroup_create(topic, "shop", "$")
        assert {info.name for info in await admin.topics.list()} == set(topics)
        assert (await admin.topics.describe(topics[0])).retention == timedelta(hours=1)
        nodes = {node.id for node in (await admin.cluster.describe()).nodes}
        leaders = {(await admin.partitions.list(topic))[0].leader for topic in topics}
        assert len(nodes) == 3
        assert len(leaders) > 1
        assert leaders <= nodes
        for topic in topics:
            await admin.groups.reset("shop", topic, to="earliest")
            assert (await client.xinfo_groups(topic))[0]["lag"] == 4
        assert (await admin.groups.lag("shop")).total == 24
        (partition,) = await admin.partitions.list(topics[0])
        await admin.topics.purge(topics[0], before={0: partition.latest})
        assert await client.xlen(topics[0]) == 1
        await admin.groups.delete("shop")
        assert await client.xinfo_groups(topics[1]) == []
        await admin.topics.delete(topics[0])
        assert await client.exists(topics[0]) == 0
        assert (await admin.cluster.health()).healthy
        await client.aclose()


async def test_copies_are_counted() -> None:
    require("redis")
    async with RedisSentinels() as servers, RedisBroker(servers.url) as broker:
        await broker.publish(1, "orders")
        assert (await broker.admin.topics.describe("orders")).replicas == 2


async def test_lag_is_right_under_load(broker: RedisBroker) -> None:
    await lag_is_right_under_load(broker, "orders", "shop", 5000, behind=0.2)
