"""Administration of Kafka: its effect, seen through Kafka's own client, and what that client did, seen through ours."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it says not that it exports them
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
)

from engines.lagging import lag_is_right_under_load
from headwater import (
    AuthenticationError,
    Broker,
    ConfigurationError,
    ConnectError,
    GroupNotFoundError,
    Kafka,
    KafkaBroker,
    OffsetOutOfRangeError,
    Outgoing,
    Position,
    Topic,
    TopicNotFoundError,
)
from headwater.testing.contract.tools import reading, settled, taken
from servers.fixtures import require
from servers.kafka import KafkaServer

pytestmark = [pytest.mark.anyio, pytest.mark.server]


class Theirs:
    """Kafka's own client, asked plainly."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.admin: Any = AdminClient({"bootstrap.servers": address})

    def config(self, topic: str) -> dict[str, str]:
        resource = ConfigResource(ResourceType.TOPIC, topic)
        found = self.admin.describe_configs([resource])[resource].result(10)
        return {name: entry.value for name, entry in found.items()}

    def partitions(self, topic: str) -> int:
        return len(self.admin.list_topics(topic, timeout=10).topics[topic].partitions)

    def range(self, topic: str, partition: int) -> tuple[int, int]:
        place = TopicPartition(topic, partition)
        first = self.admin.list_offsets({place: OffsetSpec.earliest()})[place].result(10).offset
        return first, self.admin.list_offsets({place: OffsetSpec.latest()})[place].result(10).offset

    def committed(self, group: str) -> dict[int, int]:
        asked = self.admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
        return {place.partition: place.offset for place in asked[group].result(10).topic_partitions}

    def groups(self) -> set[str]:
        return {found.group_id for found in self.admin.list_consumer_groups().result(10).valid}

    @contextmanager
    def member(self, topic: str, group: str, **config: Any) -> Iterator[Any]:
        """A live member of a group, which has been given something."""
        settings = {"bootstrap.servers": self.address, "group.id": group, "auto.offset.reset": "earliest"}
        consumer = Consumer(settings | {"client.id": "theirs"} | config)
        try:
            consumer.subscribe([topic])
            while not consumer.assignment():
                consumer.poll(0.05)
            yield consumer
        finally:
            consumer.close()


@pytest.fixture
def theirs(kafka_server: KafkaServer) -> Theirs:
    return Theirs(kafka_server.address)


@pytest.fixture
def topic() -> str:
    return f"numbers-{os.urandom(4).hex()}"


@pytest.fixture
def group() -> str:
    return f"group-{os.urandom(4).hex()}"


@pytest.fixture
def make_broker(kafka_server: KafkaServer) -> Callable[..., KafkaBroker]:
    return lambda **options: KafkaBroker(kafka_server.url, **{"discover": 0.2, "partitions": 2, **options})


@pytest.fixture
async def broker(make_broker: Callable[..., KafkaBroker], topic: str) -> AsyncIterator[KafkaBroker]:
    async with make_broker() as broker:
        await broker.declare([Topic(topic, partitions=2)])
        yield broker


async def fill(broker: Broker, topic: str, count: int = 10) -> None:
    """The numbers from 0 on, even ones in the first partition."""
    await broker.publish_many([Outgoing(n, topic, partition=n % 2) for n in range(count)])


# --- topics -------------------------------------------------------------------------------------------


async def test_a_topic_is_made_as_it_was_asked_for(broker: KafkaBroker, theirs: Theirs, topic: str) -> None:
    name = f"{topic}-made"
    option = Kafka(replication=1, config={"segment.bytes": 1 << 20})
    await broker.admin.topics.create(
        name, partitions=3, retention=timedelta(hours=2), retention_bytes=1 << 24, options=[option]
    )
    config = theirs.config(name)
    assert theirs.partitions(name) == 3
    assert (config["retention.ms"], config["retention.bytes"]) == ("7200000", str(1 << 24))
    assert (config["segment.bytes"], config["cleanup.policy"]) == (str(1 << 20), "delete")
    with pytest.raises(ConfigurationError, match="replication factor"):
        await broker.admin.topics.create(f"{name}-2", options=[Kafka(replication=3)])


