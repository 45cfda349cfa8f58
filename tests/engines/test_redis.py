"""What only the Redis engine has: streams shared with other programs, claims, trimming, delays, channels."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from headwater import (
    App,
    AuthenticationError,
    Broker,
    ConfigurationError,
    DeliveryUnknownError,
    Headers,
    Message,
    MessageTooLargeError,
    MissingExtraError,
    NotSupportedError,
    Outgoing,
    Position,
    PublishError,
    Redis,
    RedisBroker,
    RefusedError,
    Retry,
    Topic,
    TopicNameError,
    TopicNotFoundError,
)
from headwater.engine import Change, Lost, Source
from headwater.engines import engine_for
from headwater.testing.contract.tools import nothing_more, reading, taken
from servers.redis import RedisServer
from waiting import until

from .redis_peer import RedisPeer

pytestmark = pytest.mark.server

redis = pytest.importorskip("redis.asyncio", reason="other programs are played by redis-py")


@pytest.fixture(scope="module")
def server() -> Any:
    with RedisServer(extra=["proto-max-bulk-len 1mb"]) as server:
        yield server


@pytest.fixture
async def other(server: RedisServer) -> AsyncIterator[Any]:
    """Another program on the same server, which begins with nothing."""
    client = redis.Redis(port=server.port)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def broker(server: RedisServer, other: Any) -> AsyncIterator[RedisBroker]:
    async with RedisBroker(server.url, lease=1, clean_interval=0.2) as broker:
        yield broker


# --- addresses and options ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", {"kind": "server", "hosts": (("localhost", 6379),)}),
        ("redis://h1,h2:7000/3", {"hosts": (("h1", 6379), ("h2", 7000)), "db": 3}),
        ("redis://:p%40ss@[::1]:1", {"password": "p@ss", "username": None, "hosts": (("::1", 1),)}),
        ("rediss://user:x@h", {"tls": True, "username": "user"}),
        ("redis+cluster://a,b", {"kind": "cluster"}),
        ("rediss+sentinel://a:1,b/orders/2", {"kind": "sentinel", "service": "orders", "db": 2, "tls": True}),
        ("redis+sentinel://a", {"service": "mymaster", "hosts": (("a", 26379),)}),
    ],
)
def test_a_url_names_servers_and_who_asks(url: str, expected: dict[str, Any]) -> None:
    address = RedisBroker(url).engine.address  # type: ignore[attr-defined]  # our engine
    assert {name: getattr(address, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("redis://h/orders", "database"),
        ("redis://h:port", "h:port"),
        ("redis+cluster://h/1", "database 0 only"),
        ("redis://h?leese=3", "leese"),
        ("redis://h?lease=long", "lease"),
    ],
)
def test_a_url_that_says_something_else_is_refused(url: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=wrong):
        Broker(url)


def test_arguments_win_over_the_url() -> None:
    engine: Any = RedisBroker("redis://h?lease=3&auto_create=false", lease=7).engine
    assert engine.capabilities(Source(topics=("orders",), group="shop")).lease == 7
    assert engine_for("redis+pubsub://h").streams is False  # type: ignore[attr-defined]  # our engine


def test_making_a_broker_imports_no_client() -> None:
    code = "import sys, headwater; headwater.RedisBroker('redis://h'); print({'redis', 'hiredis'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


async def test_a_missing_client_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hiredis", None)
    with pytest.raises(MissingExtraError, match=r"headwater\[redis\]"):
        await RedisBroker("redis://h").connect()


# --- beside other programs ----------------------------------------------------------------------------


async def test_what_others_add_is_read(broker: RedisBroker, other: Any) -> None:
    entries = [
        {"data": '{"id": 1}'},
        {"body": "x", "key": "k", "trace": "1"},
        {"key": "k", "h:trace": "1", "body": b"\xff"},
        {"id": "7", "name": "é"},
    ]
    for entry in entries:
        await other.xadd("orders", entry)
    async with broker.stream("orders", start="earliest", limit=4) as stream:
        one, two, three, four = [message async for message in stream]
    assert (one.value, one.key, one.headers) == ({"id": 1}, None, Headers())
    assert (two.body, two.key, two.headers) == (b"x", "k", Headers({"trace": "1"}))
    assert (three.body, three.key, three.headers) == (b"\xff", "k", Headers({"trace": "1"}))
    assert (four.value, four.headers["content-type"]) == ({"id": "7", "name": "é"}, "application/json")


async def test_others_read_what_is_published_with_repeated_fields(broker: RedisBroker, other: Any) -> None:
    receipt = await broker.publish(b"x", "orders", key="k", headers=[("a", b"1"), ("a", b"\xff")])
    other.set_response_callback("XRANGE", lambda reply, **_: reply)  # as it travels: a dict would lose repeats
    ((offset, fields),) = await other.execute_command("XRANGE", "orders", "-", "+")
    assert offset.decode() == receipt.offset
    assert fields == [b"body", b"x", b"key", b"k", b"h:a", b"1", b"h:a", b"\xff"]
    assert abs(receipt.timestamp - datetime.now(UTC)) < timedelta(seconds=5)


async def test_a_group_is_shared_with_members_of_other_programs(broker: RedisBroker, other: Any) -> None:
    async with reading(broker, "orders", "shop") as place:
        await broker.publish("ours", "orders")
        (message,) = await taken(place, 1)
        await other.xadd("orders", {"body": "theirs"})
        found = await other.xreadgroup("shop", "somebody", {"orders": ">"}, count=1)
        assert b"theirs" in str(found).encode()
        assert (await other.xpending("orders", "shop"))["pending"] == 2
        await place.ack([message])
        (theirs,) = await taken(place, 1)  # they never acknowledged: after the lease it is ours
        assert (theirs.body, theirs.attempt) == (b"theirs", 2)


# --- groups -------------------------------------------------------------------------------------------


async def test_a_new_group_reads_the_backlog_and_several_topics(broker: RedisBroker) -> None:
    await broker.publish_many([Outgoing(n, f"orders-{n % 3}") for n in range(300)])
    source = Source(topics=("orders-0", "orders-1", "orders-2"), group="shop", start="earliest")
    async with broker.engine.subscribe(source, _ignore) as place:
        found = await taken(place, 300)
        await place.ack(found)
    for index in range(3):
        assert [m.value for m in found if m.topic == f"orders-{index}"] == list(range(index, 300, 3))
    assert (await broker.admin.groups.lag("shop")).total == 0


async def test_a_group_can_begin_behind_an_offset_or_at_a_moment(broker: RedisBroker) -> None:
    receipts = [await broker.publish(n, "orders") for n in range(5)]
    starts = {"a": receipts[3].offset, "b": str(receipts[3].offset).partition("-")[0], "c": receipts[2].timestamp}
    for group, start in starts.items():
        async with reading(broker, "orders", group, start=start) as place:
            values = [message.value for message in await place.receive(10, 5)]
            assert values[-1] == 4
            assert values[0] <= 3
    with pytest.raises(ConfigurationError, match="1700000000000-0"):
        async with reading(broker, "orders", "d", start=5):
            pass


async def test_a_stream_seeks_to_an_offset(broker: RedisBroker) -> None:
    receipts = await broker.publish_many([Outgoing(n, "orders") for n in range(10)])
    offset = receipts[6].offset
    assert isinstance(offset, str)
    async with broker.stream("orders", start=offset) as stream:
        assert [(await anext(stream)).value for _ in range(3)] == [6, 7, 8]
        await stream.seek(Position("orders", 0, str(receipts[1].offset)))
        assert [(await anext(stream)).value for _ in range(3)] == [1, 2, 3]


async def test_what_a_dead_process_had_is_taken_over_after_its_lease(server: RedisServer, broker: RedisBroker) -> None:
    await broker.publish("stuck", "orders")
    with RedisPeer("consume", server.url, lease=1, hang="stuck") as peer:
        await peer.saying("got")
        async with reading(broker, "orders", "shop") as place:
            await asyncio.sleep(1.5)  # it lives: its lease is extended
            assert not await place.receive(1, 0)
            peer.kill()
            (message,) = await taken(place, 1)
            assert (message.body, message.attempt) == (b"stuck", 2)


async def test_the_attempts_that_a_member_made_count_and_those_it_did_not_make_do_not(broker: RedisBroker) -> None:
    await broker.publish_many([Outgoing(n, "orders") for n in range(3)])
    for _ in range(4):  # received, never begun
        async with reading(broker, "orders", "shop", start="earliest") as place:
            assert [message.attempt for message in await taken(place, 3)] == [1, 1, 1]
    app, calls = App("shop", RedisBroker(broker.url)), Counter[int]()

    @app.subscriber("orders", concurrency=3, retry=Retry(attempts=9, backoff=(0.01, 30)))
    async def handle(n: int, message: Message) -> None:
        calls[n] += 1
        if calls[n] > n:
            raise Retry.later(50)
        raise ValueError

    async with app:
        await until(lambda: calls == {0: 1, 1: 2, 2: 3})
    async with reading(broker, "orders", "shop") as place:
        again = {message.value: message.attempt for message in await taken(place, 3)}
    assert again[0] == 1  # deferred: nobody died or failed over it
    assert 1 < again[1] < again[2]


async def test_a_message_that_kills_its_process_ends_as_a_dead_letter(server: RedisServer, broker: RedisBroker) -> None:
    await broker.publish("bad", "orders")
    for attempt in ("1", "2"):
        with RedisPeer("consume", server.url, lease=0.6, poison="bad") as peer:
            assert (await peer.saying("got"))[1:] == ["bad", attempt]
            await asyncio.to_thread(peer.rest)
    with RedisPeer("consume", server.url, lease=0.6, poison="bad"):
        letter = await asyncio.wait_for(_letter(broker), 10)
    assert (letter.body, letter.headers["hw-reason"]) == (b"bad", "its process died each time it was handled")


async def _letter(broker: Broker) -> Message:
    while True:
        try:
            async with broker.stream("orders.dead", start="earliest") as stream:
                return await anext(stream)
        except TopicNotFoundError:
            await asyncio.sleep(0.05)


async def test_a_worker_that_is_started_again_finds_what_it_had_at_once(
    server: RedisServer, broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWATER_WORKER_ID", "3")
    await broker.publish("stuck", "orders")
    with RedisPeer("consume", server.url, lease=1000, hang="stuck") as first:
        await first.saying("got")
        with RedisPeer("consume", server.url, lease=1000) as namesake:  # the name is taken: it has another
            await namesake.saying("ready")
            await broker.publish("more", "orders")
            assert (await first.saying("got"))[1] == "more"
        first.kill()
    with RedisPeer("consume", server.url, lease=1000) as second:
        assert (await second.saying("done"))[1] == "stuck"


async def test_a_group_that_is_lost_is_made_again_and_goes_on(
    broker: RedisBroker, other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app, seen = App("shop", RedisBroker(broker.url)), list[int]()

    @app.subscriber("orders")
    async def handle(n: int) -> None:
        seen.append(n)

    async with app:
        await app.publish(1, "orders")
        await until(lambda: seen == [1])
        for lose in (other.flushall, lambda: other.delete("orders"), lambda: other.xgroup_destroy("orders", "shop")):
            await lose()
            count = len(seen)
            await app.publish(2, "orders")
            await until(lambda: len(seen) > count, within=8)  # noqa: B023
    assert "is made again and begins at the earliest" in caplog.text


async def test_entries_that_were_deleted_while_somebody_had_them_are_let_go(broker: RedisBroker, other: Any) -> None:
    await broker.publish_many([Outgoing(n, "orders") for n in range(4)])
    async with reading(broker, "orders", "shop", start="earliest") as place:
        messages = await taken(place, 4)
        await other.xdel("orders", messages[1].offset, messages[2].offset)
    async with reading(broker, "orders", "shop") as place:
        assert [message.value for message in await taken(place, 2)] == [0, 3]
        assert await nothing_more(place)


async def test_under_load_members_that_are_killed_cost_no_message(server: RedisServer, broker: RedisBroker) -> None:
    dice, count = random.Random(5), 3000
    with ExitStack() as started:
        peers = [started.enter_context(RedisPeer("consume", server.url, lease=1)) for _ in range(4)]
        for peer in peers:
            await peer.saying("ready")
        for first in range(0, count, 300):
            await broker.publish_many([Outgoing(str(n), "orders") for n in range(first, first + 300)])
            if first and first % 900 == 0:
                await asyncio.sleep(dice.uniform(0.0, 0.1))
                peers[first // 900].kill()
        await until(lambda: _all_done(broker), within=20)
        peers[0].kill()
        done = {line[1] for peer in peers for line in peer.rest() if line[0] == "done"}
    assert done == {str(n) for n in range(count)}


async def _all_done(broker: Broker) -> bool:
    return (await broker.admin.groups.lag("shop", "orders")).total == 0


# --- exclusive ----------------------------------------------------------------------------------------


async def test_the_next_member_takes_over_when_the_active_process_dies(
    server: RedisServer, broker: RedisBroker
) -> None:
    with RedisPeer("consume", server.url, lease=1, exclusive=True, hang="3") as first:
        await first.saying("ready")
        with RedisPeer("consume", server.url, lease=1, exclusive=True) as second:
            await second.saying("ready")
            await broker.publish_many([Outgoing(str(n), "orders") for n in range(10)])
            while (await first.saying("got"))[1] != "3":
                pass
            first.kill()
            await broker.publish("end", "orders")
            while (await second.saying("done"))[1] != "end":
                pass
            taken_over = [line[1] for line in second.seen if line[0] == "got"]
        by_first = {line[1] for line in first.rest() if line[0] == "done"}
    assert "3" in taken_over
    assert by_first | set(taken_over) == {*map(str, range(10)), "end"}
    assert taken_over[:-1] == sorted(taken_over[:-1])


async def test_who_lost_the_lock_lets_go_of_what_it_did_not_begin(server: RedisServer, other: Any) -> None:
    changes = list[Change]()
    async with (
        RedisBroker(server.url) as broker,
        reading(broker, "orders", "shop", exclusive=True, changes=changes) as place,
    ):
        await broker.publish(1, "orders")
        await taken(place, 1)
        (key,) = await other.keys("hw:lock:*")
        await other.set(key, "somebody else", px=2500)
        await until(lambda: bool(changes), within=5)
        assert isinstance(changes[0], Lost)
        assert await nothing_more(place)
        (message,) = await taken(place, 1)  # once it is ours again
        assert message.value == 1


# --- topics that do not keep everything ---------------------------------------------------------------


async def test_a_topic_keeps_about_as_many_messages_as_it_should(broker: RedisBroker, other: Any) -> None:
    option = Redis(maxlen=100)
    await broker.publish_many([Outgoing(n, "some", options=(option,)) for n in range(1000)])
    assert 100 <= await other.xlen("some") < 300
    async with RedisBroker(broker.url, maxlen=50) as sparing:
        await sparing.publish_many([Outgoing(n, "few") for n in range(1000)])
    assert 50 <= await other.xlen("few") < 250


async def test_retention_is_applied_by_age_by_size_and_by_number(broker: RedisBroker, other: Any) -> None:
    await broker.admin.topics.create("by-age", retention=timedelta(seconds=0.3))
    await broker.admin.topics.create("by-size", retention_bytes=50_000)
    await broker.declare([Topic("by-number", options=(Redis(maxlen=7),)), Topic("all")])
    for topic in ("by-age", "by-size", "by-number", "all"):
        await broker.publish_many([Outgoing(b"x" * 500, topic) for _ in range(500)])
    await until(lambda: _length(other, "by-age", 0))
    await until(lambda: _length(other, "by-number", 7))
    kept = {info.name: info for info in await broker.admin.topics.list()}
    assert 50 < kept["by-size"].messages < 150
    assert kept["all"].messages == 500
    assert (kept["by-age"].retention, kept["by-size"].retention_bytes) == (timedelta(seconds=0.3), 50_000)
    await broker.admin.topics.alter("by-age")
    await broker.publish(1, "by-age")
    await asyncio.sleep(0.8)
    assert await _length(other, "by-age", 1)


async def _length(other: Any, topic: str, expected: int) -> bool:
    return bool(await other.xlen(topic) == expected)


# --- delays -------------------------------------------------------------------------------------------


async def test_delayed_messages_come_once_although_those_who_add_them_are_killed(
    server: RedisServer, broker: RedisBroker, other: Any
) -> None:
    async with RedisBroker(server.url) as publisher:
        await publisher.publish_many([Outgoing(n, "later", delay=0.3 + n / 150) for n in range(300)])
    dice = random.Random(3)
    while await other.zcard("hw:delayed:{later}"):
        with RedisPeer("consume", server.url) as peer:
            await peer.saying("ready")
            await asyncio.sleep(dice.uniform(0.05, 0.4))
            peer.kill()
    async with broker.stream("later", start="earliest", wait=0.2) as stream:
        assert sorted([message.value async for message in stream]) == list(range(300))


async def test_a_delay_that_is_over_sooner_is_noticed(broker: RedisBroker) -> None:
    async with reading(broker, "orders", "shop") as place, RedisBroker(broker.url) as elsewhere:
        await elsewhere.publish("long", "orders", delay=60)
        start = broker.engine.clock.time()
        await elsewhere.publish("short", "orders", delay=0.2, key="k", headers={"a": "1"})
    # who published is gone: whoever consumes adds it
    async with reading(broker, "orders", "shop") as place:
        (message,) = await taken(place, 1)
    assert (message.value, message.key, message.headers["a"]) == ("short", "k", "1")
    assert 0.19 <= broker.engine.clock.time() - start < 2


async def test_delayed_messages_of_a_topic_that_takes_none_wait(
    broker: RedisBroker, other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await broker.publish(1, "odd", delay=0.05)
    await other.set("odd", "no stream")
    await until(lambda: "cannot be added" in caplog.text)
    await other.delete("odd")
    await broker.declare([Topic("odd")])
    async with reading(broker, "odd", None, start="earliest") as place:
        assert (await taken(place, 1))[0].value == 1


# --- refusals -----------------------------------------------------------------------------------------


async def test_each_message_has_its_own_error(broker: RedisBroker, other: Any) -> None:
    await other.set("text", "no stream")
    with pytest.raises(PublishError) as raised:
        await broker.publish_many([Outgoing(1, "good"), Outgoing(2, "text"), Outgoing(3, "a{b}"), Outgoing(4, "good")])
    kinds = [type(error) for error in raised.value.errors]
    assert kinds == [type(None), RefusedError, TopicNameError, type(None)]
    assert [receipt.topic for receipt in raised.value.receipts if receipt is not None] == ["good", "good"]
    with pytest.raises(RefusedError, match="WRONGTYPE") as one:
        await broker.publish(1, "text")
    assert one.value.topic == "text"
    for call in (broker.declare([Topic("text")]), reading(broker, "text", "shop").__aenter__()):
        with pytest.raises(TopicNameError, match="text"):
            await call


async def test_a_message_past_the_limit_of_the_server_is_refused_and_the_connection_goes_on(
    broker: RedisBroker,
) -> None:
    with pytest.raises(MessageTooLargeError) as raised:
        await broker.publish(b"x" * (2 << 20), "orders")
    assert raised.value.limit == 1 << 20
    await broker.publish(b"x" * (1 << 20), "orders")


async def test_a_topic_that_was_not_declared_is_refused_without_auto_create(server: RedisServer, other: Any) -> None:
    async with RedisBroker(server.url, auto_create=False) as broker:
        with pytest.raises(TopicNotFoundError):
            await broker.publish(1, "orders")
        await broker.declare([Topic("orders")])
        await broker.publish(1, "orders")
        assert await other.exists("orders") == 1


async def test_more_than_one_partition_is_refused(broker: RedisBroker) -> None:
    with pytest.raises(NotSupportedError, match="partitions"):
        await broker.admin.topics.create("orders", partitions=3)


async def test_a_server_without_memory_refuses_and_says_so(broker: RedisBroker, other: Any) -> None:
    await other.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(RefusedError, match="OOM"):
            await broker.publish(b"x" * 100_000, "orders")
    finally:
        await other.config_set("maxmemory", "0")
    await broker.publish(1, "orders")


async def test_a_replica_is_waited_for_until_it_is_a_master(broker: RedisBroker, other: Any) -> None:
    await other.replicaof("127.0.0.1", 1)
    publishing = asyncio.create_task(broker.publish(1, "orders"))
    await asyncio.sleep(0.3)
    assert not publishing.done()
    await other.replicaof("NO", "ONE")
    assert (await publishing).topic == "orders"
    await other.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises((RefusedError, DeliveryUnknownError)):
            await broker.publish(1, "orders", timeout=1)
    finally:
        await other.replicaof("NO", "ONE")


async def test_a_user_may_only_do_what_the_server_lets_it(server: RedisServer, other: Any) -> None:
    await other.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "&*", "+@all", "-xadd")
    async with RedisBroker(f"redis://reader:pw@{server.address}") as broker:
        with pytest.raises(AuthenticationError, match="NOPERM"):
            await broker.publish(1, "orders")
    await other.execute_command(
        "ACL", "SETUSER", "plain", "on", ">pw", "~*", "&*", "+@stream", "+ping", "+select", "+type"
    )
    async with RedisBroker(f"redis://plain:pw@{server.address}") as broker:
        await broker.publish(1, "orders")  # without CLIENT, CONFIG and PUBLISH


# --- channels -----------------------------------------------------------------------------------------


async def test_every_process_hears_a_broadcast_on_channels_with_fields(server: RedisServer, other: Any) -> None:
    heard: list[tuple[str, str, Any]] = []
    apps = [App(name, RedisBroker(server.url, streams=False)) for name in ("one", "two")]
    for app in apps:

        @app.subscriber("orders.{region}.new", "orders.{rest:path}", "alarms", broadcast=True, dead_letter=False)
        async def handle(body: Any, message: Message, app: App) -> None:
            heard.append((app.name, message.topic, body))

    async with apps[0], apps[1]:
        await apps[0].publish({"id": 1}, "orders.eu.new", key="k", headers={"a": "1"})
        await other.publish("orders.us.new", '{"id": 2}')
        await other.publish("alarms", "3")
        await other.publish("orders.eu.dead", "4")
        await other.publish("bills", "5")
        await other.publish("orders.end", "6")
        await until(lambda: len(heard) == 8)
    for name in ("one", "two"):
        expected = [("orders.eu.new", {"id": 1}), ("orders.us.new", {"id": 2}), ("alarms", 3), ("orders.end", 6)]
        assert [(topic, body) for who, topic, body in heard if who == name] == expected


async def test_what_a_channel_missed_is_logged(
    server: RedisServer, other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with RedisBroker(server.url, streams=False) as broker, reading(broker, "orders", None) as place:
        await other.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: "was missed" in caplog.text)
        await broker.publish(1, "orders")
        assert (await taken(place, 1))[0].value == 1


async def test_a_slow_reader_of_a_channel_holds_the_server_back_and_loses_nothing(
    server: RedisServer, other: Any
) -> None:
    source = Source(topics=("orders",), prefetch=10)
    async with RedisBroker(server.url, streams=False) as broker, broker.engine.subscribe(source, _ignore) as place:
        for n in range(2000):
            await broker.publish(n, "orders")
        assert [message.value for message in await taken(place, 2000)] == list(range(2000))


async def test_channels_keep_nothing_and_say_so(server: RedisServer) -> None:
    async with RedisBroker(server.url, streams=False) as broker:
        with pytest.raises(NotSupportedError):
            await broker.publish(1, "orders", delay=1)
        with pytest.raises(NotSupportedError):
            await broker.admin.topics.list()
        assert (await broker.admin.cluster.health()).healthy


# --- administration -----------------------------------------------------------------------------------


async def test_the_lag_is_counted_where_the_server_lost_count(broker: RedisBroker, other: Any) -> None:
    receipts = await broker.publish_many([Outgoing(n, "orders") for n in range(10)])
    async with reading(broker, "orders", "shop", start="earliest") as place:
        await place.ack(await taken(place, 3))
    await other.xdel("orders", receipts[6].offset)
    (info,) = await other.xinfo_groups("orders")
    assert info["lag"] is None
    assert (await broker.admin.groups.lag("shop", "orders")).total == 6


async def test_members_are_listed_and_gone_when_they_left(broker: RedisBroker) -> None:
    async with reading(broker, "orders", "shop") as place:
        await place.receive(1, 0.05)
        info = await broker.admin.groups.describe("shop")
        (member,) = info.members
        assert str(os.getpid()) in member.id
        assert member.partitions == (("orders", 0),)
    assert not (await broker.admin.groups.describe("shop")).active


async def test_a_purge_is_for_all_or_for_what_is_older(broker: RedisBroker) -> None:
    await broker.publish_many([Outgoing(n, "orders") for n in range(5)])
    await asyncio.sleep(0.01)
    moment = datetime.now(UTC)
    await asyncio.sleep(0.01)
    await broker.publish(5, "orders")
    await broker.admin.topics.purge("orders", before=moment)
    assert (await broker.admin.topics.describe("orders")).messages == 1
    await broker.admin.topics.purge("orders")
    assert (await broker.admin.topics.describe("orders")).messages == 0


async def test_a_server_that_may_delete_streams_is_not_healthy(broker: RedisBroker, other: Any) -> None:
    assert (await broker.admin.cluster.health()).healthy
    await other.config_set("maxmemory", "1gb")
    await other.config_set("maxmemory-policy", "allkeys-lru")
    try:
        (problem,) = (await broker.admin.cluster.health()).problems
        assert "allkeys-lru" in problem
    finally:
        await other.config_set("maxmemory-policy", "noeviction")
        await other.config_set("maxmemory", "0")


# --- TLS ----------------------------------------------------------------------------------------------


async def test_tls_is_checked_against_the_authority_that_was_given() -> None:
    async with RedisServer(password="secret", tls=True) as server:
        assert server.certificate is not None
        async with RedisBroker(server.url, tls_ca=str(server.certificate.file)) as broker:
            await broker.publish(1, "orders")
        async with RedisBroker(f"{server.url}?tls_verify=false") as broker:
            await broker.ping()
        with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
            await RedisBroker(server.url).connect()


async def _ignore(_change: Change) -> None:
    pass
