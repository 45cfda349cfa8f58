"""What only MQTT has: qualities of service, sessions, retained messages, wills, wildcards and foreign clients."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from headwater import (
    App,
    AuthenticationError,
    Broker,
    ConfigurationError,
    ConnectError,
    Message,
    MessageTooLargeError,
    Mqtt,
    MqttBroker,
    NotSupportedError,
    Outgoing,
    PublishError,
    Retry,
    TopicNameError,
)
from headwater.engine import Source, Topic
from headwater.engines.mqtt.identity import lasting_id
from headwater.engines.mqtt.subscription import Unacknowledged
from headwater.testing.contract.tools import nothing_more, reading, taken
from servers.fixtures import require
from servers.mosquitto import MosquittoServer
from servers.proxy import Proxy
from waiting import until

pytestmark = pytest.mark.server

PROTOCOLS = ("5.0", "3.1.1")


@pytest.fixture
def server(mosquitto_server: MosquittoServer) -> MosquittoServer:
    return mosquitto_server


@pytest.fixture
def topic() -> str:
    return f"t-{os.urandom(6).hex()}"


@asynccontextmanager
async def foreign(server: MosquittoServer, **options: Any) -> AsyncIterator[aiomqtt.Client]:
    """Somebody else's client."""
    version = options.pop("protocol", aiomqtt.ProtocolVersion.V5)
    async with aiomqtt.Client("127.0.0.1", server.port, protocol=version, **options) as client:
        yield client


def program(server: MosquittoServer, code: str) -> subprocess.Popen[str]:
    """A process that runs this code, which prints when it is where the test wants it."""
    start = f"import asyncio, sys\nfrom headwater import *\nURL = {server.url!r}\n"
    return subprocess.Popen(
        [sys.executable, "-c", start + code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


async def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 20)).strip()


# --- qualities of service -----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_each_quality_of_service_carries_a_message_to_its_handler(
    server: MosquittoServer, topic: str, qos: int, protocol: Any
) -> None:
    app, got = App(topic, MqttBroker(server.url, protocol=protocol)), list[tuple[int, str | None]]()

    @app.subscriber(topic, dead_letter=False, options=[Mqtt(qos=qos)])
    async def handle(n: int, message: Message) -> None:
        got.append((n, message.key))

    async with app:
        for n in range(5):
            await app.publish(n, topic, key="k", options=[Mqtt(qos=qos)])
        await until(lambda: len(got) == 5)
    assert got == [(n, "k") for n in range(5)]


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_message_whose_process_was_killed_while_handling_it_comes_again(
    server: MosquittoServer, topic: str, qos: int
) -> None:
    code = f"""
app = App({topic!r}, MqttBroker(URL, qos={qos}))

@app.subscriber({topic!r}, concurrency=4)
async def handle(n: int) -> None:
    print(n, flush=True)
    if n >= 2:
        await asyncio.sleep(60)

@app.after_startup
def ready():
    print("ready", flush=True)

asyncio.run(app.run())
"""
    async with MqttBroker(server.url, qos=qos) as broker:
        with program(server, code) as process:
            assert await said(process) == "ready"
            await broker.publish_many([Outgoing(n, topic) for n in range(6)])
            assert {await said(process) for _ in range(6)} == set("012345")
            process.kill()
    app, again = App(topic, MqttBroker(server.url, qos=qos)), list[int]()

    @app.subscriber(topic)
    async def handle(n: int) -> None:
        again.append(n)

    async with app:
        await until(lambda: {2, 3, 4, 5} <= set(again), 10)
    assert again == sorted(again)


async def test_nothing_behind_an_unfinished_message_is_acknowledged(server: MosquittoServer, topic: str) -> None:
    app, done, go_on = App(topic, MqttBroker(server.url), graceful_timeout=0.1), set[int](), asyncio.Event()

    @app.subscriber(topic, concurrency=5)
    async def handle(n: int) -> None:
        if n == 1:
            await go_on.wait()
        done.add(n)

    async with MqttBroker(server.url) as broker:
        async with app:
            await broker.publish_many([Outgoing(n, topic) for n in range(5)])
            await until(lambda: done == {0, 2, 3, 4})
        done.clear()
        go_on.set()
        async with app:
            await until(lambda: done == {1, 2, 3, 4})