async def test_a_topic_is_compacted_and_by_age_too_if_it_has_one(
    broker: KafkaBroker, theirs: Theirs, topic: str
) -> None:
    topics, compacted = broker.admin.topics, Kafka(compact=True)
    await topics.create(f"{topic}-last", options=[compacted])
    await topics.create(f"{topic}-week", retention=timedelta(days=7), options=[compacted])
    assert theirs.config(f"{topic}-last")["cleanup.policy"] == "compact"
    assert theirs.config(f"{topic}-week")["cleanup.policy"] == "compact,delete"
    assert (await topics.describe(f"{topic}-last")).compacted
    await topics.alter(f"{topic}-last", options=[Kafka(compact=False)])
    assert theirs.config(f"{topic}-last")["cleanup.policy"] == "delete"
    assert not (await topics.describe(f"{topic}-last")).compacted


async def test_a_topic_is_described_as_its_owner_made_it(broker: KafkaBroker, theirs: Theirs, topic: str) -> None:
    name = f"{topic}-theirs"
    config = {"retention.ms": "60000", "cleanup.policy": "compact", "segment.ms": "12345678"}
    theirs.admin.create_topics([NewTopic(name, 2, 1, config=config)])[name].result(10)
    await fill(broker, topic)
    info = await broker.admin.topics.describe(name)
    assert (info.name, info.partitions, info.messages, info.size) == (name, 2, 0, None)
    assert (info.retention, info.replicas, info.compacted) == (timedelta(minutes=1), 1, True)
    assert info.config.items() >= config.items()
    assert "segment.bytes" in info.config  # one of the main ones
    assert "flush.ms" not in info.config  # nobody said anything of it
    listed = {found.name: found for found in await broker.admin.topics.list()}
    assert listed[name].compacted
    assert listed[topic].messages == 10
    with pytest.raises(TopicNotFoundError, match=f"{topic}-no"):
        await broker.admin.topics.describe(f"{topic}-no")


async def test_altering_leaves_alone_what_it_does_not_name(broker: KafkaBroker, theirs: Theirs, topic: str) -> None:
    name = f"{topic}-altered"
    await broker.admin.topics.create(name, options=[Kafka(config={"max.message.bytes": 5000})])
    await broker.admin.topics.alter(name, retention=timedelta(days=1), options=[Kafka(config={"segment.ms": 3600000})])
    config = theirs.config(name)
    assert (config["retention.ms"], config["segment.ms"]) == ("86400000", "3600000")
    assert config["max.message.bytes"] == "5000"
    with pytest.raises(TopicNotFoundError):
        await broker.admin.topics.alter(f"{topic}-no", retention=timedelta(days=1))


async def test_a_topic_is_deleted(broker: KafkaBroker, theirs: Theirs, topic: str) -> None:
    await broker.admin.topics.delete(topic)
    assert topic not in theirs.admin.list_topics(timeout=10).topics
    with pytest.raises(TopicNotFoundError, match=topic):
        await broker.admin.topics.delete(topic)


async def test_messages_are_purged_up_to_an_offset_or_a_time(broker: KafkaBroker, theirs: Theirs, topic: str) -> None:
    topics = broker.admin.topics
    await fill(broker, topic)
    await topics.purge(topic, before={0: 3})
    assert (theirs.range(topic, 0), theirs.range(topic, 1)) == ((3, 5), (0, 5))
    moment = datetime.now(UTC) + timedelta(seconds=1)
    later = [Kafka(timestamp=moment + timedelta(seconds=1))]
    await broker.publish_many([Outgoing(n, topic, partition=n, options=later) for n in (0, 1)])
    await topics.purge(topic, before=moment)
    assert (theirs.range(topic, 0), theirs.range(topic, 1)) == ((5, 6), (5, 6))
    await topics.purge(topic, before={1: 99})  # more than there are
    assert theirs.range(topic, 1) == (6, 6)
    await topics.purge(topic)
    assert theirs.range(topic, 0) == (6, 6)
    with pytest.raises(TopicNotFoundError, match=r"\[7\].*2 partitions"):
        await topics.purge(topic, before={7: 1})


