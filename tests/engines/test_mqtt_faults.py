"""What MQTT does when its server stops, dies, hangs, is cut off, is not there yet, or refuses us."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headwater import (
    App,
    AuthenticationError,
    ConnectError,
    DeliveryUnknownError,
    MqttBroker,
    NotSupportedError,
    Outgoing,
)
from headwater.testing.contract.tools import nothing_more, reading, taken
from servers.fixtures import require
from servers.mosquitto import MosquittoServer
from servers.process import free_ports
from servers.proxy import Proxy
from waiting import until

pytestmark = pytest.mark.server


@pytest.fixture
async def server() -> AsyncIterator[MosquittoServer]:
    """One that a test may mistreat."""
    require("mqtt")
    async with MosquittoServer() as server:
        yield server


@pytest.fixture
def topic() -> str:
    return f"t-{os.urandom(6).hex()}"


@pytest.fixture(autouse=True)
def hears(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headwater.mqtt")


def counting(app: App, topic: str) -> set[int]:
    """What the app will have handled."""
    got = set[int]()

    @app.subscriber(topic, concurrency=8)
    async def handle(n: int) -> None:
        await asyncio.sleep(0.001)
        got.add(n)

    return got


async def publish(app: App | MqttBroker, topic: str, n: int) -> None:
    """Publish a number, again and again until it is confirmed."""
    while True:
        try:
            await app.publish(n, topic, timeout=2)
            return
        except DeliveryUnknownError:
            pass


def resident() -> int:
    """Bytes of memory this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("options", [{}, {"protocol": "3.1.1"}, {"qos": 2}])
async def test_cut_connections_lose_nothing(server: MosquittoServer, topic: str, options: Any) -> None:
    async with Proxy(server.port) as proxy, MqttBroker(f"mqtt://{proxy.address}", **options) as other:
        app = App(topic, MqttBroker(f"mqtt://{proxy.address}", **options))
        got = counting(app, topic)
        async with app:
            publishing = asyncio.gather(*(publish(other, topic, n) for n in range(3000)))
            for count in (500, 1000, 1500, 2000):
                await until(lambda: len(got) > count, 20)  # noqa: B023
                await proxy.cut()
            await publishing
            await until(lambda: len(got) == 3000, 20)
            await until(lambda: app.is_ready)


@pytest.mark.parametrize("kill", [False, True])
async def test_an_app_goes_on_when_its_server_comes_back(
    server: MosquittoServer, topic: str, caplog: pytest.LogCaptureFixture, kill: bool
) -> None:
    app = App(topic, MqttBroker(server.url))
    got = counting(app, topic)
    async with app:
        await app.publish_many([Outgoing(n, topic) for n in range(100)])
        if kill:  # which loses what Mosquitto had not written down
            await until(lambda: len(got) == 100)
        await (server.kill() if kill else server.stop())
        await until(lambda: not app.is_ready, 2)
        with pytest.raises(DeliveryUnknownError):
            await app.publish(0, topic, timeout=0.2)
        await server.start()
        await until(lambda: app.is_ready, 10)
        await asyncio.gather(*(publish(app, topic, n) for n in range(100, 200)))
        await until(lambda: len(got) == 200)
    assert caplog.text.count("is away") == caplog.text.count("is back") == 1


async def test_a_publish_waits_for_a_server_that_comes_back_in_time(server: MosquittoServer, topic: str) -> None:
    async with MqttBroker(server.url) as broker:
        await server.stop()
        await until(lambda: not broker.engine.available, 2)
        publishing = asyncio.gather(*(broker.publish(n, topic, timeout=10) for n in range(100)))
        await server.start()
        assert len(await publishing) == 100


async def test_a_publish_that_was_given_up_while_the_server_was_away_is_not_sent_later(
    server: MosquittoServer, topic: str
) -> None:
    async with MqttBroker(server.url) as broker, reading(broker, topic, topic) as place:
        await server.stop()
        await until(lambda: not broker.engine.available, 2)
        with pytest.raises(DeliveryUnknownError):
            await broker.publish("given up", topic, timeout=0.1)
        with pytest.raises(DeliveryUnknownError):
            await broker.publish_many([Outgoing("given up", topic)] * 3, timeout=0.1)
        await server.start()
        await until(lambda: broker.engine.available, 10)
        await broker.publish("later", topic)
        assert [message.value for message in await taken(place, 1)] == ["later"]
        assert await nothing_more(place)