def test_answers_go_out_in_the_order_of_arrival_whatever_is_done_first() -> None:
    held = Unacknowledged()
    for mid, name in enumerate(("a", "b", None, "a", "b"), start=10):
        held.add(mid, name, number=mid)
    held.done([Message("b", b"", token=11)])
    assert held.release() == []
    held.done([Message("a", b"", token=10)])
    assert held.release() == [10, 11, 12]
    held.done([Message("b", b"", token=14)])
    assert held.release() == []
    held.done([Message("a", b"", token=13)])
    assert held.release() == [13, 14]


def test_a_copy_of_what_is_held_is_answered_once_it_is_done() -> None:
    held = Unacknowledged()
    for mid in (1, 2, 3):
        held.add(mid, "a", number=mid)
    held.disconnected()
    held.done([Message("a", b"", token=1)])
    assert held.release() == []  # the server has not delivered it again yet
    assert held.recognise(1, duplicate=True)
    assert held.release() == [1]
    assert held.recognise(2, duplicate=True)
    assert not held.recognise(3, duplicate=False)  # a new message under an old identifier
    held.add(3, "a", number=4)
    held.done([Message("a", b"", token=4)])
    assert held.release() == [2, 3]


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_cut_connection_doubles_nothing_that_is_being_handled(
    server: MosquittoServer, topic: str, qos: int
) -> None:
    async with Proxy(server.port) as proxy:
        app = App(topic, MqttBroker(f"mqtt://{proxy.address}", qos=qos))
        got, go_on = list[int](), asyncio.Event()

        @app.subscriber(topic, concurrency=4)
        async def handle(n: int) -> None:
            got.append(n)
            await go_on.wait()

        async with app, MqttBroker(server.url) as other:
            await other.publish_many([Outgoing(n, topic) for n in range(10)])
            await until(lambda: len(got) == 4)
            await proxy.cut()
            await until(lambda: not app.is_ready)
            await until(lambda: app.is_ready)
            go_on.set()
            await other.publish(10, topic)
            await until(lambda: 10 in got)
        async with app:  # and all of it was acknowledged
            await app.publish(11, topic)
            await until(lambda: 11 in got)
    assert got == list(range(12))


async def test_qos_0_is_accepted_at_once_and_asks_for_dead_letters_elsewhere(
    server: MosquittoServer, topic: str
) -> None:
    async with MqttBroker(server.url, qos=0) as broker:
        assert (await broker.publish(1, topic)).offset is None
        assert not broker.engine.capabilities(Source(topics=(topic,), group="g")).durable
    app = App(topic, MqttBroker(server.url))

    @app.subscriber(topic, options=[Mqtt(qos=0)])
    async def handle(n: int) -> None:
        pass

    with pytest.raises(NotSupportedError, match="dead letters"):
        await app.start()


async def test_a_message_that_waits_for_its_retry_does_not_hold_up_the_others(
    server: MosquittoServer, topic: str
) -> None:
    app, done = App(topic, MqttBroker(server.url)), list[int]()

    @app.subscriber(topic, retry=Retry(attempts=2, backoff=(2.0, 2.0), jitter=False))
    async def handle(n: int, message: Message) -> None:
        if n == 0 and message.attempt == 1:
            raise ValueError("once more")
        done.append(n)

    async with app:
        await app.publish_many([Outgoing(n, topic) for n in range(3000)])
        await until(lambda: len(done) == 3000)
    assert done[-1] == 0


async def test_what_a_session_kept_does_not_hold_up_the_subscription_that_takes_it(
    server: MosquittoServer, topic: str
) -> None:
    async with MqttBroker(server.url) as broker:
        source = Source(topics=(topic,), group=topic, prefetch=10)
        async with reading(broker, topic, topic):
            pass
        await broker.publish_many([Outgoing(n, topic) for n in range(3000)])
        async with broker.engine.subscribe(source, nothing_moves) as place:
            messages = await taken(place, 3000)
            await place.ack(messages)
    assert [message.value for message in messages] == list(range(3000))


async def nothing_moves(_change: object) -> None:
    pass


