"""Administration of RabbitMQ, looked at with other clients: AMQP, the management API and rabbitmqctl."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import aio_pika
import pytest

from headwater import (
    AuthenticationError,
    Broker,
    ConfigurationError,
    ConnectError,
    GroupNotFoundError,
    NotSupportedError,
    OffsetOutOfRangeError,
    Outgoing,
    Position,
    Rabbit,
    RabbitBroker,
    Topic,
    TopicNotFoundError,
)
from headwater.cli import main
from headwater.engines.rabbit import management
from headwater.engines.rabbit import server as connected
from headwater.engines.rabbit.names import takes
from headwater.engines.rabbit.policies import Kept, definition_of, kept, policy_of
from headwater.testing.contract.tools import published_around, reading, settled, taken
from servers.fixtures import require
from servers.process import HOST
from servers.proxy import Proxy
from servers.rabbit import RabbitServer
from waiting import until

from .lagging import lag_is_right_under_load

pytestmark = pytest.mark.server

Foreign = aio_pika.abc.AbstractChannel
STREAM = (Rabbit(queue_type="stream"),)


@pytest.fixture
def topic() -> str:
    """A topic nobody else uses."""
    return f"t-{os.urandom(6).hex()}"


@pytest.fixture
async def broker(rabbit_server: RabbitServer) -> AsyncIterator[Broker]:
    async with RabbitBroker(rabbit_server.url, management=rabbit_server.management_url) as broker:
        yield broker


@pytest.fixture
async def foreign(rabbit_server: RabbitServer) -> AsyncIterator[Foreign]:
    """A channel of another program."""
    async with await aio_pika.connect(rabbit_server.url) as connection:
        yield await connection.channel()


def api(server: RabbitServer, method: str, path: str, body: Any = None) -> Any:
    """What the management API says to another program; None for what is not there."""
    token = base64.b64encode(b"guest:guest").decode()
    headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"http://{HOST}:{server.management_port}/api/{path}", data, headers, method=method)
    try:
        with urlopen(request) as answer:
            said = answer.read()
    except HTTPError as error:
        if error.code == 404:
            return None
        raise
    return json.loads(said) if said else None


async def fill(broker: Broker, topic: str, count: int) -> None:
    """The numbers from 0 on, kept by a stream."""
    await broker.declare([Topic(topic, options=STREAM)])
    await broker.publish_many([Outgoing(n, topic) for n in range(count)])


def retention_of(server: RabbitServer, topic: str) -> str:
    """By what the server itself retains the stream."""
    return server.control(
        "eval",
        f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{topic}">>)), '
        "proplists:get_value(effective_policy_definition, rabbit_stream_queue:info(Q, [effective_policy_definition])).",
    )


# --- topics -------------------------------------------------------------------------------------------


async def test_a_topic_is_described_in_the_words_of_the_server(broker: Broker, topic: str) -> None:
    await broker.admin.topics.create(topic, options=[Rabbit(exchange_type="fanout")])
    info = await broker.admin.topics.describe(topic)
    assert (info.name, info.messages, info.size, info.retention, info.replicas) == (topic, 0, None, None, None)
    assert info.config == {"type": "fanout", "durable": "true", "auto_delete": "false", "internal": "false"}


async def test_a_stream_has_its_retention_its_copies_and_its_messages(
    rabbit_server: RabbitServer, broker: Broker, topic: str
) -> None:
    await broker.admin.topics.create(topic, retention=timedelta(hours=2), retention_bytes=10**9, options=list(STREAM))
    await broker.publish_many([Outgoing(n, topic) for n in range(5)])
    (partition,) = await broker.admin.partitions.list(topic)
    assert (partition.earliest, partition.latest, partition.messages) == (0, 5, 5)
    path = f"queues/%2F/{topic}"
    told: dict[str, Any] = {}

    def are_told() -> bool:  # its statistics come piece by piece
        told.update(api(rabbit_server, "GET", path))
        return told.get("messages") == 5 and "members" in told

    await until(are_told, within=20)
    info = await broker.admin.topics.describe(topic)
    assert (info.messages, info.replicas) == (5, 1)
    assert (info.retention, info.retention_bytes) == (timedelta(hours=2), 10**9)
    assert info.config["x-max-age"] == told["arguments"]["x-max-age"] == "7200s"
    assert info in [found if found.name != topic else info for found in await broker.admin.topics.list()]
    (partition,) = await broker.admin.partitions.list(topic)
    assert (partition.leader, partition.replicas) == (told["node"], tuple(told["members"]))


@pytest.mark.parametrize("made_with", [None, timedelta(hours=1)])
async def test_a_stream_keeps_for_longer_or_shorter_or_for_ever(
    rabbit_server: RabbitServer, broker: Broker, topic: str, made_with: timedelta | None
) -> None:
    topics = broker.admin.topics
    await topics.create(topic, retention=made_with, options=list(STREAM))
    for age, size in ((timedelta(minutes=5), None), (timedelta(days=3), 5_000_000), (None, None)):
        await topics.alter(topic, retention=age, retention_bytes=size)
        info = await topics.describe(topic)
        assert (info.retention, info.retention_bytes) == (age, size)
        policy = api(rabbit_server, "GET", f"policies/%2F/headwater.{topic}")
        if age is not None:
            assert policy["definition"]["max-age"] == f"{age.total_seconds():.0f}s"
            assert f'"{age.total_seconds():.0f}s"' in retention_of(rabbit_server, topic)
        else:
            assert (policy is None) == (made_with is None)
    await topics.alter(topic, retention=timedelta(hours=3))
    await topics.delete(topic)
    assert api(rabbit_server, "GET", f"policies/%2F/headwater.{topic}") is None
    assert api(rabbit_server, "GET", f"queues/%2F/{topic}") is None
    assert api(rabbit_server, "GET", f"exchanges/%2F/{topic}") is None


async def test_the_policy_of_an_operator_is_left_alone(rabbit_server: RabbitServer, broker: Broker, topic: str) -> None:
    await broker.admin.topics.create(topic, options=list(STREAM))
    policy = {"pattern": f"^{topic[:6]}", "definition": {"max-age": "7D"}, "apply-to": "queues", "priority": 3}
    api(rabbit_server, "PUT", f"policies/%2F/ops-{topic}", policy)
    try:
        assert (await broker.admin.topics.describe(topic)).retention == timedelta(days=7)
        with pytest.raises(ConfigurationError, match=rf"'ops-{topic}' decides.*change it"):
            await broker.admin.topics.alter(topic, retention=timedelta(days=1))
    finally:
        api(rabbit_server, "DELETE", f"policies/%2F/ops-{topic}")


async def test_what_a_topic_that_keeps_nothing_cannot_is_refused(broker: Broker, topic: str) -> None:
    await broker.admin.topics.create(topic)
    for call in (
        broker.admin.topics.alter(topic, retention=timedelta(days=1)),
        broker.admin.partitions.list(topic),
    ):
        with pytest.raises(NotSupportedError, match=rf'{topic}.*queue_type="stream"'):
            await call


# --- purging ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["quorum", "classic"])
async def test_a_purge_empties_the_queues_of_all_groups(
    rabbit_server: RabbitServer, broker: Broker, foreign: Foreign, topic: str, kind: Any
) -> None:
    async with RabbitBroker(rabbit_server.url, queue_type=kind, management=rabbit_server.management_url) as mine:
        for group in ("a", "b"):
            async with reading(mine, topic, group):
                pass
        await mine.publish_many([Outgoing(n, topic) for n in range(5)])
        await mine.admin.topics.purge(topic)
        for group in ("a", "b"):
            queue = await foreign.declare_queue(f"{topic}:{group}", passive=True)
            assert queue.declaration_result.message_count == 0


async def test_what_a_purge_cannot_be_for_is_refused(broker: Broker, foreign: Foreign, topic: str) -> None:
    async with reading(broker, topic, "shop"):
        pass
    await broker.publish(1, topic)
    with pytest.raises(NotSupportedError, match="emptied whole"):
        await broker.admin.topics.purge(topic, before=datetime.now(UTC))
    async with reading(broker, f"{topic}.{{kind}}", "all"):
        await broker.publish(1, f"{topic}.eu")
        with pytest.raises(NotSupportedError, match=rf"'all' has it in one queue with other topics of '{topic}\.\*'"):
            await broker.admin.topics.purge(f"{topic}.eu")
    queue = await foreign.declare_queue(f"{topic}:shop", passive=True)
    assert queue.declaration_result.message_count == 1
    await broker.admin.topics.create(f"{topic}-kept", options=list(STREAM))
    with pytest.raises(NotSupportedError, match=r"shorten its retention with topics\.alter"):
        await broker.admin.topics.purge(f"{topic}-kept")


# --- groups -------------------------------------------------------------------------------------------


async def test_the_lag_is_what_waits_and_what_is_unacknowledged(broker: Broker, foreign: Foreign, topic: str) -> None:
    async with reading(broker, topic, "shop") as place, reading(broker, f"{topic}-too", "shop"):
        await broker.publish_many([Outgoing(n, topic) for n in range(7)])
        await place.ack((await taken(place, 3))[:2])
        await settled(lambda: _lag_is(broker, "shop", topic, 5))
        lag = await broker.admin.groups.lag("shop", topic)
        assert [(one.topic, one.lag) for one in lag.partitions] == [(topic, 5)]
    await settled(lambda: _lag_is(broker, "shop", topic, 5))
    queue = await foreign.declare_queue(f"{topic}:shop", passive=True)
    assert queue.declaration_result.message_count == 5


async def _lag_is(broker: Broker, group: str, topic: str, count: int) -> bool:
    return (await broker.admin.groups.lag(group, topic)).total == count


async def test_the_lag_of_a_queue_that_was_just_made_is_no_guess(broker: Broker, topic: str) -> None:
    group = f"new-{topic}"
    async with reading(broker, topic, group):
        pass
    await broker.publish_many([Outgoing(n, topic) for n in range(4)])
    found = await broker.admin.groups.lag(group)
    assert found.total in range(5)  # it was counted, at some time since
    await until(lambda: _lag_is(broker, group, topic, 4), within=10)


async def test_members_are_those_that_consume_and_what_they_hold(
    rabbit_server: RabbitServer, broker: Broker, topic: str
) -> None:
    group = f"g-{topic}"
    async with reading(broker, topic, group), reading(broker, f"{topic}-too", group):

        async def are_seen() -> bool:
            return len((await broker.admin.groups.describe(group)).members) == 1

        await until(are_seen, within=10)
        (member,) = (await broker.admin.groups.describe(group)).members
        assert member.partitions == ((topic, 0), (f"{topic}-too", 0))
        assert member.id in {connection["name"] for connection in api(rabbit_server, "GET", "connections")}
        with pytest.raises(ConfigurationError, match=rf"'{group}' has live members \({member.id}\): stop them"):
            await broker.admin.groups.delete(group)
    await broker.admin.groups.delete(group)
    assert api(rabbit_server, "GET", f"queues/%2F/{quote(f'{topic}:{group}')}") is None


# --- offsets of streams -------------------------------------------------------------------------------


async def test_a_moment_is_an_offset_of_a_stream(broker: Broker, topic: str) -> None:
    await broker.declare([Topic(topic, options=STREAM)])
    admin: Any = broker.engine.admin
    before = datetime.now(UTC)
    await published_around(broker, topic)
    assert await admin.offsets_at(topic, before) == {0: 0}
    assert await admin.offsets_at(topic, datetime.now(UTC) + timedelta(hours=1)) == {0: 6}
    with pytest.raises(TopicNotFoundError):
        await admin.offsets_at(f"{topic}-nowhere", before)


async def test_an_offset_out_of_range_says_what_there_is(broker: Broker, topic: str) -> None:
    await fill(broker, topic, 3)
    with pytest.raises(OffsetOutOfRangeError, match=rf"offset 4 of '{topic}'\[0\].*0 up to.*3"):
        await anext(broker.stream(topic, start=4, options=list(STREAM)))
    async with broker.stream(topic, start=1, options=list(STREAM)) as stream:
        assert (await anext(stream)).value == 1
        with pytest.raises(OffsetOutOfRangeError):
            await stream.seek(99)
        assert (await anext(stream)).value == 2  # it stayed where it was
    async with broker.stream(topic, start=3, options=list(STREAM)) as stream:
        await broker.publish("next", topic)
        assert (await asyncio.wait_for(anext(stream), 10)).value == "next"


async def test_a_stream_ends_when_its_topic_is_deleted(
    rabbit_server: RabbitServer, broker: Broker, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR", "aiormq")
    await fill(broker, topic, 10)
    async with broker.stream(topic, start="earliest", options=list(STREAM)) as stream, asyncio.timeout(15):
        assert len([await anext(stream) for _ in range(10)]) == 10
        await broker.admin.topics.delete(topic)
        with pytest.raises(TopicNotFoundError, match=rf"{topic}.*deleted while it was read"):
            await anext(stream)
    assert api(rabbit_server, "GET", f"queues/%2F/{topic}") is None  # whoever reads makes none


async def test_a_topic_that_is_made_again_under_its_reader_is_read_from_its_beginning(
    broker: Broker, topic: str
) -> None:
    await fill(broker, topic, 2)
    async with broker.stream(topic, start="earliest", options=list(STREAM)) as stream, asyncio.timeout(15):
        assert len([await anext(stream) for _ in range(2)]) == 2
        await broker.admin.topics.delete(topic)
        await fill(broker, topic, 1)
        assert ((await anext(stream)).value, stream.position) == (0, (Position(topic, 0, 1),))


async def test_a_cancelled_stream_leaves_nothing_behind(broker: Broker, foreign: Foreign, topic: str) -> None:
    async def read() -> None:
        async with broker.stream(topic, start="earliest", options=list(STREAM)) as stream:
            async for message in stream:
                seen.append(message.value)

    async def is_left() -> bool:
        queue = await foreign.declare_queue(topic, passive=True)
        return not queue.declaration_result.consumer_count

    await fill(broker, topic, 10)
    await broker.admin.partitions.list(topic)  # from now on there is a connection that reads
    tasks, seen = asyncio.all_tasks(), list[int]()
    reader = asyncio.create_task(read())
    await settled(lambda: len(seen) == 10)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert reader.cancelled()
    await settled(is_left)
    assert asyncio.all_tasks() <= tasks


async def test_a_slow_reader_holds_little(broker: Broker, topic: str) -> None:
    await broker.declare([Topic(topic, options=STREAM)])
    await broker.publish_many([Outgoing(b"x" * 100, topic) for _ in range(5000)], timeout=20)
    async with broker.stream(topic, start="earliest", options=list(STREAM)) as stream:
        await anext(stream)
        await broker.admin.partitions.list(topic)  # by now all that was asked for has come
        place: Any = stream._subscription
        assert len(place._inbox) + len(stream._ahead) < 1500


async def test_a_reader_of_a_deleted_stream_goes_on_when_it_is_made_again(
    broker: Broker, foreign: Foreign, topic: str
) -> None:
    await broker.declare([Topic(topic, options=STREAM)])
    await broker.publish_many([Outgoing(n, topic) for n in range(10)])
    async with broker.stream(topic, start="earliest", options=list(STREAM)) as stream:
        assert [(await anext(stream)).value for _ in range(10)] == list(range(10))
        await foreign.queue_delete(topic)

        async def is_back() -> bool:
            try:
                return (await broker.admin.partitions.list(topic))[0].latest == 0
            except (TopicNotFoundError, NotSupportedError):
                return False

        await until(is_back, within=15)
        await broker.publish_many([Outgoing(n, topic) for n in range(10, 13)])
        got = [(await asyncio.wait_for(anext(stream), 10)) for _ in range(3)]
        assert [(message.value, message.offset) for message in got] == [(10, 0), (11, 1), (12, 2)]


# --- health -------------------------------------------------------------------------------------------


async def test_the_cluster_is_as_the_server_says(rabbit_server: RabbitServer, broker: Broker) -> None:
    found, told = await broker.admin.cluster.describe(), api(rabbit_server, "GET", "overview")
    (node,) = found.nodes
    assert (found.version, node.id, node.controller) == (told["rabbitmq_version"], told["node"], True)


async def test_an_alarm_is_a_problem_with_a_name(rabbit_server: RabbitServer, broker: Broker) -> None:
    assert (await broker.admin.cluster.health()).healthy
    rabbit_server.control("set_disk_free_limit", "900000000000000")
    try:

        async def is_seen() -> bool:
            return any("short of disk" in problem for problem in (await broker.admin.cluster.health()).problems)

        await until(is_seen, within=20)
    finally:
        rabbit_server.control("set_disk_free_limit", "50MB")

    async def is_well() -> bool:
        return (await broker.admin.cluster.health()).healthy

    await until(is_well, within=20)


async def test_a_cluster_that_lost_most_of_its_servers_says_which_and_what_stands_still() -> None:
    require("rabbit")
    first = RabbitServer()
    nodes = [first, RabbitServer(beside=first), RabbitServer(beside=first)]
    formation = [f"cluster_formation.classic_config.nodes.{n} = {node.node}" for n, node in enumerate(nodes)]
    for node in nodes:
        node.extra += ["cluster_formation.peer_discovery_backend = classic_config", *formation]
    async with AsyncExitStack() as stack:
        await asyncio.gather(*map(stack.enter_async_context, nodes))
        broker = await stack.enter_async_context(RabbitBroker(first.url, management=first.management_url))
        assert {node.id for node in (await broker.admin.cluster.describe()).nodes} == {node.node for node in nodes}
        async with reading(broker, "orders", "shop"):
            pass
        assert (await broker.admin.cluster.health()).healthy
        wanted = [f"{node.node} is not running" for node in nodes[1:]]
        wanted += ["queue orders:shop has no majority: 1 of its 3 copies are there"]

        async def are_told(problems: list[str]) -> bool:
            return sorted((await broker.admin.cluster.health()).problems) == sorted(problems)

        await nodes[1].kill()
        await until(lambda: are_told(wanted[:1]), within=20)
        await nodes[2].kill()
        await until(lambda: are_told(wanted), within=20)


# --- names, permissions, absences ---------------------------------------------------------------------


async def test_wrong_names_are_named(broker: Broker, topic: str) -> None:
    await broker.admin.topics.create(topic)
    async with reading(broker, f"{topic}-too", "shop"):
        pass
    admin, wrong = broker.admin, f"{topic}-nowhere"
    for call in (
        admin.topics.describe(wrong),
        admin.topics.alter(wrong),
        admin.topics.delete(wrong),
        admin.topics.purge(wrong),
        admin.partitions.list(wrong),
        admin.groups.lag("shop", wrong),
    ):
        with pytest.raises(TopicNotFoundError, match=wrong):
            await call
    for call in (admin.groups.lag(wrong), admin.groups.describe(wrong), admin.groups.delete(wrong)):
        with pytest.raises(GroupNotFoundError, match=wrong):
            await call
    with pytest.raises(GroupNotFoundError, match=f"'shop' on topic '{topic}'"):
        await admin.groups.lag("shop", topic)


def test_the_shell_knows_the_names_that_are_near(
    rabbit_server: RabbitServer, topic: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["headwater"])
    api(rabbit_server, "PUT", f"exchanges/%2F/{topic}", {"type": "topic", "durable": True})
    target = f"{rabbit_server.url}?management={quote(rabbit_server.management_url, safe='')}"
    with pytest.raises(SystemExit):
        main(["topics", "show", target, topic[:-1]])
    assert f"there is no topic '{topic[:-1]}': did you mean '{topic}'?" in capsys.readouterr().err


def test_the_shell_shows_a_topic_that_keeps_nothing(
    rabbit_server: RabbitServer, topic: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["headwater"])
    api(rabbit_server, "PUT", f"exchanges/%2F/{topic}", {"type": "topic", "durable": True})
    target = f"{rabbit_server.url}?management={quote(rabbit_server.management_url, safe='')}"
    with pytest.raises(SystemExit) as ended:
        main(["topics", "show", target, topic, "--json"])
    assert not ended.value.code
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["offsets"], shown["config"]["type"]) == (topic, [], "topic")


@contextmanager
def user(server: RabbitServer, tags: str, *, configure: str = ".*", read: str = ".*") -> Iterator[str]:
    """A user with these tags, until the end."""
    name = f"ann-{os.urandom(4).hex()}"
    api(server, "PUT", f"users/{name}", {"password": "secret", "tags": tags})
    api(server, "PUT", f"permissions/%2F/{name}", {"configure": configure, "write": ".*", "read": read})
    yield name
    api(server, "DELETE", f"users/{name}")


def broker_of(server: RabbitServer, name: str) -> Broker:
    url = f"http://{HOST}:{server.management_port}"
    return RabbitBroker(f"amqp://{name}:secret@{server.address}/", management=url)


async def test_a_user_without_a_tag_is_told_which(rabbit_server: RabbitServer, broker: Broker, topic: str) -> None:
    await broker.admin.topics.create(topic, options=list(STREAM))
    with user(rabbit_server, "") as ann:
        async with broker_of(rabbit_server, ann) as hers:
            with pytest.raises(AuthenticationError, match="give this user the tag management"):
                await hers.admin.topics.list()
    with user(rabbit_server, "management") as ann:
        async with broker_of(rabbit_server, ann) as hers:
            assert topic in {info.name for info in await hers.admin.topics.list()}
            with pytest.raises(AuthenticationError, match="give this user the tag monitoring"):
                await hers.admin.cluster.health()
            with pytest.raises(AuthenticationError, match="give this user the tag policymaker"):
                await hers.admin.topics.alter(topic, retention=timedelta(days=1))
    async with RabbitBroker(
        rabbit_server.url, management=f"http://guest:wrong@{HOST}:{rabbit_server.management_port}"
    ) as b:
        with pytest.raises(AuthenticationError, match="Login failed"):
            await b.admin.topics.list()


async def test_a_user_who_may_not_configure_is_told_of_what(rabbit_server: RabbitServer, topic: str) -> None:
    with user(rabbit_server, "management", configure="^$") as ann:
        async with broker_of(rabbit_server, ann) as hers:
            with pytest.raises(AuthenticationError, match=rf"access to exchange '{topic}'.*set_permissions"):
                await hers.admin.topics.create(topic)


async def test_a_user_who_may_not_read_a_stream_is_told_of_what(
    rabbit_server: RabbitServer, broker: Broker, topic: str
) -> None:
    await fill(broker, topic, 1)
    with user(rabbit_server, "", read="^$") as ann:
        async with broker_of(rabbit_server, ann) as hers, asyncio.timeout(10):
            with pytest.raises(AuthenticationError, match=rf"access to exchange '{topic}'.*set_permissions"):
                await anext(hers.stream(topic, start="earliest", options=list(STREAM)))


async def test_a_server_that_hangs_or_is_away_is_an_error_in_time(
    rabbit_server: RabbitServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(management, "TIMEOUT", 0.5)
    monkeypatch.setattr(connected, "ANSWER", 0.5)
    async with Proxy(rabbit_server.port) as amqp, Proxy(rabbit_server.management_port) as http:
        url = f"amqp://guest:guest@{amqp.address}/"
        async with RabbitBroker(url, management=f"http://{http.address}") as far:
            amqp.stall()
            http.stall()
            for call in (far.admin.topics.list(), far.admin.cluster.health(), far.admin.topics.create(topic)):
                with pytest.raises(ConnectError, match=r"no answer within"):
                    await asyncio.wait_for(call, 5)
            amqp.go_on()
            http.go_on()
            await http.refuse()
            await http.cut()
            with pytest.raises(ConnectError, match="refused"):
                await far.admin.groups.list()


# --- what needs no server -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "topic", "expected"),
    [
        ("orders", "orders", True),
        ("orders.*", "orders.eu", True),
        ("orders.*", "orders", False),
        ("orders.*", "orders.eu.new", False),
        ("orders.#", "orders", True),
        ("#.new", "orders.eu.new", True),
        ("", "orders", False),
    ],
)
def test_a_binding_key_takes_what_it_matches(key: str, topic: str, expected: bool) -> None:
    assert takes(key, topic) is expected


def test_a_limit_that_a_stream_was_made_with_is_taken_away_by_one_that_nothing_reaches() -> None:
    arguments = {"x-max-age": "1h", "x-max-length-bytes": 1000}
    assert kept(arguments, None) == Kept(timedelta(hours=1), 1000)
    for wanted in (Kept(None, None), Kept(timedelta(seconds=5), None), Kept(None, 5000)):
        assert kept(arguments, definition_of("orders", wanted, arguments)) == wanted
    assert definition_of("orders", Kept(None, None), {}) is None


def test_one_policy_applies_and_one_that_cannot_be_read_does_not() -> None:
    common = {"definition": {}, "apply-to": "queues"}
    low, high = ({**common, "name": n, "pattern": "^ord", "priority": p} for n, p in (("low", 0), ("high", 5)))
    others = [{**common, "name": "perl", "pattern": "(?|a)", "priority": 9}, {**high, "apply-to": "exchanges"}]
    assert policy_of("orders", [low, high, *others]) == high
    assert policy_of("invoices", [low, high, *others]) is None


async def test_lag_is_right_under_load_as_far_as_statistics_are_old(broker: Broker, topic: str) -> None:
    await lag_is_right_under_load(broker, topic, "shop", 5000, behind=3.0, start="latest")
