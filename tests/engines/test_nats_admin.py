"""Administration of JetStream: its effect, seen through nats-py, and what that client did, seen through ours."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.request import urlopen

import nats
import pytest
from nats.aio.client import Client as Foreigner
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.client import JetStreamContext

from engines.lagging import lag_is_right_under_load
from headwater import (
    AuthenticationError,
    Broker,
    ConfigurationError,
    ConnectError,
    GroupNotFoundError,
    Nats,
    NatsBroker,
    NotSupportedError,
    OffsetOutOfRangeError,
    Outgoing,
    Position,
    Topic,
    TopicNotFoundError,
)
from headwater.admin import Health
from headwater.engines.nats import JetStreamEngine
from headwater.testing.contract.tools import reading, settled, taken
from servers.nats import NatsServer
from servers.process import HOST, free_ports

pytestmark = [pytest.mark.anyio, pytest.mark.server]


@pytest.fixture
async def broker(nats_server: NatsServer) -> AsyncIterator[NatsBroker]:
    async with NatsBroker(nats_server.url) as broker:
        yield broker


@pytest.fixture
async def foreigner(nats_server: NatsServer) -> AsyncIterator[Foreigner]:
    """Another program on the same server, which knows nothing of Headwater."""
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


@pytest.fixture
def theirs(foreigner: Foreigner) -> JetStreamContext:
    return foreigner.jetstream()


@pytest.fixture
def topic() -> str:
    return f"t-{os.urandom(6).hex()}"


@pytest.fixture
def group() -> str:
    return f"g-{os.urandom(6).hex()}"


async def fill(broker: Broker, topic: str, count: int = 10) -> None:
    await broker.publish_many([Outgoing(n, topic) for n in range(count)])


# --- topics -------------------------------------------------------------------------------------------


async def test_a_topic_is_made_altered_and_deleted(broker: NatsBroker, theirs: JetStreamContext, topic: str) -> None:
    topics, option = broker.admin.topics, Nats(storage="memory", duplicates=10)
    await topics.create(topic, retention=timedelta(hours=1), retention_bytes=1 << 20, options=[option])
    config = (await theirs.stream_info(topic)).config
    assert (config.max_age, config.max_bytes, config.storage, config.duplicate_window) == (3600, 1 << 20, "memory", 10)
    await topics.alter(topic, retention=timedelta(seconds=5))
    config = (await theirs.stream_info(topic)).config
    assert (config.max_age, config.max_bytes, config.duplicate_window) == (5, -1, 5)
    await topics.delete(topic)
    with pytest.raises(nats.js.errors.NotFoundError):
        await theirs.stream_info(topic)
    for call in (topics.describe, topics.delete, topics.alter, topics.purge):
        with pytest.raises(TopicNotFoundError, match=topic):
            await call(topic)  # type: ignore[operator]  # each takes a name


async def test_a_topic_is_described_as_its_owner_made_the_stream(
    broker: NatsBroker, theirs: JetStreamContext, topic: str
) -> None:
    await theirs.add_stream(name=topic, subjects=[topic], max_age=60, discard="new", max_msgs=99)
    await fill(broker, topic, 3)
    info, state = await broker.admin.topics.describe(topic), (await theirs.stream_info(topic)).state
    assert (info.partitions, info.messages, info.size, info.replicas) == (1, 3, state.bytes, 1)
    assert (info.retention, info.retention_bytes, info.compacted) == (timedelta(minutes=1), None, False)
    wanted = {"subjects": topic, "max_age": "60s", "discard": "new", "max_msgs": "99", "storage": "file"}
    assert info.config.items() >= {"num_replicas": "1", **wanted}.items()


async def test_topics_of_one_stream_are_told_apart(broker: NatsBroker, theirs: JetStreamContext, topic: str) -> None:
    await theirs.add_stream(name=topic, subjects=[f"{topic}.>"])
    await fill(broker, f"{topic}.eu", 3)
    await fill(broker, f"{topic}.us", 2)
    info = await broker.admin.topics.describe(f"{topic}.us")
    assert (info.messages, info.size) == (2, None)  # the size is that of both
    (partition,) = await broker.admin.partitions.list(f"{topic}.us")
    assert (partition.earliest, partition.latest, partition.messages) == (1, 6, 2)
    await broker.admin.topics.purge(f"{topic}.us", before={0: 5})  # the first of its own two
    state = (await theirs.stream_info(topic, subjects_filter=">")).state
    assert (state.subjects, state.last_seq) == ({f"{topic}.eu": 3, f"{topic}.us": 1}, 5)
    await broker.admin.topics.purge(f"{topic}.us")
    assert (await theirs.stream_info(topic, subjects_filter=">")).state.subjects == {f"{topic}.eu": 3}
    with pytest.raises(TopicNotFoundError, match="nothing of it"):
        await broker.admin.topics.describe(f"{topic}.asia")


async def test_messages_are_purged_up_to_an_offset_or_a_time(
    broker: NatsBroker, theirs: JetStreamContext, topic: str
) -> None:
    topics = broker.admin.topics
    await fill(broker, topic)
    await topics.purge(topic, before={0: 4})
    state = (await theirs.stream_info(topic)).state
    assert (state.first_seq, state.last_seq) == (4, 10)
    await topics.purge(topic, before=datetime(2020, 1, 1, tzinfo=UTC))
    assert (await theirs.stream_info(topic)).state.messages == 7
    await topics.purge(topic, before=datetime.now(UTC) + timedelta(hours=1))
    assert (await theirs.stream_info(topic)).state.messages == 0
    await fill(broker, topic, 2)
    await topics.purge(topic, before={0: 99})  # more than there are
    state = (await theirs.stream_info(topic)).state
    assert (state.messages, state.last_seq) == (0, 12)
    await fill(broker, topic, 2)
    await topics.purge(topic)
    assert (await theirs.stream_info(topic)).state.messages == 0
    with pytest.raises(TopicNotFoundError, match=r"\[3\]"):
        await topics.purge(topic, before={3: 1})


async def test_a_partition_has_a_leader_and_copies_and_no_more_are_added(
    broker: NatsBroker, theirs: JetStreamContext, topic: str
) -> None:
    await fill(broker, topic)
    (partition,) = await broker.admin.partitions.list(topic)
    cluster = (await theirs.stream_info(topic)).cluster
    assert partition.leader == (cluster.leader if cluster else None)
    assert partition.replicas == (() if partition.leader is None else (partition.leader,))
    with pytest.raises(NotSupportedError, match="add_partitions"):
        await broker.admin.partitions.add(topic, 2)
    assert not broker.admin.capabilities["add_partitions"]


# --- groups -------------------------------------------------------------------------------------------


async def test_the_lag_is_what_waits_and_what_is_under_way(
    broker: NatsBroker, theirs: JetStreamContext, topic: str, group: str
) -> None:
    await fill(broker, topic)
    place = await theirs.pull_subscribe(topic, durable=group)
    for message in await place.fetch(4):
        if message.metadata.sequence.stream <= 3:
            await message.ack_sync()
    (lag,) = (await broker.admin.groups.lag(group, topic)).partitions
    assert (lag.committed, lag.latest, lag.lag) == (4, 11, 7)
    await broker.admin.topics.purge(topic, before={0: 8})  # what is under way, too
    assert (await broker.admin.groups.lag(group, topic)).total == 3
    info = await broker.admin.groups.describe(group)
    assert (info.topics, info.active) == ((topic,), False)
    for where in (topic, f"{topic}-no"):
        with pytest.raises(GroupNotFoundError, match=f"{group}-no"):
            await broker.admin.groups.lag(f"{group}-no", where)


async def test_the_lag_is_watched_with_its_rates(
    broker: NatsBroker, theirs: JetStreamContext, topic: str, group: str
) -> None:
    await fill(broker, topic)
    place = await theirs.pull_subscribe(topic, durable=group)
    watching = broker.admin.watch_lag(group, every=0.01)
    first = await anext(watching)
    for message in await place.fetch(4):
        await message.ack_sync()
    await fill(broker, topic, 2)
    second = await anext(watching)
    assert (first.total, first.published, second.total) == (10, None, 8)
    assert second.handled is not None
    assert second.published is not None
    assert second.handled == pytest.approx(2 * second.published)  # 4 and 2, in the same time


async def test_more_than_a_page_of_streams_and_groups_is_listed() -> None:
    async with NatsServer() as server, NatsBroker(server.url) as broker:
        client = await nats.connect(server.url)
        theirs, names = client.jetstream(), {f"s{n}" for n in range(300)}
        await asyncio.gather(*(theirs.add_stream(name=name, subjects=[name], storage="memory") for name in names))
        configs = [ConsumerConfig(durable_name=f"g{n}", mem_storage=True) for n in range(300)]
        await asyncio.gather(*(theirs.add_consumer("s0", config) for config in configs))
        assert {info.name for info in await broker.admin.topics.list()} == names
        assert {info.name for info in await broker.admin.groups.list()} == {f"g{n}" for n in range(300)}
        await client.close()


@pytest.mark.parametrize("policy", [DeliverPolicy.ALL, DeliverPolicy.NEW, DeliverPolicy.BY_START_SEQUENCE])
@pytest.mark.parametrize("able", [True, False], ids=["by the server", "made anew"])
async def test_a_group_is_moved(
    broker: NatsBroker,
    theirs: JetStreamContext,
    topic: str,
    group: str,
    policy: DeliverPolicy,
    able: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not able:
        monkeypatch.setattr("headwater.engines.nats.administration._RESET_SINCE", (99,))
    await fill(broker, topic)
    start = 6 if policy is DeliverPolicy.BY_START_SEQUENCE else None
    config = ConsumerConfig(deliver_policy=policy, opt_start_seq=start, max_deliver=7)
    await theirs.pull_subscribe(topic, durable=group, config=config)
    groups = broker.admin.groups

    async def next_for_them() -> int:
        place = await theirs.pull_subscribe_bind(group, topic)
        (message,) = await place.fetch(1)
        await message.nak()
        await settled(lambda: _is_given_back(theirs, topic, group))
        return int(message.data)

    before = (await theirs.consumer_info(topic, group)).num_pending
    for how, expected in (({"to": 3}, 2), ({"to": "earliest"}, 0), ({"shift": 5}, 5), ({"to": 9}, 8)):
        arguments: dict[str, Any] = how
        assert (await theirs.consumer_info(topic, group)).num_pending == before
        planned = await groups.reset(group, topic, dry_run=True, **arguments)
        assert await groups.reset(group, topic, **arguments) == planned == {0: expected + 1}
        info = await theirs.consumer_info(topic, group)
        before = info.num_pending
        assert (info.num_pending, info.num_ack_pending, info.config.max_deliver) == (10 - expected, 0, 7)
    await groups.reset(group, topic, to=datetime(2020, 1, 1, tzinfo=UTC))
    assert await next_for_them() == 0


async def _is_given_back(theirs: JetStreamContext, topic: str, group: str) -> bool:
    return (await theirs.consumer_info(topic, group)).num_waiting == 0


async def test_a_group_whose_members_are_busy_is_left_alone_and_they_are_named(
    broker: NatsBroker, nats_server: NatsServer, theirs: JetStreamContext, topic: str, group: str
) -> None:
    await fill(broker, topic, 3000)  # more than its member takes: it asks for nothing while it has enough
    async with reading(broker, topic, group, start="earliest") as place, NatsBroker(nats_server.url) as other:
        first = await taken(place, 1)
        (consumer,) = await theirs.consumers_info(topic)
        assert consumer.num_waiting == 0  # the server would not know
        (member,) = (await other.admin.groups.describe(group)).members
        assert (member.client, member.partitions) == ("headwater", ((topic, 0),))
        for call in (other.admin.groups.reset(group, topic, to="latest"), other.admin.groups.delete(group)):
            with pytest.raises(ConfigurationError, match=rf"{group}.*1 live member.*headwater on {topic}.*stop them"):
                await call
        await place.ack(first)
    await broker.admin.groups.delete(group)
    assert await theirs.consumers_info(topic) == []
    with pytest.raises(GroupNotFoundError, match=group):
        await broker.admin.groups.delete(group)


async def test_members_of_others_are_seen_while_they_wait(
    broker: NatsBroker, theirs: JetStreamContext, topic: str, group: str
) -> None:
    await broker.declare([Topic(topic)])
    place = await theirs.pull_subscribe(topic, durable=group)
    waiting = asyncio.create_task(place.fetch(1, timeout=20))

    async def is_refused() -> bool:
        return (await broker.admin.groups.describe(group)).active

    await settled(is_refused)
    with pytest.raises(ConfigurationError, match="1 waiting"):
        await broker.admin.groups.reset(group, topic, to="earliest")
    await broker.publish(1, topic)
    assert len(await waiting) == 1


async def test_lag_is_right_under_load(broker: NatsBroker, topic: str, group: str) -> None:
    await broker.declare([Topic(topic)])
    await lag_is_right_under_load(broker, topic, group, 5000, behind=0.3)


# --- the cluster --------------------------------------------------------------------------------------


async def test_the_cluster_is_as_the_server_says(broker: NatsBroker, foreigner: Foreigner) -> None:
    found = await broker.admin.cluster.describe()
    (node,) = found.nodes
    version = foreigner.connected_server_version
    assert found.version.startswith(f"{version.major}.{version.minor}.{version.patch}")
    assert (node.address, node.controller) == (foreigner.connected_url.netloc, True)  # type: ignore[union-attr]
    assert (await broker.admin.cluster.health()).healthy


async def test_what_is_wrong_with_a_cluster_is_said(broker: NatsBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [
        {"cluster": {"leader": "a", "replicas": [{"name": "b", "current": False}, {"name": "c", "current": True}]}},
        {"cluster": {"replicas": [{"name": "b", "current": True, "offline": True}]}},
    ]
    answers = {
        "STREAM.LIST": {
            "total": 2,
            "streams": [{"config": {"name": f"S{n}"}, "state": {}, **stream} for n, stream in enumerate(streams)],
        },
        "INFO": {"storage": 95, "streams": 3, "limits": {"max_storage": 100, "max_streams": -1}},
    }

    async def ask(subject: str, question: Any = None, within: float = 0) -> Any:
        return answers[subject]

    engine = broker.engine
    assert isinstance(engine, JetStreamEngine)
    monkeypatch.setattr(engine.api, "ask", ask)
    assert await broker.admin.cluster.health() == Health(
        (
            "the account has 95 of 100 storage: purge, or raise its limit",
            "b, which keeps the stream S0, is away or behind",
            "the stream S1 has no leader",
            "b, which keeps the stream S1, is away or behind",
        )
    )


async def test_a_cluster_that_lost_most_of_its_servers_is_not_well() -> None:
    ports = free_ports(3)
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    clustered = [f'cluster {{ name: c, listen: "127.0.0.1:{port}", routes: [{routes}] }}' for port in ports]
    nodes = [NatsServer(extra=[f"server_name: n{n}", line]) for n, line in enumerate(clustered)]
    async with AsyncExitStack() as stack:
        await asyncio.gather(*map(stack.enter_async_context, nodes))
        await settled(lambda: all(_is_led(node) for node in nodes))
        url = f"nats://{','.join(node.address for node in nodes)}"
        broker = await stack.enter_async_context(NatsBroker(url, replicas=3))
        await broker.publish(1, "orders", timeout=10)
        health = broker.admin.watch_cluster(every=0.1)
        async with asyncio.timeout(45):
            while not (await anext(health)).healthy:
                pass  # the copies are being made
            await nodes[0].kill()
            while "n0, which keeps the stream orders, is away or behind" not in (await anext(health)).problems:
                pass  # another one is being elected
            await nodes[1].kill()
            while "most of its servers are away" not in "".join((await anext(health)).problems):
                pass  # the one that is left waits for the others


def _is_led(server: NatsServer) -> bool:
    with urlopen(f"http://{HOST}:{server.monitor_port}/jsz") as answer:
        return bool(json.load(answer).get("meta_cluster", {}).get("leader"))


async def test_an_account_that_is_nearly_full_is_a_problem_and_so_is_a_server_that_is_away() -> None:
    limits = 'accounts { A { jetstream { max_streams: 1 }, users: [ { user: "anne", password: "secret" } ] } }'
    async with (
        NatsServer(extra=[limits]) as server,
        Broker(f"nats://anne:secret@{server.address}") as broker,
    ):
        watching = broker.admin.watch_cluster(every=0.05)
        assert (await anext(watching)).healthy
        await broker.declare([Topic("orders")])
        (problem,) = (await anext(watching)).problems
        assert "1 of 1 streams" in problem
        await server.stop()
        (problem,) = (await anext(watching)).problems
        assert "no answer" in problem
        await server.start()
        (problem,) = (await anext(watching)).problems
        assert "1 of 1 streams" in problem


async def test_who_may_not_is_told_what_and_where() -> None:
    deny = [f"$JS.API.{what}.>" for what in ("STREAM.INFO", "STREAM.CREATE", "CONSUMER.LIST")]
    users = f"""[ {{ user: "owner", password: "secret" }},
        {{ user: "anne", password: "secret", permissions: {{ publish: {{ deny: {json.dumps(deny)} }} }} }} ]"""
    async with (
        NatsServer(extra=[f"authorization {{ users: {users} }}"]) as server,
        Broker(f"nats://owner:secret@{server.address}") as owner,
        Broker(f"nats://anne:secret@{server.address}") as broker,
        asyncio.timeout(5),
    ):
        await owner.publish(1, "orders")
        for call, subject in (
            (anext(broker.stream("orders", start="earliest")), "STREAM.INFO.orders"),
            (broker.admin.topics.describe("orders"), "STREAM.INFO.orders"),
            (broker.admin.topics.create("others"), "STREAM.CREATE.others"),
            (broker.admin.groups.list(), "CONSUMER.LIST.orders"),
            (broker.admin.groups.reset("shop", "orders", to="latest"), "STREAM.INFO.orders"),
            (broker.admin.groups.delete("shop"), "CONSUMER.LIST.orders"),
        ):
            with pytest.raises(AuthenticationError, match=rf"may not publish to \$JS.API.{subject}: give it"):
                await call


async def test_a_server_that_hangs_is_an_error_in_time(topic: str, group: str) -> None:
    async with NatsServer() as server, NatsBroker(server.url) as broker, asyncio.timeout(20):
        await broker.publish(1, topic)
        await broker.get(topic, group=group, timeout=10)
        admin = broker.admin
        server.pause()
        health, *said = await asyncio.gather(
            admin.cluster.health(),
            admin.topics.list(),
            admin.topics.describe(topic),
            admin.topics.create(f"{topic}-new"),
            admin.topics.purge(topic),
            admin.groups.list(),
            admin.groups.lag(group),
            admin.groups.reset(group, topic, to="latest"),
            admin.groups.delete(group),
            admin.cluster.describe(),
            return_exceptions=True,
        )
        server.resume()
        assert isinstance(health, Health)
        assert all(isinstance(error, ConnectError) for error in said)
        assert all(server.address in text and "no answer" in text for text in (*health.problems, *map(str, said)))


# --- streams ------------------------------------------------------------------------------------------


async def test_an_offset_out_of_range_says_what_there_is(broker: NatsBroker, topic: str) -> None:
    await fill(broker, topic)
    await broker.admin.topics.purge(topic, before={0: 3})
    for start in (2, 12):
        with pytest.raises(OffsetOutOfRangeError, match=rf"offset {start} of '{topic}'\[0\].*3 up to.*11"):
            await anext(broker.stream(topic, start=start))
    async with broker.stream(topic, start=3) as stream:
        assert (await anext(stream)).value == 2
        with pytest.raises(OffsetOutOfRangeError):
            await stream.seek(Position(topic, 0, 99))
        assert (await anext(stream)).value == 3  # it stayed where it was


async def test_a_stream_ends_when_its_topic_is_deleted(
    broker: NatsBroker, theirs: JetStreamContext, topic: str
) -> None:
    await fill(broker, topic)
    async with broker.stream(topic, start="earliest") as stream, asyncio.timeout(15):
        assert [(await anext(stream)).value for _ in range(10)] == list(range(10))
        await theirs.delete_stream(topic)
        with pytest.raises(TopicNotFoundError, match=f"{topic}.*deleted while it was read"):
            await anext(stream)


async def test_a_cancelled_stream_leaves_nothing_behind(
    broker: NatsBroker, theirs: JetStreamContext, topic: str
) -> None:
    async def read() -> None:
        async with broker.stream(topic, start="earliest") as stream:
            async for message in stream:
                seen.append(message.value)

    await fill(broker, topic)
    assert await theirs.consumers_info(topic) == []  # from now on their client has its own task
    engine: Any = broker.engine
    tasks, routes, seen = asyncio.all_tasks(), len(engine.connection._routes), list[int]()
    reader = asyncio.create_task(read())
    await settled(lambda: len(seen) == 10)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert reader.cancelled()
    assert await theirs.consumers_info(topic) == []
    assert len(engine.connection._routes) == routes
    assert asyncio.all_tasks() <= tasks
    async with broker.stream(topic, start="earliest", limit=10) as stream:
        assert [message.value async for message in stream] == list(range(10))


async def test_a_stream_goes_on_after_the_server_was_away(topic: str) -> None:
    async with NatsServer() as server, Broker(server.url) as broker, asyncio.timeout(20):
        await fill(broker, topic, 4)
        async with broker.stream(topic, start="earliest") as stream:
            seen = [(await anext(stream)).value for _ in range(2)]
            await server.kill()
            await settled(lambda: not broker.engine.available)
            waiting = asyncio.create_task(_rest(stream, 3))
            await server.start()
            await broker.publish("back", topic, timeout=10)
            assert [*seen, *await waiting] == [0, 1, 2, 3, "back"]


async def _rest(stream: Any, count: int) -> list[Any]:
    return [(await anext(stream)).value for _ in range(count)]


async def test_a_slow_reader_holds_little(broker: NatsBroker, theirs: JetStreamContext, topic: str) -> None:
    await broker.publish_many([Outgoing(b"x" * 100, topic) for _ in range(5000)], timeout=20)
    async with broker.stream(topic, start="earliest") as stream:
        await anext(stream)
        await broker.admin.topics.list()  # by now all that was asked for has come
        (consumer,) = await theirs.consumers_info(topic)
        place: Any = stream._subscription
        assert place._room <= consumer.delivered.consumer_seq <= 2 * place._room + 500
        assert len(stream._ahead) < 500


async def test_a_topic_is_read_in_batches_from_any_place(broker: NatsBroker, topic: str) -> None:
    await fill(broker, topic)
    moment = datetime.now(UTC)
    await broker.publish("later", topic)

    async def read(start: Any, **options: Any) -> list[Any]:
        stream = broker.stream(topic, start=start, **options)
        return [message.value async for batch in stream.batches(4) for message in batch]

    assert await read("earliest", partitions=[0], limit=11) == [*range(10), "later"]
    assert await read(8, limit=3) == [7, 8, 9]
    assert await read({0: 10}, until=lambda message: message.value == "later") == [9]
    assert await read(moment, limit=1) == ["later"]
    assert await asyncio.gather(read(1, limit=2), read(3, limit=2)) == [[0, 1], [2, 3]]
    with pytest.raises(NotSupportedError, match="one"):
        await read("earliest", partitions=[1])


async def test_a_stream_is_paused_resumed_sought_and_taken_up_elsewhere(broker: NatsBroker, topic: str) -> None:
    await fill(broker, topic)
    async with broker.stream(topic, start="earliest") as stream, asyncio.timeout(20):
        assert [(await anext(stream)).value for _ in range(2)] == [0, 1]
        stream.pause()
        waiting = asyncio.create_task(anext(stream))
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
        stream.resume()
        assert (await waiting).value == 2
        await stream.seek(5)
        assert (await anext(stream)).value == 4
    (place,) = stream.position

    def go_on() -> list[Any]:
        return [message.value for message in broker.sync.stream(topic, start=6, limit=2)]

    assert place == Position(topic, 0, 6)
    assert await asyncio.to_thread(go_on) == [5, 6]


async def test_get_takes_one_message_with_a_group_and_without(
    broker: NatsBroker, theirs: JetStreamContext, topic: str, group: str
) -> None:
    await fill(broker, topic, 2)
    message = await broker.get(topic, group=group, timeout=10)
    assert message is not None
    assert message.value == 0
    (consumer,) = await theirs.consumers_info(topic)
    await settled(lambda: _has_acknowledged(theirs, topic, consumer.name))
    assert await broker.get(topic, timeout=0.05) is None
    with pytest.raises(TopicNotFoundError, match=f"{topic}-no"):
        await broker.get(f"{topic}-no", timeout=0.05)


async def _has_acknowledged(theirs: JetStreamContext, topic: str, consumer: str) -> bool:
    """The first of two; the other was not given to anybody yet, or was and came back."""
    info = await theirs.consumer_info(topic, consumer)
    return (info.ack_floor.stream_seq, (info.num_pending or 0) + (info.num_ack_pending or 0)) == (1, 1)