async def test_a_server_that_hangs_is_noticed_and_taken_back(
    server: MosquittoServer, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(topic, MqttBroker(server.url, keepalive=1.5))
    got = counting(app, topic)
    async with app:
        await publish(app, topic, 0)
        server.pause()
        started = time.monotonic()
        await until(lambda: not app.is_ready)
        assert time.monotonic() - started < 2
        with pytest.raises(ConnectError):
            await app.broker.ping()
        with pytest.raises(DeliveryUnknownError):
            await app.publish(1, topic, timeout=0.2)
        server.resume()
        await until(lambda: app.is_ready, 15)
        await publish(app, topic, 2)
        await until(lambda: {0, 2} <= got)
    assert caplog.text.count("is away") == caplog.text.count("is back") == 1


async def test_memory_does_not_grow_with_what_is_published_while_the_server_is_away(
    server: MosquittoServer, topic: str
) -> None:
    body = b"x" * 1024

    async def wave() -> None:
        outcomes = await asyncio.gather(
            *(broker.publish(bytes(body), topic, timeout=0.01) for _ in range(2000)), return_exceptions=True
        )
        assert all(isinstance(outcome, DeliveryUnknownError) for outcome in outcomes)

    async with MqttBroker(server.url) as broker:
        await server.stop()
        await until(lambda: not broker.engine.available, 2)
        for _ in range(5):
            await wave()
        before = resident()
        for _ in range(45):
            await wave()
        assert resident() - before < 20_000_000


async def test_an_app_waits_for_a_server_that_is_not_there_yet_and_says_so(
    topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    require("mqtt")
    server = MosquittoServer()
    app = App(topic, MqttBroker(server.url))
    got = counting(app, topic)
    starting = asyncio.create_task(app.start())
    await until(lambda: "waits for its broker" in caplog.text)
    assert not app.is_ready
    async with server:
        await asyncio.wait_for(starting, 20)
        await publish(app, topic, 1)
        await until(lambda: got == {1})
        await app.shutdown()
    assert server.address in caplog.text


async def test_an_app_that_starts_in_the_background_becomes_ready_once_the_server_is_there(topic: str) -> None:
    require("mqtt")
    server = MosquittoServer()
    app = App(topic, MqttBroker(server.url), startup="background")
    got = counting(app, topic)
    async with app:
        assert not app.is_ready
        async with server:
            await until(lambda: app.is_ready, 20)
            await publish(app, topic, 1)
            await until(lambda: got == {1})
            await app.shutdown()


async def test_a_server_that_is_not_there_is_a_connect_error_that_names_it() -> None:
    port = free_ports(1)[0]
    with pytest.raises(ConnectError, match=f"127.0.0.1:{port}"):
        await MqttBroker(f"mqtt://me:s3cret@127.0.0.1:{port}").connect()


async def test_wrong_credentials_end_the_start_of_an_app_at_once(topic: str) -> None:
    require("mqtt")
    async with MosquittoServer(user="ann", password="s3cret") as server:
        app = App(topic, MqttBroker(f"mqtt://ann:wr0ng@{server.address}"))
        counting(app, topic)
        with pytest.raises(AuthenticationError) as caught:
            await asyncio.wait_for(app.start(), 5)
    assert server.address in str(caught.value)
    assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x80\x80\x80\x80\x80", b"\x20\x00", b""])
async def test_a_server_that_does_not_speak_mqtt_is_a_connect_error(says: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(says)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectError):
            await MqttBroker(f"mqtt://127.0.0.1:{port}").connect()


async def test_a_subscription_waits_for_a_server_that_is_away(server: MosquittoServer, topic: str) -> None:
    async with MqttBroker(server.url) as broker:
        await server.stop()
        await until(lambda: not broker.engine.available, 2)
        entering = reading(broker, topic, topic)
        subscribing = asyncio.create_task(entering.__aenter__())
        await asyncio.sleep(0.2)
        await server.start()
        place = await asyncio.wait_for(subscribing, 10)
        await broker.publish(1, topic)
        assert [message.value for message in await taken(place, 1)] == [1]
        await entering.__aexit__(None, None, None)


@pytest.mark.parametrize(
    ("welcome", "granted", "error"),
    [
        (b"", 0x87, AuthenticationError),
        (b"", 0x9E, NotSupportedError),
        (b"\x2a\x00", 1, NotSupportedError),  # a property: no shared subscriptions
    ],
)
async def test_a_subscription_that_the_server_refuses_is_an_error(
    welcome: bytes, granted: int, error: type[Exception], topic: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while data := await reader.read(1000):
                if data[0] == 0x10:  # CONNECT
                    writer.write(bytes((0x20, 3 + len(welcome), 0, 0, len(welcome))) + welcome)
                if 0xE0 in data:  # DISCONNECT
                    break
                if b"$share" in data:
                    writer.write(bytes((0x90, 4, 0, 1, 0, granted)))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with MqttBroker(f"mqtt://127.0.0.1:{port}") as broker:
            with pytest.raises(error):
                await reading(broker, topic, topic).__aenter__()
