"""A Redis server that is stopped, killed, cut off or hung: nothing is lost, and everybody is told the truth."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from headwater import (
    App,
    AuthenticationError,
    Broker,
    ConnectError,
    DeliveryUnknownError,
    HeadwaterError,
    Outgoing,
    RedisBroker,
)
from servers.process import free_ports
from servers.proxy import Proxy
from servers.redis import RedisServer
from waiting import until

pytestmark = pytest.mark.server

Fault = Callable[["Shop"], Awaitable[None]]


class Shop:
    """A server of this test's own behind a network of its own, and an app on it that notes what it handled."""

    def __init__(self, server: RedisServer, network: Proxy) -> None:
        self.server, self.network = server, network
        self.handled: Counter[int] = Counter()
        self.app = App("shop", self.broker())

        @self.app.subscriber("orders", concurrency=8)
        async def handle(n: int) -> None:
            self.handled[n] += 1

    def broker(self) -> RedisBroker:
        return RedisBroker(f"redis://{self.network.address}", lease=5)


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with RedisServer() as server, Proxy(server.port) as network:
        yield Shop(server, network)


async def restarted(shop: Shop) -> None:
    await shop.server.restart()


async def killed(shop: Shop) -> None:
    await shop.server.restart(kill=True)


async def cut(shop: Shop) -> None:
    await shop.network.cut()


async def hung(shop: Shop) -> None:
    shop.server.pause()
    await until(lambda: not shop.app.is_ready, within=5)
    shop.server.resume()


@pytest.mark.parametrize("fault", [restarted, killed, cut, hung])
async def test_under_load_everything_that_was_accepted_is_handled(shop: Shop, fault: Fault) -> None:
    published = set[int]()
    stopping = False

    async def publish(first: int) -> None:
        number = first
        while not stopping:
            try:
                await shop.app.publish(number, "orders", timeout=2)
            except (DeliveryUnknownError, HeadwaterError):
                await asyncio.sleep(0.01)  # it may or may not be there: once more
            else:
                published.add(number)
                number += 4

    async with shop.app:
        publishers = [asyncio.create_task(publish(first)) for first in range(4)]
        for _ in range(2):
            count = len(published)
            await until(lambda: len(published) > count + 200, within=20)  # noqa: B023
            await fault(shop)
        count = len(published)
        await until(lambda: len(published) > count + 200, within=20)
        stopping = True
        await asyncio.gather(*publishers)
        await until(lambda: published <= set(shop.handled), within=20)
        await until(lambda: shop.app.is_ready, within=5)