async def test_a_compacted_topic_is_not_purged_and_says_what_to_do(broker: KafkaBroker, topic: str) -> None:
    name = f"{topic}-compact"
    await broker.admin.topics.create(name, options=[Kafka(compact=True)])
    await broker.publish(1, name, key="7")
    with pytest.raises(ConfigurationError, match=f"{name}.*compacted.*tombstone"):
        await broker.admin.topics.purge(name)
    assert (await broker.admin.topics.describe(name)).messages == 1


# --- partitions ---------------------------------------------------------------------------------------


async def test_partitions_have_leaders_and_copies_and_only_grow(
    broker: KafkaBroker, theirs: Theirs, topic: str
) -> None:
    await fill(broker, topic)
    first, second = await broker.admin.partitions.list(topic)
    assert (first.earliest, first.latest, first.messages) == (0, 5, 5)
    assert (second.leader, second.replicas) == ("1", ("1",))
    await broker.admin.partitions.add(topic, 4)
    assert theirs.partitions(topic) == 4
    theirs.admin.create_partitions([NewPartitions(topic, 5)])[topic].result(10)
    await settled(lambda: theirs.partitions(topic) == 5)
    assert len(await broker.admin.partitions.list(topic)) == 5
    with pytest.raises(ConfigurationError, match="only grow"):
        await broker.admin.partitions.add(topic, 2)
    with pytest.raises(TopicNotFoundError):
        await broker.admin.partitions.list(f"{topic}-no")


# --- groups -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_groups_of_both_protocols_are_described_with_what_their_members_hold(
    broker: KafkaBroker, theirs: Theirs, topic: str, group: str, protocol: str
) -> None:
    def look() -> Any:
        return asyncio.run_coroutine_threadsafe(broker.admin.groups.describe(group), loop).result(20)

    def play() -> tuple[Any, Any]:
        with theirs.member(topic, group, **{"group.protocol": protocol}) as consumer:
            consumer.commit(offsets=[TopicPartition(topic, 0, 2)], asynchronous=False)
            alive = look()
        return alive, look()

    loop = asyncio.get_running_loop()
    await fill(broker, topic)
    alive, left = await asyncio.to_thread(play)
    (member,) = alive.members
    assert (alive.topics, member.client, member.partitions) == ((topic,), "theirs", ((topic, 0), (topic, 1)))
    assert (left.topics, left.active) == ((topic,), False)
    assert (await broker.admin.groups.lag(group, topic)).total == 8


async def test_lag_is_told_for_each_partition_and_in_total(
    broker: KafkaBroker, theirs: Theirs, topic: str, group: str
) -> None:
    await fill(broker, topic)
    await _commit(theirs, group, topic, {0: 4})
    lag = await broker.admin.groups.lag(group, topic)
    assert [(one.partition, one.committed, one.latest, one.lag) for one in lag.partitions] == [
        (0, 4, 5, 1),
        (1, 0, 5, 5),  # it never was there, and begins at the first message
    ]
    assert lag.total == 6
    assert await broker.admin.groups.lag(group) == lag
    await broker.admin.topics.purge(topic, before={1: 3})
    assert (await broker.admin.groups.lag(group, topic)).total == 3
    await broker.declare([Topic(f"{topic}-2")])
    with pytest.raises(GroupNotFoundError, match=f"{group}.*{topic}-2"):
        await broker.admin.groups.lag(group, f"{topic}-2")
    with pytest.raises(TopicNotFoundError, match=f"{topic}-no"):
        await broker.admin.groups.lag(group, f"{topic}-no")


