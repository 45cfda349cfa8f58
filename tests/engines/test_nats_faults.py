"""NATS when the server stops, crashes or hangs, or the network fails: nothing is lost, everybody is told the truth."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headwater import (
    App,
    Broker,
    DeliveryUnknownError,
    HeadwaterError,
    Message,
    Nats,
    Outgoing,
)
from headwater.engine import Source
from headwater.engines.nats import CoreEngine
from headwater.testing.contract.tools import reading, settled, taken
from servers.nats import NatsServer
from servers.process import free_ports
from servers.proxy import Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.server]

SCHEMES = ["nats", "nats+core"]


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    async with NatsServer() as server:
        yield server


@pytest.fixture
async def proxy(server: NatsServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.port) as proxy:
        yield proxy


class Numbers:
    """Publishes 0, 1, 2 ... each until it is accepted, to an app that notes what it handled."""

    def __init__(self, url: str) -> None:
        self.app = App("shop", f"{url}?lease=2")  # what was on its way when a connection broke comes again after that
        self.handled: list[int] = []
        self.accepted = 0
        self.stopping = False

        @self.app.subscriber("numbers", concurrency=4)
        async def handle(n: int) -> None:
            self.handled.append(n)

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """In the end all that was accepted has been handled."""
        async with self.app, asyncio.timeout(30):
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
                await self.app.publish(self.accepted, "numbers", timeout=1)
                self.accepted += 1
                await asyncio.sleep(0.001)
            except HeadwaterError:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_nothing_is_lost_when_the_server_goes_away_under_load(
    server: NatsServer, caplog: pytest.LogCaptureFixture, kill: bool
) -> None:
    numbers = Numbers(server.url)
    with caplog.at_level(logging.INFO, logger="headwater.nats"):
        async with numbers.flowing():
            for _ in range(2):
                await (server.kill() if kill else server.stop())
                await settled(lambda: not numbers.app.is_ready, within=3)
                await server.start()
                await settled(lambda: numbers.app.is_ready)
    told = [(record.levelname, record.message.split(":")[0]) for record in caplog.records if "127" in record.message]
    assert [level for level, _ in told] == ["WARNING", "INFO"] * 2


async def test_nothing_is_lost_when_connections_are_cut(server: NatsServer, proxy: Proxy) -> None:
    numbers = Numbers(f"nats://{proxy.address}")
    async with numbers.flowing():
        for _ in range(5):
            await proxy.cut()
            go_on = numbers.accepted + 20
            await settled(lambda: numbers.accepted > go_on)  # noqa: B023


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_server_that_hangs_is_away_and_comes_back(server: NatsServer, scheme: str) -> None:
    app, got = App("shop", f"{scheme}://{server.address}"), list[int]()

    @app.subscriber("numbers", dead_letter=False)
    async def handle(n: int) -> None:
        got.append(n)

    async with app:
        await app.publish(1, "numbers")
        server.pause()
        began = time.monotonic()
        with pytest.raises(DeliveryUnknownError):
            await _for_ever(lambda: app.publish(2, "numbers", timeout=0.3))  # the signal takes a moment to reach it
        await settled(lambda: not app.is_ready, within=3)
        assert time.monotonic() - began < 3
        with pytest.raises(DeliveryUnknownError):
            await app.publish(3, "numbers", timeout=0.3)
        server.resume()
        await settled(lambda: app.is_ready)
        await app.publish(4, "numbers")
        await settled(lambda: 4 in got)


async def test_a_publisher_of_much_to_a_hung_server_comes_back_too(server: NatsServer) -> None:
    async with Broker(server.url) as broker:
        await broker.publish(0, "numbers")
        server.pause()
        sends = [broker.publish(b"x" * 500_000, "numbers", timeout=1) for _ in range(40)]
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert all(isinstance(result, DeliveryUnknownError) for result in results)
        await settled(lambda: not broker.engine.available, within=3)
        server.resume()
        await settled(lambda: broker.engine.available)
        await broker.publish(1, "numbers")


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_publishing_into_the_void_takes_no_memory_and_fails(server: NatsServer, scheme: str) -> None:
    async with Broker(f"{scheme}://{server.address}") as broker:
        await broker.publish(b"", "numbers")
        await server.stop()
        await settled(lambda: not broker.engine.available)
        body, failed, before = os.urandom(1024), 0, resident()
        for _ in range(100):
            publishes = [broker.publish(body, "numbers", timeout=0.01) for _ in range(1000)]
            results = await asyncio.gather(*publishes, return_exceptions=True)
            failed += sum(isinstance(result, DeliveryUnknownError) for result in results)
        assert failed == 100_000
        assert resident() - before < 40 << 20


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_an_app_waits_for_its_server_and_says_so(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    server = NatsServer()
    app = App("shop", f"{scheme}://{server.address}", startup_timeout=20)
    with caplog.at_level(logging.INFO):
        starting = asyncio.create_task(app.start())
        await settled(lambda: server.address in caplog.text)
        assert not starting.done()
        async with server:
            await asyncio.wait_for(starting, 15)
            assert app.is_ready
            await app.shutdown()


async def test_an_app_in_the_background_becomes_ready_later() -> None:
    server, got = NatsServer(), list[int]()
    app = App("shop", server.url, startup="background")

    @app.subscriber("numbers")
    async def handle(n: int) -> None:
        got.append(n)

    async with app:
        assert not app.is_ready
        async with server:
            await settled(lambda: app.is_ready)
            await app.publish(1, "numbers")
            await settled(lambda: got == [1])


async def test_credentials_that_are_refused_later_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async with NatsServer(token="first") as server, Broker(server.url) as broker:
        await server.stop()
        path = server.folder / "nats.conf"
        path.write_text(path.read_text().replace('token: "first"', 'token: "second"'))
        await server.start()
        await settled(lambda: caplog.text.lower().count("authorization violation") == 1)
        path.write_text(path.read_text().replace('token: "second"', 'token: "first"'))
        await server.restart()
        await settled(lambda: broker.engine.available)
    assert caplog.text.lower().count("authorization violation") == 1
    assert "second" not in caplog.text


async def test_another_server_of_the_cluster_takes_over() -> None:
    ports = free_ports(2)
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    clustered = [f'cluster {{ name: c, listen: "127.0.0.1:{port}", routes: [{routes}] }}' for port in ports]
    first, second = (NatsServer(extra=[f"server_name: n{n}", line]) for n, line in enumerate(clustered))
    async with first, second, Broker(f"nats+core://{first.address}") as broker:
        engine = broker.engine
        assert isinstance(engine, CoreEngine)
        await settled(lambda: engine.connection.client and second.address in engine.connection.client.discovered)
        async with reading(broker, "numbers", "shop") as place:
            await first.kill()
            await settled(lambda: not broker.engine.available)
            await settled(lambda: broker.engine.available)
            await broker.publish(1, "numbers")
            assert [message.value for message in await taken(place, 1)] == [1]


async def test_acknowledgements_made_while_away_are_kept(server: NatsServer, proxy: Proxy) -> None:
    async with Broker(f"nats://{proxy.address}") as broker, reading(broker, "numbers", "shop") as place:
        await broker.publish_many([Outgoing(n, "numbers") for n in range(10)])
        messages = await taken(place, 10)
        await proxy.refuse()
        await proxy.cut()
        await settled(lambda: not broker.engine.available)
        await place.ack(messages)
        await proxy.accept()
        await settled(lambda: broker.engine.available)

        async def done() -> bool:
            return (await broker.admin.groups.lag("shop", "numbers")).total == 0

        await settled(done)


async def test_a_reader_misses_and_doubles_nothing_over_cut_connections(server: NatsServer, proxy: Proxy) -> None:
    async with Broker(server.url) as publisher, Broker(f"nats://{proxy.address}") as broker:
        await publisher.publish(0, "numbers")
        async with broker.stream("numbers", start="earliest") as stream, asyncio.timeout(20):
            seen = [(await anext(stream)).value]
            for round_ in range(5):
                first = 1 + 500 * round_
                await publisher.publish_many([Outgoing(n, "numbers") for n in range(first, first + 500)])
                seen += [(await anext(stream)).value for _ in range(100)]
                await proxy.cut()
            seen += [(await anext(stream)).value for _ in range(2000)]
    assert seen == list(range(2501))


async def test_core_nats_says_what_it_may_have_missed(
    server: NatsServer, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    async with Broker(f"nats+core://{proxy.address}") as broker, reading(broker, "numbers", "shop") as place:
        await proxy.cut()
        await settled(lambda: "is missed" in caplog.text)
        await broker.publish(1, "numbers")
        assert [message.value for message in await taken(place, 1)] == [1]


async def test_another_member_becomes_the_active_one_after_a_crash(
    server: NatsServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.engines.nats.consumers.PIN_FOR", 1.5)
    monkeypatch.setattr("headwater.engines.nats.pulling.EXPIRES_PINNED", 0.5)
    options = (Nats(lease=1.5),)
    source = Source(topics=("numbers",), group="shop", exclusive=True, options=options)
    async with (
        Broker(f"nats://{proxy.address}") as first,
        Broker(server.url) as second,
        first.engine.subscribe(source, _nothing_moves) as one,
    ):
        await second.publish(1, "numbers")
        await taken(one, 1)
        async with second.engine.subscribe(source, _nothing_moves) as two:
            await proxy.refuse()
            await proxy.cut()
            await second.publish(2, "numbers")
            assert sorted(message.value for message in await taken(two, 2, within=9)) == [1, 2]
            await proxy.accept()


async def test_a_message_that_kills_its_process_ends_as_a_dead_letter(server: NatsServer) -> None:
    async with Broker(server.url) as broker:
        await broker.publish("poison", "numbers")
        for _ in range(10):  # ten processes die over it: as many as may have only been handed it
            async with reading(broker, "numbers", "shop", start="earliest") as place:
                await taken(place, 1)
        app = App("shop", server.url)

        @app.subscriber("numbers")
        async def handle(body: str, message: Message) -> None:
            raise AssertionError("it is not handled again")

        async with app:

            async def letters() -> list[str]:
                return [letter.reason for letter in await app.admin.dead.list("numbers")]

            await settled(letters)
            assert await letters() == ["its process died each time it was handled"]


async def _for_ever(call: Callable[[], Awaitable[object]]) -> None:
    while True:
        await call()


async def _nothing_moves(_change: object) -> None: ...