async def test_a_server_that_goes_away_is_logged_once_and_once_when_it_is_back(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headwater.redis")
    async with shop.app:
        assert shop.app.is_ready
        await shop.server.stop()
        await until(lambda: not shop.app.is_ready, within=2)
        await asyncio.sleep(0.5)  # long enough for several tries
        await shop.server.start()
        await until(lambda: shop.app.is_ready, within=5)
        await shop.app.publish(1, "orders")
        await until(lambda: bool(shop.handled))
    said = [record.getMessage() for record in caplog.records if record.name == "headwater.redis"]
    assert len([text for text in said if "is away" in text]) == 1
    assert len([text for text in said if "is back" in text]) == 1


async def test_a_server_that_hangs_is_unavailable_within_two_seconds(shop: Shop) -> None:
    async with shop.broker() as broker:
        assert broker.engine.available
        shop.server.pause()
        await until(lambda: not broker.engine.available, within=2.5)
        with pytest.raises(ConnectError, match="no answer within"):
            await broker.ping()
        with pytest.raises(DeliveryUnknownError):
            await broker.publish(1, "orders", timeout=0.2)
        shop.server.resume()
        await until(lambda: broker.engine.available, within=2.5)
        await broker.ping()


async def test_a_network_that_swallows_everything_is_left_for_a_new_connection(shop: Shop) -> None:
    async with shop.app:
        shop.network.stall()
        await until(lambda: not shop.app.is_ready, within=3)
        await until(lambda: shop.network.connections > 3, within=10)  # it tries anew
        await shop.network.cut()
        shop.network.go_on()
        await until(lambda: shop.app.is_ready, within=5)
        await shop.app.publish(7, "orders")
        await until(lambda: shop.handled[7] > 0)


async def test_an_acknowledgement_that_did_not_get_through_is_repeated(shop: Shop) -> None:
    release = asyncio.Event()
    app = App("audit", shop.broker())
    seen: Counter[int] = Counter()

    @app.subscriber("orders", concurrency=10)
    async def handle(n: int) -> None:
        seen[n] += 1
        await release.wait()

    async with app:
        await app.publish_many([Outgoing(n, "orders") for n in range(10)])
        await until(lambda: len(seen) == 10)
        await shop.server.stop()
        release.set()
        await asyncio.sleep(0.2)  # they are done while nobody can be told
        await shop.server.start()
        await until(lambda: app.is_ready, within=5)
        await app.publish(10, "orders")
        await until(lambda: len(seen) == 11)
        await until(lambda: is_done(app))
    assert set(seen.values()) == {1}


async def is_done(app: App) -> bool:
    return (await app.admin.groups.lag(app.name, "orders")).total == 0


async def test_an_app_waits_for_its_server_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    server = RedisServer()
    app = App("shop", RedisBroker(server.url), startup="wait")
    starting = asyncio.create_task(app.start())
    try:
        await until(lambda: "waits for its broker" in caplog.text)
        assert str(server.port) in caplog.text
        assert not starting.done()
        await server.start()
        await asyncio.wait_for(starting, 10)
        assert app.is_ready
        await app.shutdown()
    finally:
        server.close()


async def test_an_app_starts_in_the_background_and_becomes_ready() -> None:
    server = RedisServer()
    app = App("shop", RedisBroker(server.url), startup="background")
    try:
        async with app:
            assert not app.is_ready
            await server.start()
            await until(lambda: app.is_ready, within=10)
            await app.publish(1, "orders")
    finally:
        server.close()


async def test_nobody_there_is_named_with_host_port_and_cause() -> None:
    (port,) = free_ports(1)
    with pytest.raises(ConnectError, match=rf"127\.0\.0\.1:{port}.*(refused|Connect call failed)"):
        await RedisBroker(f"redis://127.0.0.1:{port}").connect()


async def test_a_server_that_accepts_and_says_nothing_is_given_up(shop: Shop) -> None:
    shop.network.stall()
    with pytest.raises(ConnectError, match=f"{shop.network.port}.*no answer within"):
        await shop.broker().connect()


@pytest.mark.parametrize("who", ["", ":wrong@", "somebody:wrong@"])
async def test_wrong_credentials_are_told_at_once_without_the_password(who: str) -> None:
    async with RedisServer(password="right") as server:
        with pytest.raises(AuthenticationError) as raised:
            await Broker(f"redis://{who}{server.address}").connect()
        assert server.address in str(raised.value)
        assert "wrong" not in str(raised.value).replace("WRONGPASS", "")
        app = App("shop", f"redis://{who}{server.address}", startup_timeout=60)
        with pytest.raises(AuthenticationError):
            await asyncio.wait_for(app.start(), 3)


async def test_publishing_into_the_void_takes_no_memory(shop: Shop) -> None:
    async with shop.broker() as broker:
        await shop.server.stop()
        await until(lambda: not broker.engine.available)
        body, failed = b"x" * 1024, 0

        async def publish() -> None:
            nonlocal failed
            with pytest.raises(DeliveryUnknownError):
                await broker.publish(body, "orders", timeout=0.05)
            failed += 1

        await asyncio.gather(*(publish() for _ in range(5_000)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(19):
            await asyncio.gather(*(publish() for _ in range(5_000)))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert failed == 100_000
        assert grown < 20 * 1024  # KiB


async def test_publishing_to_a_server_that_hangs_takes_no_memory(shop: Shop) -> None:
    async with shop.broker() as broker:
        shop.server.pause()
        body, failed = b"x" * 1024, 0

        async def publish() -> None:
            nonlocal failed
            with pytest.raises(DeliveryUnknownError):
                await broker.publish(body, "orders", timeout=0.05)
            failed += 1

        await asyncio.gather(*(publish() for _ in range(5_000)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(9):
            await asyncio.gather(*(publish() for _ in range(5_000)))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert failed == 50_000
        assert grown < 20 * 1024  # KiB
        shop.server.resume()