async def _commit(theirs: Theirs, group: str, topic: str, offsets: dict[int, int]) -> None:
    def commit() -> None:
        consumer = Consumer({"bootstrap.servers": theirs.address, "group.id": group})
        consumer.commit(offsets=[TopicPartition(topic, *place) for place in offsets.items()], asynchronous=False)
        consumer.close()

    await asyncio.to_thread(commit)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"to": "earliest"}, {0: 0, 1: 0}),
        ({"to": "latest"}, {0: 5, 1: 5}),
        ({"to": 3}, {0: 3, 1: 3}),
        ({"to": {1: 2}}, {0: 4, 1: 2}),
        ({"to": datetime(2020, 1, 1, tzinfo=UTC)}, {0: 0, 1: 0}),
        ({"shift": -2}, {0: 2, 1: 3}),
        ({"shift": 99}, {0: 5, 1: 5}),
    ],
)
async def test_a_group_is_moved(
    broker: KafkaBroker, theirs: Theirs, topic: str, group: str, how: dict[str, Any], expected: dict[int, int]
) -> None:
    await fill(broker, topic)
    await _commit(theirs, group, topic, {0: 4, 1: 5})
    planned = await broker.admin.groups.reset(group, topic, dry_run=True, **how)
    assert theirs.committed(group) == {0: 4, 1: 5}
    assert await broker.admin.groups.reset(group, topic, **how) == planned
    assert theirs.committed(group) == expected


async def test_a_group_with_members_is_left_alone_and_they_are_named(
    broker: KafkaBroker, theirs: Theirs, topic: str, group: str
) -> None:
    await fill(broker, topic)
    async with reading(broker, topic, group, start="earliest") as place:
        await place.ack(await taken(place, 10))
        for call in (broker.admin.groups.reset(group, topic, to="earliest"), broker.admin.groups.delete(group)):
            with pytest.raises(ConfigurationError, match=f"{group}.*1 live member.*headwater at 127.0.0.1.*stop them"):
                await call
    await broker.admin.groups.delete(group)
    assert group not in theirs.groups()
    for gone in (broker.admin.groups.delete(group), broker.admin.groups.reset(group, topic, to="earliest")):
        with pytest.raises(GroupNotFoundError, match=group):
            await gone


async def test_lag_is_right_under_load(broker: KafkaBroker, topic: str, group: str) -> None:
    await lag_is_right_under_load(broker, topic, group, 5000, behind=0.5)


# --- the cluster --------------------------------------------------------------------------------------


async def test_the_cluster_tells_its_nodes_and_its_controller(
    broker: KafkaBroker, theirs: Theirs, kafka_server: KafkaServer
) -> None:
    found = await broker.admin.cluster.describe()
    (node,) = found.nodes
    assert (node.id, node.address, node.controller) == ("1", kafka_server.address, True)
    assert theirs.admin.describe_cluster().result(10).controller.id_string == node.id
    assert (await broker.admin.cluster.health()).healthy


async def test_a_cluster_that_lost_most_of_its_servers_says_which_and_what_stands_still() -> None:
    require("kafka")
    first = KafkaServer()
    nodes = [first, KafkaServer(beside=first), KafkaServer(beside=first)]
    voters = ",".join(f"{number}@{node.controller}" for number, node in enumerate(nodes, 1))
    for number, node in enumerate(nodes, 1):
        node.extra += [f"node.id={number}", f"controller.quorum.voters={voters}"]
    async with AsyncExitStack() as stack:
        await asyncio.gather(*map(stack.enter_async_context, nodes))
        url = f"kafka://{','.join(node.address for node in nodes)}"
        broker = await stack.enter_async_context(KafkaBroker(url, replication=3))
        topics = broker.admin.topics
        await topics.create("orders", partitions=1)
        await topics.create("single", partitions=3, options=[Kafka(replication=1)])
        (alone,) = [one.partition for one in await broker.admin.partitions.list("single") if one.leader == "2"]
        assert (await broker.admin.cluster.health()).healthy

        async def are_told(*problems: str) -> bool:
            return (await broker.admin.cluster.health()).problems == problems

        await nodes[1].kill()
        fewer = "orders[0] has 2 of 3 copies", f"single[{alone}] has no leader"
        await settled(lambda: are_told(*fewer))
        await nodes[2].kill()
        nobody = "there is no controller: most of those that elect one are away"
        await settled(lambda: are_told(nobody, f"the node 3 at {nodes[2].address} does not answer", *fewer))