# --- identity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_message_has_the_offset_of_its_receipt(server: MosquittoServer, topic: str, protocol: Any) -> None:
    async with MqttBroker(server.url, protocol=protocol) as broker, reading(broker, topic, topic) as place:
        receipts = [await broker.publish(n, topic, key="k") for n in range(3)]
        messages = await taken(place, 3)
    assert [message.offset for message in messages] == [receipt.offset for receipt in receipts]
    assert len({message.id for message in messages}) == 3
    assert all(message.headers.get("hw-serial") is None for message in messages)


async def test_two_programs_with_one_client_id_are_told(
    server: MosquittoServer, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with MqttBroker(server.url) as broker:
        source = Source(topics=(topic,), group=topic)
        with lasting_id(broker.engine.settings, source) as client_id:  # type: ignore[attr-defined]  # MQTT's own
            pass
        async with broker.engine.subscribe(source, nothing_moves):
            while "does another program use this client id" not in caplog.text:
                await until(lambda: broker.engine.available)
                async with foreign(server, identifier=client_id):
                    await until(lambda: not broker.engine.available)
    assert client_id in caplog.text


# --- retained messages --------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_retained_message_begins_the_streams_that_ask_for_it_until_it_is_cleared(
    server: MosquittoServer, topic: str, protocol: Any
) -> None:
    async with MqttBroker(server.url, protocol=protocol) as broker:

        async def retained() -> list[Any]:
            stream = broker.stream(topic, wait=0.2, options=[Mqtt(retained=True)])
            return [message.value async for message in stream]

        await broker.publish({"on": True}, topic, options=[Mqtt(retain=True)])
        assert await retained() == [{"on": True}]
        assert [message async for message in broker.stream(topic, wait=0.2)] == []
        await broker.publish(b"", topic, options=[Mqtt(retain=True)])
        assert await retained() == []


async def test_a_group_is_not_given_retained_messages(server: MosquittoServer, topic: str) -> None:
    async with MqttBroker(server.url) as broker:
        await broker.publish(1, topic, options=[Mqtt(retain=True)])
        async with reading(broker, topic, topic) as place:
            assert await nothing_more(place)
        source = Source(topics=(topic,), group=topic, options=(Mqtt(retained=True),))
        with pytest.raises(NotSupportedError, match="broadcast"):
            await broker.engine.subscribe(source, nothing_moves).__aenter__()


async def test_an_expired_message_is_not_delivered(server: MosquittoServer, topic: str) -> None:
    async with MqttBroker(server.url) as broker:
        async with reading(broker, topic, topic):
            pass
        await broker.publish("short", topic, options=[Mqtt(expiry=1)])
        await broker.publish("long", topic, options=[Mqtt(expiry=60)])
        await asyncio.sleep(2.1)  # the server counts whole seconds
        async with reading(broker, topic, topic) as place:
            assert [message.value for message in await taken(place, 1)] == ["long"]
            assert await nothing_more(place)
    async with MqttBroker(server.url, protocol="3.1.1") as broker:
        with pytest.raises(NotSupportedError, match="expiry"):
            await broker.publish(1, topic, options=[Mqtt(expiry=1)])


# --- last will ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_the_last_will_of_a_killed_process_is_published_and_of_one_that_left_it_is_not(
    server: MosquittoServer, topic: str, protocol: Any
) -> None:
    code = f"""
async def main():
    will = MqttWill(topic="{topic}.gone", payload=sys.argv[-1], retain=True)
    async with MqttBroker(URL, protocol={protocol!r}, will=will) as broker:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
asyncio.run(main())
"""
    async with MqttBroker(server.url) as broker, broker.stream(f"{topic}.gone") as stream:
        for leaves in (True, False):
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    f"import asyncio, sys\nfrom headwater import *\nURL={server.url!r}\n{code}",
                    str(leaves),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
            with process:
                assert await said(process) == "ready"
                if not leaves:
                    process.kill()
        message = await asyncio.wait_for(anext(stream), 10)
    assert message.body == b"False"


# --- names --------------------------------------------------------------------------------------------


