"""What only Kafka has: rebalances, static members, transactions, tombstones, its own options."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engines.kafka_peer import KafkaPeer
from headwater import (
    App,
    Broker,
    ConfigurationError,
    DeliveryUnknownError,
    HeadwaterError,
    Kafka,
    KafkaBroker,
    Message,
    OffsetOutOfRangeError,
    Outgoing,
    PartitionLostError,
    Topic,
    TopicNotFoundError,
)
from headwater.engine import Change, Source
from headwater.engines.kafka import TOMBSTONE
from headwater.engines.kafka.settings import Settings
from headwater.places import number_of_process
from headwater.testing.contract.tools import held, nothing_more, reading, settled, taken
from servers.kafka import KafkaServer

pytestmark = [pytest.mark.anyio, pytest.mark.server]


@pytest.fixture
def topic() -> str:
    return f"numbers-{os.urandom(4).hex()}"


@pytest.fixture
def make_broker(kafka_server: KafkaServer) -> Callable[..., KafkaBroker]:
    """Makes brokers whose members are missed soon, and that find new topics soon."""

    def make(**options: Any) -> KafkaBroker:
        return KafkaBroker(kafka_server.url, **{"session_timeout": 1, "discover": 0.2, "partitions": 4, **options})

    return make


@pytest.fixture
async def broker(make_broker: Callable[..., KafkaBroker], topic: str) -> AsyncIterator[KafkaBroker]:
    async with make_broker() as broker:
        await broker.declare([Topic(topic)])
        yield broker


async def read_all(broker: Broker, topic: str) -> list[Message]:
    """What a reader sees that starts at the beginning and stops when it is quiet."""
    async with broker.stream(topic, start="earliest", wait=1.0) as stream:
        return [message async for message in stream]


# --- groups -------------------------------------------------------------------------------------------


@asynccontextmanager
async def working(broker: Broker, topic: str, handled: list[int], name: str = "shop") -> AsyncIterator[App]:
    """An app that notes the numbers it handled."""
    app = App(name, broker)

    @app.subscriber(topic, start="earliest", concurrency=4)
    async def handle(n: int) -> None:
        await asyncio.sleep(0.001)
        handled.append(n)

    async with app:
        yield app


@pytest.mark.parametrize("rebalance", ["cooperative", "eager"])
async def test_members_that_come_and_go_lose_and_double_nothing(
    broker: KafkaBroker, make_broker: Callable[..., KafkaBroker], topic: str, rebalance: str
) -> None:
    handled, theirs = list[int](), list[int]()
    async with working(make_broker(rebalance=rebalance), topic, handled), asyncio.timeout(60):
        published = 0

        async def publish(count: int) -> None:
            nonlocal published
            await broker.publish_many([Outgoing(n, topic, key=str(n)) for n in range(published, published + count)])
            published += count

        await publish(300)
        for _ in range(3):
            await publish(300)
            before = len(theirs)
            async with working(make_broker(rebalance=rebalance), topic, theirs):
                while len(theirs) < before + 50:
                    await publish(100)
                    await asyncio.sleep(0.05)
            handled += theirs
            theirs.clear()
        await settled(lambda: len({*handled}) == published, within=30)
    assert Counter(handled).most_common(1)[0][1] == 1  # each of them drained before it gave its partitions away


async def test_a_member_that_is_killed_loses_nothing(
    kafka_server: KafkaServer, broker: KafkaBroker, make_broker: Callable[..., KafkaBroker], topic: str
) -> None:
    handled = list[int]()
    await broker.publish_many([Outgoing(n, topic, key=str(n)) for n in range(2000)])
    with KafkaPeer("consume", kafka_server.url, topic=topic, group="shop") as peer:
        for _ in range(200):
            await peer.saying("done")
        peer.kill()
        done = {int(line[1]) for line in peer.rest() if line[0] == "done"}
    assert len(done) < 2000
    async with working(make_broker(), topic, handled):
        await settled(lambda: {*range(2000)} <= {*handled} | done, within=30)


async def test_what_is_committed_is_never_ahead_of_what_is_handled(
    broker: KafkaBroker, make_broker: Callable[..., KafkaBroker], topic: str
) -> None:
    app, go_on, handled = App("shop", make_broker()), asyncio.Event(), list[int]()

    @app.subscriber(topic, start="earliest", concurrency=8)
    async def handle(n: int) -> None:
        if n == 3:
            await go_on.wait()
        handled.append(n)

    async def committed() -> int:
        return (await broker.admin.groups.lag("shop", topic)).partitions[0].committed

    async def three_are_stored() -> bool:
        return await committed() == 3

    async with app:
        await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(50)])
        await settled(lambda: len(handled) == 49)
        await settled(three_are_stored)
        await asyncio.sleep(0.3)  # longer than the interval of commits
        assert await committed() == 3
        go_on.set()
    assert await committed() == 50


async def test_a_rebalance_waits_no_longer_than_it_may(
    broker: KafkaBroker, make_broker: Callable[..., KafkaBroker], topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, go_on, begun = App("shop", make_broker(drain_timeout=0.5)), asyncio.Event(), list[int]()

    @app.subscriber(topic, start="earliest", concurrency=4)
    async def handle(n: int) -> None:
        begun.append(n)
        await go_on.wait()

    handled = list[int]()
    async with app:
        await broker.publish_many([Outgoing(n, topic, partition=n) for n in range(4)])
        await settled(lambda: len(begun) == 4)
        async with working(make_broker(), topic, handled):
            await settled(lambda: len(handled) >= 2)  # those whose partitions moved come again there
            go_on.set()
        assert "still handled after 0.5 s" in caplog.text
        await settled(lambda: len(begun) >= 4)


async def test_a_static_member_that_restarts_gets_its_partitions_back_and_nothing_moves(
    make_broker: Callable[..., KafkaBroker], broker: KafkaBroker, topic: str
) -> None:
    theirs, first, second = list[Change](), list[Change](), list[Change]()
    options = {"session_timeout": 10}
    async with (
        make_broker(instance="one", **options) as one,
        make_broker(instance="two", **options) as two,
        reading(two, topic, topic, changes=theirs),
    ):
        async with reading(one, topic, topic, changes=first):
            await settled(lambda: len(held(first)) == len(held(theirs)) == 2)
        moves = len(theirs)
        async with reading(one, topic, topic, changes=second) as place:
            await settled(lambda: held(second) == held(first))
            await broker.publish("hello", topic, partition=min(held(second))[1])
            assert [message.value for message in await taken(place, 1)] == ["hello"]
        assert len(theirs) == moves


def test_a_static_member_is_named_after_its_process_and_its_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(servers=("h:9092",), instance="shop-1")
    names = set()
    for worker in ("0", "1"):
        monkeypatch.setenv("HEADWATER_WORKER_ID", worker)
        for topics in (("a",), ("b",), ("a", "b"), ("a.{x}",)):
            names.add(settings.consumer(Source(topics=topics, group="g"))["group.instance.id"])
    assert len(names) == 8
    assert all(name.startswith("shop-1-") for name in names)
    monkeypatch.delenv("HEADWATER_WORKER_ID")  # such as a worker of a web server
    (mine,) = {settings.consumer(Source(topics=("a",), group="g"))["group.instance.id"] for _ in range(2)}
    assert mine == f"shop-1-{number_of_process('shop-1 g')}-a"


async def test_another_process_of_the_same_instance_ends_the_subscription(
    make_broker: Callable[..., KafkaBroker], broker: KafkaBroker, topic: str
) -> None:
    async with (
        make_broker(instance="one") as one,
        make_broker(instance="one") as two,
        reading(one, topic, topic) as place,
        reading(two, topic, topic) as other,
    ):
        with pytest.raises(HeadwaterError, match="same instance"):
            await taken(place, 1)
        await broker.publish(1, topic)
        assert len(await taken(other, 1)) == 1


async def test_a_group_begins_on_a_topic_although_it_lives_on_another(broker: KafkaBroker, topic: str) -> None:
    await broker.publish("old", topic)
    async with reading(broker, f"{topic}-other", "shop"), reading(broker, topic, "shop") as place:
        await broker.publish("new", topic)
        assert [message.value for message in await taken(place, 1)] == ["new"]
    async with reading(broker, f"{topic}-other", "shop"):
        await broker.publish("while away", topic)
        async with reading(broker, topic, "shop") as place:
            assert "while away" in [message.value for message in await taken(place, 2)]


async def test_partitions_that_are_added_are_read_from_their_beginning(broker: KafkaBroker, topic: str) -> None:
    async with reading(broker, topic, "shop") as place, reading(broker, topic, None) as reader:
        await broker.admin.partitions.add(topic, 6)
        await broker.publish("added", topic, partition=5)
        for one in (place, reader):
            assert [message.value for message in await taken(one, 1)] == ["added"]


async def test_a_slow_receiver_keeps_its_partitions_and_misses_nothing(broker: KafkaBroker, topic: str) -> None:
    changes = list[Change]()

    async def note(change: Change) -> None:
        changes.append(change)

    source = Source(topics=(topic,), group="shop", start="earliest", prefetch=10)
    await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(1000)])
    async with broker.engine.subscribe(source, note) as place:
        seen = [message.value for message in await taken(place, 10)]
        await asyncio.sleep(2.5)  # more than its session, and long enough for the partitions to be held back
        await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(1000, 1100)])
        seen += [message.value for message in await taken(place, 1090)]
    assert seen == list(range(1100))
    assert len(changes) == 1


async def test_what_expired_while_a_group_was_away_is_told(
    broker: KafkaBroker, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(10)])
    async with reading(broker, topic, "shop", start="earliest") as place:
        await place.ack(await taken(place, 3))
    await broker.admin.topics.purge(topic, before={0: 6})
    async with reading(broker, topic, "shop") as place:
        assert [message.value for message in await taken(place, 4)] == [6, 7, 8, 9]
    assert "expired from offset 3 to 6" in caplog.text


# --- where reading begins -----------------------------------------------------------------------------


async def test_a_group_begins_where_it_was_told(broker: KafkaBroker, topic: str) -> None:
    begin = datetime.now(UTC) - timedelta(hours=9)
    for n in range(6):
        await broker.publish(n, topic, partition=0, options=[Kafka(timestamp=begin + timedelta(hours=n))])
    starts: dict[str, Any] = {"a": {0: 4}, "b": begin + timedelta(hours=2.5), "c": "earliest"}
    for group, first in (("a", 4), ("b", 3), ("c", 0)):
        async with reading(broker, topic, group, start=starts[group]) as place:
            values = [message.value for message in await taken(place, 6 - first)]
        assert values == list(range(first, 6))


async def test_a_message_has_the_time_it_was_given(broker: KafkaBroker, topic: str) -> None:
    moment = (datetime.now(UTC) - timedelta(days=1)).replace(microsecond=891000)
    receipt = await broker.publish(1, topic, options=[Kafka(timestamp=moment)])
    await broker.publish(2, topic)
    times = {message.value: message.timestamp for message in await read_all(broker, topic)}
    assert times[1] == receipt.timestamp == moment
    assert abs(times[2] - datetime.now(UTC)) < timedelta(minutes=1)


async def test_a_reader_takes_partitions_by_hand(broker: KafkaBroker, topic: str) -> None:
    await broker.publish_many([Outgoing(n, topic, partition=n % 4) for n in range(40)])
    async with broker.stream(topic, start={1: 5, 3: 8}, partitions=[1, 3], limit=7) as stream:
        seen = [(message.partition, message.offset) async for message in stream]
    assert sorted(seen) == [*((1, offset) for offset in range(5, 10)), *((3, offset) for offset in range(8, 10))]
    with pytest.raises(OffsetOutOfRangeError):
        await anext(broker.stream(topic, start={1: 50}, partitions=[1]))


async def test_topics_of_a_pattern_are_found_soon_and_read_from_their_beginning(
    broker: KafkaBroker, topic: str
) -> None:
    pattern = f"{topic}.{{region}}"
    async with reading(broker, pattern, "shop") as place, reading(broker, pattern, None) as reader:
        for name in ("eu", "us", "eu.dead", "x.y"):
            await broker.publish(name, f"{topic}.{name}")
        for one in (place, reader):
            assert sorted(message.value for message in await taken(one, 2)) == ["eu", "us"]
            assert await nothing_more(one)


# --- records ------------------------------------------------------------------------------------------


async def test_a_tombstone_has_no_value_and_says_so(broker: KafkaBroker, topic: str) -> None:
    await broker.publish({"a": 1}, topic, key="k")
    await broker.publish(None, topic, key="k", options=[Kafka(tombstone=True)])
    await broker.publish(None, topic, key="k")
    first, tombstone, null = await read_all(broker, topic)
    assert (first.value, TOMBSTONE in first.headers) == ({"a": 1}, False)
    assert (tombstone.value, tombstone.key, tombstone.headers[TOMBSTONE]) == (None, "k", "1")
    assert (null.value, TOMBSTONE in null.headers) == (None, False)


async def test_a_typed_handler_takes_a_tombstone_as_none(
    broker: KafkaBroker, make_broker: Callable[..., KafkaBroker], topic: str
) -> None:
    app, got = App("shop", make_broker()), list[dict[str, int] | None]()

    @app.subscriber(topic, start="earliest")
    async def handle(order: dict[str, int] | None) -> None:
        got.append(order)

    async with app:
        await broker.publish({"a": 1}, topic, key="k")
        await broker.publish(None, topic, key="k", options=[Kafka(tombstone=True)])
        await settled(lambda: got == [{"a": 1}, None])


async def test_headers_without_a_value_of_other_programs_are_empty(broker: KafkaBroker, topic: str) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker.engine.settings.address})  # type: ignore[attr-defined]  # Kafka's
    producer.produce(topic, b"1", headers=[("a", None), ("a", b"\xff"), ("b", b"")])
    await asyncio.to_thread(producer.flush)
    (message,) = await read_all(broker, topic)
    assert message.headers.pairs == (("a", b""), ("a", b"\xff"), ("b", b""))


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_what_is_compressed_arrives(
    make_broker: Callable[..., KafkaBroker], topic: str, compression: str
) -> None:
    async with make_broker(compression=compression) as broker:
        await broker.publish_many([Outgoing("x" * 1000, topic) for _ in range(100)])
        assert [message.value for message in await read_all(broker, topic)] == ["x" * 1000] * 100


async def test_a_key_has_the_partition_that_java_gives_it(broker: KafkaBroker, topic: str) -> None:
    found = {key: (await broker.publish(1, topic, key=key)).partition for key in ("21", "foobar", "a-little-bit-long")}
    # murmur2 of these, as Kafka's own tests have it, without the sign, modulo 4 partitions
    assert found == {"21": (-973932308 & 0x7FFFFFFF) % 4, "foobar": (-790332482 & 0x7FFFFFFF) % 4} | {
        "a-little-bit-long": found["a-little-bit-long"]
    }


# --- topics that come and go --------------------------------------------------------------------------


async def test_a_missing_topic_is_created_only_where_that_is_wanted(
    make_broker: Callable[..., KafkaBroker], topic: str
) -> None:
    async with make_broker(auto_create=False) as broker:
        with pytest.raises(TopicNotFoundError):
            await broker.publish(1, topic)
    async with make_broker(partitions=3) as broker:
        await broker.publish(1, topic)
        assert (await broker.admin.topics.describe(topic)).partitions == 3


async def test_a_partition_that_is_not_there_is_refused(broker: KafkaBroker, topic: str) -> None:
    with pytest.raises(ConfigurationError, match="no partition 9"):
        await broker.publish(1, topic, partition=9)
    await broker.publish(1, topic, partition=1)


async def test_a_topic_that_is_deleted_and_made_again_is_published_to_and_read(broker: KafkaBroker, topic: str) -> None:
    async with reading(broker, topic, "shop") as place:
        await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(3)])
        await place.ack(await taken(place, 3))
        await broker.admin.topics.delete(topic)
        await broker.admin.topics.create(topic, partitions=4)
        again = set[str]()

        async def arrives() -> bool:
            try:
                await broker.publish("again", topic, partition=0, timeout=2)
            except DeliveryUnknownError:
                return False
            again.update(message.value for message in await place.receive(10, 0.2))
            return "again" in again

        await settled(arrives, within=30)


async def test_topics_keep_their_configuration(broker: KafkaBroker, topic: str) -> None:
    topics, name = broker.admin.topics, f"{topic}-kept"
    await topics.create(
        name, partitions=2, retention=timedelta(days=1), options=[Kafka(config={"max.message.bytes": 5000})]
    )
    info = await topics.describe(name)
    assert (info.partitions, info.retention, info.retention_bytes) == (2, timedelta(days=1), None)
    await topics.alter(name, retention_bytes=1 << 20)
    info = await topics.describe(name)
    assert (info.retention, info.retention_bytes) == (None, 1 << 20)
    with pytest.raises(HeadwaterError, match=r"bytes to"):
        await broker.publish("x" * 6000, name)
    with pytest.raises(ConfigurationError, match="no-such"):
        await topics.create(f"{name}-2", options=[Kafka(config={"no-such": 1})])


async def test_a_group_with_members_is_not_moved(broker: KafkaBroker, topic: str) -> None:
    await broker.publish(1, topic)
    async with reading(broker, topic, "shop", start="earliest") as place:
        await place.ack(await taken(place, 1))
        with pytest.raises(ConfigurationError, match="live member"):
            await broker.admin.groups.reset("shop", topic, to="earliest")


# --- transactions -------------------------------------------------------------------------------------


async def test_sums_are_right_although_members_are_killed(
    kafka_server: KafkaServer, broker: KafkaBroker, topic: str
) -> None:
    results, count = f"{topic}-results", 1500
    await broker.declare([Topic(results)])
    await broker.publish_many([Outgoing(n, topic, key=str(n)) for n in range(count)])
    roles: dict[str, Any] = {"topic": topic, "group": "shop", "results": results}
    roles["options"] = {"transaction_timeout": 2}

    async def done() -> bool:
        return (await broker.admin.groups.lag("shop", topic)).total == 0

    with KafkaPeer("copy", kafka_server.url, **roles):
        for _ in range(3):
            with KafkaPeer("copy", kafka_server.url, **roles) as dying:
                await dying.saying("ready")
                await dying.saying("copied")
                dying.kill()
        await settled(done, within=60)
    assert sorted(message.value for message in await read_all(broker, results)) == list(range(count))


async def test_what_was_aborted_is_seen_by_nobody(broker: KafkaBroker, topic: str) -> None:
    results = f"{topic}-results"
    await broker.declare([Topic(results)])
    async with reading(broker, topic, "shop") as place, reading(broker, results, "out") as out:
        await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(2)])
        messages = await taken(place, 2)
        bad = await broker.prepare([Outgoing("aborted", results), Outgoing("refused", results, partition=99)])
        with pytest.raises(ConfigurationError):
            await place.commit(messages[:1], bad)
        good = await broker.prepare([Outgoing("committed", results)])
        (receipt,) = await place.commit(messages[:1], good)
        assert isinstance(receipt.offset, int)
        assert [message.value for message in await taken(out, 1)] == ["committed"]
        assert await nothing_more(out)


async def test_commits_at_the_same_time_share_transactions_and_fail_alone(broker: KafkaBroker, topic: str) -> None:
    results = f"{topic}-results"
    await broker.declare([Topic(results, partitions=1)])
    async with reading(broker, topic, "shop") as place:
        await broker.publish_many([Outgoing(n, topic, partition=n % 4) for n in range(4)])
        messages = sorted(await taken(place, 4), key=lambda message: message.value)

        async def commit(message: Message) -> Any:
            partition = 99 if message.value == 2 else 0
            sends = await broker.prepare([Outgoing(message.value, results, partition=partition)])
            return await place.commit([message], sends)

        answers = await asyncio.gather(*map(commit, messages), return_exceptions=True)
    assert [isinstance(answer, BaseException) for answer in answers] == [False, False, True, False], answers
    assert sorted(message.value for message in await read_all(broker, results)) == [0, 1, 3]
    lag = await broker.admin.groups.lag("shop", topic)
    assert [partition.lag for partition in lag.partitions] == [0, 0, 1, 0]


async def test_a_zombie_cannot_commit(make_broker: Callable[..., KafkaBroker], broker: KafkaBroker, topic: str) -> None:
    results = f"{topic}-results"
    await broker.declare([Topic(results)])
    source = Source(topics=(topic,), group="shop", exactly_once=True)

    async def nothing(_change: Change) -> None:
        pass

    sends = await broker.prepare([Outgoing(1, results)])
    async with (
        make_broker(instance="one") as one,
        make_broker(instance="one") as two,
        one.engine.subscribe(source, nothing) as zombie,
    ):
        await broker.publish(1, topic)
        messages = await taken(zombie, 1)
        async with two.engine.subscribe(source, nothing) as heir:
            inherited = await taken(heir, 1)
            with pytest.raises(PartitionLostError):
                await zombie.commit(messages, sends)
            await heir.commit(inherited, sends)
        with pytest.raises(HeadwaterError):
            await taken(zombie, 1)
    assert len(await read_all(broker, results)) == 1


async def test_a_partition_that_moved_is_not_committed_by_who_had_it(
    make_broker: Callable[..., KafkaBroker], broker: KafkaBroker, topic: str
) -> None:
    results = f"{topic}-results"
    await broker.declare([Topic(results)])
    mine, theirs = list[Change](), list[Change]()
    async with make_broker() as other, reading(broker, topic, "shop", changes=mine) as place:
        await settled(lambda: len(held(mine)) == 4)
        await broker.publish_many([Outgoing(n, topic, partition=n) for n in range(4)])
        messages = {message.partition: message for message in await taken(place, 4)}
        async with reading(other, topic, "shop", changes=theirs):
            await settled(lambda: len(held(theirs)) == 2)
            moved = messages[min(held(theirs))[1]]
            sends = await broker.prepare([Outgoing(1, results)])
            with pytest.raises(PartitionLostError):
                await place.commit([moved], sends)
            kept = messages[min(held(mine))[1]]
            await place.commit([kept], sends)
    assert len(await read_all(broker, results)) == 1


# --- what is said -------------------------------------------------------------------------------------


async def test_the_library_writes_nothing_to_standard_error(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="headwater.kafka"), pytest.raises(HeadwaterError):
        await Broker("kafka://127.0.0.1:1").connect()
    assert "Connection refused" in caplog.text
    assert capfd.readouterr().err == ""


def test_options_and_addresses_are_checked_and_passwords_are_not_shown() -> None:
    broker = KafkaBroker("kafka+ssl://ann:p%40ss@h1:9093,h2?compression=zstd", sasl="scram-sha-512", tls_ca="ca.pem")
    settings = broker.engine.settings  # type: ignore[attr-defined]  # Kafka's
    config = settings.producer()
    assert config["bootstrap.servers"] == "h1:9093,h2:9092"
    assert (config["security.protocol"], config["sasl.mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (config["sasl.username"], config["sasl.password"], config["ssl.ca.location"]) == ("ann", "p@ss", "ca.pem")
    assert config["compression.type"] == "zstd"
    assert "p@ss" not in repr(broker) + repr(settings)
    assert "p%40ss" not in repr(broker)
    for url in ("kafka://h?colour=red", "kafka://h/topic", "kafka://h:port", "kafka://ann@h", "kafka://h?linger=long"):
        with pytest.raises(ConfigurationError):
            Broker(url)


async def test_anything_else_is_said_in_the_librarys_own_words(kafka_server: KafkaServer, topic: str) -> None:
    async with KafkaBroker(kafka_server.url, config={"acks": "1", "enable.idempotence": False}) as broker:
        assert (await broker.publish(1, topic)).offset == 0