async def test_who_may_not_is_told_what_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    acls = ["authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer"]
    acls += ["super.users=User:ANONYMOUS"]  # who comes in without credentials, as the broker itself does
    async with (
        KafkaServer(user="anne", password="secret", extra=acls) as server,
        Broker(f"kafka://{server.open_address}") as owner,
        Broker(server.url) as broker,
    ):
        await owner.publish(1, "orders")
        await owner.get("orders", group="shop")
        topics, partitions, groups = broker.admin.topics, broker.admin.partitions, broker.admin.groups
        for call in (
            anext(broker.stream("orders", start="earliest")),
            topics.create("others"),
            topics.describe("orders"),
            topics.alter("orders"),
            topics.purge("orders"),
            topics.delete("orders"),
            partitions.add("orders", 99),
            groups.reset("shop", "orders", to="earliest"),
        ):
            with pytest.raises(AuthenticationError, match=r"'(orders|others)'.*ACL"):
                await call
        await asyncio.to_thread(allow, server.open_address, "anne", "orders")
        monkeypatch.setattr("headwater.engines.kafka.offsets.TIMEOUT", 1.0)  # until it is asked why there is no answer
        for call in (
            broker.get("orders", group="shop"),
            groups.lag("shop", "orders"),
            groups.reset("shop", "orders", to="earliest"),
            groups.delete("shop"),
        ):
            with pytest.raises(AuthenticationError, match=r"'shop'.*ACL"):
                await call


def allow(address: str, user: str, topic: str) -> None:
    """Let a user do anything with this topic."""
    everything = (AclOperation.ALL, AclPermissionType.ALLOW)
    rule = AclBinding(ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, f"User:{user}", "*", *everything)
    client = Theirs(address)
    client.admin.create_acls([rule])[rule].result(10)