async def test_dots_and_slashes_map_to_each_other(server: MosquittoServer, topic: str) -> None:
    async with MqttBroker(server.url) as broker, foreign(server) as client:
        await client.subscribe(f"{topic}/#", qos=1)
        await broker.publish(1, f"{topic}.eu.created")
        await broker.publish(2, f"{topic}/eu/created")
        await broker.publish(3, f"{topic}/v1.2")
        received = [str((await anext(aiter(client.messages))).topic) for _ in range(3)]
        assert received == [f"{topic}/eu/created", f"{topic}/eu/created", f"{topic}/v1.2"]
        for pattern, group in ((f"{topic}.{{region}}.created", "dots"), (f"{topic}/{{region}}/created", "slashes")):
            async with reading(broker, pattern, group) as place:
                await client.publish(f"{topic}/us/created", "4", qos=1)
                (message,) = await taken(place, 1)
                assert message.topic == pattern.replace("{region}", "us")


async def test_without_mapping_names_travel_as_they_are(server: MosquittoServer, topic: str) -> None:
    async with MqttBroker(server.url, map_separators=False) as broker, foreign(server) as client:
        await client.subscribe(f"{topic}.eu", qos=1)
        await broker.publish(1, f"{topic}.eu")
        assert str((await anext(aiter(client.messages))).topic) == f"{topic}.eu"
        async with reading(broker, f"{topic}.{{region}}", topic) as place:
            await client.publish(f"{topic}.eu", "1", qos=1)
            await client.publish(f"{topic}/eu", "2", qos=1)
            assert [message.topic for message in await taken(place, 1)] == [f"{topic}.eu"]
            assert await nothing_more(place)


async def test_fields_of_a_topic_are_filled_and_its_dead_letters_are_none_of_it(
    server: MosquittoServer, topic: str
) -> None:
    app, got = App(topic, MqttBroker(server.url)), list[tuple[str, ...]]()

    @app.subscriber(f"{topic}/{{room}}/temperature")
    async def one(room: str, value: float) -> None:
        got.append((room,))

    @app.subscriber(f"{topic}.files.{{rest:path}}", group=f"{topic}-files", retry=None)
    async def all_that_follow(rest: str, message: Message) -> None:
        got.append(("files", rest))
        if rest == "bad":
            raise ValueError

    async with app, foreign(server) as client, reading(app.broker, f"{topic}.files.bad.dead", "dead") as dead:
        for native, body in (("kitchen/temperature", "21.5"), ("kitchen/humidity", "1"), ("a/b/temperature", "2")):
            await client.publish(f"{topic}/{native}", body, qos=1)
        for rest in ("a", "a/b.c", "bad"):
            await client.publish(f"{topic}/files/{rest}", "1", qos=1)
        await taken(dead, 1)
        await until(lambda: len(got) == 4)
        assert await nothing_more(dead)
    assert sorted(got) == [("files", "a"), ("files", "a.b.c"), ("files", "bad"), ("kitchen",)]


@pytest.mark.parametrize("name", ["", " ", "a+b", "a/#", "$SYS/broker", "a{b}", "a\0b", "\ud800", "x" * 65_536])
def test_names_that_mqtt_cannot_carry_are_refused(name: str) -> None:
    with pytest.raises(TopicNameError):
        MqttBroker().engine.check_topic(name)


