"""Kafka when the server stops, crashes or hangs, or the network fails: nothing is lost, everybody is told the truth."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headwater import (
    App,
    AuthenticationError,
    Broker,
    ConnectError,
    DeliveryUnknownError,
    HeadwaterError,
    KafkaBroker,
    Outgoing,
    Topic,
)
from headwater.testing.contract.tools import reading, settled, taken
from servers.kafka import KafkaServer
from servers.process import free_ports
from servers.proxy import Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.server]


@pytest.fixture
def server(kafka_server: KafkaServer) -> KafkaServer:
    return kafka_server


@pytest.fixture
def topic() -> str:
    return f"numbers-{os.urandom(4).hex()}"


@asynccontextmanager
async def behind_a_proxy() -> AsyncIterator[tuple[KafkaServer, Proxy]]:
    """A server all of whose clients come through a proxy, because it says so."""
    async with Proxy() as proxy, KafkaServer(advertise=proxy.port) as server:
        proxy.target = server.port
        yield server, proxy


class Numbers:
    """Publishes 0, 1, 2 ... each until it is accepted, to an app that notes what it handled."""

    def __init__(self, url: str, topic: str) -> None:
        self.app = App(f"shop-{topic}", KafkaBroker(url, partitions=4))
        self.topic = topic
        self.handled: list[int] = []
        self.accepted = 0
        self.stopping = False

        @self.app.subscriber(topic, concurrency=4)
        async def handle(n: int) -> None:
            self.handled.append(n)

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """In the end all that was accepted has been handled."""
        async with self.app, asyncio.timeout(100):  # groups come back slowly to a busy server
            publishing = asyncio.create_task(self._publish())
            await settled(lambda: len(self.handled) > 50)
            yield
            go_on = self.accepted + 50
            await settled(lambda: self.accepted > go_on)
            self.stopping = True
            await publishing
            await settled(lambda: len({*self.handled}) == self.accepted)

    async def _publish(self) -> None:
        while not self.stopping:
            try:
                await self.app.publish(self.accepted, self.topic, timeout=1)
                self.accepted += 1
            except HeadwaterError:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_nothing_is_lost_when_the_server_goes_away_under_load(
    server: KafkaServer, topic: str, caplog: pytest.LogCaptureFixture, kill: bool
) -> None:
    numbers = Numbers(server.url, topic)
    with caplog.at_level(logging.INFO, logger="headwater.kafka"):
        async with numbers.flowing():
            await (server.kill() if kill else server.stop())
            await settled(lambda: not numbers.app.is_ready, within=3)
            await server.start()
            await settled(lambda: numbers.app.is_ready)
    told = [(record.levelname, record.message) for record in caplog.records if server.address in record.message]
    levels = [level for level, _ in told]
    assert levels == ["WARNING", "INFO"] * (len(levels) // 2), told
    assert len(levels) <= 6, told  # a server that starts slowly may be gone again for a moment, but nothing is flooded


async def test_nothing_is_lost_when_connections_are_cut(topic: str) -> None:
    async with behind_a_proxy() as (_, proxy):
        numbers = Numbers(f"kafka://{proxy.address}", topic)
        async with numbers.flowing():
            for _ in range(3):
                await proxy.cut()
                go_on = numbers.accepted + 20
                await settled(lambda: numbers.accepted > go_on)  # noqa: B023


async def test_a_server_that_hangs_is_away_and_comes_back(server: KafkaServer, topic: str) -> None:
    app, got = App(f"shop-{topic}", server.url), list[int]()

    @app.subscriber(topic)
    async def handle(n: int) -> None:
        got.append(n)

    async with app:
        await app.publish(1, topic)
        server.pause()
        began = time.monotonic()
        with pytest.raises(DeliveryUnknownError):  # noqa: PT012 - the signal takes a moment to reach it
            while True:
                await app.publish(2, topic, timeout=0.3)
        await settled(lambda: not app.is_ready, within=4)
        assert time.monotonic() - began < 4
        server.resume()
        await settled(lambda: app.is_ready)
        await app.publish(4, topic)
        await settled(lambda: 4 in got)


async def test_publishing_into_the_void_takes_little_memory_and_fails(server: KafkaServer, topic: str) -> None:
    async with KafkaBroker(server.url, buffer_bytes=16 << 20, delivery_timeout=5) as broker:
        await broker.publish(b"", topic)
        await server.kill()
        await settled(lambda: not broker.engine.available)
        body, failed, before = os.urandom(1024), 0, resident()
        for _ in range(20):
            publishes = [broker.publish(body, topic, timeout=0.01) for _ in range(5000)]
            results = await asyncio.gather(*publishes, return_exceptions=True)
            failed += sum(isinstance(result, DeliveryUnknownError) for result in results)
        assert failed == 100_000
        assert resident() - before < 80 << 20
        await server.start()
        await broker.publish(b"", topic, timeout=20)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_one_who_gives_up_does_not_break_the_others(server: KafkaServer, topic: str) -> None:
    async with Broker(server.url) as broker:
        await broker.publish(0, topic)
        server.pause()
        others = [asyncio.create_task(broker.publish(n, topic, timeout=20)) for n in range(1, 6)]
        with pytest.raises(DeliveryUnknownError):
            await broker.publish(6, topic, timeout=0.2)
        server.resume()
        assert len({(await other).offset for other in others}) >= 1


async def test_nobody_there_is_an_error_at_once_that_says_where_and_why() -> None:
    (port,) = free_ports(1)
    began = time.monotonic()
    with pytest.raises(ConnectError, match=rf"127\.0\.0\.1:{port}.*refused"):
        await Broker(f"kafka://127.0.0.1:{port}").connect()
    assert time.monotonic() - began < 5


async def test_one_of_several_addresses_is_enough(server: KafkaServer, topic: str) -> None:
    (port,) = free_ports(1)
    async with Broker(f"kafka://127.0.0.1:{port},{server.address}") as broker:
        await broker.publish(1, topic)


async def test_a_wrong_password_is_an_error_at_once_that_does_not_show_it() -> None:
    async with KafkaServer(user="ann", password="right one") as server:
        async with Broker(server.url.replace(" ", "%20")) as broker:
            await broker.publish(1, "numbers")
        with pytest.raises(AuthenticationError, match=server.address) as refused:
            await Broker(f"kafka://ann:wrong-one@{server.address}").connect()
        assert "wrong-one" not in str(refused.value)
        with pytest.raises(ConnectError, match=server.address):
            await Broker(f"kafka://{server.address}", connect_timeout=3).connect()


async def test_an_app_waits_for_its_server_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    server = KafkaServer()
    app = App("shop", server.url, startup_timeout=40)
    with caplog.at_level(logging.INFO):
        starting = asyncio.create_task(app.start())
        await settled(lambda: server.address in caplog.text)
        assert not starting.done()
        async with server:
            await asyncio.wait_for(starting, 30)
            assert app.is_ready
            await app.shutdown()


async def test_an_app_in_the_background_becomes_ready_later() -> None:
    server, got = KafkaServer(), list[int]()
    app = App("shop", server.url, startup="background")

    @app.subscriber("numbers")
    async def handle(n: int) -> None:
        got.append(n)

    try:
        async with app:
            assert not app.is_ready
            await server.start()
            await settled(lambda: app.is_ready)
            await app.publish(1, "numbers")
            await settled(lambda: got == [1])
    finally:
        server.close()


async def test_acknowledgements_made_while_away_are_kept(topic: str) -> None:
    async with behind_a_proxy() as (_, proxy), Broker(f"kafka://{proxy.address}") as broker:
        await broker.declare([Topic(topic)])
        async with reading(broker, topic, "shop") as place:
            await broker.publish_many([Outgoing(n, topic) for n in range(10)])
            messages = await taken(place, 10)
            await proxy.refuse()
            await proxy.cut()
            await settled(lambda: not broker.engine.available)
            await place.ack(messages)
            await proxy.accept()
            await settled(lambda: broker.engine.available)

            async def done() -> bool:
                return (await broker.admin.groups.lag("shop", topic)).total == 0

            await settled(done)


async def test_a_reader_misses_and_doubles_nothing_over_cut_connections(topic: str) -> None:
    async with (
        behind_a_proxy() as (server, proxy),
        Broker(f"kafka://{server.open_address}") as publisher,
        Broker(f"kafka://{proxy.address}") as broker,
    ):
        await publisher.publish(0, topic)
        async with broker.stream(topic, start="earliest") as stream, asyncio.timeout(20):
            seen = [(await anext(stream)).value]
            for round_ in range(3):
                first = 1 + 500 * round_
                await publisher.publish_many([Outgoing(n, topic) for n in range(first, first + 500)])
                seen += [(await anext(stream)).value for _ in range(100)]
                await proxy.cut()
            seen += [(await anext(stream)).value for _ in range(1200)]
    assert seen == list(range(1501))


async def test_leaving_while_the_server_is_away_takes_a_moment_only(server: KafkaServer, topic: str) -> None:
    app, begun, go_on = App(f"shop-{topic}", server.url), asyncio.Event(), asyncio.Event()

    @app.subscriber(topic)
    async def handle(n: int) -> None:
        begun.set()
        await go_on.wait()

    async with app:
        await app.publish(1, topic)
        await begun.wait()
        await server.kill()
        await settled(lambda: not app.is_ready)
        go_on.set()
        began = time.monotonic()
    assert time.monotonic() - began < 15