async def test_a_server_that_hangs_is_an_error_in_time(
    broker: KafkaBroker, kafka_server: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await broker.publish(1, topic)
    await broker.get(topic, group=topic, timeout=10)
    admin = broker.admin
    for module in ("cluster", "offsets"):
        monkeypatch.setattr(f"headwater.engines.kafka.{module}.TIMEOUT", 0.5)
    kafka_server.pause()
    async with asyncio.timeout(10):
        said = await asyncio.gather(
            admin.topics.list(),
            admin.topics.describe(topic),
            admin.topics.create(f"{topic}-new"),
            admin.topics.purge(topic),
            admin.partitions.add(topic, 9),
            admin.groups.list(),
            admin.groups.lag(topic, topic),
            admin.groups.reset(topic, topic, to="latest"),
            admin.groups.delete(topic),
            admin.cluster.describe(),
            return_exceptions=True,
        )
        (problem,) = (await admin.cluster.health()).problems
    kafka_server.resume()
    assert {type(error) for error in said} == {ConnectError}
    assert all(kafka_server.address in text for text in (problem, *map(str, said)))


# --- streams ------------------------------------------------------------------------------------------


async def test_an_offset_out_of_range_says_what_there_is(broker: KafkaBroker, topic: str) -> None:
    await fill(broker, topic)
    await broker.admin.topics.purge(topic, before={0: 2})
    for start in (1, 6):
        with pytest.raises(OffsetOutOfRangeError, match=rf"offset {start} of '{topic}'\[0\].*2 up to.*5"):
            await anext(broker.stream(topic, start=start, partitions=[0]))
    async with broker.stream(topic, start=2, partitions=[0]) as stream:
        assert (await anext(stream)).value == 4
        with pytest.raises(OffsetOutOfRangeError):
            await stream.seek(Position(topic, 0, 99))
        assert (await anext(stream)).value == 6  # it stayed where it was


async def test_a_stream_ends_when_its_topic_is_deleted(broker: KafkaBroker, topic: str) -> None:
    await fill(broker, topic)
    async with broker.stream(topic, start="earliest") as stream, asyncio.timeout(15):
        assert len([await anext(stream) for _ in range(10)]) == 10
        await broker.admin.topics.delete(topic)
        with pytest.raises(TopicNotFoundError, match=f"{topic}.*deleted while it was read"):
            await anext(stream)


async def test_a_cancelled_stream_leaves_nothing_behind(broker: KafkaBroker, theirs: Theirs, topic: str) -> None:
    def consumers() -> int:
        return sum(thread.name == "headwater kafka consumer" for thread in threading.enumerate())

    async def read() -> None:
        async with broker.stream(topic, start="earliest") as stream:
            async for message in stream:
                seen.append(message.value)

    await fill(broker, topic)
    before, tasks, seen = consumers(), asyncio.all_tasks(), list[int]()
    reader = asyncio.create_task(read())
    await settled(lambda: len(seen) == 10)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert reader.cancelled()
    assert consumers() == before
    assert asyncio.all_tasks() <= tasks
    async with broker.stream(topic, start="earliest", limit=10) as stream:
        assert sorted([message.value async for message in stream]) == list(range(10))


async def test_a_stream_goes_on_after_the_server_was_away(
    broker: KafkaBroker, kafka_server: KafkaServer, topic: str
) -> None:
    await fill(broker, topic, 4)
    async with broker.stream(topic, start="earliest") as stream, asyncio.timeout(45):
        seen = [(await anext(stream)).value for _ in range(4)]
        await kafka_server.kill()
        await settled(lambda: not broker.engine.available)
        waiting = asyncio.create_task(anext(stream))
        await kafka_server.start()
        await settled(lambda: broker.engine.available)
        await broker.publish("back", topic, timeout=20)
        assert (await waiting).value == "back"
    assert sorted(seen) == list(range(4))


async def test_a_slow_reader_holds_little(broker: KafkaBroker, topic: str) -> None:
    await broker.publish_many([Outgoing(b"x" * 1000, topic, partition=0) for _ in range(5000)], timeout=30)
    async with broker.stream(topic, start="earliest") as stream:
        await anext(stream)
        place: Any = stream._subscription
        await settled(lambda: place._handover.room <= 0)  # it has as much as it takes
        assert len(place._handover._ready) <= place._handover.size + 500
        assert len(stream._ahead) < 500


async def test_chosen_partitions_are_read_in_batches_from_any_place(broker: KafkaBroker, topic: str) -> None:
    await fill(broker, topic)
    moment = datetime.now(UTC) + timedelta(seconds=5)
    later = [Kafka(timestamp=moment + timedelta(seconds=1))]
    await broker.publish("later", topic, partition=1, options=later)

    async def read(start: Any, **options: Any) -> list[Any]:
        batches = [batch async for batch in broker.stream(topic, start=start, **options).batches(2)]
        assert {len(batch) for batch in batches} <= {1, 2}
        return [message.value for batch in batches for message in batch]

    assert await read("earliest", partitions=[0], limit=5) == [0, 2, 4, 6, 8]
    assert await read(3, partitions=[1], limit=2) == [7, 9]
    assert await read(4, partitions=[1], until=moment) == [9]
    assert await read(moment, partitions=[1], limit=1) == ["later"]
    first, second = await asyncio.gather(read({1: 2}, limit=9), read("earliest", partitions=[0], limit=5))
    assert (set(first), second) == ({0, 2, 4, 6, 8, 5, 7, 9, "later"}, [0, 2, 4, 6, 8])


async def test_a_stream_is_paused_resumed_sought_and_taken_up_elsewhere(broker: KafkaBroker, topic: str) -> None:
    await fill(broker, topic)
    async with broker.stream(topic, start="earliest", partitions=[0]) as stream, asyncio.timeout(20):
        assert [(await anext(stream)).value for _ in range(2)] == [0, 2]
        stream.pause()
        waiting = asyncio.create_task(anext(stream))
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
        stream.resume()
        assert (await waiting).value == 4
        await stream.seek(Position(topic, 0, 1))
        assert (await anext(stream)).value == 2
    (place,) = stream.position

    def go_on() -> list[Any]:
        return [message.value for message in broker.sync.stream(topic, start=2, partitions=[0], limit=3)]

    assert place == Position(topic, 0, 2)
    assert await asyncio.to_thread(go_on) == [4, 6, 8]


async def test_get_takes_one_message_with_a_group_and_without(broker: KafkaBroker, theirs: Theirs, topic: str) -> None:
    await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(2)])
    message = await broker.get(topic, group=f"get-{topic}", timeout=10)
    assert message is not None
    assert message.value == 0
    assert theirs.committed(f"get-{topic}") == {0: 1, 1: 0}
    assert await broker.get(topic, timeout=0.1) is None
    with pytest.raises(TopicNotFoundError, match=f"{topic}-no"):
        await broker.get(f"{topic}-no", timeout=0.1)