async def test_a_dead_letter_that_nobody_reads_is_said_to_be_gone_once(
    server: MosquittoServer, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, count = App(topic, MqttBroker(server.url)), [0]

    @app.subscriber(topic, retry=None)
    async def handle(n: int) -> None:
        count[0] += 1
        raise ValueError

    async with app:
        await app.publish_many([Outgoing(n, topic) for n in range(3)])
        await until(lambda: count[0] == 3)
    assert caplog.text.count(f"nobody subscribes to {topic}.dead") == 1


# --- foreign clients ----------------------------------------------------------------------------------


async def test_user_properties_and_content_type_are_headers_both_ways(server: MosquittoServer, topic: str) -> None:
    async with (
        MqttBroker(server.url) as broker,
        foreign(server) as client,
        reading(broker, topic, topic) as place,
    ):
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = [("a", "1"), ("b", "é"), ("a", "2")]
        properties.ContentType = "text/plain"
        await client.publish(topic, "hello", qos=1, properties=properties)
        (message,) = await taken(place, 1)
        assert message.headers.get_all("a") == ["1", "2"]
        assert (message.value, message.headers["content-type"]) == ("hello", "text/plain")
        assert message.id.startswith(f"{topic}/")

        await client.subscribe(topic, qos=1)
        await broker.publish({"a": 1}, topic, key="k", headers=[("x", "1"), ("x", "2")])
        received = await anext(aiter(client.messages))
        assert json.loads(bytes(received.payload)) == {"a": 1}  # type: ignore[arg-type]  # bytes
        assert received.properties is not None
        assert received.properties.ContentType == "application/json"  # type: ignore[attr-defined]  # paho sets it
        pairs = received.properties.UserProperty  # type: ignore[attr-defined]  # paho sets it
        assert [pair for pair in pairs if pair[0] != "hw-serial"] == [("hw-key", "k"), ("x", "1"), ("x", "2")]


@pytest.mark.parametrize(
    "headers",
    [
        [("a", "1"), ("content-type", "x/y"), ("a", "2")],
        [("content-type", "x/y"), ("a", b"\xff"), ("b", "line\nbreak")],
        [("content-type", "a/b"), ("content-type", "c/d")],
        [("hw-correlation", b"\x00\xff"), ("a", "")],
        [("name\n", "1"), ("\U0001ffff", "2")],
        [("long", "x" * 70_000)],
    ],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_headers_of_any_kind_arrive_as_they_were(
    server: MosquittoServer, topic: str, headers: Any, protocol: Any
) -> None:
    if protocol == "5.0" and headers[0][0] == "long":
        async with MqttBroker(server.url) as broker:
            with pytest.raises(MessageTooLargeError):
                await broker.publish(b"x", topic, headers=headers)
        return
    async with MqttBroker(server.url, protocol=protocol) as broker, reading(broker, topic, topic) as place:
        for key in (None, "k", b"\xff", "line\nbreak"):
            await broker.publish(b"x", topic, key=key, headers=headers)
            (message,) = await taken(place, 1)
            wanted = [(name, value.encode() if isinstance(value, str) else value) for name, value in headers]
            assert list(message.headers.pairs) == wanted
            assert message.key_bytes == (key.encode() if isinstance(key, str) else key)
            await place.ack([message])


async def test_a_foreign_client_is_answered_on_its_response_topic(server: MosquittoServer, topic: str) -> None:
    app = App(topic, MqttBroker(server.url))

    @app.subscriber(topic, dead_letter=False)
    async def double(n: int) -> int:
        return n * 2

    async with app, foreign(server) as client:
        await client.subscribe(f"{topic}/answers", qos=1)
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic, properties.CorrelationData = f"{topic}/answers", b"\x00\xff"
        await client.publish(topic, "21", qos=1, properties=properties)
        answer = await anext(aiter(client.messages))
        assert bytes(answer.payload) == b"42"  # type: ignore[arg-type]  # bytes
        assert answer.properties is not None
        assert answer.properties.CorrelationData == b"\x00\xff"  # type: ignore[attr-defined]  # paho sets it


async def test_a_foreign_client_answers_our_request(server: MosquittoServer, topic: str) -> None:
    async with MqttBroker(server.url) as broker, foreign(server) as client:
        await client.subscribe(topic, qos=1)

        async def answer() -> None:
            async for question in client.messages:
                assert question.properties is not None
                properties = Properties(PacketTypes.PUBLISH)
                properties.CorrelationData = question.properties.CorrelationData  # type: ignore[attr-defined]  # set
                where = question.properties.ResponseTopic  # type: ignore[attr-defined]  # paho sets it
                assert where.startswith("hw/replies/")
                await client.publish(where, str(int(bytes(question.payload)) * 2), properties=properties)  # type: ignore[arg-type]  # bytes

        answering = asyncio.create_task(answer())
        assert [(await broker.request(n, topic)).value for n in (1, 2)] == [2, 4]
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


async def test_plain_json_travels_bare_on_3_1_1(server: MosquittoServer, topic: str) -> None:
    async with (
        MqttBroker(server.url, protocol="3.1.1") as broker,
        foreign(server, protocol=aiomqtt.ProtocolVersion.V311) as client,
        reading(broker, topic, topic) as place,
    ):
        await client.subscribe(topic, qos=1)
        await broker.publish({"on": True}, topic)
        assert (await anext(aiter(client.messages))).payload == b'{"on":true}'
        await client.publish(topic, b'{"on":false}', qos=1)
        assert [message.value for message in await taken(place, 2)] == [{"on": True}, {"on": False}]


async def test_an_envelope_from_3_1_1_that_is_damaged_is_a_dead_letter(server: MosquittoServer, topic: str) -> None:
    app = App(topic, MqttBroker(server.url, protocol="3.1.1"))

    @app.subscriber(topic)
    async def handle(n: int) -> None:
        raise AssertionError("never called")

    async with app, foreign(server) as client, reading(app.broker, f"{topic}.dead", "dead") as dead:
        await client.publish(topic, b"\xc1hw1\x00\x00\x00\x09torn", qos=1)
        (letter,) = await taken(dead, 1)
    assert letter.headers["hw-reason"] == "undecodable"


# --- what the server refuses --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MosquittoServer]:
    """A server with a user, who may not do everything, nor send much."""
    require("mqtt")
    rules = tmp_path_factory.mktemp("mosquitto") / "rules"
    rules.write_text("user ann\ntopic readwrite open/#\ntopic read read/#\ntopic readwrite hw/#\n")
    extra = [f"acl_file {rules}", "max_packet_size 2000"]
    with MosquittoServer(user="ann", password="s3cret", extra=extra) as server:
        yield server


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_wrong_password_is_an_authentication_error_that_does_not_show_it(
    guarded: MosquittoServer, protocol: Any
) -> None:
    for url in (f"mqtt://ann:wr0ng@{guarded.address}", f"mqtt://{guarded.address}"):
        broker = MqttBroker(url, protocol=protocol)
        with pytest.raises(AuthenticationError) as caught:
            await broker.connect()
        assert guarded.address in str(caught.value)
        assert "wr0ng" not in str(caught.value) + repr(broker)
    async with MqttBroker(guarded.url, protocol=protocol) as broker:
        await broker.ping()


async def test_what_the_user_may_not_publish_or_read_is_an_authentication_error(guarded: MosquittoServer) -> None:
    async with MqttBroker(guarded.url) as broker:
        await broker.publish(1, "open.a")
        with pytest.raises(AuthenticationError, match=r"closed\.a"):
            await broker.publish(1, "closed.a")
        with pytest.raises(PublishError) as caught:
            await broker.publish_many([Outgoing(1, "open.a"), Outgoing(2, "closed.a"), Outgoing(3, "open.b")])
        assert [error is None for error in caught.value.errors] == [True, False, True]
        assert [receipt is None for receipt in caught.value.receipts] == [False, True, False]


@pytest.mark.parametrize(("protocol", "limit"), [("5.0", None), ("3.1.1", 2000), ("5.0", 1000)])
async def test_a_message_that_is_too_large_is_refused_and_the_connection_survives(
    guarded: MosquittoServer, protocol: Any, limit: int | None
) -> None:
    options: Any = {} if limit is None else {"max_packet_size": limit}
    async with MqttBroker(guarded.url, protocol=protocol, **options) as broker:
        with pytest.raises(MessageTooLargeError) as caught:
            await broker.publish(b"x" * 3000, "open.a")
        assert caught.value.limit == (limit or 2000)
        await broker.publish(b"x" * 500, "open.a")
        assert broker.engine.available


# --- what it cannot, and how it is asked for ----------------------------------------------------------


async def test_what_mqtt_cannot_do_is_refused(server: MosquittoServer, topic: str) -> None:
    async with MqttBroker(server.url) as broker:
        with pytest.raises(NotSupportedError, match="delay"):
            await broker.publish(1, topic, delay=1)
        with pytest.raises(NotSupportedError, match="partition"):
            await broker.publish(1, topic, partition=1)
        with pytest.raises(NotSupportedError, match="partitions"):
            await broker.declare([Topic(topic, partitions=8)])
        with pytest.raises(NotSupportedError, match="earliest"):
            await broker.get(topic, group="g")
        for group in ("a/b", "a+", ""):
            with pytest.raises(ConfigurationError, match="group"):
                await broker.engine.subscribe(Source(topics=(topic,), group=group), nothing_moves).__aenter__()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mqtt://h?colour=red", "colour"),
        ("mqtt://h?qos=3", "qos"),
        ("mqtt://h?protocol=4", "protocol"),
        ("mqtt://h:port", "no port"),
        ("mqtt://h/path", "path"),
        ("mqtt://h?ca=file", "mqtts"),
        ("mqtt://h?keepalive=0", "keepalive"),
    ],
)
def test_a_url_that_means_nothing_is_refused(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Broker(url)


def test_a_url_carries_hosts_credentials_and_options() -> None:
    broker: Any = Broker(
        "mqtts://a%40b:p%3Aw@one,two:1,[::1]:2?qos=2&protocol=3.1.1&map_separators=false&insecure=true"
    )
    settings = broker.engine.settings
    assert settings.servers == (("one", 8883), ("two", 1), ("::1", 2))
    assert (settings.username, settings.password) == ("a@b", "p:w")
    assert (settings.qos, settings.protocol, settings.map_separators, settings.insecure) == (2, "3.1.1", False, True)
    assert "p:w" not in settings.url
    assert "p%3Aw" not in settings.url
    same: Any = MqttBroker("mqtts://one", qos=2, connect_timeout=3)
    assert (same.engine.settings.qos, same.connect_timeout) == (2, 3)


async def test_the_next_server_is_taken_where_one_does_not_answer(server: MosquittoServer, topic: str) -> None:
    async with Proxy(server.port) as proxy:
        await proxy.refuse()
        async with MqttBroker(f"mqtt://{proxy.address},{server.address}") as broker:
            await broker.publish(1, topic)
        with pytest.raises(ConnectError, match=str(proxy.port)):
            await MqttBroker(f"mqtt://{proxy.address}").connect()


async def test_tls_is_trusted_by_its_authority_or_not_at_all(tmp_path: Path) -> None:
    require("mqtt")
    async with MosquittoServer(tls=True) as server:
        assert server.certificate is not None
        async with MqttBroker(server.url, ca=str(server.certificate.file)) as broker:
            await broker.publish(b"x" * 100_000, "t")
        async with MqttBroker(server.url, insecure=True) as broker:
            await broker.ping()
        with pytest.raises(ConnectError, match="certificate"):
            await MqttBroker(server.url).connect()
        with pytest.raises(ConnectError):
            await MqttBroker(server.url.replace("mqtts", "mqtt")).connect()
    with pytest.raises(ConfigurationError, match="certificates"):
        await MqttBroker(server.url, ca=str(tmp_path / "missing")).connect()


async def test_the_cluster_tells_its_version(server: MosquittoServer) -> None:
    async with MqttBroker(server.url) as broker:
        assert "mosquitto" in (await broker.admin.cluster.describe()).version
        with pytest.raises(NotSupportedError):
            await broker.admin.topics.list()


# --- sessions -----------------------------------------------------------------------------------------


async def test_what_was_saved_survives_a_crash_of_the_server(topic: str, caplog: pytest.LogCaptureFixture) -> None:
    require("mqtt")
    async with MosquittoServer() as server, MqttBroker(server.url) as broker:
        async with reading(broker, topic, topic):
            pass
        await broker.publish_many([Outgoing(n, topic) for n in range(5)])
        await server.save()
        await server.restart(kill=True)
        await until(lambda: broker.engine.available)
        async with reading(broker, topic, topic) as place:
            assert [message.value for message in await taken(place, 5)] == list(range(5))


async def test_a_session_that_the_server_forgot_is_reported(caplog: pytest.LogCaptureFixture, topic: str) -> None:
    require("mqtt")
    async with (
        MosquittoServer() as server,
        MqttBroker(server.url) as broker,
        reading(broker, topic, topic) as place,
    ):
        await server.restart(kill=True)
        await until(lambda: broker.engine.available)
        await broker.publish(1, topic)
        assert [message.value for message in await taken(place, 1)] == [1]
    assert f"forgot the subscription to $share/{topic}/{topic}" in caplog.text


async def test_a_reader_without_a_group_misses_nothing_over_a_cut(
    server: MosquittoServer, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headwater.mqtt")
    async with (
        Proxy(server.port) as proxy,
        MqttBroker(server.url) as other,
        MqttBroker(f"mqtt://{proxy.address}") as broker,
        broker.stream(topic) as stream,
    ):
        await other.publish(1, topic)
        assert (await anext(stream)).value == 1
        await proxy.refuse()
        await proxy.cut()
        await until(lambda: not broker.engine.available)
        await other.publish(2, topic)
        await proxy.accept()
        while (await asyncio.wait_for(anext(stream), 10)).value == 1:
            pass  # its acknowledgement was cut off
        await until(lambda: broker.engine.available)
    assert caplog.text.count("is away") == caplog.text.count("is back") == 1
